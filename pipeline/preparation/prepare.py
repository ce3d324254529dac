"""Check a whole data set and write it at one size."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pipeline.dsad import DataError, Source, scan_unlabelled
from pipeline.files import require_writable
from pipeline.prefetch import by_threads
from pipeline.preparation.indices import write_indices
from pipeline.preparation.pictures import Checked, Folders, Legends, Measure, check_and_write
from pipeline.preparation.problems import link_problems, problems_of, split_problems
from pipeline.preparation.scan import scan_all, surgeries_of
from pipeline.preparation.settings import PrepareSettings
from pipeline.preparation.warnings import Summary, summary
from pipeline.settings import UNLABELLED
from pipeline.surgeries import SPLITS

Progress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Examined:
    """A data set that was checked, whatever is wrong with it.

    Attributes:
        frames: those that can be used, in order.
        legends: of its label maps.
        problems: all that :func:`prepare` would refuse, one line each.
        summary: counts and warnings of the frames that can be used.
    """

    frames: list[Checked]
    legends: Legends
    problems: list[str]
    summary: Summary


def prepare(
    settings: PrepareSettings,
    output_frames: Path,
    output_labels: Path,
    workers: int = 1,
    progress: Progress | None = None,
) -> Summary:
    """Check a whole data set and write it at one size; nothing is replaced unless all is sound.

    Args:
        settings: what is prepared, and how.
        output_frames: folder of the frames; is replaced.
        output_labels: folder of the labels; is replaced.
        workers: threads that read, check and resize.
        progress: called with (done, total).

    Returns:
        Counts and warnings.

    Raises:
        DataError: everything that is wrong, together.
    """
    with _scratch(output_frames) as frames, _scratch(output_labels) as labels:
        folders = Folders(frames, labels)
        checked, legends, problems = _read(settings, folders, workers, progress)
        if problems:
            raise DataError(problems)
        beside = write_indices(checked, settings, folders, legends)
        _replace(frames, output_frames)
        _replace(labels, output_labels)
    return summary(checked, settings, beside)


def examine(
    settings: PrepareSettings,
    folder: Path,
    measure: Measure,
    workers: int = 1,
    progress: Progress | None = None,
) -> Examined:
    """Check a whole data set as :func:`prepare` does, and use what is sound of it.

    Args:
        settings: what is checked, and how.
        folder: an empty one. It gets ``frames``, with links to the data set's own files, and
            ``labels``, as :func:`prepare` writes them.
        measure: is called with each frame that can be read, from several threads.
        workers: threads that read, check and resize.
        progress: called with (done, total).

    Raises:
        DataError: a root is missing, is not a folder, or holds no folders.
    """
    folders = Folders(folder / "frames", folder / "labels", measure)
    checked, legends, problems = _read(settings, folders, workers, progress)
    usable = [frame for frame in checked if frame.usable]
    there = [each for each in settings.others if each.root.is_dir()]  # the others are problems
    settings = replace(settings, others=there)
    beside = write_indices(usable, settings, folders, legends)
    return Examined(usable, legends, problems, summary(checked, settings, beside))


def _read(
    settings: PrepareSettings, folders: Folders, workers: int, progress: Progress | None
) -> tuple[list[Checked], Legends, list[str]]:
    """All frames, read and written; the legends of their label maps; and all that is wrong."""
    sources, legends, problems = _scan(settings)
    work = partial(check_and_write, settings=settings, folders=folders, legends=legends)
    pictures = _pictures(sources)
    checked: list[Checked] = []
    # OpenCV releases the interpreter's lock, so threads do.
    for done, frames in enumerate(by_threads(work, pictures, workers), start=1):
        checked += frames
        if progress is not None:
            progress(done, len(pictures))
    return checked, legends, problems + problems_of(checked, settings)


def _scan(settings: PrepareSettings) -> tuple[list[Source], Legends, list[str]]:
    """All frames, the legends of their label maps, and what is wrong with the folders."""
    sources, legends, problems = scan_all(settings.data_sets, settings.anatomies, settings.named_by)
    problems += split_problems(settings.splits, surgeries_of(settings.data_sets))
    if settings.unlabelled_root is not None:
        unlabelled, wrong = scan_unlabelled(settings.unlabelled_root, settings.splits)
        sources += unlabelled
        problems += wrong
    if not settings.linked:
        problems += link_problems(sources)
    return sources, legends, problems


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """An empty folder in the output.

    The output may be a link or a mount point: what is beside it may be on another disk.
    """
    require_writable(output)
    folder = output / ".partial"
    # Of a killed run, also of an earlier version.
    for left in (folder, output.with_name(f".{output.name}.partial")):
        shutil.rmtree(left, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            output.rmdir()  # if it is empty


def _pictures(sources: Sequence[Source]) -> list[list[Source]]:
    """The sources of each file, which a label map gives once for each anatomy."""
    by_file: dict[Path, list[Source]] = {}
    for source in sources:
        key = source.image if source.value is not None else source.mask or source.image
        by_file.setdefault(key, []).append(source)
    return list(by_file.values())


def _replace(folder: Path, output: Path) -> None:
    """Put what was prepared in the output's place."""
    # Nothing new comes before all that was there has gone: a killed process leaves no mixture.
    for part in (*SPLITS, UNLABELLED):
        if (output / part).exists():
            shutil.rmtree(output / part)
    for path in sorted(folder.iterdir()):
        path.replace(output / path.name)
