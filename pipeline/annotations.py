"""What DSAD tells beside its masks: which organs a frame shows at all, and what each single annotator drew.

Both concern evaluation alone, so a file that is broken or speaks of nothing here is a warning and
is left out.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.counts import Counts, count_masks
from pipeline.dsad import OTHER_FOLDERS, DataError, Source, read_mask
from pipeline.files import folders as all_folders

# DSAD's columns: alphabetical, with one organ that has no masks.
DSAD_COLUMNS = (
    "abdominal_wall",
    "colon",
    "inferior_mesenteric_artery",
    "intestinal_veins",
    "liver",
    "pancreas",
    "small_intestine",
    "spleen",
    "stomach",
    "ureter",
    "uterus",
    "vesicular_glands",
)
# Columns that are only implied are wrong if they deny more than this share of a surgery's own
# masks.
DENIED = 0.5
PRESENCE, ANNOTATORS = "presence.csv", "annotators.csv"


@dataclass(frozen=True)
class WeakLabels:
    """Which anatomies the frames of one surgery show.

    Attributes:
        shows: by the frame's number, then by anatomy.
        named: whether the file names its columns; else their order is only implied.
    """

    shows: dict[int, dict[str, bool]]
    named: bool


@dataclass(frozen=True)
class Annotation:
    """One annotator's mask of one frame against the consensus, at the prepared size."""

    frame: str
    annotator: str
    counts: Counts


def read_weak_labels(path: Path, folders: Sequence[str], listed: Sequence[str] = ()) -> WeakLabels:
    """Which anatomies each frame of a surgery shows.

    A first row of words names the columns, in any case and with spaces for underscores. Without one
    they are the lines of the data set's ``anatomies.txt``, or its anatomies in alphabetical order,
    or DSAD's twelve. A frame's number are the last digits of its file's name (DSAD writes
    ``images007.png`` for ``image07.png``).

    Args:
        path: the file.
        folders: the anatomies of the whole data set.
        listed: the lines of its ``anatomies.txt``, if it has one.

    Raises:
        DataError: the file cannot be read or is empty, no column is one of the anatomies, or a row
            is not as expected.
    """
    rows = _numbered_rows(path)
    first = rows[0][1][1:]
    columns = _implied_columns(len(first), folders, listed)
    named = not any(re.fullmatch(r"[\d.+-]*", cell.strip()) for cell in first)
    if named:
        columns, rows = matched(first, folders), rows[1:]
    if not set(columns) & set(folders):
        raise DataError(
            [
                f"{path}: its columns ({', '.join(columns)}) name none of "
                f"{', '.join(sorted(folders))}"
            ]
        )
    if len(set(columns)) < len(columns):
        raise DataError([f"{path}: its first row names a column twice"])
    found: dict[int, dict[str, bool]] = {}
    for line, row in rows:
        number = re.search(r"(?<![0-9])([0-9]{1,18})$", Path(row[0].strip()).stem)
        if (
            number is None
            or len(row) != len(columns) + 1
            or any(cell.strip() not in ("0", "1") for cell in row[1:])
        ):
            raise DataError([f"{path}: row {line} is no file name and {len(columns)} times 0 or 1"])
        if int(number[1]) in found:
            raise DataError([f"{path}: row {line} is another one of frame {number[1]}"])
        found[int(number[1])] = {
            name: cell.strip() == "1" for name, cell in zip(columns, row[1:], strict=True)
        }
    return WeakLabels(found, named)


def _numbered_rows(path: Path) -> list[tuple[int, list[str]]]:
    """The rows that are not blank, each with its number in the file."""
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            [f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})"]
        ) from error
    numbered = [(line, row) for line, row in enumerate(rows, start=1) if row]
    if not numbered:
        raise DataError([f"{path}: is empty"])
    if len(numbered[0][1]) == 1 and ";" in numbered[0][1][0]:
        raise DataError([f"{path}: its columns are separated by semicolons, expected commas"])
    return numbered


def _implied_columns(number: int, folders: Sequence[str], listed: Sequence[str]) -> Sequence[str]:
    if number == len(listed):
        return matched(listed, folders)
    others = not set(folders) <= set(DSAD_COLUMNS)
    if number == len(DSAD_COLUMNS) and not (others and number == len(folders)):
        return DSAD_COLUMNS
    return sorted(folders)


def anatomies_file(folder: Path) -> Path | None:
    """The list of a data set's anatomies, one a line: ``anatomies.txt`` in its folder or above it."""
    found = (place / "anatomies.txt" for place in (folder, folder.resolve().parent))
    return next((file for file in found if file.is_file()), None)


def read_lines(file: Path) -> list[str]:
    """The lines of a UTF-8 text.

    Raises:
        DataError: it is none.
    """
    try:
        return file.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise DataError(
            [f"{file}: is no UTF-8 text ({error.reason} at byte {error.start})"]
        ) from error


def matched(names: Sequence[str], folders: Sequence[str]) -> list[str]:
    """Names as the folders spell them."""
    spelt = {spelling(folder): folder for folder in folders}
    return [spelt.get(spelling(name), name.strip()) for name in names]


def spelling(name: str) -> str:
    """What is left of a name where case, and spaces for underscores, do not matter."""
    return "_".join(name.lower().split())


def write_beside(sources: Sequence[Source], folder: Path, image_size: tuple[int, int]) -> list[str]:
    """Write what is known beside the masks of one anatomy's frames.

    Args:
        sources: frames of one anatomy.
        folder: gets ``presence.csv`` (frame, then 0 or 1 per anatomy) and ``annotators.csv``
            (frame, annotator, tp, fp, fn, tn against the consensus), each only if there is
            something to tell.
        image_size: (H, W) at which masks are compared.

    Returns:
        Warnings.
    """
    warnings: list[str] = []
    if sources:
        _write_presence(sources, folder / PRESENCE, warnings)
    _write_annotators(sources, folder / ANNOTATORS, image_size, warnings)
    return warnings


def _write_presence(sources: Sequence[Source], path: Path, warnings: list[str]) -> None:
    rows: list[dict[str, object]] = []
    root = sources[0].image.parents[2]
    folders = [path.name for path in all_folders(root) if path.name not in OTHER_FOLDERS]
    listed = _listed(root, warnings)
    for surgery in dict.fromkeys(source.image.parent for source in sources):
        file = surgery / "weak_labels.csv"
        if not file.exists():
            continue
        try:
            known = read_weak_labels(file, folders, listed)
        except DataError as error:
            warnings.append(f"{error}; it is left out")
            continue
        own = [s for s in sources if s.image.parent == surgery]
        told = {
            s: known.shows[number]
            for s in own
            if (number := int(re.sub(r"\D", "", s.name))) in known.shows
        }
        if not told:
            warnings.append(f"{file}: has no row for any frame here")
        denied = _denied(told)
        if len(denied) > DENIED * len(told) and not known.named:
            warnings.append(
                f"{file}: denies {len(denied)} of {len(told)} frames the {denied[0].anatomy} that "
                "their masks show, so "
                "its columns are in another order: name them in a first row or in anatomies.txt; "
                "it is left out"
            )
            continue
        for source in denied:
            warnings.append(
                f"{file}: says that {source.name} shows no {source.anatomy}, and {source.mask} does"
            )
            told[source] = {
                name: there for name, there in told[source].items() if name != source.anatomy
            }
        rows += [
            {"frame": s.id} | {name: int(there) for name, there in shows.items()}
            for s, shows in told.items()
        ]
    if rows:
        names = list(dict.fromkeys(name for row in rows for name in row))
        _write(path, names, [[row.get(name, "") for name in names] for row in rows])


def _listed(root: Path, warnings: list[str]) -> list[str]:
    file = anatomies_file(root)
    try:
        return read_lines(file) if file else []
    except DataError as error:
        warnings.append(f"{error}; it is left out")
        return []


def _denied(told: Mapping[Source, Mapping[str, bool]]) -> list[Source]:
    """Frames that are said not to show what their own mask shows."""
    absent = [source for source, shows in told.items() if shows.get(source.anatomy) is False]
    return [
        source for source in absent if source.mask is not None and read_mask(source.mask)[0].any()
    ]


def _write_annotators(
    sources: Sequence[Source], path: Path, size: tuple[int, int], warnings: list[str]
) -> None:
    rows = []
    for source in sources:
        for folder in sorted(source.image.parent.glob("anno_*")):
            if source.mask is None or not (drawn := folder / source.mask.name).is_file():
                continue
            try:
                own, consensus = read_mask(drawn)[0], read_mask(source.mask)[0]
            except DataError as error:
                warnings.append(f"{error}; it is left out")
                continue
            if own.shape != consensus.shape:
                sizes = " and ".join(f"{w}x{h}" for h, w in (own.shape, consensus.shape))
                warnings.append(
                    f"{drawn}: this mask and the consensus have different sizes, {sizes}; it is "
                    "left out"
                )
                continue
            c = count_masks(_small(own, size), _small(consensus, size))
            rows.append([source.id, folder.name, c.tp, c.fp, c.fn, c.tn])
    if rows:
        _write(path, ["frame", "annotator", "tp", "fp", "fn", "tn"], rows)


def _small(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    return cv2.resize(
        mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT
    ).astype(bool)


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def read_presence(folder: Path) -> dict[str, dict[str, bool]]:
    """Which anatomies each frame of a prepared folder shows; empty if nobody said."""
    return {
        row.pop("frame"): {name: value == "1" for name, value in row.items() if value}
        for row in _rows(folder / PRESENCE)
    }


def read_annotations(folder: Path) -> list[Annotation]:
    """What annotators drew on the frames of a prepared folder."""
    counted = ("tp", "fp", "fn", "tn")
    return [
        Annotation(row["frame"], row["annotator"], Counts(*(int(row[name]) for name in counted)))
        for row in _rows(folder / ANNOTATORS)
    ]


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
