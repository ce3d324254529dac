"""Endoscapes2023: ``train_seg/4_21725.jpg`` with ``semseg/4_21725.png``, or COCO beside it."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from pipeline.annotations import spelling
from pipeline.convert import coco
from pipeline.convert.coco_files import read_file
from pipeline.convert.formats import FORMATS, EndoscapesMasks, Labels
from pipeline.convert.pictures import frame_of, values_of
from pipeline.convert.plans import Content, Found, Plan, Planned, numbered, require_folder
from pipeline.dsad import DataError, is_picture
from pipeline.files import entries, folders

# The values 1, 2, ... of the masks, as in the set's seg_label_map.txt.
ANATOMIES = (
    "cystic_plate",
    "calot_triangle",
    "cystic_artery",
    "cystic_duct",
    "gallbladder",
    "tool",
)
UNCERTAIN = 255
_FRAME = re.compile(r"([0-9]+)_[0-9]+")
_NUMBERED = re.compile(r"([0-9]+)\W+([A-Za-z][A-Za-z_ ]*)")  # a line of the legend
SPLITS = ("train_seg", "val_seg", "test_seg")


@dataclass(frozen=True)
class Options:
    """How Endoscapes is read.

    Attributes:
        masks: the semantic masks, or COCO's.
        labels: what is written.
    """

    masks: EndoscapesMasks = EndoscapesMasks.SEMANTIC
    labels: Labels = Labels.MAPS


def plan(source: Path, options: Options) -> Plan:
    """Which frames would be converted.

    Args:
        source: the folder that holds ``semseg``, ``train_seg`` and so on.
        options: how it is read.

    Raises:
        DataError: the source is not a folder, or its COCO files cannot be read.
    """
    require_folder(source, FORMATS["endoscapes"].layout)
    if options.masks == EndoscapesMasks.COCO:
        return _plan_coco(source, options)
    masks = entries(source / "semseg") if (source / "semseg").is_dir() else []
    found, problems = _pairs(source, masks)
    if not masks:
        problems.append(f"{source}: holds no semseg/*.png; use --masks coco for the COCO files")
    problems += _without_mask(source, [mask.stem for mask in masks])
    planned, of_surgeries = numbered(found, _video)
    problems += [*_legend_problems(source), *of_surgeries]
    return Plan(planned, ANATOMIES, options.labels, problems)


def _pairs(source: Path, masks: Sequence[Path]) -> tuple[list[Found], list[str]]:
    """The frames of some semantic masks, and what is wrong with these."""
    found: list[Found] = []
    problems: list[str] = []
    for mask in masks:
        frames = [source / split / f"{mask.stem}.jpg" for split in SPLITS]
        present = [frame for frame in frames if frame.is_file()]
        if mask.suffix != ".png" or not _FRAME.fullmatch(mask.stem):
            problems.append(f"{mask}: expected <video>_<frame>.png")
        elif len(present) != 1:
            count = "no frame" if not present else f"{len(present)} frames"
            problems.append(f"{mask}: has {count} {mask.stem}.jpg in {', '.join(SPLITS)}")
        else:
            place = present[0].relative_to(source).as_posix()
            found.append(Found(place, place, partial(_read, present[0], mask)))
    return found, problems


def _legend_problems(source: Path) -> list[str]:
    """Names in the set's own legend that are not those of the values here."""
    file = source / "seg_label_map.txt"
    if not file.is_file():
        return []
    text = file.read_text(errors="replace")
    missing = [anatomy for anatomy in ANATOMIES if anatomy not in spelling(text)]
    if missing:
        return [f"{file}: does not name {', '.join(missing)}: another edition?"]
    numbered_names = [_NUMBERED.search(line) for line in text.splitlines()]
    named = {spelling(match[2]): int(match[1]) for match in numbered_names if match}
    wrong = [
        f"{name} {named[name]}, here {value}"
        for value, name in enumerate(ANATOMIES, start=1)
        if named.get(name, value) != value
    ]
    return [f"{file}: numbers {'; '.join(wrong)}: another edition?"] if wrong else []


def _without_mask(source: Path, masks: Collection[str]) -> list[str]:
    """Frames that have no semantic mask, and pictures that are not named like frames."""
    problems = []
    present = [source / split for split in SPLITS if (source / split).is_dir()]
    for path in chain.from_iterable(map(entries, present)):
        if is_picture(path) and not (_FRAME.fullmatch(path.stem) and path.suffix == ".jpg"):
            problems.append(f"{path}: expected <video>_<frame>.jpg: rename it, or move it away")
        elif is_picture(path) and path.stem not in masks:
            problems.append(f"{path}: its mask semseg/{path.stem}.png is missing")
    return problems


def _video(place: str) -> str:
    """The number of the video of a frame's file."""
    match = _FRAME.fullmatch(Path(place).stem)
    if match is None:
        raise DataError([f"{place}: expected a file <video>_<frame>.jpg"])
    return match[1]


def _read(frame: Path, mask: Path) -> Content:
    values = values_of(mask)
    unknown = values > len(ANATOMIES)
    others = ", ".join(map(str, np.unique(values[unknown])))
    masks = {name: values == value for value, name in enumerate(ANATOMIES, start=1)}
    image = frame_of(frame, (values.shape[0], values.shape[1]))
    unknown_as = f"value {others} in its mask; {UNCERTAIN} means uncertain"
    is_uncertain = bool((values[unknown] == UNCERTAIN).all())
    return Content(image, masks, unknown, unknown_as, is_uncertain)


def _plan_coco(source: Path, options: Options) -> Plan:
    """The frames of the COCO files, whose uncertain pixels only the semantic masks know."""
    names = [path for path in folders(source) if path.name in SPLITS] or [source]
    files = [read_file(path / "annotation_coco.json") for path in names]
    how = coco.Options(labels=options.labels)
    plan = coco.plan_files(source, files, how, _video)
    frames = []
    without = []
    for frame in plan.frames:
        mask = source / "semseg" / f"{Path(frame.origin).stem}.png"
        if mask.is_file():
            frames.append(replace(frame, read=partial(_with_uncertain, frame, mask)))
        else:
            frames.append(frame)
            without.append(frame.origin)
    pictures = filter(is_picture, chain.from_iterable(entries(path) for path in names))
    notes = [*plan.notes, *coco.unlisted(pictures, source, files, how)]
    if without:
        notes.append(
            f"{len(without)} frames have no semseg/*.png: their uncertain pixels count as labelled"
        )
    return replace(plan, frames=frames, notes=notes)


def _with_uncertain(frame: Planned, mask: Path) -> Content:
    content = frame.read()
    values = values_of(mask)
    if values.shape != content.image.shape[:2]:
        raise DataError([f"{mask}: has another size than its frame"])
    return replace(content, unknown=values == UNCERTAIN, unknown_as=f"value 255 in {mask.name}")
