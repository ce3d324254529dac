"""COCO: polygons and run lengths of any tool, such as CVAT's export."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_masks

from pipeline.convert.coco_files import CocoFile, Drawn, Segmentation, categories, read_file
from pipeline.convert.formats import FORMATS, Labels
from pipeline.convert.pictures import Size, frame_of
from pipeline.convert.plans import (
    IGNORE,
    NOTHING,
    Content,
    Found,
    Mask,
    Plan,
    anatomy_problems,
    numbered,
    surgery_in,
    surgery_pattern,
)
from pipeline.dsad import DataError, is_picture
from pipeline.files import some, walk


@dataclass(frozen=True)
class Options:
    """How a COCO data set is read.

    Attributes:
        surgery: an expression whose one group is the surgery, searched in ``file_name``.
        labels: what is written. ``drawn``: a frame is labelled for the categories that are drawn in
            it, and for no other. ``masks`` and ``maps``: for all; what is not drawn is not there.
        images: folder in which ``file_name`` is looked for, beside the usual ones.
    """

    surgery: str = ""
    labels: Labels = Labels.DRAWN
    images: Path | None = None


def plan(source: Path, options: Options) -> Plan:
    """Which frames would be converted.

    Args:
        source: a COCO file, or a folder with some in ``annotations/`` or in itself.
        options: how it is read.

    Raises:
        DataError: no COCO file is there or can be read, or the surgeries are not given.
    """
    paths = _files(source)
    pattern = surgery_pattern(options.surgery, "'01/frame_000123.png'")
    files = [read_file(path) for path in paths]
    plan = plan_files(source, files, options, partial(surgery_in, pattern))
    folder = options.images or source
    pictures = list(filter(is_picture, walk(folder))) if folder.is_dir() else []
    return replace(plan, notes=[*plan.notes, *unlisted(pictures, source, files, options)])


def unlisted(
    pictures: Iterable[Path], source: Path, files: Sequence[CocoFile], options: Options
) -> list[str]:
    """A note of those among some pictures that no COCO file names."""
    named: set[Path] = set()
    for file in files:
        for image in file.images.values():
            named |= _candidates(str(image["file_name"]), source, file.path, options.images)
    others = [path for path in pictures if path.resolve() not in named]
    return [f"in no COCO file, and left out: {some(others)}"] if others else []


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    for folder in (source / "annotations", source):
        files = sorted(folder.glob("*.json")) if folder.is_dir() else []
        if files:
            return files
    layout = FORMATS["coco"].layout
    raise DataError([f"{source}: holds no annotations/*.json and no *.json; expected {layout}"])


def plan_files(
    source: Path, files: Sequence[CocoFile], options: Options, surgery_of: Callable[[str], str]
) -> Plan:
    """The same for some files, with the surgery of each ``file_name``.

    Raises:
        DataError: files disagree about categories.
    """
    anatomies = [name for name in categories(files) if name.lower() not in (*NOTHING, IGNORE)]
    problems = list(chain.from_iterable(file.problems for file in files))
    problems += anatomy_problems(files[0].path, anatomies)
    found: list[Found] = []
    empty: list[str] = []
    for file in files:
        of_file, of_problems, of_empty = _frames(file, source, anatomies, options)
        found += of_file
        problems += of_problems
        empty += of_empty
    planned, of_surgeries = numbered(found, surgery_of)
    return Plan(
        planned,
        anatomies,
        options.labels,
        [*problems, *_listed_twice(found), *of_surgeries],
        _notes(files, empty),
        next((file.licence for file in files if file.licence), ""),
        next((file.url for file in files if file.url), ""),
    )


def _frames(
    file: CocoFile, source: Path, anatomies: Sequence[str], options: Options
) -> tuple[list[Found], list[str], list[str]]:
    """The frames of a file, what is wrong with them, and names of those that are left out."""
    found: list[Found] = []
    problems: list[str] = []
    empty: list[str] = []
    for image_id, image in file.images.items():
        name = str(image["file_name"])
        drawn = file.drawn.get(image_id, ())
        labelled = anatomies
        if options.labels == Labels.DRAWN:
            labelled = _named(drawn, anatomies)
            if not labelled:
                empty.append(name)
                continue
        try:
            frame = _find(name, source, file.path, options.images)
        except DataError as error:
            problems += error.problems
            continue
        found.append(Found(name, name, partial(_content, frame, image, drawn, labelled)))
    return found, problems, empty


def _listed_twice(found: Sequence[Found]) -> list[str]:
    counts = Counter(frame.place for frame in found)
    return [f"{name}: is listed {count} times" for name, count in counts.items() if count > 1]


def _notes(files: Sequence[CocoFile], empty: Sequence[str]) -> list[str]:
    notes = [
        f"{file.path}: states widths as heights, as its run lengths show: they were exchanged"
        for file in files
        if file.exchanged
    ]
    if empty:
        notes.append(
            f"{len(empty)} frames in which no anatomy is drawn are left out, such as {empty[0]}: "
            "with --as masks or --as maps they show nothing of any category"
        )
    return notes


def _named(drawn: Drawn, anatomies: Sequence[str]) -> list[str]:
    """The anatomies that are drawn, in their order."""
    names = {name for name, _ in drawn}
    return [anatomy for anatomy in anatomies if anatomy in names]


def _find(name: str, source: Path, file: Path, images: Path | None) -> Path:
    """The file of a frame.

    Raises:
        DataError: it is nowhere, or in two places.
    """
    root = _root(source, file)
    candidates = _candidates(name, source, file, images)
    present = sorted(path for path in candidates if path.is_file())
    if len(present) > 1:
        raise DataError([f"{file}: {name} is there twice: {present[0]} and {present[1]}"])
    if present:
        return present[0]
    looked = ", ".join(map(str, dict.fromkeys(_places(source, file, images))))
    elsewhere = next((path for path in walk(root) if path.name == Path(name).name), None)
    hint = f"; {elsewhere} has its name" if elsewhere else ""
    raise DataError([f"{file}: {name} is missing; looked in {looked}{hint}. Fix: --images FOLDER"])


def _candidates(name: str, source: Path, file: Path, images: Path | None) -> set[Path]:
    """The files that a frame may be."""
    return {(place / name).resolve() for place in _places(source, file, images)}


def _places(source: Path, file: Path, images: Path | None) -> list[Path]:
    """The folders in which the frames of a COCO file are looked for."""
    root = _root(source, file)
    subset = file.stem.removeprefix("instances_")
    usual = [file.parent, root, root / "images", root / "images" / subset]
    return usual if images is None else [images]


def _root(source: Path, file: Path) -> Path:
    """The folder of the data set that a COCO file belongs to."""
    if file.parent.name == "annotations":
        return file.parent.parent
    return source if source.is_dir() else file.parent


def _content(
    frame: Path,
    image: Mapping[str, Any],
    drawn: Drawn,
    labelled: Sequence[str],
) -> Content:
    size = (int(image["height"]), int(image["width"]))
    masks: dict[str, Mask] = {name: np.zeros(size, np.bool_) for name in (*labelled, IGNORE)}
    for name, segmentation in drawn:
        key = IGNORE if name.lower() == IGNORE else name
        if key in masks:
            masks[key] |= mask_of(segmentation, size)
    unknown = masks.pop(IGNORE)
    return Content(frame_of(frame, size), masks, unknown, f"category {IGNORE}")


def mask_of(segmentation: Segmentation, size: Size) -> Mask:
    """The mask (H, W) of polygons or run lengths that have no problem."""
    height, width = size
    if isinstance(segmentation, list):
        encoded = coco_masks.merge(coco_masks.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        encoded = coco_masks.frPyObjects(segmentation, height, width)
    else:
        encoded = segmentation
    return np.asarray(coco_masks.decode(encoded), np.bool_)
