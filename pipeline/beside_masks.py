"""What DSAD tells beside its masks: which organs a frame shows at all, and what each single annotator drew.

Both concern evaluation alone, so a file that is broken is a warning and its content is left out.
"""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.counts import Counts, count_masks
from pipeline.dsad import DataError, Source, read_mask

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
OTHER_FOLDERS = ("multilabel", "labelmap")
PRESENCE, ANNOTATORS = "presence.csv", "annotators.csv"


@dataclass(frozen=True)
class Annotation:
    """One annotator's mask of one frame against the consensus, at the prepared size."""

    frame: str
    annotator: str
    counts: Counts


def read_weak_labels(path: Path, folders: Sequence[str]) -> dict[int, dict[str, bool]]:
    """Which anatomies each frame shows, by the frame's number.

    A first row that does not hold only 0 and 1 names the columns. Without one they are the data set's anatomies in
    alphabetical order, or DSAD's twelve. A frame's number are the last digits of its file's name (DSAD writes
    ``images007.png`` for ``image07.png``).

    Args:
        path: the file.
        folders: the anatomies of the whole data set.

    Raises:
        DataError: the file cannot be read, or a row is not as expected.
    """
    try:
        rows = [row for row in csv.reader(path.read_text().splitlines()) if row]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError([f"{path}: cannot be read ({error})"]) from error
    columns: Sequence[str] = sorted(folders)
    if rows and len(rows[0]) == len(DSAD_COLUMNS) + 1:
        columns = DSAD_COLUMNS
    if rows and not _is_binary(rows[0][1:]):
        columns, rows = [name.strip() for name in rows[0][1:]], rows[1:]
    found = {}
    for line, row in enumerate(rows, start=1):
        number = re.search(r"(\d+)$", Path(row[0].strip()).stem)
        if number is None or len(row) != len(columns) + 1 or not _is_binary(row[1:]):
            raise DataError([f"{path}: row {line} is no file name and {len(columns)} times 0 or 1"])
        found[int(number[1])] = {name: value.strip() == "1" for name, value in zip(columns, row[1:], strict=True)}
    return found


def _is_binary(cells: Sequence[str]) -> bool:
    return bool(cells) and all(cell.strip() in ("0", "1") for cell in cells)


def write_beside(sources: Sequence[Source], folder: Path, image_size: tuple[int, int]) -> list[str]:
    """Write what is known beside the masks of one anatomy's frames.

    Args:
        sources: frames of one anatomy.
        folder: gets ``presence.csv`` (frame, then 0 or 1 per anatomy) and ``annotators.csv`` (frame, annotator, tp,
            fp, fn, tn against the consensus), each only if there is something to tell.
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
    folders = [p.name for p in root.iterdir() if p.is_dir() and p.name not in OTHER_FOLDERS]
    for surgery in dict.fromkeys(source.image.parent for source in sources):
        file = surgery / "weak_labels.csv"
        if not file.is_file():
            continue
        try:
            known = read_weak_labels(file, folders)
        except DataError as error:
            warnings.append(f"{error}; it is left out")
            continue
        for source in (s for s in sources if s.image.parent == surgery):
            number = int(re.sub(r"\D", "", source.name))
            if number in known:
                rows.append({"frame": source.id} | {name: int(there) for name, there in known[number].items()})
    if rows:
        names = list(dict.fromkeys(name for row in rows for name in row))
        _write(path, names, [[row.get(name, "") for name in names] for row in rows])


def _write_annotators(sources: Sequence[Source], path: Path, size: tuple[int, int], warnings: list[str]) -> None:
    rows = []
    for source in sources:
        for folder in sorted(source.image.parent.glob("anno_*")):
            if source.mask is None or not (folder / source.mask.name).is_file():
                continue
            try:
                own, consensus = _small(folder / source.mask.name, size), _small(source.mask, size)
            except DataError as error:
                warnings.append(f"{error}; it is left out")
                continue
            c = count_masks(own, consensus)
            rows.append([source.id, folder.name, c.tp, c.fp, c.fn, c.tn])
    if rows:
        _write(path, ["frame", "annotator", "tp", "fp", "fn", "tn"], rows)


def _small(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    mask, _ = read_mask(path)
    return cv2.resize(mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)


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
