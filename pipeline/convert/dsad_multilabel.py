"""DSAD's multi-organ subset: ``02/image00.png`` with ``02/mask00_stomach.png`` and so on."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from pipeline.annotations import DSAD_COLUMNS, WEAK_LABELS, read_weak_labels, spelling
from pipeline.convert.formats import FORMATS, Labels
from pipeline.convert.pictures import frame_of
from pipeline.convert.plans import (
    Content,
    Mask,
    Plan,
    Planned,
    misnamed,
    require_folder,
    surgery_problems,
)
from pipeline.dsad import MAPS, DataError, is_picture, read_mask
from pipeline.files import entries, folders

_FRAME = re.compile(r"image([0-9]+)\.png")
_MASK = re.compile(r"mask([0-9]+)_(.+)\.png")


@dataclass(frozen=True)
class Options:
    """How DSAD's multi-organ subset is read.

    Attributes:
        labels: what is written.
        missing_is_absent: whether a mask that is missing means that the frame does not show the
            organ; else only a weak label can say so.
    """

    labels: Labels = Labels.MAPS
    missing_is_absent: bool = False


@dataclass(frozen=True)
class _Frame:
    """A frame and what lies beside it: masks by organ, and weak labels by organ."""

    path: Path
    masks: Mapping[str, Path]
    shows: Mapping[str, bool]


def plan(source: Path, options: Options) -> Plan:
    """Which frames would be converted.

    Args:
        source: DSAD's folder, or its ``multilabel``.
        options: how it is read.

    Raises:
        DataError: the source is not a folder.
    """
    layout = FORMATS["dsad-multilabel"].layout
    require_folder(source, layout)
    root = source / MAPS if (source / MAPS).is_dir() else source
    frames: list[_Frame] = []
    problems: list[str] = []
    for surgery in folders(root):
        of_surgery, of_problems = _scan(surgery)
        frames += of_surgery
        problems += of_problems
    if frames:
        expected = "<surgery>/imageMM.png"
        problems += misnamed(root, lambda path: path.parent.parent == root, expected)
    named = set(chain.from_iterable(frame.masks for frame in frames))
    organs = sorted(named & set(DSAD_COLUMNS))  # of others there is a problem already
    if not organs and not problems:
        problems.append(f"{root}: holds no image with a mask; expected {layout}")
    for frame in frames:
        problems += _missing(frame, organs, options)
    planned = [
        Planned(
            frame.path.parent.name,
            frame.path.stem,
            frame.path.relative_to(source).as_posix(),
            partial(_read, frame, organs),
        )
        for frame in frames
    ]
    problems += surgery_problems(frame.surgery for frame in planned)
    return Plan(planned, organs, options.labels, problems)


def _scan(surgery: Path) -> tuple[list[_Frame], list[str]]:
    """The frames of a surgery, and what is wrong with its files."""
    images: dict[str, Path] = {}
    masks: dict[str, dict[str, Path]] = {}
    problems = []
    for path in entries(surgery):
        if match := _FRAME.fullmatch(path.name):
            images[match[1]] = path
        elif match := _MASK.fullmatch(path.name):
            masks.setdefault(match[1], {})[spelling(match[2])] = path
            if spelling(match[2]) not in DSAD_COLUMNS:
                problems.append(f"{path}: '{match[2]}' is no organ of DSAD")
        elif is_picture(path):
            problems.append(
                f"{path}: expected imageMM.png or maskMM_<organ>.png: rename it, or move it away"
            )
    for number in sorted(masks.keys() - images.keys()):
        first = next(iter(masks[number].values()))
        problems.append(f"{first}: its frame image{number}.png is missing")
    for number in sorted(images.keys() - masks.keys()):
        problems.append(f"{images[number]}: has no mask of any organ")
    shows, of_weak_labels = _weak_labels(surgery)
    frames = [
        _Frame(images[number], masks[number], shows.get(int(number), {}))
        for number in sorted(images.keys() & masks.keys(), key=lambda n: (int(n), n))
    ]
    return frames, [*problems, *of_weak_labels]


def _weak_labels(surgery: Path) -> tuple[Mapping[int, Mapping[str, bool]], list[str]]:
    """By a frame's number, which organs it shows; and what is wrong with the file."""
    file = surgery / WEAK_LABELS
    if not file.is_file():
        return {}, []
    try:
        return read_weak_labels(file, DSAD_COLUMNS).shows, []
    except DataError as error:
        return {}, list(error.problems)


def _missing(frame: _Frame, organs: Sequence[str], options: Options) -> list[str]:
    """Masks that are missing, unless it is known that the frame does not show the organ."""
    problems = []
    for organ in organs:
        if organ in frame.masks or options.missing_is_absent or frame.shows.get(organ) is False:
            continue
        said = (
            f"{WEAK_LABELS} says that the frame shows it"
            if organ in frame.shows
            else f"{WEAK_LABELS} says nothing"
        )
        problems.append(
            f"{frame.path}: its mask of {organ} is missing, and {said}. Fix: add the mask, or say "
            "with --missing-is-absent that a missing mask means that the organ is not there"
        )
    return problems


def _read(frame: _Frame, organs: Sequence[str]) -> Content:
    drawn: dict[str, Mask] = {}
    notes: list[str] = []
    for organ, path in frame.masks.items():
        drawn[organ], odd = read_mask(path)
        if odd:
            notes.append(f"{path}: holds values between 0 and full; all above 0 is {organ}")
        is_drawn = bool(drawn[organ].any())
        if frame.shows.get(organ, is_drawn) is not is_drawn:
            said = "not there" if is_drawn else "there"
            notes.append(f"{path}: {WEAK_LABELS} says that {organ} is {said}; the mask counts")
    first = next(iter(drawn.values()))
    image = frame_of(frame.path, (first.shape[0], first.shape[1]))
    nothing: Mask = np.zeros(first.shape, np.bool_)
    masks = {organ: drawn.get(organ, nothing) for organ in organs}
    return Content(image, masks, shows={**frame.shows}, notes=notes)
