"""The prepared data set: checked frames and labels at one size, apart, by split and anatomy.

``<frames>/<split>/<anatomy>/<surgery>/<name>.png`` holds RGB frames, ``<labels>/...`` the masks of
0 and 255. Every ``<split>/<anatomy>`` folder of both holds an ``index.csv``, with or without
frames, so that a stage can depend on it. Frames without a label lie in
``<frames>/unlabelled/<surgery>/<name>.png``, with an index of their own.
"""

import csv
import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.annotations import write_beside
from pipeline.dsad import (
    SPLITS,
    UNLABELLED,
    DataError,
    Source,
    Split,
    Splits,
    linked_folders,
    other_anatomies,
    read_frame,
    read_mask,
    scan,
    scan_unlabelled,
    surgery_id,
    surgery_names,
    unused,
)
from pipeline.errors import MtkdError
from pipeline.files import require_writable

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
    """

    id: str
    anatomy: str
    surgery: str
    image: Path
    label: Path

    @property
    def labelled(self) -> bool:
        """Whether there is a label."""
        return self.anatomy != UNLABELLED


@dataclass
class Summary:
    """What was prepared.

    Attributes:
        counts: number of frames by split and anatomy.
        unlabelled: number of frames without a label.
        warnings: what is legal and suspicious, one line each.
        files: those of them that say of single files that they may be no masks, or are left out.
    """

    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    unlabelled: int = 0
    warnings: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Checked:
    """One source after it was read, written and measured, or its problems; a frame that is unreadable has no digest."""

    source: Source
    split: Split
    digest: str = ""
    size: tuple[int, int] = (0, 0)
    dark: bool = False
    foreground: int = 0
    covered: float = 0.0
    odd: bool = False
    problems: tuple[str, ...] = ()


def prepare(
    root: Path,
    anatomies: Sequence[str],
    splits: Splits,
    image_size: tuple[int, int],
    output_frames: Path,
    output_labels: Path,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    unlabelled_root: Path | None = None,
    least_training: int = 2,
    linked: bool = True,
) -> Summary:
    """Check a whole data set and write it at one size; nothing is replaced unless everything is sound.

    Args:
        root: folder in DSAD's layout.
        anatomies: its sub-data sets, in the order of the decoders.
        splits: surgery ids of validation and test.
        image_size: (height, width). Frames are resized bilinearly, labels by nearest-exact; the
            aspect is not kept.
        output_frames: folder of the frames; is replaced.
        output_labels: folder of the labels; is replaced.
        workers: threads that read, check and resize.
        progress: called with (done, total).
        unlabelled_root: folder ``<surgery>/*.png`` of frames without masks, of training surgeries,
            or None.
        least_training: training frames that every anatomy needs: batch norm needs two.
        linked: whether folders of anatomies and surgeries may be links; what is behind them can
            change unnoticed.

    Returns:
        Counts and warnings.

    Raises:
        DataError: everything that is wrong, together.
    """
    sources, problems = scan(root, anatomies)
    problems += _split_problems(splits, surgery_names(root))
    if unlabelled_root is not None:
        more, wrong = scan_unlabelled(unlabelled_root, splits)
        sources, problems = sources + more, problems + wrong
    if not linked:
        problems += _link_problems(sources)
    with _scratch(output_frames) as frames, _scratch(output_labels) as labels:
        work = partial(
            _check_and_write, splits=splits, image_size=image_size, frames=frames, labels=labels
        )
        checked = _in_threads(work, sources, workers, progress)
        problems += [problem for c in checked for problem in c.problems]
        problems += _leaks(checked) + _too_few(
            checked, [a for a in anatomies if (root / a).is_dir()], least_training
        )
        if problems:
            raise DataError(problems)
        for split in SPLITS:
            for anatomy in anatomies:
                own = [c for c in checked if c.split == split and c.source.anatomy == anatomy]
                _write_indices(own, frames / split / anatomy, labels / split / anatomy)
        beside = [
            warning
            for anatomy in anatomies
            for warning in write_beside(
                _sources(checked, "test", anatomy), labels / "test" / anatomy, image_size
            )
        ]
        unlabelled = [c for c in checked if c.source.mask is None]
        _write_frame_index(unlabelled, frames / UNLABELLED)
        _replace(frames, output_frames)
        _replace(labels, output_labels)
    summary = _summary(checked, anatomies)
    summary.unlabelled = len(unlabelled)
    summary.files += unused(root, anatomies, unlabelled_root, sources) + beside
    summary.warnings += summary.files + other_anatomies(root, anatomies, unlabelled_root)
    return summary


def _sources(checked: Sequence[_Checked], split: Split, anatomy: str) -> list[Source]:
    return [c.source for c in checked if c.split == split and c.source.anatomy == anatomy]


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """An empty folder in the output, which may be a link or a mount point: what is beside may be on another disk."""
    require_writable(output)
    folder = output / ".partial"
    for left in (
        folder,
        output.with_name(f".{output.name}.partial"),
    ):  # by a killed run, also of an earlier version
        shutil.rmtree(left, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            output.rmdir()  # if it is empty


def _replace(folder: Path, output: Path) -> None:
    """Put what was prepared in the output's place."""
    # Nothing new comes before all that was there has gone: a killed process leaves no mixture.
    for part in (*SPLITS, UNLABELLED):
        if (output / part).exists():
            shutil.rmtree(output / part)
    for path in sorted(folder.iterdir()):
        path.replace(output / path.name)


def _in_threads(
    work: Callable[[Source], _Checked],
    sources: Sequence[Source],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> list[_Checked]:
    """OpenCV releases the interpreter's lock, so threads do."""
    checked = []
    with ThreadPoolExecutor(workers) as pool:
        for result in pool.map(work, sources):
            checked.append(result)
            if progress is not None:
                progress(len(checked), len(sources))
    return checked


def _check_and_write(
    source: Source, *, splits: Splits, image_size: tuple[int, int], frames: Path, labels: Path
) -> _Checked:
    split = splits.of(source.surgery)
    frame, no_frame = _try(read_frame, source.image)
    digest = (
        ""
        if frame is None
        else hashlib.sha256(repr(frame.shape).encode() + frame.tobytes()).hexdigest()
    )
    height, width = image_size
    if source.mask is None:
        if frame is None:
            return _Checked(
                source,
                split,
                digest,
                problems=tuple(f"data.unlabelled_root: {p}" for p in no_frame),
            )
        _write_frame(frames / UNLABELLED / source.surgery / f"{source.name}.png", frame, image_size)
        return _Checked(source, split, digest, frame.shape[:2], _is_dark(frame))
    read, no_mask = _try(read_mask, source.mask)
    if frame is None or read is None:
        return _Checked(source, split, digest, problems=no_frame + no_mask)
    mask, odd = read
    if frame.shape[:2] != mask.shape:
        sizes = " and ".join(f"{w}x{h}" for h, w in (frame.shape[:2], mask.shape))
        problem = f"{source.image}: frame and mask have different sizes, {sizes}"
        return _Checked(source, split, digest, problems=(problem,))
    place = Path(split) / source.anatomy / source.surgery / f"{source.name}.png"
    small = cv2.resize(
        mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT
    )
    _write_frame(frames / place, frame, image_size)
    _write_png(labels / place, small * 255)
    return _Checked(
        source,
        split,
        digest,
        frame.shape[:2],
        _is_dark(frame),
        int(small.sum()),
        float(mask.mean()),
        odd=odd,
    )


def _is_dark(frame: NDArray[np.uint8]) -> bool:
    return bool(frame.max() < DARK)


def _try(read: Callable[[Path], _T], path: Path) -> tuple[_T | None, tuple[str, ...]]:
    """What was read, or None and the problems: a damaged frame must not hide that its mask is damaged too."""
    try:
        return read(path), ()
    except DataError as error:
        return None, error.problems


def _write_frame(path: Path, frame: NDArray[np.uint8], image_size: tuple[int, int]) -> None:
    _write_png(path, cv2.resize(frame, image_size[::-1], interpolation=cv2.INTER_LINEAR)[..., ::-1])


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _, encoded = cv2.imencode(".png", pixels, PNG)
    path.write_bytes(encoded.tobytes())


def _split_problems(splits: Splits, surgeries: Mapping[str | int, str]) -> list[str]:
    both = {surgery_id(s) for s in splits.val} & {surgery_id(s) for s in splits.test}
    problems = [f"data.splits: surgery {s} is in val and in test" for s in sorted(both, key=str)]
    there = ", ".join(surgeries.values())
    for part, ids in (("val", splits.val), ("test", splits.test)):
        absent = [str(s) for s in ids if surgery_id(s) not in surgeries]
        problems += [
            f"data.splits.{part}: no anatomy has a folder of surgery {s}; there: {there}"
            for s in absent
        ]
    return problems


def _link_problems(sources: Sequence[Source]) -> list[str]:
    return [
        f"{folder} is a link to a folder, so that changes behind it would not be seen: put the "
        "folder itself there, or "
        f"one of links to its files (cp -rs {folder.resolve()} FOLDER), or mount it (mount --bind)"
        for folder in linked_folders(sources)
    ]


def _leaks(checked: Sequence[_Checked]) -> list[str]:
    """The same pixels in two splits; within one split a frame may stand in several sub-data sets."""
    first: dict[str, _Checked] = {}
    problems = []
    for one in checked:
        if not one.digest:
            continue
        other = first.setdefault(one.digest, one)
        if other.split != one.split:
            files = f"{other.source.image} ({other.split}) and {one.source.image} ({one.split})"
            problems.append(f"{files} are the same frame in two splits")
    return problems


def _too_few(checked: Sequence[_Checked], anatomies: Sequence[str], least: int) -> list[str]:
    """Anatomies that can't be trained."""
    problems = []
    for anatomy in dict.fromkeys(anatomies):
        train = sum(c.split == "train" and c.source.anatomy == anatomy for c in checked)
        if train < least:
            problems.append(
                f"{anatomy}: {train or 'no'} training frame{'s' * (train != 1)}, at least {least} "
                "are needed"
            )
    return problems


def _write_indices(checked: Sequence[_Checked], frames: Path, labels: Path) -> None:
    _write_frame_index(checked, frames)
    _write_csv(labels, ("frame", "foreground"), [(_place(c.source), c.foreground) for c in checked])


def _write_frame_index(checked: Sequence[_Checked], frames: Path) -> None:
    _write_csv(frames, ("frame", "height", "width"), [(_place(c.source), *c.size) for c in checked])


def _place(source: Source) -> str:
    return f"{source.surgery}/{source.name}"


def _write_csv(folder: Path, header: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "index.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _summary(checked: Sequence[_Checked], anatomies: Sequence[str]) -> Summary:
    summary = Summary()
    for split in SPLITS:
        summary.counts[split] = {
            a: sum(c.split == split and c.source.anatomy == a for c in checked) for a in anatomies
        }
    consequence = {
        "val": "its last epoch is kept",
        "test": "it has no result and is left out of the mean",
    }
    for part, what in consequence.items():
        missing = [a for a, n in summary.counts[part].items() if not n]
        summary.warnings += [f"{anatomy}: no {part} frames, {what}" for anatomy in missing]
    labelled = [c for c in checked if c.source.mask is not None]
    empty = [c for c in labelled if not c.covered]
    summary.warnings += _masks_that(empty, "empty, so that the frame teaches only background")
    vanished = [c for c in labelled if c.covered and not c.foreground]
    summary.warnings += _masks_that(
        vanished, "too thin for data.image_size: nothing of the anatomy is left in it"
    )
    summary.files = _masks_that(
        [c for c in checked if c.odd], "not only 0 and 255; all above 0 is foreground"
    )
    summary.files += _full_or_turned(labelled, anatomies)
    summary.files += _dark([c for c in checked if c.dark])
    return summary


def _masks_that(checked: Sequence[_Checked], are: str) -> list[str]:
    """One warning for all of a kind, with their number first: many lines would hide the other warnings."""
    if not checked:
        return []
    count = f"{len(checked)} mask{'s are' if len(checked) > 1 else ' is'} {are}:"
    masks = [str(c.source.mask) for c in checked[:LISTED]]
    more = [f"and {len(checked) - LISTED} more"] if len(checked) > LISTED else []
    return ["\n  ".join([count, *masks, *more])]


def _full_or_turned(labelled: Sequence[_Checked], anatomies: Sequence[str]) -> list[str]:
    """Masks that cover the whole frame; and all or some of an anatomy that cover most of it, as if black meant it."""
    warnings = _masks_that(
        [c for c in labelled if c.covered == 1], "full: the anatomy covers the whole frame"
    )
    some_turned: list[_Checked] = []
    for anatomy in anatomies:
        masks = [c for c in labelled if c.source.anatomy == anatomy]
        least = min((c.covered for c in masks), default=1)
        if COVERED < least < 1:
            warnings.append(
                f"{anatomy}: it covers {least:.0%} of the frame or more in each of {len(masks)} "
                "masks "
                f"(suspicious above {COVERED:.0%}): are black and white exchanged? The anatomy "
                "must be white"
            )
        elif least <= COVERED:
            some_turned += _nearly_full(masks)
    unlike = f"more than {NEARLY_FULL:.0%} white, unlike other masks of the anatomy"
    return warnings + _masks_that(
        some_turned, f"{unlike}: are black and white exchanged? The anatomy must be white"
    )


def _nearly_full(masks: Sequence[_Checked]) -> list[_Checked]:
    """An anatomy's masks that cover nearly all of the frame, unless others lead over to them."""
    above = [c for c in masks if NEARLY_FULL < c.covered < 1]
    between = [c for c in masks if COVERED < c.covered <= NEARLY_FULL]
    return above if len(above) > len(between) else []


def _dark(checked: Sequence[_Checked]) -> list[str]:
    if not checked:
        return []
    frames = f"{len(checked)} frame{'s are' if len(checked) > 1 else ' is'} nearly black"
    return [
        f"{frames}, without a pixel of {DARK} or more of 255 ({checked[0].source.image} first): a "
        "file of 16 bits may "
        "hold values of 10 or 12 bits, which must be scaled to 16"
    ]


def list_frames(
    frames_root: Path, labels_root: Path, split: str, anatomies: Sequence[str]
) -> list[Frame]:
    """The prepared frames of a split, anatomy by anatomy in the given order.

    Raises:
        MtkdError: an index, or a frame that it lists, is missing.
    """
    folders = [(anatomy, Path(split) / anatomy) for anatomy in anatomies]
    return [
        f
        for anatomy, folder in folders
        for f in _listed(frames_root / folder, labels_root / folder, anatomy)
    ]


def list_unlabelled(frames_root: Path) -> list[Frame]:
    """The prepared frames without a label.

    Raises:
        MtkdError: their index, or a frame that it lists, is missing.
    """
    return _listed(frames_root / UNLABELLED, frames_root / UNLABELLED, UNLABELLED)


def _listed(frames: Path, labels: Path, anatomy: str) -> list[Frame]:
    found = []
    for name in _read_index(frames / "index.csv"):
        image = frames / f"{name}.png"
        if not image.is_file():
            raise MtkdError(f"{image} is missing: run `dvc repro prepare`")
        found.append(
            Frame(f"{anatomy}/{name}", anatomy, name.split("/")[0], image, labels / f"{name}.png")
        )
    return found


def _read_index(path: Path) -> list[str]:
    if not path.is_file():
        raise MtkdError(f"{path} is missing: run `dvc repro prepare`")
    with path.open(newline="") as file:
        return [row["frame"] for row in csv.DictReader(file)]


def load_frame(path: Path) -> NDArray[np.uint8]:
    """A prepared frame (H, W, 3) uint8 RGB.

    Raises:
        MtkdError: the file is missing or damaged.
    """
    return cv2.cvtColor(_load(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def load_label(path: Path) -> NDArray[np.uint8]:
    """A prepared label (H, W) uint8, 1 = anatomy.

    Raises:
        MtkdError: the file is missing or damaged.
    """
    return (_load(path, cv2.IMREAD_GRAYSCALE) > 0).astype(np.uint8)


def _load(path: Path, flags: int) -> NDArray[np.uint8]:
    pixels = cv2.imread(str(path), flags) if path.is_file() else None
    if pixels is None:
        raise MtkdError(f"{path} is missing or damaged: run `dvc repro -s -f prepare`")
    return np.asarray(pixels)


def frames_digest(frames: Sequence[Frame]) -> str:
    """sha256 over the ids and files of some frames in their order: the identity of list and pixels."""
    return _digest((frame.id, frame.image) for frame in frames)


def labels_digest(frames: Sequence[Frame]) -> str:
    """sha256 over the ids and label files of the labelled ones among some frames, in their order."""
    return _digest((frame.id, frame.label) for frame in frames if frame.labelled)


def _digest(files: Iterable[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, file in files:
        try:
            digest.update(name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
        except FileNotFoundError as error:
            raise MtkdError(f"{file} is missing: run `dvc repro -s -f prepare`") from error
    return digest.hexdigest()
