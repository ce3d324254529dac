"""Complete label maps: beside a data set's masks, or as a data set of their own.

In DSAD's layout the map of ``<root>/<anatomy>/<surgery>/imageMM.png`` is
``<root>/multilabel/<anatomy>/<surgery>/labelMM.png``. A data set of maps alone holds
``<surgery>/imageMM.png`` and ``labelMM.png``. In both 0 means none, and i the i-th line of
``anatomies.txt``.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.annotations import anatomies_file, matched, read_lines
from pipeline.dsad import MAPS, DataError, Source, read_frame, read_mask
from pipeline.files import entries, folders
from pipeline.surgeries import same_surgeries

CONTRADICTED = 255  # in a prepared map: its mask says otherwise
_GREY = 0  # colour type in the header of a PNG: one channel, and no palette


@dataclass(frozen=True)
class Legend:
    """What the values 1, 2, ... of label maps mean, and who says so."""

    names: Sequence[str]
    source: str


@dataclass(frozen=True)
class CheckedMap:
    """A frame's complete label map against its mask.

    Attributes:
        path: the file.
        values: (H, W) uint8, 0 = none, i = the legend's i-th name, ``CONTRADICTED``.
        shows: by each of the legend's names, whether a pixel shows it.
        contradicted: share of the pixels, 0..1.
        agrees: whether map and mask have more of the frame's anatomy in common than not.
    """

    path: Path
    values: NDArray[np.uint8]
    shows: Mapping[str, bool]
    contradicted: float
    agrees: bool


def legend_of(root: Path, anatomies: Sequence[str]) -> Legend:
    """The legend of the maps beside the masks of a data set.

    Raises:
        DataError: it names an anatomy twice, or too many.
    """
    names, source = _names(root / MAPS, anatomies, "data.anatomies")
    if len(names) >= CONTRADICTED:
        most = CONTRADICTED - 1
        raise DataError([f"{source}: names {len(names)} anatomies; at most {most} are possible"])
    return Legend(names, source)


def check_map(source: Source, mask: NDArray[np.bool_], legend: Legend) -> CheckedMap | None:
    """A frame's complete label map, or None if it has none.

    Args:
        source: the frame.
        mask: (H, W), its anatomy.
        legend: of the data set's maps.

    Raises:
        DataError: as of :func:`read_map`.
    """
    folder = source.image.parents[2] / MAPS / source.anatomy / source.surgery
    path = folder / f"label{source.name.removeprefix('image')}.png"
    if not path.is_file():
        return None
    names = legend.names
    size = (mask.shape[0], mask.shape[1])
    values = read_map(path, size, len(names), legend.source).astype(np.uint8)
    shows = {name: bool((values == value).any()) for value, name in enumerate(names, start=1)}
    if source.anatomy not in names:
        return CheckedMap(path, values, shows, 0.0, agrees=True)
    shown = values == list(names).index(source.anatomy) + 1
    contradicted = shown != mask
    values[contradicted] = CONTRADICTED
    agrees = (shown & mask).sum() >= contradicted.sum()
    return CheckedMap(path, values, shows, float(contradicted.mean()), bool(agrees))


def has_label_maps(data: Path) -> bool:
    """Whether a folder holds ``<surgery>/labelMM.png``."""
    return any(True for _ in _label_maps(data))


def unfold(data: Path, anatomies: Sequence[str], root: Path) -> None:
    """Write every frame, its mask and its map into every anatomy's folder, in DSAD's layout.

    Args:
        data: folder of ``<surgery>/imageMM.png`` and ``labelMM.png``, 8 or 16 bits of one channel.
        anatomies: which are measured; also what the values 1, 2, ... mean where no
            ``anatomies.txt`` says it.
        root: the folder that is written.

    Raises:
        DataError: all maps that cannot be read as such, together.
    """
    names, source = _names(data, anatomies, "the checkpoint")
    problems = _same_surgeries(data) + _without_label(data)
    for path, number in _label_maps(data):
        try:
            values = _map_beside_frame(path, number, len(names), source)
        except DataError as error:
            problems += error.problems
            continue
        for value, anatomy in enumerate(names, start=1):
            if anatomy in anatomies:
                place = root / anatomy / path.parent.name
                _write(place, path.with_name(f"image{number}.png"), number, values == value)
                maps = root / MAPS / anatomy / path.parent.name
                maps.mkdir(parents=True, exist_ok=True)
                (maps / path.name).symlink_to(path.resolve())
    if problems:
        raise DataError(problems)
    (root / MAPS).mkdir(parents=True, exist_ok=True)  # also if no name is one of the anatomies
    (root / MAPS / "anatomies.txt").write_text("".join(f"{name}\n" for name in names))


def _label_maps(data: Path) -> Iterator[tuple[Path, str]]:
    return _numbered(data, "label")


def _numbered(data: Path, kind: str) -> Iterator[tuple[Path, str]]:
    """Files ``<surgery>/<kind>MM.png`` and their numbers, in order."""
    for surgery in folders(data):
        for path in entries(surgery):
            match = re.fullmatch(rf"{kind}([0-9]+)\.png", path.name)
            if match:
                yield path, match[1]


def _same_surgeries(data: Path) -> list[str]:
    names = sorted({path.parent.name for path, _ in _label_maps(data)})
    return [
        f"{data}: folders {' and '.join(same)} are the same surgery {number}: rename one"
        for number, same in same_surgeries(names)
    ]


def _without_label(data: Path) -> list[str]:
    problems = []
    for frame, number in _numbered(data, "image"):
        label = frame.with_name(f"label{number}.png")
        if not label.is_file():
            problems.append(f"{frame}: its label {label.name} is missing")
    return problems


def _names(data: Path, anatomies: Sequence[str], default: str) -> tuple[Sequence[str], str]:
    """What the values 1, 2, ... mean, spelt as the anatomies are, and who says so.

    Args:
        data: the folder of the maps.
        anatomies: what they mean where there is no ``anatomies.txt``.
        default: what names these.
    """
    file = anatomies_file(data)
    if file is None:
        return anatomies, f"{default} (there is no anatomies.txt)"
    names = matched(read_lines(file), anatomies)
    twice = [name for name, times in Counter(names).items() if times > 1 and name]
    if twice:
        raise DataError([f"{file}: names {', '.join(twice)} twice"])
    return names, str(file)


def _map_beside_frame(
    path: Path, number: str, highest: int, source: str
) -> NDArray[np.integer[Any]]:
    """The values (H, W) of a map whose frame is there and of its size; see :func:`read_map`."""
    image = path.with_name(f"image{number}.png")
    if not image.is_file():
        raise DataError([f"{path}: its frame {image.name} is missing"])
    height, width = read_frame(image).shape[:2]
    return read_map(path, (height, width), highest, source)


def read_map(
    path: Path, size: tuple[int, int], highest: int, source: str
) -> NDArray[np.integer[Any]]:
    """The values (H, W) of a complete label map.

    Args:
        path: a PNG of one channel of 8 or 16 bits.
        size: (H, W) of its frame.
        highest: the largest value that has a name.
        source: who names the values.

    Raises:
        DataError: the map cannot be read as such, has another size, or holds values without a name.
    """
    read_mask(path)  # refuses what is damaged, or not a PNG
    content = path.read_bytes()
    bits = content[24]
    colour = content[25]
    values = np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED))
    if colour != _GREY or bits < 8 or values.ndim != 2:
        raise DataError(
            [
                f"{path}: is a colour, palette or {bits}-bit image; "
                "expected one channel of 8 or 16 bits"
            ]
        )
    if values.shape != size:
        sizes = f"{size[1]}x{size[0]} and {values.shape[1]}x{values.shape[0]}"
        raise DataError([f"{path}: frame and label have different sizes, {sizes}"])
    unknown = [str(value) for value in np.unique(values) if value > highest]
    if unknown:
        named = f"names only 1 to {highest}" if highest else "names nothing"
        raise DataError([f"{path}: holds {', '.join(unknown)}, and {source} {named}"])
    return values


def _write(folder: Path, image: Path, number: str, mask: NDArray[np.bool_]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / image.name).symlink_to(image.resolve())
    cv2.imwrite(str(folder / f"mask{number}.png"), mask.astype(np.uint8) * 255)
