"""nnU-Net v2's raw data sets of 2-D PNG files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.convert.formats import FORMATS, Labels
from pipeline.convert.pictures import frame_of, values_of
from pipeline.convert.plans import (
    IGNORE,
    Content,
    Found,
    Plan,
    anatomy_problems,
    numbered,
    read_json,
    require_folder,
    surgery_in,
    surgery_pattern,
)
from pipeline.dsad import DataError
from pipeline.files import entries

DATASET = "dataset.json"
IMAGES = "imagesTr"
LABELS = "labelsTr"
ENDING = ".png"
BACKGROUND = "background"
_CHANNEL = re.compile(r"(.+)_([0-9]{4})\.png")


@dataclass(frozen=True)
class Options:
    """How an nnU-Net data set is read.

    Attributes:
        surgery: an expression whose one group is the surgery, searched in the case.
        labels: what is written.
    """

    surgery: str = ""
    labels: Labels = Labels.MAPS


@dataclass(frozen=True)
class Legend:
    """What the values of labels mean.

    Attributes:
        values: by anatomy, in the order of the values.
        ignore: the value of pixels without a label, or None.
    """

    values: Mapping[str, int]
    ignore: int | None


def plan(source: Path, options: Options) -> Plan:
    """Which frames would be converted.

    Args:
        source: the folder that holds ``dataset.json``.
        options: how it is read.

    Raises:
        DataError: ``dataset.json`` is missing or of another kind, or the surgeries are not given.
    """
    require_folder(source, FORMATS["nnunet"].layout)
    file = source / DATASET
    value = read_json(file)
    legend = _legend(file, value)
    pattern = surgery_pattern(options.surgery, "'01__frame_000123'")
    frames, problems = _cases(source)
    problems += anatomy_problems(file, list(legend.values))
    count = value.get("numTraining")
    if isinstance(count, int) and count != len(frames):
        problems.append(f"{file}: numTraining is {count}, and {LABELS} has {len(frames)} cases")
    found = [
        Found(case, image.relative_to(source).as_posix(), partial(_read, image, label, legend))
        for case, (image, label) in frames.items()
    ]
    planned, of_surgeries = numbered(found, partial(surgery_in, pattern))
    tests = source / "imagesTs"
    notes = ["imagesTs has no labels and is not read"] if tests.is_dir() else []
    return Plan(
        planned,
        list(legend.values),
        options.labels,
        [*problems, *of_surgeries],
        notes,
        str(value.get("licence") or value.get("license") or ""),
        str(value.get("reference") or ""),
    )


def _legend(file: Path, value: Mapping[str, Any]) -> Legend:
    """What the values mean.

    Raises:
        DataError: labels are no single values, or files are no PNG.
    """
    ending = value.get("file_ending")
    if ending != ENDING:
        raise DataError([f"{file}: file_ending is {ending}; only 2-D PNG files are read, {ENDING}"])
    labels = value.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise DataError([f"{file}: has no labels; expected names with their values"])
    wrong = _labels_problem(labels)
    if wrong:
        raise DataError([f"{file}: labels: {wrong}"])
    names = sorted(labels, key=lambda name: int(labels[name]))
    values = {name: labels[name] for name in names if name not in (BACKGROUND, IGNORE)}
    return Legend(values, labels.get(IGNORE))


def _labels_problem(labels: Mapping[str, Any]) -> str:
    """What is wrong with the names of values; empty if nothing is."""
    if all(str(key).isdecimal() for key in labels):
        return "are those of nnU-Net v1: run nnUNetv2_convert_old_nnUNet_dataset"
    regions = [name for name, each in labels.items() if not isinstance(each, int)]
    if regions:
        named = ", ".join(regions)
        return f"{named}: regions of several values are not read; give each value its own name"
    if labels.get(BACKGROUND) != 0:
        return f"{BACKGROUND} must be 0; it is {labels.get(BACKGROUND)}"
    return "two names have the same value" if len(set(labels.values())) < len(labels) else ""


def _cases(source: Path) -> tuple[dict[str, tuple[Path, Path]], list[str]]:
    """By case, its image and its labels; and what is wrong with the files."""
    missing = [folder for folder in (IMAGES, LABELS) if not (source / folder).is_dir()]
    if missing:
        return {}, [f"{source}: has no folder {folder}" for folder in missing]
    images, problems = _images(source / IMAGES)
    cases: dict[str, tuple[Path, Path]] = {}
    for path in entries(source / LABELS):
        if path.suffix != ENDING:
            problems.append(f"{path}: expected CASE.png")
        elif path.stem not in images:
            problems.append(f"{path}: its image {IMAGES}/{path.stem}_0000.png is missing")
        else:
            cases[path.stem] = (images[path.stem], path)
    for case in sorted(images.keys() - cases.keys()):
        problems.append(f"{images[case]}: its labels {LABELS}/{case}.png are missing")
    return cases, problems


def _images(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The image of each case, and what is wrong with the files."""
    images: dict[str, Path] = {}
    problems = []
    for path in entries(folder):
        match = _CHANNEL.fullmatch(path.name)
        if match is None:
            problems.append(f"{path}: expected CASE_0000.png")
        elif match[2] != "0000":
            problems.append(f"{path}: is another channel of a case; one RGB or grey file is read")
        else:
            images[match[1]] = path
    return images, problems


def _read(image: Path, label: Path, legend: Legend) -> Content:
    values = values_of(label)
    allowed = [0, *legend.values.values()]
    unknown = np.zeros(values.shape, np.bool_)
    if legend.ignore is not None:
        unknown = values == legend.ignore
        allowed.append(legend.ignore)
    others = np.unique(values[~np.isin(values, allowed)])
    if others.size:
        listed = ", ".join(map(str, others[:5]))
        raise DataError([f"{label}: holds the value {listed}, which {DATASET} does not name"])
    masks = {name: values == value for name, value in legend.values.items()}
    frame = frame_of(image, (values.shape[0], values.shape[1]))
    return Content(frame, masks, unknown, f"value {legend.ignore}, nnU-Net's ignore label")
