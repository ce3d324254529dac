"""What a conversion will do, before it does it."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.convert.formats import Labels
from pipeline.dsad import OTHER_FOLDERS, DataError, is_picture
from pipeline.files import walk
from pipeline.surgeries import same_surgeries

Mask = NDArray[np.bool_]
# Names of categories that mean no anatomy, and an unknown one (nnU-Net's word for it).
NOTHING = ("background", "none", "__background__")
IGNORE = "ignore"


@dataclass(frozen=True)
class Content:
    """The pixels of one frame and what is known of them.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        masks: by anatomy, (H, W); exactly those that the frame is labelled for.
        unknown: (H, W), pixels of which no label is known; None if there are none.
        unknown_as: how the source says so, such as ``value 255``.
        documented: whether its format has such pixels; else it may be another format.
        annotators: by anatomy, then by annotator, what each of them drew (H, W).
        shows: by anatomy, whether the frame shows it, where no mask says so.
        notes: what is odd about the frame and does not keep it from being used, naming the file.
    """

    image: NDArray[np.uint8]
    masks: Mapping[str, Mask] = field(default_factory=dict)
    unknown: Mask | None = None
    unknown_as: str = ""
    documented: bool = True
    annotators: Mapping[str, Mapping[str, Mask]] = field(default_factory=dict)
    shows: Mapping[str, bool] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Planned:
    """One frame that will be converted.

    Attributes:
        surgery: its folder.
        name: of its file without suffix, such as ``image03``.
        origin: where it comes from, within the source.
        read: gives its content.
        digest: identifies the content, if that is known before it is read.
        counted: whether the name is but a number that mtkd gave.

    ``read`` raises DataError if the frame cannot be used.
    """

    surgery: str
    name: str
    origin: str
    read: Callable[[], Content]
    digest: str = ""
    counted: bool = False


@dataclass(frozen=True)
class Plan:
    """All frames of a source, and what is wrong with it.

    Attributes:
        frames: in the order in which they are written.
        anatomies: all of the set; the legend of label maps. None of them: frames without masks.
        labels: what is written.
        problems: what does not match, one line each, naming the file.
        notes: what a user should know; they are kept beside the data.
        licence, url: that the source itself states; may be empty.
        in_order: whether frames must be read one after another.
    """

    frames: Sequence[Planned]
    anatomies: Sequence[str]
    labels: Labels
    problems: Sequence[str] = ()
    notes: Sequence[str] = ()
    licence: str = ""
    url: str = ""
    in_order: bool = False


@dataclass(frozen=True)
class Found:
    """A frame of the source that still needs a surgery and a number.

    Attributes:
        place: by which the surgery is found and frames are ordered, with ``/``.
        origin: as of :class:`Planned`.
        read: as of :class:`Planned`.
    """

    place: str
    origin: str
    read: Callable[[], Content]


def require_folder(source: Path, layout: str) -> None:
    """That the source is a folder.

    Raises:
        DataError: it is not.
    """
    if not source.is_dir():
        what = "is not a folder" if source.exists() else "does not exist"
        raise DataError([f"{source}: {what}; expected a folder with {layout}"])


def surgery_pattern(regex: str, example: str) -> re.Pattern[str]:
    """The user's expression for surgeries.

    Args:
        regex: with one group.
        example: a name that it must match, for the error.

    Raises:
        DataError: it is missing, not an expression, or has not exactly one group.
    """
    how = (
        f"--surgery REGEX: its one group is the surgery, such as '^([^/]+)/' or '^(case[0-9]+)_', "
        f"and is searched in names such as {example}"
    )
    if not regex:
        raise DataError(
            [
                "--surgery is missing: this format does not say which surgery a frame is of, and a "
                f"surgery must never be in two splits. Fix: {how}"
            ]
        )
    try:
        pattern = re.compile(regex)
    except re.error as error:
        wrong = f"--surgery {regex}: is not an expression ({error}). Fix: {how}"
        raise DataError([wrong]) from None
    if pattern.groups != 1:
        raise DataError([f"--surgery {regex}: has {pattern.groups} groups. Fix: {how}"])
    return pattern


def numbered(
    found: Iterable[Found], surgery_of: Callable[[str], str]
) -> tuple[list[Planned], list[str]]:
    """Frames as ``image00``, ``image01``, ... of their surgeries, in the order of their places.

    Args:
        found: the frames.
        surgery_of: from a place to its surgery; raises DataError.

    Returns:
        The frames, and one line per problem.
    """
    planned: list[Planned] = []
    problems: list[str] = []
    counts: dict[str, int] = {}
    for frame in sorted(found, key=lambda frame: natural_order(frame.place)):
        try:
            surgery = surgery_of(frame.place)
        except DataError as error:
            problems += error.problems
            continue
        number = counts.get(surgery, 0)
        counts[surgery] = number + 1
        name = numbered_name(number)
        planned.append(Planned(surgery, name, frame.origin, frame.read, counted=True))
    return planned, [*problems, *surgery_problems(counts)]


def numbered_name(number: int) -> str:
    """The stem of a frame's file."""
    return f"image{number:02d}"


def misnamed(source: Path, is_known: Callable[[Path], bool], expected: str) -> list[str]:
    """The pictures of a source that its layout does not name: they would be left out.

    Args:
        source: the folder; folders in it are searched, too.
        is_known: whether the layout has a file of this path.
        expected: names, for the problem.
    """
    return [
        f"{path}: expected {expected}: rename it, or move it away"
        for path in walk(source)
        if is_picture(path) and not is_known(path)
    ]


def surgery_in(pattern: re.Pattern[str], place: str) -> str:
    """The surgery of a frame by the user's expression.

    Raises:
        DataError: it does not match, or gives no name of a folder.
    """
    match = pattern.search(place)
    surgery = (match[1] or "") if match else ""
    if match is None or not is_folder_name(surgery):
        what = f"gives '{surgery}', which is no name of a folder" if match else "does not match"
        raise DataError([f"{place}: --surgery {pattern.pattern} {what}"])
    return surgery


def surgery_problems(surgeries: Iterable[str]) -> list[str]:
    """Two names of one surgery, such as 3 and 03."""
    return [
        f"surgeries {' and '.join(names)} count as the same surgery {number}: give one name"
        for number, names in same_surgeries(sorted(set(surgeries)))
    ]


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts ``frame_9`` before ``frame_10``."""
    parts = re.split("([0-9]+)", name)
    return [(1, int(part), part) if part.isdecimal() else (0, 0, part) for part in parts]


def is_folder_name(name: str) -> bool:
    """Whether a name can be that of a surgery's or an anatomy's folder."""
    return (
        bool(name.strip())
        and name == name.strip()
        and not name.startswith((".", "~"))
        and not re.search(r'[/\\:*?"<>|\x00-\x1f]', name)
    )


def anatomy_problems(source: object, names: Sequence[str]) -> list[str]:
    """What is wrong with the names of anatomies, each of which becomes a folder."""
    problems = []
    for name in names:
        if not is_folder_name(name) or name in OTHER_FOLDERS:
            problems.append(f"{source}: '{name}' cannot be an anatomy's folder: rename it")
    for name in {name for name in names if names.count(name) > 1}:
        problems.append(f"{source}: '{name}' is named twice: rename one")
    if len(names) > 254:
        problems.append(f"{source}: names {len(names)} anatomies; at most 254 are possible")
    return problems


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError([f"{path}: cannot be read as JSON ({reason})"]) from None
    if not isinstance(value, dict):
        raise DataError([f"{path}: holds a {type(value).__name__}, expected a JSON object"])
    return value
