"""COCO's files: images, categories and what is drawn, with a problem for each wrong entry."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from pipeline.convert.pictures import Size
from pipeline.convert.plans import read_json
from pipeline.convert.run_lengths import run_length_problem
from pipeline.dsad import DataError

PARTS = ("images", "annotations", "categories")
FRAME = ("file_name", "width", "height")  # what an image must say
OUTSIDE = 1.0  # pixels that a polygon may reach over the edge
Segmentation = Any  # as JSON gives it
Drawn = Sequence[tuple[str, Segmentation]]  # categories with their segmentations


@dataclass(frozen=True)
class CocoFile:
    """A COCO file.

    Attributes:
        path: where it is.
        images: its entries, by id.
        drawn: by image, the category and the segmentation of each annotation.
        names: of categories, by id.
        problems: one line each.
        exchanged: whether it states widths as heights; ``images`` has them right.
        licence, url: that it states.
    """

    path: Path
    images: Mapping[Any, Mapping[str, Any]]
    drawn: Mapping[Any, Drawn]
    names: Mapping[Any, str]
    problems: Sequence[str]
    exchanged: bool
    licence: str
    url: str


def categories(files: Sequence[CocoFile]) -> list[str]:
    """The names of all files, which must give them the same ids."""
    names: dict[Any, str] = {}
    for file in files:
        for category, name in file.names.items():
            if names.setdefault(category, name) != name:
                raise DataError(
                    [
                        f"{file.path}: category {category} is {name}, and {names[category]} in "
                        f"{files[0].path}: convert them one by one"
                    ]
                )
    return [names[category] for category in sorted(names, key=lambda key: (str(type(key)), key))]


def read_file(path: Path) -> CocoFile:
    """A COCO file; what is wrong with single entries becomes problems.

    Raises:
        DataError: it cannot be read as COCO.
    """
    value = read_json(path)
    for part in PARTS:
        if not isinstance(value.get(part), list):
            raise DataError([f"{path}: has no list {part}; expected COCO's {', '.join(PARTS)}"])
    problems: list[str] = []
    names = {}
    for entry in _entries(value, ("id", "name"), path, "categories", problems):
        names[entry["id"]] = str(entry["name"]).strip()
    images = {}
    for entry in _entries(value, ("id", *FRAME), path, "images", problems):
        images[entry["id"]] = entry
    exchanged = _are_exchanged(value["annotations"], images)
    if exchanged:
        images = {
            key: {**image, "height": image["width"], "width": image["height"]}
            for key, image in images.items()
        }
    drawn = _drawn(value["annotations"], path, names, images, problems)
    info = value.get("info")
    url = str(info.get("url") or "") if isinstance(info, dict) else ""
    return CocoFile(path, images, drawn, names, problems, exchanged, _licence(value), url)


def _entries(
    value: Mapping[str, Any], keys: Sequence[str], path: Path, part: str, problems: list[str]
) -> Iterator[Mapping[str, Any]]:
    """The sound entries of a list, whose ids must differ; other ones become problems."""
    ids = set()
    for entry in value[part]:
        if not _is_entry(entry, keys, path, part, problems):
            continue
        if entry["id"] in ids:
            problems.append(f"{path}: {part}: id {entry['id']} is there twice")
        ids.add(entry["id"])
        yield entry


def _are_exchanged(annotations: Sequence[Any], images: Mapping[Any, Mapping[str, Any]]) -> bool:
    """Whether a file states widths as heights: all its run lengths are for the other way round.

    So does a copy of Endoscapes' files. The frame's own size is compared later in any case.
    """
    entries = [entry for entry in annotations if isinstance(entry, dict)]
    sizes = set()
    for entry in entries:
        image_id = entry.get("image_id")
        image = images.get(image_id) if _is_sound("image_id", image_id) else None
        segmentation = entry.get("segmentation")
        if image is None or not isinstance(segmentation, dict):
            continue
        stated = [image["height"], image["width"]]
        if stated[0] != stated[1]:
            sizes.add(
                (segmentation.get("size") == stated, segmentation.get("size") == stated[::-1])
            )
    return sizes == {(False, True)}


def _is_entry(entry: Any, keys: Sequence[str], path: Path, part: str, problems: list[str]) -> bool:
    """Whether an entry has its keys, with numbers where they must be; else a problem is added."""
    missing = [key for key in keys if not isinstance(entry, dict) or entry.get(key) is None]
    if missing:
        problems.append(f"{path}: {part}: {str(entry)[:80]} has no {', '.join(missing)}")
        return False
    wrong = [key for key in keys if not _is_sound(key, entry[key])]
    if wrong:
        said = ", ".join(f"{key} {str(entry[key])[:40]}" for key in wrong)
        problems.append(f"{path}: {part}: {said}: expected a whole number from 1 on, or a name")
    return not wrong


def _is_sound(key: str, value: Any) -> bool:
    """Whether a value can be that of a key: a side of a frame, or a name."""
    if key in ("width", "height"):
        return isinstance(value, int) and value > 0
    return isinstance(value, int | str)


def _licence(value: Mapping[str, Any]) -> str:
    licences = value.get("licenses")
    entries = licences if isinstance(licences, list) else []
    names = [str(entry.get("name") or "") for entry in entries if isinstance(entry, dict)]
    return ", ".join(name for name in names if name)


def _drawn(
    annotations: Sequence[Any],
    path: Path,
    names: Mapping[Any, str],
    images: Mapping[Any, Any],
    problems: list[str],
) -> Mapping[Any, Drawn]:
    """By image, what is drawn in it; what is wrong is added to the problems."""
    drawn: dict[Any, list[tuple[str, Segmentation]]] = {}
    for entry in annotations:
        if not _is_entry(entry, ("image_id", "category_id"), path, "annotations", problems):
            continue
        image = images.get(entry["image_id"])
        where = f"{path}: annotation {entry.get('id')}"
        if image is None:
            problems.append(f"{where}: image_id {entry['image_id']} is no image")
        elif entry["category_id"] not in names:
            problems.append(f"{where}: category_id {entry['category_id']} is no category")
        else:
            segmentation = entry.get("segmentation")
            size = (int(image["height"]), int(image["width"]))
            wrong = segmentation_problem(segmentation, size)
            if wrong:
                problems.append(f"{where} of {image['file_name']}: {wrong}")
            else:
                named = (names[entry["category_id"]], segmentation)
                drawn.setdefault(entry["image_id"], []).append(named)
    return drawn


def segmentation_problem(segmentation: Segmentation, size: Size) -> str:
    """What is wrong with one segmentation of a frame (H, W); empty if nothing is."""
    if not segmentation:
        return "has no segmentation, such as a box alone"
    if isinstance(segmentation, dict):
        return run_length_problem(segmentation, size)
    if not isinstance(segmentation, list):
        return f"segmentation is a {type(segmentation).__name__}, expected polygons or run lengths"
    return next(filter(None, (_polygon_problem(each, size) for each in segmentation)), "")


def _polygon_problem(polygon: Any, size: Size) -> str:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        return "a polygon is not a list of x and y of three points or more"
    if not all(isinstance(each, int | float) and isfinite(each) for each in polygon):
        return "a polygon holds something else than numbers"
    height, width = size
    xs = polygon[::2]
    ys = polygon[1::2]
    least = min(*xs, *ys)
    if least < -OUTSIDE or max(xs) > width + OUTSIDE or max(ys) > height + OUTSIDE:
        return f"a polygon reaches out of the frame of {width}x{height}: for another size?"
    return ""
