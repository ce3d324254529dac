"""Complete label maps as a data set in DSAD's layout: they are measured by the same code."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.annotations import anatomies_file, matched, read_lines
from pipeline.dsad import DataError, read_frame, read_mask
from pipeline.files import entries, folders
from pipeline.surgeries import same_surgeries

_GREY = 0  # colour type in the header of a PNG: one channel, and no palette


def has_label_maps(data: Path) -> bool:
    """Whether a folder holds ``<surgery>/labelMM.png``."""
    return any(True for _ in _label_maps(data))


def unfold(data: Path, anatomies: Sequence[str], root: Path) -> dict[str, dict[str, bool]]:
    """Write every frame and its mask into every anatomy's folder.

    Args:
        data: folder of ``<surgery>/imageMM.png`` and ``labelMM.png``, 8 or 16 bits of one channel.
        anatomies: which are measured; also what the values 1, 2, ... mean where no
            ``anatomies.txt`` says it.
        root: the folder that is written.

    Returns:
        By a frame's id, whether it shows its folder's anatomy: each frame counts once for every
        anatomy.

    Raises:
        DataError: all maps that cannot be read as such, together.
    """
    names, source = _names(data, anatomies)
    presence: dict[str, dict[str, bool]] = {}
    problems = _same_surgeries(data) + _without_label(data)
    for path, number in _label_maps(data):
        try:
            values = _read_map(path, number, len(names), source)
        except DataError as error:
            problems += error.problems
            continue
        for value, anatomy in enumerate(names, start=1):
            if anatomy in anatomies:
                place = root / anatomy / path.parent.name
                _write(place, path.with_name(f"image{number}.png"), number, values == value)
                presence[f"{anatomy}/{path.parent.name}/image{number}"] = {
                    anatomy: bool((values == value).any())
                }
    if problems:
        raise DataError(problems)
    root.mkdir(exist_ok=True)  # also if no name is one of the anatomies
    return presence


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


def _names(data: Path, anatomies: Sequence[str]) -> tuple[Sequence[str], str]:
    """What the values 1, 2, ... mean, spelt as the anatomies are, and who says so."""
    file = anatomies_file(data)
    if file is None:
        return anatomies, "the checkpoint (there is no anatomies.txt)"
    names = matched(read_lines(file), anatomies)
    twice = [name for name, times in Counter(names).items() if times > 1 and name]
    if twice:
        raise DataError([f"{file}: names {', '.join(twice)} twice"])
    return names, str(file)


def _read_map(path: Path, number: str, highest: int, source: str) -> NDArray[np.integer[Any]]:
    """The values (H, W) of a map whose frame is there and of its size.

    Args:
        path: of the map.
        number: of its frame.
        highest: the largest value that has a name.
        source: who names the values.

    Raises:
        DataError: the map or its frame cannot be used.
    """
    image = path.with_name(f"image{number}.png")
    if not image.is_file():
        raise DataError([f"{path}: its frame {image.name} is missing"])
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
    height, width = read_frame(image).shape[:2]
    if values.shape != (height, width):
        sizes = f"{width}x{height} and {values.shape[1]}x{values.shape[0]}"
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
