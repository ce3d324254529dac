"""The prepared data set: checked frames and labels at one size, apart, by split and anatomy.

``<frames>/<split>/<anatomy>/<surgery>/<name>.png`` holds RGB frames, ``<labels>/...`` the masks of
0 and 255. Every ``<split>/<anatomy>`` folder of both holds an ``index.csv``, with or without
frames, so that a stage can depend on it. Beside the masks lie ``presence.csv``, which anatomies the
frames show, and complete label maps, ``<name>.map.png`` with their legend ``anatomies.txt``; each
only where it is known (:mod:`pipeline.labels`). Frames without a label lie in
``<frames>/unlabelled/<surgery>/<name>.png``, with an index of their own.

A picture that is labelled for several anatomies lies in the folder of each. Those of training are
named in ``<frames>/train/copies.csv``: there a picture is one frame with several labels.
"""

import csv
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, combinations, product
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.annotations import read_lines, read_presence, write_annotators, write_presence
from pipeline.data_sets import scan_all, surgeries_of
from pipeline.dsad import (
    DataError,
    DataSet,
    Source,
    linked_folders,
    other_anatomies,
    read_frame,
    read_mask,
    scan_unlabelled,
    unused,
)
from pipeline.errors import DamagedFileError, MissingFileError
from pipeline.files import require_writable
from pipeline.label_maps import (
    NAMED_BY,
    NO_LABEL,
    CheckedMap,
    Legend,
    check_map,
    has_label_maps,
    map_of,
    named_from_above,
)
from pipeline.settings import UNLABELLED, Splits
from pipeline.surgeries import SPLITS, Split

# Low effort: prepared frames are read far more often than written, and the size hardly changes
# above.
PNG = [cv2.IMWRITE_PNG_COMPRESSION, 3]
# A frame without a brighter pixel is suspicious (of 255): 12 bits kept in 16 reach 16.
DARK = 32
# The masks of an anatomy are suspicious if each covers more of its frame.
COVERED = 0.5
# Some are suspicious if more of them cover above this share than between the two shares: a large
# anatomy covers half of a frame more often than nearly all of it. The largest share in CamVid and
# CholecSeg8k is 60 %.
NEARLY_FULL = 0.8
LISTED = 20  # files that a warning names
# Share of the label maps that may show something else than their masks before none is believed.
WRONG = 0.5
MAP = ".map.png"
# In the file of a label, so that it can be looked at:
ANATOMY = 255
HIDDEN = 128  # not labelled
_LABELS = np.minimum(np.arange(256), 1).astype(np.uint8)
_LABELS[HIDDEN] = NO_LABEL
INDEX = "index.csv"
MAPPED = "maps.csv"  # the frames that have a map
LABELLED_BY_MAP = "labelled_by_map.csv"  # those of them that have no mask beside it
COPIES = "copies.csv"  # the frames that show what another one shows
LEGEND = "anatomies.txt"

Progress = Callable[[int, int], None]  # done, total

_S = TypeVar("_S")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Frame:
    """A prepared frame.

    Attributes:
        id: such as ``colon/04/image03``.
        anatomy: the one it is labelled for, or ``unlabelled``.
        surgery: its surgery's folder.
        image: RGB PNG.
        label: PNG of 0 and 255; absent for an unlabelled frame, and where only frames are used.
        shows: by anatomy, whether the frame shows it; without those of which nothing is known.
        map: PNG of its label map, or None.
        labelled_by_map: whether that is its label, and not beside a mask.
        legend: what the map's values 1, 2, ... mean.
        copies: the same picture, labelled for other anatomies.
    """

    id: str
    anatomy: str
    surgery: str
    image: Path
    label: Path
    shows: Mapping[str, bool] = field(default_factory=dict, hash=False)
    map: Path | None = None
    legend: tuple[str, ...] = ()
    copies: tuple["Frame", ...] = ()
    labelled_by_map: bool = False

    @property
    def labelled(self) -> bool:
        """Whether there is a label."""
        return self.anatomy != UNLABELLED

    @property
    def anatomies(self) -> tuple[str, ...]:
        """All that it is labelled for."""
        return tuple(each.anatomy for each in self.labels)

    @property
    def labels(self) -> tuple["Frame", ...]:
        """This one and its copies, each with the label of one anatomy; none without a label."""
        return (self, *self.copies) if self.labelled else ()


@dataclass(frozen=True)
class PrepareSettings:
    """What is prepared, and how.

    Attributes:
        root: folder in DSAD's layout, or of complete label maps (:mod:`pipeline.label_maps`).
        others: more data sets, each with a name, which have some of the anatomies.
        anatomies: its sub-data sets, in the order of the decoders.
        splits: surgery ids of validation and test.
        image_size: (height, width). Frames are resized bilinearly, labels by nearest-exact; the
            aspect is not kept.
        unlabelled_root: folder ``<surgery>/*.png`` of frames without masks, of training surgeries,
            or None.
        least_training: training frames that every anatomy needs: batch norm needs two.
        linked: whether folders of anatomies and surgeries may be links; what is behind them can
            change unnoticed.
        named_by: what names the anatomies, for messages.
    """

    root: Path
    anatomies: Sequence[str]
    splits: Splits
    image_size: tuple[int, int]
    others: Sequence[DataSet] = ()
    unlabelled_root: Path | None = None
    least_training: int = 2
    linked: bool = True
    named_by: str = NAMED_BY

    @property
    def data_sets(self) -> list[DataSet]:
        """All data sets."""
        return [DataSet(self.root), *self.others]


@dataclass(frozen=True)
class Summary:
    """What was prepared.

    Attributes:
        counts: number of masks by split and anatomy.
        pictures: number of different frames that have a mask, by split.
        unlabelled: number of frames without a label.
        warnings: what is legal and suspicious, one line each.
        files: those of them that are about single files: they may not be masks, or are left out.
    """

    counts: dict[str, dict[str, int]]
    pictures: dict[str, int]
    unlabelled: int
    warnings: list[str]
    files: list[str]


Measure = Callable[[NDArray[np.uint8]], object]  # of a frame (H, W, 3) RGB at full size


@dataclass(frozen=True)
class Checked:
    """One source after it was read, written and measured, or its problems.

    Attributes:
        source: which.
        split: of its surgery.
        digest: of the frame's pixels; empty if it cannot be read.
        size: (height, width) of the frame.
        dark: whether the frame is nearly black.
        foreground: pixels of the prepared label.
        covered: share of the mask that is foreground, in 0..1.
        odd: whether the mask holds values between 0 and full.
        map: the frame's complete label map, without its values, which are written; or None.
        measures: what else was measured of the frame; see :func:`examine`.
        problems: one line each.
    """

    source: Source
    split: Split
    digest: str = ""
    size: tuple[int, int] = (0, 0)
    dark: bool = False
    foreground: int = 0
    covered: float = 0.0
    odd: bool = False
    map: CheckedMap | None = None
    measures: object = None
    problems: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether the frame was read, and its mask if it has one."""
        return self.size != (0, 0)


Legends = Mapping[DataSet, Legend]


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


@dataclass(frozen=True)
class _Folders:
    """Where frames and labels are written.

    Attributes:
        frames, labels: folders.
        measure: what is measured of each frame. Then only links to the data set's own frames are
            written, at their own size.
    """

    frames: Path
    labels: Path
    measure: Measure | None = None

    def measured(self, frame: NDArray[np.uint8]) -> object:
        """What is measured of a frame (H, W, 3), if anything."""
        return None if self.measure is None else self.measure(frame)


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
        folders = _Folders(frames, labels)
        checked, legends, problems = _read(settings, folders, workers, progress)
        if problems:
            raise DataError(problems)
        beside = _write(checked, settings, folders, legends)
        _replace(frames, output_frames)
        _replace(labels, output_labels)
    return _summary(checked, settings, beside)


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
    folders = _Folders(folder / "frames", folder / "labels", measure)
    checked, legends, problems = _read(settings, folders, workers, progress)
    usable = [frame for frame in checked if frame.usable]
    there = [each for each in settings.others if each.root.is_dir()]  # the others are problems
    settings = replace(settings, others=there)
    beside = _write(usable, settings, folders, legends)
    return Examined(usable, legends, problems, _summary(checked, settings, beside))


def _read(
    settings: PrepareSettings, folders: _Folders, workers: int, progress: Progress | None
) -> tuple[list[Checked], Legends, list[str]]:
    """All frames, read and written; the legends of their label maps; and all that is wrong."""
    sources, legends, problems = _scan(settings)
    work = partial(_check_and_write, settings=settings, folders=folders, legends=legends)
    checked = list(chain.from_iterable(in_threads(work, _pictures(sources), workers, progress)))
    return checked, legends, problems + _check(checked, settings)


def _scan(settings: PrepareSettings) -> tuple[list[Source], Legends, list[str]]:
    """All frames, the legends of their label maps, and what is wrong with the folders."""
    sources, legends, problems = scan_all(settings.data_sets, settings.anatomies, settings.named_by)
    problems += _split_problems(settings.splits, surgeries_of(settings.data_sets))
    if settings.unlabelled_root is not None:
        unlabelled, wrong = scan_unlabelled(settings.unlabelled_root, settings.splits)
        sources += unlabelled
        problems += wrong
    if not settings.linked:
        problems += _link_problems(sources)
    return sources, legends, problems


def _split_problems(splits: Splits, surgeries: Mapping[str | int, str]) -> list[str]:
    names = ", ".join(surgeries.values())
    ids = [*product(("val",), splits.val), *product(("test",), splits.test)]
    return [
        f"data.splits.{part}: no anatomy has a folder of surgery {surgery}; there: {names}"
        for part, surgery in ids
        if surgery not in surgeries
    ]


def _link_problems(sources: Sequence[Source]) -> list[str]:
    return [
        f"{folder} is a link to a folder, so that changes behind it would not be seen: put the "
        "folder itself there, or one of links to its files "
        f"(cp -rs {folder.resolve()} FOLDER), or mount it (mount --bind)"
        for folder in linked_folders(sources)
    ]


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


def in_threads(
    work: Callable[[_S], _T],
    items: Sequence[_S],
    workers: int,
    progress: Progress | None = None,
) -> list[_T]:
    """The results of some work, in order. OpenCV releases the interpreter's lock, so threads do.

    Args:
        work: on one item.
        items: all of them.
        workers: threads.
        progress: called with (done, total).
    """
    results: list[_T] = []
    with ThreadPoolExecutor(workers) as pool:
        for result in pool.map(work, items):
            results.append(result)
            if progress is not None:
                progress(len(results), len(items))
    return results


def _check_and_write(
    sources: Sequence[Source], *, settings: PrepareSettings, folders: _Folders, legends: Legends
) -> list[Checked]:
    """Read, check, resize and write one picture and its labels."""
    data_set = sources[0].data_set
    legend = None if data_set is None else legends[data_set]
    if legend is None:
        return [_checked_alone(sources[0], settings, folders)]
    if sources[0].value is None:
        return [_checked_mask(sources[0], settings, folders, legend)]
    return _checked_map(sources, settings, folders, legend)


def _checked_map(
    sources: Sequence[Source], settings: PrepareSettings, folders: _Folders, legend: Legend
) -> list[Checked]:
    """A picture with a label map, as a frame of each anatomy that the map names."""
    frame, problems = _try(read_frame, sources[0].image)
    split = settings.splits.of(sources[0].surgery)
    checked = Checked(sources[0], split, _pixel_digest(frame), problems=problems)
    if frame is None:
        return [checked]
    size = (frame.shape[0], frame.shape[1])
    complete, map_problems = _try(partial(map_of, legend=legend, size=size), sources[0])
    if complete is None:
        return [replace(checked, problems=map_problems)]
    values = _resized(complete.values, settings.image_size)
    first, *others = (_place_in(split, source) for source in sources)
    _write_frame(first, frame, sources[0], settings, folders)
    _write_png(folders.labels / first.with_suffix(MAP), values)
    for place in others:
        _link(folders.frames / first, folders.frames / place)
        _link(folders.labels / first.with_suffix(MAP), folders.labels / place.with_suffix(MAP))
    for place, source in zip((first, *others), sources, strict=True):
        _write_png(folders.labels / place, _label_in(values, source))
    measures = folders.measured(frame)
    checked = replace(checked, size=size, map=_without_values(complete), measures=measures)
    return [
        replace(
            checked,
            source=source,
            dark=source is sources[0] and is_dark(frame),
            foreground=int((values == source.value).sum()),
            covered=float((complete.values == source.value).mean()),
        )
        for source in sources
    ]


def _label_in(values: NDArray[np.uint8], source: Source) -> NDArray[np.uint8]:
    """The label file of one anatomy, of a label map."""
    label = (values == source.value).astype(np.uint8) * np.uint8(ANATOMY)
    label[values == NO_LABEL] = HIDDEN
    return label


def _place_in(split: Split, source: Source) -> Path:
    return Path(split) / source.anatomy / source.surgery / f"{source.name}.png"


def _link(file: Path, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, copy, follow_symlinks=False)
    except OSError:  # a disk without hard links
        shutil.copyfile(file, copy, follow_symlinks=False)


def _checked_mask(
    source: Source, settings: PrepareSettings, folders: _Folders, legend: Legend
) -> Checked:
    """A frame and its mask."""
    frame, problems = _try(read_frame, source.image)
    checked = Checked(
        source, settings.splits.of(source.surgery), _pixel_digest(frame), problems=problems
    )
    assert source.mask is not None
    read, mask_problems = _try(read_mask, source.mask)
    if frame is None or read is None:
        return replace(checked, problems=problems + mask_problems)
    mask, odd = read
    if frame.shape[:2] != mask.shape:
        sizes = " and ".join(f"{w}x{h}" for h, w in (frame.shape[:2], mask.shape))
        problem = f"{source.image}: frame and mask have different sizes, {sizes}"
        return replace(checked, problems=(problem,))
    complete, map_problems = _try(partial(check_map, mask=mask, legend=legend), source)
    place = _place_in(checked.split, source)
    label = _resized(mask.astype(np.uint8), settings.image_size)
    _write_frame(place, frame, source, settings, folders)
    _write_png(folders.labels / place, label * np.uint8(ANATOMY))
    if complete is not None:
        values = _resized(complete.values, settings.image_size)
        _write_png(folders.labels / place.with_suffix(MAP), values)
        complete = _without_values(complete)
    return replace(
        checked,
        size=frame.shape[:2],
        dark=is_dark(frame),
        foreground=int(label.sum()),
        covered=float(mask.mean()),
        odd=odd,
        map=complete,
        measures=folders.measured(frame),
        problems=map_problems,
    )


def _without_values(complete: CheckedMap) -> CheckedMap:
    """The same map; the values of all maps would fill the memory."""
    return replace(complete, values=np.empty((0, 0), np.uint8))


def _try(read: Callable[[_S], _T], path: _S) -> tuple[_T | None, tuple[str, ...]]:
    """What was read, or None and the problems.

    A damaged frame must not hide that its mask is damaged too.
    """
    try:
        return read(path), ()
    except DataError as error:
        return None, error.problems


def _pixel_digest(frame: NDArray[np.uint8] | None) -> str:
    if frame is None:
        return ""
    return hashlib.sha256(repr(frame.shape).encode() + frame.tobytes()).hexdigest()


def _checked_alone(source: Source, settings: PrepareSettings, folders: _Folders) -> Checked:
    """A frame without a mask."""
    frame, problems = _try(read_frame, source.image)
    split = settings.splits.of(source.surgery)
    if frame is None:
        named = tuple(f"data.unlabelled_root: {problem}" for problem in problems)
        return Checked(source, split, problems=named)
    place = Path(UNLABELLED) / source.surgery / f"{source.name}.png"
    _write_frame(place, frame, source, settings, folders)
    digest = _pixel_digest(frame)
    measures = folders.measured(frame)
    return Checked(source, split, digest, frame.shape[:2], is_dark(frame), measures=measures)


def is_dark(frame: NDArray[np.uint8]) -> bool:
    """Whether a frame (H, W, 3) is nearly black."""
    return bool(frame.max() < DARK)


def _resized(values: NDArray[np.uint8], image_size: tuple[int, int]) -> NDArray[np.uint8]:
    """Labels (H, W) at another size, without new values between them."""
    resized = cv2.resize(values, image_size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(resized, np.uint8)


def _write_frame(
    place: Path,
    frame: NDArray[np.uint8],
    source: Source,
    settings: PrepareSettings,
    folders: _Folders,
) -> None:
    """Write a frame at the prepared size, or a link to its file."""
    path = folders.frames / place
    if folders.measure is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(source.image.resolve())
        return
    size = settings.image_size[::-1]
    _write_png(path, cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)[..., ::-1])


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _, encoded = cv2.imencode(".png", pixels, PNG)
    path.write_bytes(encoded.tobytes())


def _check(checked: Sequence[Checked], settings: PrepareSettings) -> list[str]:
    """What is wrong with single files, and with all of them together."""
    problems: list[str] = []
    for frame in checked:
        problems += frame.problems
    return problems + _leaks(checked) + _too_few(checked, settings) + _foreign_maps(checked)


def _leaks(checked: Sequence[Checked]) -> list[str]:
    """The same pixels in two splits; within one, a frame may stand in several sub-data sets."""
    first_with: dict[str, Checked] = {}
    problems = []
    for frame in checked:
        if not frame.digest:
            continue
        first = first_with.setdefault(frame.digest, frame)
        if first.split != frame.split:
            files = f"{first.source.image} ({first.split}) and {frame.source.image} ({frame.split})"
            problems.append(f"{files} are the same frame in two splits")
    return list(dict.fromkeys(problems))


def _too_few(checked: Sequence[Checked], settings: PrepareSettings) -> list[str]:
    """Anatomies that are there and cannot be trained."""
    training = Counter(frame.source.anatomy for frame in checked if frame.split == "train")
    found = {frame.source.anatomy for frame in checked}
    problems = []
    for anatomy in dict.fromkeys(settings.anatomies):
        frames = training[anatomy]
        is_there = (settings.root / anatomy).is_dir() or anatomy in found
        if is_there and frames < settings.least_training:
            problems.append(
                f"{anatomy}: {frames or 'no'} training frame{'s' * (frames != 1)}, at least "
                f"{settings.least_training} are needed"
            )
    return problems


def _foreign_maps(checked: Sequence[Checked]) -> list[str]:
    """Complete label maps that show something else than the masks of the same frames."""
    maps = [frame.map for frame in checked if frame.map is not None]
    wrong = [each for each in maps if not each.agrees]
    if len(wrong) <= WRONG * len(maps):
        return []
    return [
        f"{wrong[0].path} and {len(wrong) - 1} more of {len(maps)} label maps show another anatomy "
        "where the masks of their frames show theirs: are the lines of anatomies.txt in the order "
        "of the values?"
    ]


def _write(
    checked: Sequence[Checked], settings: PrepareSettings, folders: _Folders, legends: Legends
) -> list[str]:
    """Write the indices, and what is known beside the masks.

    Returns:
        Warnings.
    """
    for split, anatomy in product(SPLITS, settings.anatomies):
        frames = _those_of(checked, split, anatomy)
        _write_frame_index(frames, folders.frames / split / anatomy)
        _write_label_index(frames, folders.labels / split / anatomy)
    _write_copies(checked, folders.frames / "train")
    unlabelled = [frame for frame in checked if frame.source.mask is None]
    _write_frame_index(unlabelled, folders.frames / UNLABELLED)
    warnings: list[str] = []
    contradictions: list[str] = []
    for split, anatomy in product(SPLITS, settings.anatomies):
        frames = _those_of(checked, split, anatomy)
        of_folder, contradicted = _write_beside(frames, folders.labels / split / anatomy, legends)
        warnings += of_folder
        contradictions += contradicted
    for anatomy in settings.anatomies:
        masks = _with_masks(_those_of(checked, "test", anatomy))
        sources = [frame.source for frame in masks]
        warnings += write_annotators(
            sources, folders.labels / "test" / anatomy, settings.image_size
        )
    return [
        *warnings,
        *_together(contradictions, "weak label{} contradicted by what is drawn, which is believed"),
        *_together(
            _contradicted(checked),
            "label map{} not as the mask; where they differ nothing is known",
        ),
        *_together(
            _overlapping(checked, folders),
            "picture{} in masks of several anatomies that overlap; there nothing is known",
        ),
    ]


def _with_masks(checked: Sequence[Checked]) -> list[Checked]:
    """Those with a mask of one anatomy, and not a label map of many."""
    return [f for f in checked if f.source.mask is not None and f.source.value is None]


def _write_copies(checked: Sequence[Checked], folder: Path) -> None:
    """Write which training frames of several anatomies show the same picture, if some do."""
    training = [frame for frame in checked if frame.split == "train"]
    rows = [(copy, first) for copy, first in firsts(training).items() if copy != first]
    if rows:
        _write_table(folder / COPIES, ("frame", "copy_of"), rows)


def firsts(checked: Sequence[Checked]) -> dict[str, str]:
    """Of each labelled frame, by its id, the first one in its split that shows the same picture.

    A picture that an anatomy has twice is two frames.
    """
    first_with: dict[tuple[str, str, int], str] = {}
    times: Counter[tuple[str, str, str]] = Counter()
    found = {}
    for frame in checked:
        if frame.source.mask is None:
            continue
        key = (frame.split, frame.digest, frame.source.anatomy)
        copy = (frame.split, frame.digest, times[key])
        times[key] += 1
        found[frame.source.id] = first_with.setdefault(copy, frame.source.id)
    return found


def _write_beside(
    checked: Sequence[Checked], folder: Path, legends: Legends
) -> tuple[list[str], list[str]]:
    """Write which frames of one anatomy have a map, and what they show.

    Returns:
        Warnings, and where weak labels are contradicted.
    """
    maps = {frame.source: frame.map for frame in checked if frame.map is not None}
    if maps:
        _write_mapped(list(maps), folder, legends)
    shown = {source: each.shows for source, each in maps.items()}
    return write_presence([frame.source for frame in checked], shown, folder)


def _write_mapped(sources: Sequence[Source], folder: Path, legends: Legends) -> None:
    """Write which frames of one anatomy have a map, and what its values mean."""
    for data_set in dict.fromkeys(source.data_set for source in sources):
        assert data_set is not None
        lines = "".join(f"{name}\n" for name in legends[data_set].names)
        _legend_file(folder, data_set.name).write_text(lines)
    _write_table(folder / MAPPED, ("frame",), [(_place(source),) for source in sources])
    alone = [(_place(source),) for source in sources if source.value is not None]
    if alone:
        _write_table(folder / LABELLED_BY_MAP, ("frame",), alone)


def _legend_file(folder: Path, data_set: str) -> Path:
    """The legend of the maps of one data set."""
    return folder / (f"anatomies.{data_set}.txt" if data_set else LEGEND)


def _contradicted(checked: Sequence[Checked]) -> list[str]:
    return [
        f"{frame.map.path}: differs from {frame.source.mask} in {frame.map.contradicted:.2%} of "
        "the pixels"
        for frame in checked
        if frame.map is not None and frame.map.contradicted
    ]


def _overlapping(checked: Sequence[Checked], folders: _Folders) -> list[str]:
    """Pictures that lie in several folders, whose labels there claim the same pixels."""
    first_of = firsts(checked)
    pictures: dict[str, list[Checked]] = {}
    for frame in checked:
        if frame.source.id in first_of:
            pictures.setdefault(first_of[frame.source.id], []).append(frame)
    pairs = chain.from_iterable(combinations(copies, 2) for copies in pictures.values())
    return [
        f"{one.source.mask} and {other.source.mask}: overlap in {share:.2%} of the pixels"
        for one, other in pairs
        if (share := _overlap(one, other, folders))
    ]


def _overlap(one: Checked, other: Checked, folders: _Folders) -> float:
    """The share of pixels that labels of two anatomies both claim, each of its own file."""
    if one.source.image == other.source.image or one.source.anatomy == other.source.anatomy:
        return 0.0
    labels = [load_label(folders.labels / _place_in(f.split, f.source)) for f in (one, other)]
    return float(((labels[0] == 1) & (labels[1] == 1)).mean())


def _those_of(checked: Sequence[Checked], split: Split, anatomy: str) -> list[Checked]:
    return [frame for frame in checked if (frame.split, frame.source.anatomy) == (split, anatomy)]


def _write_frame_index(checked: Sequence[Checked], folder: Path) -> None:
    rows = [(_place(frame.source), *frame.size) for frame in checked]
    _write_index(folder, ("frame", "height", "width"), rows)


def _write_label_index(checked: Sequence[Checked], folder: Path) -> None:
    rows = [(_place(frame.source), frame.foreground) for frame in checked]
    _write_index(folder, ("frame", "foreground"), rows)


def _place(source: Source) -> str:
    return f"{source.surgery}/{source.name}"


def _write_index(folder: Path, header: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write_table(folder / INDEX, header, rows)


def _write_table(path: Path, header: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _replace(folder: Path, output: Path) -> None:
    """Put what was prepared in the output's place."""
    # Nothing new comes before all that was there has gone: a killed process leaves no mixture.
    for part in (*SPLITS, UNLABELLED):
        if (output / part).exists():
            shutil.rmtree(output / part)
    for path in sorted(folder.iterdir()):
        path.replace(output / path.name)


def _summary(
    checked: Sequence[Checked], settings: PrepareSettings, beside: Sequence[str]
) -> Summary:
    """What was prepared; ``beside`` are the warnings of what lies beside the masks."""
    anatomies = settings.anatomies
    sources = [frame.source for frame in checked]
    checked = [frame for frame in checked if frame.usable]
    labelled = [frame for frame in checked if frame.source.mask is not None]
    counts = {str(split): _counted(labelled, split, anatomies) for split in SPLITS}
    pictures = {str(split): _pictures_of(labelled, split) for split in SPLITS}
    files = [
        *_odd_files(checked, _with_masks(labelled), anatomies),
        *_unused(settings, sources),
        *beside,
    ]
    warnings = [
        *_without_frames(counts["val"], "no val frames, its last epoch is kept"),
        *_without_frames(
            counts["test"], "no test frames, it has no result and is left out of the mean"
        ),
        *_without_foreground(_with_masks(labelled)),
        *files,
        *_other_folders(settings, sources),
        *named_from_above(settings.data_sets),
    ]
    return Summary(counts, pictures, len(checked) - len(labelled), warnings, files)


def _unused(settings: PrepareSettings, sources: Sequence[Source]) -> list[str]:
    warnings: list[str] = []
    for data_set in settings.data_sets:
        unlabelled = None if data_set.name else settings.unlabelled_root
        names = [source.image.parents[1].name for source in sources if source.data_set == data_set]
        here = [s for s in sources if s.data_set == data_set or (s.mask is None and unlabelled)]
        there = list(dict.fromkeys([*names, *([] if data_set.name else settings.anatomies)]))
        warnings += unused(data_set.root, there, unlabelled, here)
    return warnings


def _other_folders(settings: PrepareSettings, sources: Sequence[Source]) -> list[str]:
    """Warnings of folders of anatomies that are not used."""
    warnings: list[str] = []
    for data_set in settings.data_sets:
        if not has_label_maps(data_set.root):
            theirs = {s.image.parents[1].name for s in sources if s.data_set == data_set}
            names = [*settings.anatomies, *theirs]
            warnings += other_anatomies(data_set.root, names, settings.unlabelled_root)
    return warnings


def _counted(labelled: Sequence[Checked], split: Split, anatomies: Sequence[str]) -> dict[str, int]:
    frames = Counter(frame.source.anatomy for frame in labelled if frame.split == split)
    return {anatomy: frames[anatomy] for anatomy in anatomies}


def _pictures_of(labelled: Sequence[Checked], split: Split) -> int:
    return len({frame.digest for frame in labelled if frame.split == split})


def _without_frames(counts: Mapping[str, int], consequence: str) -> list[str]:
    return [f"{anatomy}: {consequence}" for anatomy, frames in counts.items() if not frames]


def _without_foreground(labelled: Sequence[Checked]) -> list[str]:
    empty = [frame for frame in labelled if not frame.covered]
    vanished = [frame for frame in labelled if frame.covered and not frame.foreground]
    return [
        *_masks_that(empty, "empty, so that the frame teaches only background"),
        *_masks_that(
            vanished, "too thin for data.image_size: nothing of the anatomy is left in it"
        ),
    ]


def _odd_files(
    checked: Sequence[Checked], labelled: Sequence[Checked], anatomies: Sequence[str]
) -> list[str]:
    """Warnings of single files that may not be masks, or not frames."""
    odd = [frame for frame in checked if frame.odd]
    return [
        *_masks_that(odd, "not only 0 and 255; all above 0 is foreground"),
        *_full_or_inverted(labelled, anatomies),
        *_dark([frame for frame in checked if frame.dark]),
    ]


def _masks_that(checked: Sequence[Checked], are: str) -> list[str]:
    return _together([str(frame.source.mask) for frame in checked], f"mask{{}} {are}")


def _together(lines: Sequence[str], title: str) -> list[str]:
    """One warning for all of a kind, with their number first: many would hide the others.

    Args:
        lines: one for each.
        title: what they are; ``{}`` becomes " is" or "s are".
    """
    if not lines:
        return []
    count = f"{len(lines)} {title.format('s are' if len(lines) > 1 else ' is')}:"
    more = [f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return ["\n  ".join([count, *lines[:LISTED], *more])]


def _full_or_inverted(labelled: Sequence[Checked], anatomies: Sequence[str]) -> list[str]:
    """Masks that cover the whole frame, and those that look as if black meant the anatomy.

    The latter are all masks of an anatomy, or some of them, that cover most of the frame.
    """
    full = [frame for frame in labelled if frame.covered == 1]
    warnings = _masks_that(full, "full: the anatomy covers the whole frame")
    some_inverted: list[Checked] = []
    for anatomy in anatomies:
        masks = [frame for frame in labelled if frame.source.anatomy == anatomy]
        least = min((frame.covered for frame in masks), default=1)
        if COVERED < least < 1:
            warnings.append(
                f"{anatomy}: it covers {least:.0%} of the frame or more in each of {len(masks)} "
                f"masks (suspicious above {COVERED:.0%}): are black and white exchanged? The "
                "anatomy must be white"
            )
        elif least <= COVERED:
            some_inverted += _nearly_full(masks)
    unlike = f"more than {NEARLY_FULL:.0%} white, unlike other masks of the anatomy"
    return warnings + _masks_that(
        some_inverted, f"{unlike}: are black and white exchanged? The anatomy must be white"
    )


def _nearly_full(masks: Sequence[Checked]) -> list[Checked]:
    """An anatomy's masks that cover nearly all of the frame, unless others lead over to them."""
    above = [frame for frame in masks if NEARLY_FULL < frame.covered < 1]
    between = [frame for frame in masks if COVERED < frame.covered <= NEARLY_FULL]
    return above if len(above) > len(between) else []


def _dark(checked: Sequence[Checked]) -> list[str]:
    if not checked:
        return []
    frames = f"{len(checked)} frame{'s are' if len(checked) > 1 else ' is'} nearly black"
    return [
        f"{frames}, without a pixel of {DARK} or more of 255 ({checked[0].source.image} first): a "
        "file of 16 bits may hold values of 10 or 12 bits, which must be scaled to 16"
    ]


def list_frames(
    frames_root: Path, labels_root: Path, split: str, anatomies: Sequence[str]
) -> list[Frame]:
    """The prepared frames of a split, anatomy by anatomy in the given order.

    In training a picture that several of these anatomies label comes once, where the first does.

    Raises:
        MissingFileError: of an index, or a frame that it lists.
    """
    frames: list[Frame] = []
    for anatomy in anatomies:
        folder = Path(split) / anatomy
        frames += _listed(frames_root / folder, labels_root / folder, anatomy)
    return _merged(frames, _read_copies(frames_root / split / COPIES))


def _merged(frames: Sequence[Frame], copy_of: Mapping[str, str]) -> list[Frame]:
    """One frame for each picture, with its copies."""
    pictures: dict[str, list[Frame]] = {}
    for frame in frames:
        pictures.setdefault(copy_of.get(frame.id, frame.id), []).append(frame)
    return [replace(first, copies=tuple(copies)) for first, *copies in pictures.values()]


def _read_copies(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {row["frame"]: row["copy_of"] for row in csv.DictReader(file)}


def list_unlabelled(frames_root: Path) -> list[Frame]:
    """The prepared frames without a label.

    Raises:
        MissingFileError: of their index, or a frame that it lists.
    """
    return _listed(frames_root / UNLABELLED, frames_root / UNLABELLED, UNLABELLED)


def _listed(frames: Path, labels: Path, anatomy: str) -> list[Frame]:
    shows = read_presence(labels)
    mapped = _read_table(labels / MAPPED)
    alone = _read_table(labels / LABELLED_BY_MAP)
    legends = {path.name: tuple(read_lines(path)) for path in labels.glob("anatomies*.txt")}
    listed = []
    for name in _read_frames(frames / INDEX):
        image = frames / f"{name}.png"
        if not image.is_file():
            raise MissingFileError(image)
        place = f"{anatomy}/{name}"
        label = labels / f"{name}.png"
        frame = Frame(place, anatomy, name.split("/")[0], image, label, shows.get(place, {}))
        if name in mapped:
            of_set = _legend_file(labels, frame.surgery.partition(".")[0]).name
            legend = legends.get(of_set, legends.get(LEGEND, ()))
            frame = replace(
                frame,
                map=label.with_suffix(MAP),
                legend=legend,
                labelled_by_map=name in alone,
            )
        listed.append(frame)
    return listed


def _read_table(file: Path) -> set[str]:
    """The frames of a table that is left out where it would have none."""
    return set(_read_frames(file)) if file.is_file() else set()


def _read_frames(path: Path) -> list[str]:
    if not path.is_file():
        raise MissingFileError(path)
    with path.open(newline="") as file:
        return [row["frame"] for row in csv.DictReader(file)]


def load_frame(path: Path) -> NDArray[np.uint8]:
    """A prepared frame (H, W, 3) uint8 RGB.

    Raises:
        MissingFileError, DamagedFileError: of the file.
    """
    return cv2.cvtColor(_load(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def load_label(path: Path) -> NDArray[np.uint8]:
    """A prepared label (H, W) uint8: 0 = background, 1 = anatomy, ``NO_LABEL``.

    Raises:
        MissingFileError, DamagedFileError: of the file.
    """
    return np.asarray(cv2.LUT(_load(path, cv2.IMREAD_GRAYSCALE), _LABELS), np.uint8)


def load_map(path: Path) -> NDArray[np.uint8]:
    """A prepared label map (H, W) uint8: 0 = none, i = the legend's i-th name, ``NO_LABEL``.

    Raises:
        MissingFileError, DamagedFileError: of the file.
    """
    return _load(path, cv2.IMREAD_GRAYSCALE)


def _load(path: Path, flags: int) -> NDArray[np.uint8]:
    if not path.is_file():
        raise MissingFileError(path)
    pixels = cv2.imread(str(path), flags)
    if pixels is None:
        raise DamagedFileError(path, "it cannot be decoded as PNG")
    return np.asarray(pixels)


def frames_digest(frames: Sequence[Frame]) -> str:
    """The identity of list and pixels: sha256 over ids and files of frames, in their order.

    Raises:
        MissingFileError: of a frame.
    """
    return _digest((frame.id, frame.image) for frame in frames)


def labels_digest(frames: Sequence[Frame]) -> str:
    """sha256 over what is known of the labelled ones among some frames, in their order.

    Raises:
        MissingFileError: of a label.
    """
    labelled = list(chain.from_iterable(frame.labels for frame in frames))
    files = [(frame.id, frame.label) for frame in labelled]
    maps = [(f"{frame.id} {frame.legend}", frame.map) for frame in labelled if frame.map]
    shown = [f"{frame.id} {sorted(frame.shows.items())}" for frame in labelled if frame.shows]
    return _digest([*files, *maps], shown)


def _digest(files: Iterable[tuple[str, Path]], lines: Iterable[str] = ()) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\0")
    for name, file in files:
        try:
            digest.update(name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
        except FileNotFoundError as error:
            raise MissingFileError(file) from error
    return digest.hexdigest()
