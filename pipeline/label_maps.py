"""Complete label maps: beside a data set's masks, or as a data set of their own.

In DSAD's layout the map of ``<root>/<anatomy>/<surgery>/imageMM.png`` is
``<root>/multilabel/<anatomy>/<surgery>/labelMM.png``. A data set of maps alone holds
``<surgery>/imageMM.png`` and ``labelMM.png``. In both 0 means none, and i the i-th line of
``anatomies.txt``. If that ends with the line ``255 = not labelled``, nothing is known of a pixel
with this value.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.annotations import NOT_LABELLED_LINE, anatomies_file, matched, read_names
from pipeline.dsad import MAPS, DataError, DataSet, Source, read_mask
from pipeline.files import entries, folders
from pipeline.surgeries import of_set, same_surgeries, surgery_order

NAMED_BY = "data.anatomies"
NO_LABEL = 255  # in maps, and in prepared labels, where map and mask contradict each other, too
_GREY = 0  # colour type in the header of a PNG: one channel, and no palette
_KINDS = {3: "palette", 4: "partly transparent grey"}


@dataclass(frozen=True)
class Legend:
    """What the values of label maps mean.

    Attributes:
        names: our names of the values 1, 2, ... of prepared maps.
        source: who names them.
        values: for 0, 1, 2, ... of the data set's own maps the value that a prepared one has.
        listed: the data set's own names.
        partial: whether its maps may have pixels that are not labelled.
    """

    names: Sequence[str]
    source: str
    values: Sequence[int]
    listed: Sequence[str] = ()
    partial: bool = False

    def read(self, path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
        """A map (H, W) with the values of prepared ones.

        Raises:
            DataError: as of :func:`read_map`.
        """
        read = read_map(path, size, len(self.values) - 1, self.source, partial=self.partial)
        ours = np.full(256, NO_LABEL, np.uint8)
        ours[: len(self.values)] = self.values
        return ours[read]


@dataclass(frozen=True)
class CheckedMap:
    """A frame's complete label map against its mask.

    Attributes:
        path: the file.
        values: (H, W) uint8, 0 = none, i = the legend's i-th name, ``NO_LABEL``.
        shows: by each of the legend's names, whether a pixel shows it, where that is known.
        contradicted: share of the pixels, 0..1.
        agrees: whether map and mask have more of the frame's anatomy in common than not.
    """

    path: Path
    values: NDArray[np.uint8]
    shows: Mapping[str, bool]
    contradicted: float
    agrees: bool


def legend_of(data_set: DataSet, anatomies: Sequence[str], named_by: str = NAMED_BY) -> Legend:
    """The legend of the maps of a data set of them, or of those beside the masks of another.

    Args:
        data_set: which.
        anatomies: what the values mean where there is no ``anatomies.txt``.
        named_by: what names these.

    Raises:
        DataError: it names an anatomy twice, too many, or none where all depends on it.
    """
    root = data_set.root
    maps = root if has_label_maps(root) else root / MAPS
    if data_set.name and maps == root and anatomies_file(root) is None:
        raise DataError(
            [
                f"{root} holds label maps and no anatomies.txt, so that nobody says what their "
                "values mean: write one, with the name of value i in line i"
            ]
        )
    listed, source, partial = _names(maps, anatomies, named_by)
    if maps == root and not any(listed):
        raise DataError([f"{source} names nothing"])
    if len(listed) >= NO_LABEL:
        most = NO_LABEL - 1
        raise DataError([f"{source}: names {len(listed)} anatomies; at most {most} are possible"])
    ours = matched([data_set.ours(name) for name in listed], anatomies)
    names = list(dict.fromkeys(ours))
    values = [0, *(names.index(name) + 1 for name in ours)]
    return Legend(names, source, values, listed, partial)


def named_from_above(data_sets: Sequence[DataSet]) -> list[str]:
    """Warnings of data sets of label maps whose names stand outside of them."""
    warnings = []
    for data_set in data_sets:
        file = anatomies_file(data_set.root)
        if has_label_maps(data_set.root) and file and file.parent != data_set.root:
            warnings.append(
                f"{file} names the values of the maps in {data_set.root} and lies outside, where "
                "DVC does not see it change: put it into that folder"
            )
    return warnings


def scan_maps(
    data_set: DataSet, anatomies: Sequence[str], legend: Legend, named_by: str = NAMED_BY
) -> tuple[list[Source], list[str]]:
    """All frames of a data set of label maps, once for each anatomy, and what is wrong with it.

    Args:
        data_set: folder of ``<surgery>/imageMM.png`` and ``labelMM.png``.
        anatomies: those that are used, of which its legend must name each.
        legend: of its maps.
        named_by: what names the anatomies.

    Returns:
        Frames ordered by anatomy as given, surgery id and number; and one line per problem.
    """
    root = data_set.root
    problems = _same_surgeries(root) + _without_label(root) + _without_frame(root)
    problems += [
        f"{named_by}: {anatomy} is not named by {legend.source}; there: {', '.join(legend.names)}"
        for anatomy in anatomies
        if anatomy not in legend.names
    ]
    values = {name: value for value, name in enumerate(legend.names, start=1) if name}
    maps = [item for item in _label_maps(root) if _frame_beside(*item).is_file()]
    maps.sort(key=lambda item: (surgery_order(item[0].parent.name), int(item[1])))
    used = [anatomy for anatomy in anatomies if anatomy in values]
    sources = [
        _source(data_set, anatomy, values[anatomy], path)
        for anatomy, (path, _) in product(used, maps)
    ]
    return sources, problems


def _source(data_set: DataSet, anatomy: str, value: int, label: Path) -> Source:
    frame = label.with_name(label.name.replace("label", "image"))
    surgery = of_set(data_set.name, label.parent.name)
    return Source(anatomy, surgery, frame.stem, frame, label, value, data_set)


def map_of(source: Source, legend: Legend, size: tuple[int, int]) -> CheckedMap:
    """The label map of a frame of a data set of label maps, which has no other mask.

    Raises:
        DataError: as of :func:`read_map`.
    """
    assert source.mask is not None
    values = legend.read(source.mask, size)
    return CheckedMap(source.mask, values, _shown(values, legend), 0.0, agrees=True)


def _shown(values: NDArray[np.uint8], legend: Legend) -> dict[str, bool]:
    """Which names are shown; which are not is known only if all pixels are labelled."""
    there = set(np.unique(values).tolist())
    shown = {name: value in there for value, name in enumerate(legend.names, start=1)}
    return {name: is_shown for name, is_shown in shown.items() if is_shown or NO_LABEL not in there}


def check_map(source: Source, mask: NDArray[np.bool_], legend: Legend) -> CheckedMap | None:
    """A frame's complete label map, or None if it has none.

    Args:
        source: the frame.
        mask: (H, W), its anatomy.
        legend: of the data set's maps.

    Raises:
        DataError: as of :func:`read_map`.
    """
    surgery = source.image.parent
    folder = surgery.parents[1] / MAPS / surgery.parent.name / surgery.name
    path = folder / f"label{source.name.removeprefix('image')}.png"
    if not path.is_file():
        return None
    names = legend.names
    size = (mask.shape[0], mask.shape[1])
    values = legend.read(path, size)
    shows = _shown(values, legend)
    if source.anatomy not in names:
        return CheckedMap(path, values, shows, 0.0, agrees=True)
    value = list(names).index(source.anatomy) + 1
    values[(values == NO_LABEL) & mask] = value
    shown = values == value
    contradicted = shown != mask
    values[contradicted] = NO_LABEL
    agrees = (shown & mask).sum() >= contradicted.sum()
    return CheckedMap(path, values, shows, float(contradicted.mean()), bool(agrees))


def has_label_maps(data: Path) -> bool:
    """Whether a folder holds ``<surgery>/labelMM.png``."""
    return data.is_dir() and any(True for _ in _label_maps(data))


def _label_maps(data: Path) -> Iterator[tuple[Path, str]]:
    return _numbered(data, "label")


def _numbered(data: Path, kind: str) -> Iterator[tuple[Path, str]]:
    """Files ``<surgery>/<kind>MM.png`` and their numbers, in order."""
    for surgery in folders(data):
        for path in entries(surgery):
            match = re.fullmatch(rf"{kind}([0-9]+)\.png", path.name)
            if match:
                yield path, match[1]


def _frame_beside(label: Path, number: str) -> Path:
    return label.with_name(f"image{number}.png")


def _without_frame(data: Path) -> list[str]:
    frames = {path: _frame_beside(path, number) for path, number in _label_maps(data)}
    return [
        f"{path}: its frame {frame.name} is missing"
        for path, frame in frames.items()
        if not frame.is_file()
    ]


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


def _names(data: Path, anatomies: Sequence[str], default: str) -> tuple[Sequence[str], str, bool]:
    """What the values 1, 2, ... mean, spelt as the anatomies are; who says so; whether 255 may be.

    Args:
        data: the folder of the maps.
        anatomies: what they mean where there is no ``anatomies.txt``.
        default: what names these.
    """
    file = anatomies_file(data)
    if file is None:
        return anatomies, f"{default} (there is no anatomies.txt)", False
    listed, partial = read_names(file)
    names = matched(listed, anatomies)
    twice = [name for name, times in Counter(names).items() if times > 1 and name]
    if twice:
        raise DataError([f"{file}: names {', '.join(twice)} twice"])
    return names, str(file), partial


def read_map(
    path: Path, size: tuple[int, int], highest: int, source: str, *, partial: bool = False
) -> NDArray[np.integer[Any]]:
    """The values (H, W) of a complete label map.

    Args:
        path: a PNG of one channel of 8 or 16 bits.
        size: (H, W) of its frame.
        highest: the largest value that has a name.
        source: who names the values.
        partial: whether a pixel may be ``NO_LABEL``.

    Raises:
        DataError: the map cannot be read as such, has another size, or holds values without a name.
    """
    read_mask(path)  # refuses what is damaged, or not a PNG
    content = path.read_bytes()
    bits = content[24]
    colour = content[25]
    values = np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED))
    if colour != _GREY or bits < 8 or values.ndim != 2:
        kind = f"{bits}-bit grey" if colour == _GREY else _KINDS.get(colour, "colour")
        raise DataError([f"{path}: is a {kind} image; expected a grey one of 8 or 16 bits"])
    if values.shape != size:
        sizes = f"{size[1]}x{size[0]} and {values.shape[1]}x{values.shape[0]}"
        raise DataError([f"{path}: frame and label have different sizes, {sizes}"])
    held = set(np.unique(values).tolist()) - ({NO_LABEL} if partial else set())
    if max(held, default=0) > highest:
        unnamed = sorted(value for value in held if value > highest)
        raise DataError([f"{path}: {_unnamed(unnamed, highest, source)}"])
    return values


def _unnamed(values: Sequence[int], highest: int, source: str) -> str:
    """What is wrong with values that have no name."""
    named = f"names only 1 to {highest}" if highest else "names nothing"
    fix = f"; if nothing is known there, end it with the line '{NOT_LABELLED_LINE}'"
    hint = fix if values == [NO_LABEL] else ""
    return f"holds {', '.join(map(str, values))}, and {source} {named}{hint}"
