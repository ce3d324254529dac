"""DSAD's Hugging Face edition: Parquet files with the pictures inside.

A picture is a struct of ``bytes`` and ``path``, as the library ``datasets`` stores it. Of the other
columns only ``organ`` could be read in the edition's card. So columns are found by their names and
types, and where that fails the error lists what the file has.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.annotations import DSAD_COLUMNS, spelling
from pipeline.convert.formats import FORMATS, Labels, ParquetConfig
from pipeline.convert.pictures import decoded_frame, decoded_values
from pipeline.convert.plans import (
    Content,
    Mask,
    Plan,
    Planned,
    is_folder_name,
    surgery_in,
    surgery_pattern,
    surgery_problems,
)
from pipeline.dsad import DataError
from pipeline.files import walk

# What a column may be called, by what it holds. Options.columns goes before.
NAMES = {
    "image": ("image", "img"),
    "organ": ("organ",),
    "mask": ("mask", "label", "segmentation", "mask_final"),
    "merged": ("mask_merged", "merged_mask", "staple_mask", "mask_staple", "merged", "staple"),
    "surgery": ("surgery", "surgery_id", "surgery_number", "patient", "patient_id", "video_id"),
    "frame": ("frame", "frame_id", "frame_number", "frame_index", "image_id", "image_number"),
}
ROLES = tuple(NAMES)
JPEG = b"\xff\xd8\xff"
ORGANS = tuple(organ for organ in DSAD_COLUMNS if organ != "uterus")
_RATER = re.compile(r"(?:anno|annotator|rater|annotation|mask)_?([0-9]+)")
_NUMBER = re.compile(r"([0-9]+)\D*$")


@dataclass(frozen=True)
class Options:
    """How the Hugging Face edition is read.

    Attributes:
        config: which configuration; None if the source holds one.
        columns: names of columns by what they hold, one of ``ROLES``.
        surgery: an expression for the path of the image, where no column has the surgery.
        labels: what is written of several organs; one organ alone is always written as masks.
        missing_is_absent: whether an empty cell means that the frame does not show the organ; else
            only a presence label can say so.
    """

    config: ParquetConfig | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    surgery: str = ""
    labels: Labels = Labels.MASKS
    missing_is_absent: bool = False


@dataclass(frozen=True)
class _Columns:
    """The columns of a file by what they hold.

    Attributes:
        named: one of ``ROLES`` to a column.
        masks: by organ; of single organs the mask has the key ``""``.
        raters: by organ, then by rater.
        presence: by organ.
        classes: by column of numbers, what each number is called.
    """

    named: Mapping[str, str]
    masks: Mapping[str, str]
    raters: Mapping[str, Mapping[str, str]]
    presence: Mapping[str, str]
    classes: Mapping[str, Sequence[str]]

    def called(self, name: str, value: Any) -> Any:
        """A cell of a column, by its name if the file numbers names."""
        names = self.classes.get(name, ())
        return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


@dataclass(frozen=True)
class _Row:
    """Where a row is."""

    file: Path
    group: int
    index: int


def plan(source: Path, options: Options) -> Plan:
    """Which frames would be converted.

    Args:
        source: a Parquet file, or a folder with some.
        options: how they are read.

    Raises:
        DataError: no Parquet file is there or can be read, or columns are missing.
    """
    files = _files(source, options.config)
    schema = _schema(files[0])
    columns = _columns(files[0], schema, options.columns)
    if "organ" in columns.named and options.labels == Labels.MAPS:
        why = "a row is labelled for one organ, and a map needs all"
        raise DataError([f"{files[0]}: {why}: use --as masks"])
    problems = [
        f"{file}: has other columns than {files[0].name}"
        for file in files
        if _schema(file).names != schema.names
    ]
    pattern = None
    if options.surgery or "surgery" not in columns.named:
        pattern = surgery_pattern(options.surgery, f"'{_first_path(files[0], columns)}'")
    frames: list[Planned] = []
    organs: set[str] = set()
    for file in files:
        of_file, of_organs, of_problems = _frames(source, file, columns, pattern, options)
        frames += of_file
        organs |= of_organs
        problems += of_problems
    anatomies = [organ for organ in ORGANS if organ in organs]
    problems += [f"{source}: organ '{organ}' is none of DSAD" for organ in organs - set(ORGANS)]
    problems += surgery_problems(frame.surgery for frame in frames)
    notes = [f"columns: {_described(columns)}", *_unused(schema, columns)]
    return Plan(frames, anatomies, options.labels, problems, notes, in_order=True)


def _files(source: Path, config: ParquetConfig | None) -> list[Path]:
    """The Parquet files of one configuration.

    Raises:
        DataError: there are none, or those of several configurations.
    """
    if source.is_file():
        return [source]
    by_config = _by_config(source)
    if config is None and len(by_config) == 1:
        return next(iter(by_config.values()))
    if config in by_config:
        return by_config[config]
    present = ", ".join(name or "files outside of such folders" for name in by_config)
    fix = "choose one with --config" if present else f"expected {FORMATS['dsad-parquet'].layout}"
    which = f" of {config}" if config else ""
    raise DataError([f"{source}: has {present or 'no Parquet files'}{which}: {fix}"])


def _unused(schema: pa.Schema, columns: _Columns) -> list[str]:
    """A note of the columns of pictures that nothing is made of."""
    used = {*columns.named.values(), *columns.masks.values()}
    used |= set(chain.from_iterable(of.values() for of in columns.raters.values()))
    others = [f.name for f in schema if _is_picture(f.type) and f.name not in used]
    return [f"pictures that are not used: {', '.join(others)}"] if others else []


def _first_path(file: Path, columns: _Columns) -> str:
    """The path of the first image; empty if there is no row, or the file is damaged."""
    try:
        row = next(_cells(file, columns), None)
    except (OSError, pa.ArrowException):
        return ""
    return "" if row is None else str(row[1][columns.named["image"]])


def _frames(
    source: Path,
    file: Path,
    columns: _Columns,
    pattern: re.Pattern[str] | None,
    options: Options,
) -> tuple[list[Planned], set[str], list[str]]:
    """The frames of a file, their organs, and what is wrong with rows."""
    frames: list[Planned] = []
    organs: set[str] = set()
    problems: list[str] = []
    try:
        for row, cells in _cells(file, columns):
            try:
                planned, organ = _planned(source, row, cells, columns, pattern, options)
            except DataError as error:
                problems += error.problems
                continue
            frames.append(planned)
            organs |= {organ} if organ else set(columns.masks)
    except (OSError, pa.ArrowException) as error:
        problems.append(f"{file}: is damaged ({error})")
    return frames, organs, problems


def _by_config(source: Path) -> dict[str, list[Path]]:
    """The Parquet files below a folder, by configuration."""
    by_config: dict[str, list[Path]] = {}
    for path in walk(source):
        if path.suffix == ".parquet":
            by_config.setdefault(_config_of(path.relative_to(source)), []).append(path)
    return by_config


def _config_of(path: Path) -> str:
    """The configuration whose name is that of a folder or begins the file's name."""
    for part in reversed(path.parts):
        for config in sorted(ParquetConfig, key=len, reverse=True):
            if part == config or part.startswith((f"{config}-", f"{config}.")):
                return config.value
    return ""


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError([f"{file}: cannot be read as Parquet ({error})"]) from None


def _columns(file: Path, schema: pa.Schema, given: Mapping[str, str]) -> _Columns:
    """Which column holds what.

    Raises:
        DataError: a column that is needed is not found.
    """
    _require_known(file, schema, given)
    named = _named(schema, given)
    pictures = [name for name in schema.names if _is_picture(schema.field(name).type)]
    masks, raters = _masks(pictures)
    single = named.get("mask", named.get("merged", ""))
    if "organ" in named and not masks and single in pictures:
        masks = {"": single}
    if named.get("image") not in pictures or not masks:
        what = "image" if named.get("image") not in pictures else "mask"
        raise DataError([f"{file}: no column of pictures is the {what}. {_choices(file, schema)}"])
    return _Columns(named, masks, raters, _presence(schema, pictures), _classes(file, schema))


def _classes(file: Path, schema: pa.Schema) -> dict[str, Sequence[str]]:
    """By column, the names behind its numbers, as the library ``datasets`` keeps them.

    Raises:
        DataError: it keeps them in another way.
    """
    kept = (schema.metadata or {}).get(b"huggingface")
    if kept is None:
        return {}
    try:
        features = json.loads(kept)["info"]["features"]
        labels = {n: of for n, of in features.items() if of.get("_type") == "ClassLabel"}
        return {name: list(map(str, of["names"])) for name, of in labels.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError([f"{file}: its metadata 'huggingface' is not as expected"]) from None


def _require_known(file: Path, schema: pa.Schema, given: Mapping[str, str]) -> None:
    """That what the user named is there."""
    unknown = [role for role in given if role not in ROLES]
    unknown += [name for name in given.values() if name not in schema.names]
    if unknown:
        raise DataError([f"--column: {', '.join(unknown)}: unknown. {_choices(file, schema)}"])


def _named(schema: pa.Schema, given: Mapping[str, str]) -> dict[str, str]:
    """The first column of each role that is there; what the user gave goes before."""
    named = {}
    for role, names in NAMES.items():
        candidates = [given[role]] if role in given else names
        present = [name for name in candidates if name in schema.names]
        if present:
            named[role] = present[0]
    return named


def _masks(pictures: Sequence[str]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """By organ, the column of its mask; and by organ and rater, those of raters."""
    masks: dict[str, str] = {}
    raters: dict[str, dict[str, str]] = {}
    for name in pictures:
        organ = _organ_in(name)
        rater = _RATER.search(name)
        if rater:
            raters.setdefault(organ, {})[f"anno_{int(rater[1])}"] = name
        elif organ:
            masks[organ] = name
    return masks, raters


def _choices(file: Path, schema: pa.Schema) -> str:
    """What a file has, and how columns are named."""
    types = ", ".join(f"{name} ({schema.field(name).type})" for name in schema.names)
    return f"{file.name} has: {types}. Fix: --column ROLE=NAME, ROLE one of {', '.join(ROLES)}"


def _is_picture(kind: pa.DataType) -> bool:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def _organ_in(name: str) -> str:
    """The organ in a column's name, empty if there is none."""
    spelt = spelling(name)
    return next((organ for organ in sorted(ORGANS, key=len, reverse=True) if organ in spelt), "")


def _presence(schema: pa.Schema, pictures: Sequence[str]) -> Mapping[str, str]:
    """The columns of presence labels, by organ."""
    presence = {}
    for name in schema.names:
        kind = schema.field(name).type
        if name not in pictures and (pa.types.is_boolean(kind) or pa.types.is_integer(kind)):
            organ = _organ_in(name) or ("uterus" if "uterus" in spelling(name) else "")
            if organ:
                presence[organ] = name
    return presence


def _cells(file: Path, columns: _Columns) -> Iterator[tuple[_Row, Mapping[str, Any]]]:
    """Each row of a file without its pictures, but with the path of its image."""
    parquet = pq.ParquetFile(file)
    roles = ("organ", "surgery", "frame")
    plain = [columns.named[role] for role in roles if role in columns.named]
    image = columns.named["image"]
    pictures = [*columns.masks.values()]
    wanted = [*plain, *columns.presence.values(), image, *pictures]
    for group in range(parquet.num_row_groups):
        # Pictures of one row group are in the memory at a time.
        table = parquet.read_row_group(group, columns=wanted)
        for index in range(table.num_rows):
            row = {n: columns.called(n, table.column(n)[index].as_py()) for n in plain}
            row |= {name: table.column(name)[index].as_py() for name in columns.presence.values()}
            row[image] = _path_of(table.column(image)[index])
            row |= {name: table.column(name)[index].is_valid for name in pictures}
            yield _Row(file, group, index), row


def _path_of(cell: Any) -> str:
    value = cell.as_py()
    return str(value.get("path") or "") if isinstance(value, dict) else ""


def _planned(
    source: Path,
    row: _Row,
    cells: Mapping[str, Any],
    columns: _Columns,
    pattern: re.Pattern[str] | None,
    options: Options,
) -> tuple[Planned, str]:
    """A frame, and its organ if the row is of one organ.

    Raises:
        DataError: the surgery or the frame's number is not known, or a mask is missing.
    """
    root = source if source.is_dir() else source.parent
    origin = f"{row.file.relative_to(root).as_posix()} row {row.group}:{row.index}"
    path = str(cells[columns.named["image"]])
    surgery = surgery_in(pattern, path) if pattern else _surgery(origin, cells, columns)
    name = f"image{_number(origin, path, cells, columns):0>2}"
    organ = spelling(str(cells[columns.named["organ"]])) if "organ" in columns.named else ""
    shows = _shows(cells, columns)
    masks = {}
    for mask_organ, column in columns.masks.items():
        anatomy = mask_organ or organ
        if cells[column]:
            masks[anatomy] = column
        elif not options.missing_is_absent and shows.get(anatomy) is not False:
            raise DataError(
                [
                    f"{origin}: its mask of {anatomy} is empty, and no presence label says that "
                    "the organ is not there. Fix: --missing-is-absent"
                ]
            )
        else:
            masks[anatomy] = ""
    raters = {key or organ: of for key, of in columns.raters.items()}
    read = partial(_read, row, columns.named["image"], masks, raters, shows)
    return Planned(surgery, name, origin, read), organ


def _shows(cells: Mapping[str, Any], columns: _Columns) -> Mapping[str, bool]:
    """The presence labels of a row; other values than 0 and 1 say nothing."""
    presence = {name: cells[column] for name, column in columns.presence.items()}
    return {name: bool(value) for name, value in presence.items() if value in (0, 1)}


def _surgery(origin: str, cells: Mapping[str, Any], columns: _Columns) -> str:
    """The surgery as its column says it.

    Raises:
        DataError: it gives no name of a folder.
    """
    value = cells[columns.named["surgery"]]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    surgery = f"{value:02d}" if isinstance(value, int) else str(value or "")
    if not is_folder_name(surgery):
        raise DataError([f"{origin}: its surgery '{value}' is no name of a folder"])
    return surgery


def _number(origin: str, path: str, cells: Mapping[str, Any], columns: _Columns) -> str:
    """The digits of the frame, of its column or of its image's file."""
    text = str(cells[columns.named["frame"]]) if "frame" in columns.named else Path(path).stem
    match = _NUMBER.search(text)
    if match is None:
        raise DataError([f"{origin}: its frame '{text}' has no number. Fix: --column frame=NAME"])
    return match[1]


def _read(
    row: _Row,
    image: str,
    masks: Mapping[str, str],
    raters: Mapping[str, Mapping[str, str]],
    shows: Mapping[str, bool],
) -> Content:
    name = f"{row.file} row {row.group}:{row.index}"
    drawn = {
        organ: _mask(_picture(row, column), f"{name} {column}")
        for organ, column in masks.items()
        if column
    }
    if not drawn:
        raise DataError([f"{name}: has no mask at all"])
    first = next(iter(drawn.values()))
    nothing: Mask = np.zeros(first.shape, np.bool_)
    annotators: dict[str, dict[str, Mask]] = {}
    for organ, columns in raters.items():
        for rater, column in columns.items():
            content = _picture(row, column)
            if content:
                annotators.setdefault(organ, {})[rater] = _mask(content, f"{name} {column}")
    return Content(
        decoded_frame(_picture(row, image), name, (first.shape[0], first.shape[1])),
        {organ: drawn.get(organ, nothing) for organ in masks},
        annotators=annotators,
        shows=shows,
    )


def _mask(content: bytes, name: str) -> Mask:
    if content.startswith(JPEG):
        raise DataError([f"{name}: is a JPEG, which blurs the edges of a mask: save it as PNG"])
    return decoded_values(content, name) > 0


def _picture(row: _Row, column: str) -> bytes:
    """The bytes of a picture; empty if the cell is."""
    value = _group(row.file, row.group).column(column)[row.index].as_py()
    content = value.get("bytes") if isinstance(value, dict) else value
    return bytes(content or b"")


@lru_cache(maxsize=1)
def _group(file: Path, group: int) -> pa.Table:
    """A row group; frames are read in order, so one is kept."""
    return pq.ParquetFile(file).read_row_group(group)


def _described(columns: _Columns) -> str:
    """Which column was taken for what."""
    parts = [f"{role} = {name}" for role, name in columns.named.items()]
    parts += [f"mask of {organ} = {name}" for organ, name in columns.masks.items() if organ]
    return ", ".join(parts)
