"""Writing a converted data set: everything is checked before the first file is written.

``sources.csv`` says where each frame comes from, with a digest of its content, and is written
before the frames. So a second run can tell what is still missing, and what has changed. Files move
into place whole.
"""

import csv
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from io import StringIO
from itertools import chain, combinations, count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations import NOT_LABELLED_LINE, WEAK_LABELS
from pipeline.convert.formats import Labels
from pipeline.convert.plans import Content, Plan, Planned, numbered_name
from pipeline.convert.unknown_pixels import UnknownPixels
from pipeline.dsad import DataError
from pipeline.errors import MtkdError
from pipeline.files import entries, require_writable, some, write_atomically
from pipeline.label_maps import NO_LABEL
from pipeline.png_files import write_png
from pipeline.prefetch import by_threads

SOURCES = "sources.csv"
SOURCE = "SOURCE.md"
HEADER = ("file", "original", "digest")
THREADS = 2

Step = Callable[[int, int], None]
Rows = Mapping[str, tuple[str, str]]  # by file: its original and its digest


@dataclass(frozen=True)
class Target:
    """Where a conversion goes.

    Attributes:
        folder: is created if need be.
        unknown: what is done with pixels without a known label.
        force: whether an earlier conversion is removed first, and files of others that are in the
            way.
        check_step, write_step: are told how far checking and writing are.
        alone: keeps other conversions out of the folder while it is written.
    """

    folder: Path
    unknown: UnknownPixels = field(default_factory=UnknownPixels)
    force: bool = False
    check_step: Step = lambda done, total: None
    write_step: Step = lambda done, total: None
    alone: Callable[[Path], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True)
class Summary:
    """What a conversion did.

    Attributes:
        frames: of the plan, without those left out.
        written: of them, in this run.
        surgeries: how many.
        skipped: origins of frames that were left out.
        notes: what is odd about frames that were not.
    """

    frames: int
    written: int
    surgeries: int
    skipped: Sequence[str]
    notes: Sequence[str]


@dataclass(frozen=True)
class _Checked:
    """A frame that can be converted.

    Attributes:
        planned: the frame.
        digest: of its content.
        anatomies: that it is labelled for.
        shows: by anatomy, whether the frame shows it; only where it is known.
        annotators: by anatomy, the names of those whose masks there are.
        notes: of its content.
        partial: whether pixels have no label.
    """

    planned: Planned
    digest: str
    anatomies: Sequence[str] = ()
    shows: Mapping[str, bool] = field(default_factory=dict)
    annotators: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    partial: bool = False


def convert(plan: Plan, target: Target, describe: Callable[[Summary], str]) -> Summary:
    """Check every frame of a plan, then write them.

    Args:
        plan: what is converted.
        target: where to.
        describe: gives the text of ``SOURCE.md``.

    Raises:
        DataError: all problems of the plan and of its frames; nothing was written.
        MtkdError: the target holds something else, or cannot be written.
    """
    require_writable(target.folder)
    # Label maps can say that a pixel has no label.
    unknown = replace(target.unknown, keep=plan.labels == Labels.MAPS)
    target = replace(target, unknown=unknown)
    before = _rows_before(target.folder)
    if before and not target.force:
        plan = _named_as_before(plan, before)
    checked, skipped, problems = _check(plan, target)
    problems = [*plan.problems, *problems, *_collisions(checked, plan.labels)]
    if problems:
        raise DataError(problems)
    if not checked:
        raise DataError(
            [f"nothing is left to convert: all frames were left out{_such_as(skipped)}"]
        )
    surgeries = len({each.planned.surgery for each in checked})
    notes = list(chain.from_iterable(each.notes for each in checked))
    summary = Summary(len(checked), 0, surgeries, skipped, notes)
    target.folder.mkdir(parents=True, exist_ok=True)
    with target.alone(target.folder):
        _make_room(checked, plan, target)
        write_atomically(target.folder / SOURCE, describe(summary).encode())
        _write_legends(checked, plan, target.folder)
        written = _write_frames(checked, plan, target)
    return replace(summary, written=written)


def _make_room(checked: Sequence[_Checked], plan: Plan, target: Target) -> None:
    """Remove what may be removed; nothing else is in the way then.

    Raises:
        MtkdError: something is.
    """
    files = list(_all_files(checked, plan))
    old = _files_before(target.folder) if target.force else []
    _require_inside(target.folder, [*old, *files])
    if target.force:
        # Before the new sources.csv: what it lists and is there counts as written.
        _remove_all(target.folder, [*old, *files])
    else:
        _require_free(target.folder, _rows(checked, plan), files)


def _write_legends(checked: Sequence[_Checked], plan: Plan, folder: Path) -> None:
    """Where frames are from, what values mean, and what is shown where."""
    rows = _rows(checked, plan)
    write_atomically(folder / SOURCES, _csv([HEADER, *_lines(rows)]).encode())
    if plan.anatomies and plan.labels == Labels.MAPS:
        lines = list(plan.anatomies)
        if any(each.partial for each in checked):
            lines.append(NOT_LABELLED_LINE)
        legend = "".join(f"{line}\n" for line in lines)
        write_atomically(folder / "anatomies.txt", legend.encode())
    _write_presence(checked, plan, folder)


def _named_as_before(plan: Plan, before: Rows) -> Plan:
    """The plan with the names of the run before; new frames get numbers that are still free.

    So a frame that is added in the middle of a surgery does not rename those after it.
    """
    names = {(Path(file).parent.name, row[0]): Path(file).stem for file, row in before.items()}
    taken = {(surgery, name) for (surgery, _), name in names.items()}
    numbers: dict[str, Iterator[str]] = {}
    frames = []
    for planned in plan.frames:
        surgery = planned.surgery
        if planned.counted:
            new = numbers.setdefault(surgery, map(numbered_name, count()))
            free = (name for name in new if (surgery, name) not in taken)
            name = names.get((surgery, planned.origin)) or next(free)
            planned = replace(planned, name=name)
        frames.append(planned)
    return replace(plan, frames=frames)


def _such_as(skipped: Sequence[str]) -> str:
    return f", {len(skipped)} with pixels without a label, such as {skipped[0]}" if skipped else ""


def _check(plan: Plan, target: Target) -> tuple[list[_Checked], list[str], list[str]]:
    """Read all frames: those that can be converted, those left out, and problems."""
    checked: list[_Checked] = []
    skipped: list[str] = []
    problems: list[str] = []
    check = partial(_check_one, plan=plan, unknown=target.unknown)
    total = len(plan.frames)
    for done, result in enumerate(by_threads(check, plan.frames, _threads(plan)), start=1):
        target.check_step(done, total)
        if isinstance(result, _Checked):
            checked.append(result)
        elif isinstance(result, str):
            skipped.append(result)
        else:
            problems += result.problems
    return checked, skipped, problems


def _threads(plan: Plan) -> int:
    return 1 if plan.in_order else THREADS


def _check_one(planned: Planned, plan: Plan, unknown: UnknownPixels) -> _Checked | str | DataError:
    """A frame that can be converted, the origin of one that is left out, or what is wrong."""
    if planned.digest:
        return _Checked(planned, planned.digest)
    try:
        content = unknown.settle(planned.read(), planned.origin)
        if content is None:
            return planned.origin
        _require_sizes(content, planned.origin)
        if plan.labels == Labels.MAPS:
            _map_of(content, plan.anatomies, planned.origin)
    except DataError as error:
        return error
    drawn = {anatomy: bool(mask.any()) for anatomy, mask in content.masks.items()}
    annotators = {anatomy: list(of) for anatomy, of in content.annotators.items()}
    shows = {**content.shows, **drawn}
    partial = content.unknown is not None and bool(content.unknown.any())
    return _Checked(
        planned, _digest(content), list(content.masks), shows, annotators, content.notes, partial
    )


def _require_sizes(content: Content, origin: str) -> None:
    size = content.image.shape[:2]
    masks = dict(content.masks)
    for anatomy, drawn in content.annotators.items():
        masks |= {f"{anatomy} of {annotator}": mask for annotator, mask in drawn.items()}
    wrong = {name: mask.shape for name, mask in masks.items() if mask.shape != size}
    if wrong:
        name, shape = next(iter(wrong.items()))
        sizes = f"{size[1]}x{size[0]} and {shape[1]}x{shape[0]}"
        raise DataError([f"{origin}: the frame and its mask of {name} have two sizes, {sizes}"])


def _map_of(content: Content, anatomies: Sequence[str], origin: str) -> NDArray[np.uint8]:
    """The label map (H, W): 0 = none, i = the i-th anatomy, ``NO_LABEL``.

    Raises:
        DataError: an anatomy has no mask, or two masks share a pixel.
    """
    missing = [anatomy for anatomy in anatomies if anatomy not in content.masks]
    if missing:
        raise DataError(
            [f"{origin}: has no label of {some(missing)}, and a map needs all: use --as masks"]
        )
    values = np.zeros(content.image.shape[:2], np.uint8)
    claimed = np.zeros(values.shape, np.uint8)
    for value, anatomy in enumerate(anatomies, start=1):
        values[content.masks[anatomy]] = value
        claimed += content.masks[anatomy]
    if claimed.max(initial=0) > 1:
        pairs = [
            f"{one} and {other}"
            for one, other in combinations(anatomies, 2)
            if (content.masks[one] & content.masks[other]).any()
        ]
        raise DataError(
            [
                f"{origin}: {int((claimed > 1).sum())} pixels belong to {some(pairs)}, and a map "
                "holds one label per pixel: use --as masks"
            ]
        )
    if content.unknown is not None:
        values[content.unknown] = NO_LABEL
    return values


def _digest(content: Content) -> str:
    digest = hashlib.sha256()
    digest.update(repr(content.image.shape).encode() + content.image.tobytes())
    for anatomy, mask in content.masks.items():
        digest.update(anatomy.encode() + np.packbits(mask).tobytes())
    if content.unknown is not None and content.unknown.any():
        digest.update(b"unknown" + np.packbits(content.unknown).tobytes())
    for anatomy, drawn in content.annotators.items():
        for annotator, mask in drawn.items():
            digest.update(f"{anatomy} {annotator}".encode() + np.packbits(mask).tobytes())
    return digest.hexdigest()[:16]


def _images(each: _Checked, labels: Labels) -> list[str]:
    """The files of a frame, within the target: one, or one for each anatomy in DSAD's layout."""
    place = f"{each.planned.surgery}/{each.planned.name}.png"
    if labels == Labels.MAPS or not each.anatomies:
        return [place]
    return [f"{anatomy}/{place}" for anatomy in each.anatomies]


def _labels_of(each: _Checked, labels: Labels) -> list[str]:
    """The files of a frame's labels, within the target."""
    if not each.anatomies:
        return []
    files = []
    for image in _images(each, labels):
        files.append(_beside(image, "label" if labels == Labels.MAPS else "mask"))
    for anatomy, annotators in each.annotators.items():
        image = f"{anatomy}/{each.planned.surgery}/{each.planned.name}.png"
        files += [_beside(image, "mask", annotator) for annotator in annotators]
    return files


def _beside(image: str, kind: str, folder: str = "") -> str:
    """Such as ``liver/01/anno_1/mask03.png`` of ``liver/01/image03.png``."""
    path = Path(image)
    return (path.parent / folder / path.name.replace("image", kind, 1)).as_posix()


def _collisions(checked: Sequence[_Checked], labels: Labels) -> list[str]:
    first: dict[str, str] = {}
    problems = []
    for each in checked:
        for image in _images(each, labels):
            other = first.setdefault(image, each.planned.origin)
            if other != each.planned.origin:
                problems.append(f"{other} and {each.planned.origin} would both become {image}")
    return problems


def _rows(checked: Sequence[_Checked], plan: Plan) -> Rows:
    rows = {}
    for each in checked:
        for image in _images(each, plan.labels):
            rows[image] = (each.planned.origin, each.digest)
    return rows


def _all_files(checked: Sequence[_Checked], plan: Plan) -> Iterator[str]:
    for each in checked:
        yield from _images(each, plan.labels)
        yield from _labels_of(each, plan.labels)


def _require_inside(folder: Path, files: Iterable[str]) -> None:
    """Refuse files behind a link, and those that an edited ``sources.csv`` names elsewhere.

    Raises:
        MtkdError: one is not in the folder.
    """
    inside = folder.resolve()
    places = {(folder / file).parent for file in files}
    outside = sorted(str(place) for place in places if not _is_in(place.resolve(), inside))
    if outside:
        raise MtkdError(
            f"{folder}: {some(outside)}: leads out of the folder, by a link or by its {SOURCES}; "
            "nothing was removed or written: choose another folder"
        )


def _is_in(place: Path, folder: Path) -> bool:
    return place == folder or folder in place.parents


def _require_free(folder: Path, rows: Rows, files: Iterable[str]) -> None:
    """Refuse what would be overwritten.

    Raises:
        MtkdError: the folder holds anything but a part of this conversion.
    """
    before = _rows_before(folder)
    if before is None and folder.is_dir() and entries(folder):
        raise MtkdError(
            f"{folder} holds files and no {SOURCES}, so no conversion: choose an empty folder, or "
            "overwrite with --force"
        )
    _require_same(folder, before or {}, rows)
    foreign = [file for file in files if _is_foreign(folder, file, before or {})]
    if foreign:
        raise MtkdError(
            f"{folder}: {some(foreign)}: would be overwritten, and no conversion wrote them: move "
            "them away, or overwrite with --force"
        )


def _require_same(folder: Path, before: Rows, rows: Rows) -> None:
    """That all frames of the run before are still what they were.

    Raises:
        MtkdError: one is not.
    """
    changed = [file for file, row in before.items() if rows.get(file) != row]
    if changed:
        file = changed[0]
        origin = before[file][0]
        if file in rows:
            now = "changed, or the options did"
        elif origin in {row[0] for row in rows.values()}:
            now = "would now be written elsewhere, since options (such as --as) are others"
        else:
            now = "is no longer there"
        raise MtkdError(
            f"{folder} holds another conversion: {file} from {origin} {now}, one of {len(changed)}."
            " Choose another folder, or replace it with --force"
        )


def _is_foreign(folder: Path, file: str, before: Rows) -> bool:
    """Whether a file is there and belongs to no frame of the run before."""
    path = Path(file)
    name = path.name.replace("mask", "image").replace("label", "image")
    place = path.parent.parent if path.parent.name.startswith("anno_") else path.parent
    return (folder / file).exists() and (place / name).as_posix() not in before


def _rows_before(folder: Path) -> Rows | None:
    """The rows of the run before, None if there was none.

    Raises:
        MtkdError: its file is of another kind.
    """
    file = folder / SOURCES
    if not file.is_file():
        return None
    try:
        lines = list(csv.reader(file.read_text(encoding="utf-8").splitlines()))
        if tuple(lines[0]) != HEADER:
            raise ValueError
        return {name: (original, digest) for name, original, digest in lines[1:]}
    except (ValueError, IndexError, UnicodeDecodeError, csv.Error):
        raise MtkdError(
            f"{file} is not of a conversion: its first row must be {','.join(HEADER)}. Choose "
            "another folder"
        ) from None


def _files_before(folder: Path) -> list[str]:
    """All files that the run before wrote or may have written."""
    files = ["anatomies.txt", SOURCE]
    for image in _rows_before(folder) or {}:
        files += [image, _beside(image, "mask"), _beside(image, "label")]
        files.append((Path(image).parent / WEAK_LABELS).as_posix())
        drawn = (folder / image).parent.glob(f"anno_*/{Path(_beside(image, 'mask')).name}")
        files += [path.relative_to(folder).as_posix() for path in drawn]
    return [*files, SOURCES]


def _remove_all(folder: Path, files: Iterable[str]) -> None:
    """Remove files, and the folders that are empty then."""
    for file in files:
        path = folder / file
        path.unlink(missing_ok=True)
        for above in path.parents:
            if above == folder or not above.is_dir() or any(above.iterdir()):
                break
            above.rmdir()


def _lines(rows: Rows) -> Iterator[tuple[str, ...]]:
    for file, (original, digest) in rows.items():
        yield file, original, digest


def _csv(rows: Iterable[Sequence[object]]) -> str:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _write_presence(checked: Sequence[_Checked], plan: Plan, folder: Path) -> None:
    """In DSAD's layout, say which anatomies each frame shows, where that is known of all."""
    tables: dict[Path, list[list[object]]] = {}
    columns: dict[Path, list[str]] = {}
    if plan.labels == Labels.MAPS:
        return
    for each in checked:
        if len(each.shows) <= 1:
            continue
        for anatomy in each.anatomies:
            place = folder / anatomy / each.planned.surgery
            names = columns.setdefault(place, list(each.shows))
            if names == list(each.shows):
                row: list[object] = [f"{each.planned.name}.png"]
                tables.setdefault(place, []).append(row + [int(each.shows[n]) for n in names])
    if plan.labels == Labels.DRAWN:
        return
    for place, rows in tables.items():
        text = _csv([["image", *columns[place]], *rows])
        write_atomically(place / WEAK_LABELS, text.encode())


def _write_frames(checked: Sequence[_Checked], plan: Plan, target: Target) -> int:
    """Write the frames that are not there yet.

    Returns:
        How many.
    """
    missing = [each for each in checked if not _is_there(each, plan, target)]
    write = partial(_write_one, plan=plan, target=target)
    for done, _ in enumerate(by_threads(write, missing, _threads(plan)), start=1):
        target.write_step(done, len(missing))
    return len(missing)


def _is_there(each: _Checked, plan: Plan, target: Target) -> bool:
    files = [*_images(each, plan.labels), *_labels_of(each, plan.labels)]
    return all((target.folder / file).is_file() for file in files)


def _write_one(each: _Checked, plan: Plan, target: Target) -> None:
    """Write the labels of a frame, then the frame.

    Raises:
        MtkdError: the source changed since it was checked, or a file cannot be written.
    """
    planned = each.planned
    content = target.unknown.settle(planned.read(), planned.origin)
    if content is None or not (planned.digest or _digest(content) == each.digest):
        raise MtkdError(f"{planned.origin} changed while it was converted: start again")
    if plan.labels == Labels.MAPS and plan.anatomies:
        values = _map_of(content, plan.anatomies, planned.origin)
        (file,) = _labels_of(each, plan.labels)
        write_png(target.folder / file, values)
    elif plan.anatomies:
        _write_masks(each, content, target.folder)
    first, *others = [target.folder / image for image in _images(each, plan.labels)]
    write_png(first, content.image)
    for other in others:
        _link(first, other)


def _write_masks(each: _Checked, content: Content, folder: Path) -> None:
    for anatomy, mask in content.masks.items():
        image = f"{anatomy}/{each.planned.surgery}/{each.planned.name}.png"
        write_png(folder / _beside(image, "mask"), mask.astype(np.uint8) * 255)
        for annotator, drawn in content.annotators.get(anatomy, {}).items():
            file = folder / _beside(image, "mask", annotator)
            write_png(file, drawn.astype(np.uint8) * 255)


def _link(first: Path, other: Path) -> None:
    """Let a file stand in a second place without taking room twice, where the disk can do that."""
    partial_file = other.with_name(f".{other.name}.partial")
    try:
        other.parent.mkdir(parents=True, exist_ok=True)
        partial_file.unlink(missing_ok=True)
        os.link(first, partial_file)
        partial_file.replace(other)
        # A rename of one link onto another of the same file does nothing.
        partial_file.unlink(missing_ok=True)
    except OSError:
        write_atomically(other, first.read_bytes())
