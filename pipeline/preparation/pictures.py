"""Reading, checking and writing of one picture and its labels."""

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.dsad import DataError, DataSet, Source, read_frame, read_mask
from pipeline.label_maps import NO_LABEL, CheckedMap, Legend, check_map, map_of
from pipeline.preparation.settings import PrepareSettings
from pipeline.prepared import ANATOMY, HIDDEN, MAP
from pipeline.settings import UNLABELLED
from pipeline.surgeries import Split

# Low effort: prepared frames are read far more often than written, and the size hardly changes
# above.
PNG = [cv2.IMWRITE_PNG_COMPRESSION, 3]
# A frame without a brighter pixel is suspicious (of 255): 12 bits kept in 16 reach 16.
DARK = 32

Legends = Mapping[DataSet, Legend]
Measure = Callable[[NDArray[np.uint8]], object]  # of a frame (H, W, 3) RGB at full size

_S = TypeVar("_S")
_T = TypeVar("_T")


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


@dataclass(frozen=True)
class Folders:
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


def check_and_write(
    sources: Sequence[Source], *, settings: PrepareSettings, folders: Folders, legends: Legends
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
    sources: Sequence[Source], settings: PrepareSettings, folders: Folders, legend: Legend
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
    first, *others = (place_in(split, source) for source in sources)
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


def _checked_mask(
    source: Source, settings: PrepareSettings, folders: Folders, legend: Legend
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
    place = place_in(checked.split, source)
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


def _checked_alone(source: Source, settings: PrepareSettings, folders: Folders) -> Checked:
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


def place_in(split: Split, source: Source) -> Path:
    """Where the files of a labelled source lie, in the folders of frames and labels."""
    return Path(split) / source.anatomy / source.surgery / f"{source.name}.png"


def is_dark(frame: NDArray[np.uint8]) -> bool:
    """Whether a frame (H, W, 3) is nearly black."""
    return bool(frame.max() < DARK)


def with_masks(checked: Sequence[Checked]) -> list[Checked]:
    """Those with a mask of one anatomy, and not a label map of many."""
    return [f for f in checked if f.source.mask is not None and f.source.value is None]


def _label_in(values: NDArray[np.uint8], source: Source) -> NDArray[np.uint8]:
    """The label file of one anatomy, of a label map."""
    label = (values == source.value).astype(np.uint8) * np.uint8(ANATOMY)
    label[values == NO_LABEL] = HIDDEN
    return label


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


def _resized(values: NDArray[np.uint8], image_size: tuple[int, int]) -> NDArray[np.uint8]:
    """Labels (H, W) at another size, without new values between them."""
    resized = cv2.resize(values, image_size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(resized, np.uint8)


def _link(file: Path, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, copy, follow_symlinks=False)
    except OSError:  # a disk without hard links
        shutil.copyfile(file, copy, follow_symlinks=False)


def _write_frame(
    place: Path,
    frame: NDArray[np.uint8],
    source: Source,
    settings: PrepareSettings,
    folders: Folders,
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
