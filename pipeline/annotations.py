"""What DSAD holds beside its masks: which organs a frame shows, and each annotator's masks.

A file that is damaged, or has nothing about the frames here, is a warning and is left out.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.counts import Counts, count_masks
from pipeline.dsad import OTHER_FOLDERS, DataError, DataSet, Source, read_mask
from pipeline.files import folders

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
# Columns that are only implied are wrong if they deny more than this share of a surgery's masks.
DENIED = 0.5
NOT_LABELLED_LINE = (
    "255 = not labelled"  # the last line of an anatomies.txt, if there is such a value
)
WEAK_LABELS = "weak_labels.csv"  # in the folder of a surgery
PRESENCE = "presence.csv"
ANNOTATORS = "annotators.csv"
COUNTED = ("tp", "fp", "fn", "tn")

Shows = Mapping[str, bool]  # by anatomy, whether a frame shows it


@dataclass(frozen=True)
class WeakLabels:
    """Which anatomies the frames of one surgery show.

    Attributes:
        shows: by the frame's number, then by anatomy.
        named: whether the file names its columns; else their order is only implied.
    """

    shows: dict[int, dict[str, bool]]
    named: bool

    def named_as_ours(self, data_set: DataSet) -> "WeakLabels":
        """The same under our names; of several columns for one of them any that shows it does."""
        renamed: dict[int, dict[str, bool]] = {}
        for number, shown in self.shows.items():
            row = renamed.setdefault(number, {})
            for anatomy, is_shown in shown.items():
                name = data_set.ours(anatomy)
                row[name] = row.get(name, False) or is_shown
        return WeakLabels(renamed, self.named)

    def of(self, sources: Sequence[Source]) -> dict[Source, Shows]:
        """What is said of some frames of the surgery; those of which nothing is are left out."""
        numbers = {source: int(re.sub(r"\D", "", source.name)) for source in sources}
        return {s: self.shows[number] for s, number in numbers.items() if number in self.shows}


@dataclass(frozen=True)
class Annotation:
    """One annotator's mask of one frame against the consensus, at the prepared size."""

    frame: str
    annotator: str
    counts: Counts


def read_weak_labels(
    path: Path, anatomies: Sequence[str], listed: Sequence[str] = ()
) -> WeakLabels:
    """Which anatomies each frame of a surgery shows.

    A first row of words names the columns, in any case and with spaces for underscores. Without one
    they are the lines of the data set's ``anatomies.txt``, or its anatomies in alphabetical order,
    or DSAD's twelve. A frame's number are the last digits of its file's name (DSAD writes
    ``images007.png`` for ``image07.png``).

    Args:
        path: the file.
        anatomies: those of the whole data set.
        listed: the lines of its ``anatomies.txt``, if it has one.

    Raises:
        DataError: the file cannot be read or is empty, no column is one of the anatomies, or a row
            is not as expected.
    """
    rows = _numbered_rows(path)
    header = rows[0][1][1:]
    named = not any(re.fullmatch(r"[\d.+-]*", cell.strip()) for cell in header)
    if named:
        columns: Sequence[str] = matched(header, anatomies)
        rows = rows[1:]
    else:
        columns = _implied_columns(len(header), anatomies, listed)
    if not set(columns) & set(anatomies):
        names = f"({', '.join(columns)}) name none of {', '.join(sorted(anatomies))}"
        raise DataError([f"{path}: its columns {names}"])
    if len(set(columns)) < len(columns):
        raise DataError([f"{path}: its first row names a column twice"])
    shows: dict[int, dict[str, bool]] = {}
    for line, row in rows:
        number = _frame_number(row[0])
        if number is None or not _is_binary(row[1:], len(columns)):
            raise DataError(
                [f"{path}: row {line} is not a file name and {len(columns)} times 0 or 1"]
            )
        if number in shows:
            raise DataError([f"{path}: row {line} is another one of frame {number}"])
        cells = zip(columns, row[1:], strict=True)
        shows[number] = {anatomy: cell.strip() == "1" for anatomy, cell in cells}
    return WeakLabels(shows, named)


def _frame_number(name: str) -> int | None:
    """The digits at the end of a file's name."""
    digits = re.search(r"(?<![0-9])([0-9]{1,18})$", Path(name.strip()).stem)
    return None if digits is None else int(digits[1])


def _is_binary(cells: Sequence[str], number: int) -> bool:
    return len(cells) == number and all(cell.strip() in ("0", "1") for cell in cells)


def _numbered_rows(path: Path) -> list[tuple[int, list[str]]]:
    """The rows that are not blank, each with its number in the file."""
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError([f"{path}: cannot be read ({reason})"]) from error
    numbered = [(line, row) for line, row in enumerate(rows, start=1) if row]
    if not numbered:
        raise DataError([f"{path}: is empty"])
    if len(numbered[0][1]) == 1 and ";" in numbered[0][1][0]:
        raise DataError([f"{path}: its columns are separated by semicolons, expected commas"])
    return numbered


def _implied_columns(number: int, anatomies: Sequence[str], listed: Sequence[str]) -> Sequence[str]:
    if number == len(listed):
        return matched(listed, anatomies)
    others = not set(anatomies) <= set(DSAD_COLUMNS)
    if number == len(DSAD_COLUMNS) and not (others and number == len(anatomies)):
        return DSAD_COLUMNS
    return sorted(anatomies)


def anatomies_file(folder: Path) -> Path | None:
    """The list of a data set's anatomies, one a line: ``anatomies.txt`` in its folder or above."""
    files = [place / "anatomies.txt" for place in (folder, folder.resolve().parent)]
    return next((file for file in files if file.is_file()), None)


def read_lines(file: Path) -> list[str]:
    """The lines of a UTF-8 text.

    Raises:
        DataError: it is not one.
    """
    try:
        return file.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
        raise DataError([f"{file}: is not a UTF-8 text ({reason})"]) from error


def read_names(file: Path) -> tuple[list[str], bool]:
    """The names in an ``anatomies.txt``, and whether its maps have pixels without a label.

    Raises:
        DataError: as of :func:`read_lines`.
    """
    lines = read_lines(file)
    partial = bool(lines) and _without_spaces(lines[-1]) == _without_spaces(NOT_LABELLED_LINE)
    return lines[:-1] if partial else lines, partial


def _without_spaces(line: str) -> str:
    return re.sub(r"[\s_]", "", line).lower()


def matched(names: Sequence[str], anatomies: Sequence[str]) -> list[str]:
    """Names as the anatomies spell them."""
    spelt = {spelling(anatomy): anatomy for anatomy in anatomies}
    return [spelt.get(spelling(name), name.strip()) for name in names]


def spelling(name: str) -> str:
    """What is left of a name where case, and spaces for underscores, do not matter."""
    return "_".join(name.lower().split())


def write_presence(
    sources: Sequence[Source],
    mapped: Mapping[Source, Shows],
    others: Mapping[Source, Mapping[str, Path]],
    folder: Path,
) -> tuple[list[str], list[str]]:
    """Write which anatomies the frames of one anatomy show, if something is known of it.

    Args:
        sources: frames of one anatomy.
        mapped: what complete label maps show; they are believed above weak labels.
        others: masks of the same picture, by anatomy, that are not empty; likewise.
        folder: gets ``presence.csv``: frame, then 0 or 1 per anatomy.

    Returns:
        Warnings, and where weak labels contradict masks or maps.
    """
    if not sources:
        return [], []
    weak, warnings, contradictions = _weak_labels(sources)
    contradictions += _corrected_by_masks(weak, others)
    contradictions += _corrected_by_maps(weak, mapped)
    rows = [_presence_row(source, weak[source]) for source in sources if source in weak]
    if rows:
        names = list(dict.fromkeys(chain.from_iterable(rows)))
        _write(folder / PRESENCE, names, [_cells(row, names) for row in rows])
    return warnings, contradictions


def _corrected_by_masks(
    weak: dict[Source, Shows], others: Mapping[Source, Mapping[str, Path]]
) -> list[str]:
    """Forget weak labels that masks of the same picture contradict, and say which."""
    contradictions: list[str] = []
    for source, said in weak.items():
        denied = [name for name in others.get(source, {}) if said.get(name) is False]
        contradictions += [_contradiction(source, name, others[source][name]) for name in denied]
        weak[source] = {name: shown for name, shown in said.items() if name not in denied}
    return contradictions


def _corrected_by_maps(weak: dict[Source, Shows], mapped: Mapping[Source, Shows]) -> list[str]:
    """Add what complete label maps show, and say which weak labels they contradict."""
    contradictions: list[str] = []
    for source, shows in mapped.items():
        said = weak.get(source, {})
        wrong = [name for name, shown in shows.items() if said.get(name, shown) is not shown]
        file = source.image.with_name(WEAK_LABELS)
        contradictions += [
            f"{file}: says that {source.name} {_shows(said[name])} {name}, and its map does"
            f"{'' if shows[name] else ' not'}"
            for name in wrong
        ]
        weak[source] = {**said, **shows}
    return contradictions


def write_annotators(
    sources: Sequence[Source], folder: Path, image_size: tuple[int, int]
) -> list[str]:
    """Write what single annotators drew on the frames of one anatomy, if they did.

    Args:
        sources: frames of one anatomy.
        folder: gets ``annotators.csv``: frame, annotator, tp, fp, fn, tn against the consensus.
        image_size: (H, W) at which masks are compared.

    Returns:
        Warnings.
    """
    warnings: list[str] = []
    counts: list[list[object]] = []
    for source in sources:
        source_counts, source_warnings = _compare_annotators(source, image_size)
        counts += source_counts
        warnings += source_warnings
    if counts:
        _write(folder / ANNOTATORS, ["frame", "annotator", *COUNTED], counts)
    return warnings


def _cells(row: Mapping[str, object], names: Sequence[str]) -> list[object]:
    return [row.get(name, "") for name in names]


def _weak_labels(
    sources: Sequence[Source],
) -> tuple[dict[Source, Shows], list[str], list[str]]:
    """What weak labels say of the frames of one anatomy, warnings, and contradictions."""
    believed: dict[Source, Shows] = {}
    warnings: list[str] = []
    contradictions: list[str] = []
    masks = [source for source in sources if source.value is None]  # a label map says it all
    for data_set in dict.fromkeys(source.data_set for source in masks):
        of_set = [source for source in masks if source.data_set == data_set]
        shows, wrong, contradicted = _weak_labels_of_set(of_set)
        believed |= shows
        warnings += wrong
        contradictions += contradicted
    return believed, warnings, contradictions


def _weak_labels_of_set(
    sources: Sequence[Source],
) -> tuple[dict[Source, Shows], list[str], list[str]]:
    """The same of frames of one data set."""
    root = sources[0].image.parents[2]
    data_set = sources[0].data_set or DataSet(root)
    anatomies = [path.name for path in folders(root) if path.name not in OTHER_FOLDERS]
    listed, warnings = _listed(root)
    believed: dict[Source, Shows] = {}
    contradictions: list[str] = []
    for surgery in dict.fromkeys(source.image.parent for source in sources):
        file = surgery / WEAK_LABELS
        if not file.exists():
            continue
        try:
            weak_labels = read_weak_labels(file, anatomies, listed).named_as_ours(data_set)
        except DataError as error:
            warnings.append(f"{error}; it is left out")
            continue
        of_surgery = [source for source in sources if source.image.parent == surgery]
        shows, surgery_warnings, contradicted = _believed(file, weak_labels, of_surgery)
        believed |= shows
        warnings += surgery_warnings
        contradictions += contradicted
    return believed, warnings, contradictions


def _listed(root: Path) -> tuple[list[str], list[str]]:
    """The lines of the data set's ``anatomies.txt``, if there is one, and warnings."""
    file = anatomies_file(root)
    try:
        return read_names(file)[0] if file else [], []
    except DataError as error:
        return [], [f"{error}; it is left out"]


def _presence_row(source: Source, shows: Shows) -> dict[str, object]:
    return {"frame": source.id} | {anatomy: int(shown) for anatomy, shown in shows.items()}


def _believed(
    file: Path, weak_labels: WeakLabels, sources: Sequence[Source]
) -> tuple[dict[Source, Shows], list[str], list[str]]:
    """What the weak labels of one surgery say and no mask contradicts.

    Returns:
        That, warnings, and where masks contradict them.
    """
    shows = weak_labels.of(sources)
    warnings = [] if shows else [f"{file}: has no row for any frame here"]
    denied = _denied(shows)
    if len(denied) > DENIED * len(shows) and not weak_labels.named:
        warnings.append(
            f"{file}: denies {len(denied)} of {len(shows)} frames the {denied[0].anatomy} that "
            "their masks show, so its columns are in another order: name them in a first row or in "
            "anatomies.txt; it is left out"
        )
        return {}, warnings, []
    contradictions = []
    for source in denied:
        contradictions.append(_contradiction(source, source.anatomy, source.mask))
        shows[source] = {
            anatomy: shown for anatomy, shown in shows[source].items() if anatomy != source.anatomy
        }
    return shows, warnings, contradictions


def _contradiction(source: Source, anatomy: str, mask: Path | None) -> str:
    """What a weak label denies and a mask shows."""
    file = source.image.with_name(WEAK_LABELS)
    return f"{file}: says that {source.name} {_shows(False)} {anatomy}, and {mask} does"


def _shows(is_visible: bool) -> str:
    return "shows" if is_visible else "shows no"


def _denied(shows: Mapping[Source, Shows]) -> list[Source]:
    """Frames that are said not to show what their mask shows."""
    absent = [source for source, of in shows.items() if of.get(source.anatomy) is False]
    return [
        source for source in absent if source.mask is not None and read_mask(source.mask)[0].any()
    ]


def _compare_annotators(
    source: Source, size: tuple[int, int]
) -> tuple[list[list[object]], list[str]]:
    """Rows of ``annotators.csv`` for one frame, and warnings."""
    rows: list[list[object]] = []
    warnings: list[str] = []
    if source.mask is None:
        return rows, warnings
    for folder in sorted(source.image.parent.glob("anno_*")):
        drawn = folder / source.mask.name
        if not drawn.is_file():
            continue
        try:
            counts = _count(drawn, source.mask, size)
        except DataError as error:
            warnings.append(f"{error}; it is left out")
        else:
            pixels = [getattr(counts, name) for name in COUNTED]
            rows.append([source.id, folder.name, *pixels])
    return rows, warnings


def _count(drawn: Path, consensus: Path, size: tuple[int, int]) -> Counts:
    """An annotator's mask against the consensus, at the prepared size.

    Raises:
        DataError: a file cannot be read, or their sizes differ.
    """
    mask, _ = read_mask(drawn)
    label, _ = read_mask(consensus)
    if mask.shape != label.shape:
        sizes = " and ".join(f"{w}x{h}" for h, w in (mask.shape, label.shape))
        raise DataError([f"{drawn}: this mask and the consensus have different sizes, {sizes}"])
    return count_masks(_small(mask, size), _small(label, size))


def _small(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    pixels = mask.astype(np.uint8)
    return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def read_presence(folder: Path) -> dict[str, dict[str, bool]]:
    """Which anatomies each frame of a prepared folder shows; empty without weak labels."""
    return {row.pop("frame"): _shown(row) for row in _rows(folder / PRESENCE)}


def _shown(row: Mapping[str, str]) -> dict[str, bool]:
    return {anatomy: cell == "1" for anatomy, cell in row.items() if cell}


def read_annotations(folder: Path) -> list[Annotation]:
    """What annotators drew on the frames of a prepared folder."""
    return [
        Annotation(row["frame"], row["annotator"], _counts(row))
        for row in _rows(folder / ANNOTATORS)
    ]


def _counts(row: Mapping[str, str]) -> Counts:
    return Counts(*(int(row[name]) for name in COUNTED))


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
