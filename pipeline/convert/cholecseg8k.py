"""CholecSeg8k: ``video01/video01_00080/frame_80_endo.png`` and its masks beside it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.convert.formats import FORMATS, CholecMasks, Labels
from pipeline.convert.pictures import Size, colours_of, frame_of, greys_of
from pipeline.convert.plans import (
    Content,
    Found,
    Mask,
    Plan,
    misnamed,
    numbered,
    require_folder,
)
from pipeline.files import walk

# Watershed value and colour of each class, as public readers of the set agree on them.
BLACK = ("black_background", 50, (127, 127, 127))
CLASSES = (
    ("abdominal_wall", 11, (210, 140, 140)),
    ("liver", 21, (255, 114, 114)),
    ("gastrointestinal_tract", 13, (231, 70, 156)),
    ("fat", 12, (186, 183, 75)),
    ("grasper", 31, (170, 255, 0)),
    ("connective_tissue", 23, (255, 85, 0)),
    ("blood", 24, (255, 0, 0)),
    ("cystic_duct", 25, (255, 255, 0)),
    ("l_hook_electrocautery", 32, (169, 255, 184)),
    ("gallbladder", 22, (255, 160, 165)),
    ("hepatic_vein", 33, (0, 50, 128)),
    ("liver_ligament", 5, (111, 74, 0)),
)
BORDER = 255  # of every channel, which the annotation tool leaves at the edges
ANATOMIES = tuple(name for name, _, _ in CLASSES)
SUFFIXES = {
    CholecMasks.WATERSHED: "_endo_watershed_mask.png",
    CholecMasks.COLOUR: "_endo_color_mask.png",
}
_FRAME = re.compile(r"(.+)_endo\.png")
_MASK = re.compile(r"(.+)_endo(?:_color|_watershed)?_mask\.png")
_VIDEO = re.compile(r"video[0-9]+")


@dataclass(frozen=True)
class Options:
    """How CholecSeg8k is read.

    Attributes:
        masks: which of the two files.
        labels: what is written.
    """

    masks: CholecMasks = CholecMasks.WATERSHED
    labels: Labels = Labels.MAPS


def plan(source: Path, options: Options) -> Plan:
    """Which frames would be converted.

    Args:
        source: the folder that holds ``video01`` and so on, or one of these.
        options: how it is read.

    Raises:
        DataError: the source is not a folder.
    """
    layout = FORMATS["cholecseg8k"].layout
    require_folder(source, layout)
    found: list[Found] = []
    problems: list[str] = []
    root = source.parent if _VIDEO.fullmatch(source.name) else source
    for path in walk(source):
        match = _FRAME.fullmatch(path.name)
        if match is None:
            continue
        mask = path.with_name(match[1] + SUFFIXES[options.masks])
        place = path.relative_to(root).as_posix()
        if not _VIDEO.fullmatch(place.split("/")[0]):
            problems.append(f"{path}: does not lie in a folder of a video, such as video01")
        elif not mask.is_file():
            problems.append(f"{path}: its mask {mask.name} is missing")
        else:
            found.append(Found(place, place, partial(_read, path, mask, options.masks)))
    if not found and not problems:
        problems.append(f"{source}: holds no frame_*_endo.png; expected {layout}")
    else:
        problems += misnamed(source, _is_known, "frame_80_endo.png, and its masks with this name")
    planned, of_surgeries = numbered(found, lambda place: place.split("/")[0])
    return Plan(planned, ANATOMIES, options.labels, [*problems, *of_surgeries])


def _is_known(path: Path) -> bool:
    """Whether this is a frame, or a mask with its frame beside it."""
    mask = _MASK.fullmatch(path.name)
    if mask is not None:
        return path.with_name(f"{mask[1]}_endo.png").is_file()
    return _FRAME.fullmatch(path.name) is not None


def _read(frame: Path, mask: Path, kind: CholecMasks) -> Content:
    if kind == CholecMasks.WATERSHED:
        colours = greys_of(mask)[..., None]
        masks, unknown, unknown_as = _of_values(colours[..., 0])
    else:
        colours = colours_of(mask)
        masks, unknown, unknown_as = _of_colours(colours)
    size: Size = (unknown.shape[0], unknown.shape[1])
    is_border = bool((colours[unknown] == BORDER).all())
    return Content(frame_of(frame, size), masks, unknown, unknown_as, is_border)


def _of_values(values: NDArray[np.uint8]) -> tuple[Mapping[str, Mask], Mask, str]:
    """Masks by class, the pixels without one, and which values these have."""
    known = [value for _, value, _ in (BLACK, *CLASSES)]
    unknown = ~np.isin(values, known)
    others = ", ".join(map(str, np.unique(values[unknown])[:5]))
    masks = {name: values == value for name, value, _ in CLASSES}
    return masks, unknown, f"value {others} in its watershed mask, which no class has"


def _of_colours(colours: NDArray[np.uint8]) -> tuple[Mapping[str, Mask], Mask, str]:
    """The same of a colour mask."""
    codes = _code(colours)
    masks = {name: codes == _code(np.array(colour)) for name, _, colour in CLASSES}
    black = codes == _code(np.array(BLACK[2]))
    unknown = ~np.logical_or.reduce([black, *masks.values()])
    others = ", ".join(str(tuple(colour)) for colour in _some(colours[unknown]))
    return masks, unknown, f"colour {others} in its colour mask, which no class has"


def _some(colours: NDArray[np.uint8]) -> list[list[int]]:
    rows: list[list[int]] = np.unique(colours, axis=0)[:5].tolist()
    return rows


def _code(colours: NDArray[np.integer]) -> NDArray[np.int64]:
    """One number for each colour (..., 3)."""
    wide = colours.astype(np.int64)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
