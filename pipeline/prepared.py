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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.annotations import read_lines, read_presence
from pipeline.errors import DamagedFileError, MissingFileError
from pipeline.label_maps import NO_LABEL
from pipeline.settings import UNLABELLED

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


def legend_file(folder: Path, data_set: str) -> Path:
    """The legend of the maps of one data set."""
    return folder / (f"anatomies.{data_set}.txt" if data_set else LEGEND)


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
            of_set = legend_file(labels, frame.surgery.partition(".")[0]).name
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
