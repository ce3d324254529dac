"""``mtkd evaluate --checkpoint``: any checkpoint of this project on any data set.

Neither DVC nor params.yaml is needed.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline.annotations import Annotation, matched, read_annotations
from pipeline.checkpoint import load_checkpoint
from pipeline.dsad import DataSet
from pipeline.errors import MtkdError
from pipeline.evaluation import analysis
from pipeline.evaluation.bootstrap import FEWEST_SURGERIES
from pipeline.evaluation.every_frame import (
    confusion_of_one_organ,
    curve,
    distinct,
    one_organ,
    summarise_all,
)
from pipeline.evaluation.per_frame import MEASURES, Result, evaluate, outline_processes
from pipeline.files import folders, write_json
from pipeline.label_maps import has_label_maps, legend_of
from pipeline.machine import Machine
from pipeline.models.card import Card
from pipeline.models.network import Network
from pipeline.preparation.prepare import prepare
from pipeline.preparation.scan import surgeries_of
from pipeline.preparation.settings import PrepareSettings
from pipeline.prepared import Frame, list_frames
from pipeline.settings import Splits
from pipeline.training_errors import translated_errors
from stages.reporting.evaluation_tables import write_per_frame, write_per_surgery
from stages.shared.console import console, progress, say
from stages.shared.project import Places, require_folder

BATCH_SIZE = 16
TOLERANCE = 2.0  # of the normalised surface Dice, in pixels


@translated_errors()
def run(places: Places, checkpoint: Path, data: Path, output: Path, machine: Machine) -> None:
    """Measure a checkpoint on every frame of a data set.

    Args:
        places: of the project, if this is one; its results are not written over.
        checkpoint: a teacher or a student.
        data: a folder in DSAD's layout; or one of complete label maps, ``<surgery>/imageMM.png``
            and ``labelMM.png`` with 0 = none and i = the i-th line of ``anatomies.txt`` (in the
            folder or above it), or without such a file the checkpoint's i-th anatomy.
        output: folder for per_frame.csv, per_surgery.csv and evaluation.json.
        machine: where.

    Raises:
        MtkdError: no checkpoint, nothing in the data that it could be measured on, or no place for
            the output.
    """
    _require_folders(places, data, output)
    network, card = load_checkpoint(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        prepared = _prepared(data, card, Path(folder))
        results = _results(network, prepared.frames, card.anatomies, machine)
    name = checkpoint.stem
    write_per_frame(output / "per_frame.csv", {name: results})
    write_per_surgery(output / "per_surgery.csv", {name: results})
    findings = _findings(results, card.anatomies, prepared)
    about = {
        "checkpoint": str(checkpoint),
        "data": str(data),
        "image_size": list(card.image_size),
        "surgeries": len({r.surgery for r in results}),
        "tolerance": TOLERANCE,
    }
    write_json(output / "evaluation.json", about | findings)
    _print(findings, f"{checkpoint} on {len(distinct(results))} frames of {data}")
    say(f"-> {output}")


def _require_folders(places: Places, data: Path, output: Path) -> None:
    """Before anything is measured."""
    if not data.is_dir():
        problem = "is not a folder" if data.exists() else "does not exist"
        raise MtkdError(f"--data {data} {problem}: name a folder of frames")
    require_folder(output)
    is_project = (places.root / "dvc.yaml").is_file()
    if is_project and output.resolve() == places.results.resolve():
        raise MtkdError(
            f"--output {output} holds the tables of the evaluate stage: name another folder"
        )


@dataclass(frozen=True)
class _Prepared:
    """Frames to measure on, and what the data set says beside their masks.

    Attributes:
        frames: labelled frames.
        annotations: by anatomy, masks of several annotators.
    """

    frames: list[Frame]
    annotations: dict[str, list[Annotation]]


def _prepared(data: Path, card: Card, folder: Path) -> _Prepared:
    """Check the frames and resize them to what the checkpoint was trained at.

    Raises:
        MtkdError: none of the checkpoint's anatomies is there, or no frame, or frames are damaged.
    """
    from_maps = has_label_maps(data)
    legend = legend_of(DataSet(data), card.anatomies) if from_maps else None
    names = legend.names if legend else [path.name for path in folders(data)]
    measured = _measured_anatomies(data, names, card.anatomies)
    if not measured:
        raise MtkdError(
            f"{data} holds none of the checkpoint's anatomies ({', '.join(card.anatomies)})"
        )
    # Of folders, whose names are checked when they are read.
    everyone = Splits.model_construct(val=[], test=list(surgeries_of([DataSet(data)])))
    frames = folder / "frames"
    labels = folder / "labels"
    settings = PrepareSettings(
        data,
        measured,
        everyone,
        card.image_size,
        least_training=0,
        named_by="the checkpoint",
    )
    with progress("frames checked and resized") as bar:
        summary = prepare(settings, frames, labels, workers=2, progress=bar)
    for warning in summary.files:
        say(f"warning: {warning}")
    listed = list_frames(frames, labels, "test", measured)
    if not listed:
        raise MtkdError(
            f"{data} holds no frames: expected <surgery>/imageMM.png and maskMM.png under "
            f"{', '.join(measured)}"
        )
    label_folders = {anatomy: labels / "test" / anatomy for anatomy in measured}
    annotations = {anatomy: read_annotations(place) for anatomy, place in label_folders.items()}
    return _Prepared(listed, annotations)


def _measured_anatomies(root: Path, names: Sequence[str], anatomies: Sequence[str]) -> list[str]:
    """Those of a checkpoint's anatomies that a data set has; says if one is spelt otherwise."""
    measured = [anatomy for anatomy in anatomies if anatomy in names]
    for name, anatomy in zip(names, matched(names, anatomies), strict=True):
        if name not in measured and anatomy in anatomies:
            say(f"warning: {root / name} is left out: the checkpoint spells it {anatomy}")
    return measured


def _results(
    network: Network, frames: list[Frame], anatomies: Sequence[str], machine: Machine
) -> list[Result]:
    """The network on every frame, in order."""
    results = []
    with progress("frames evaluated") as bar, outline_processes(machine) as processes:
        for result in evaluate(
            network, frames, anatomies, BATCH_SIZE, TOLERANCE, machine, processes
        ):
            results.append(result)
            bar(len(results), len(frames))
    return results


def _findings(
    results: Sequence[Result], anatomies: Sequence[str], prepared: _Prepared
) -> dict[str, Any]:
    """What evaluation.json holds of the results."""
    annotators = {
        anatomy: analysis.annotators(annotations)
        for anatomy, annotations in prepared.annotations.items()
    }
    return {
        "every_decoder": summarise_all(results, anatomies),
        "one_organ": one_organ(results, anatomies),
        "intervals": analysis.intervals(results, anatomies),
        "false_alarms": analysis.false_alarms(results, anatomies),
        "alarms": curve(results, anatomies),
        "confusion_of_one_organ": confusion_of_one_organ(results, anatomies),
        "confusion": analysis.confusion(results, anatomies),
        "claimants": analysis.overlaps(results),
        "calibration": analysis.calibrated(results, anatomies),
        "annotators": annotators,
    }


def _print(findings: Mapping[str, Any], title: str) -> None:
    """A table of the measured anatomies, with each annotator's Dice if there are some."""
    annotators = sorted(set().union(*findings["annotators"].values()))
    table = Table(title=f"{title}: percent (hd95: pixels), 95 % interval of Dice over surgeries")
    table.add_column("")
    for column in MEASURES:
        table.add_column(column, justify="right")
    if annotators:
        table.add_column(f"dice of {' / '.join(annotators)} (frames)", justify="right")
    intervals = findings["intervals"]
    measured = [name for name in intervals["dice"] if _is_measured(intervals, name)]
    for name in measured:
        cells = _cells(intervals, name)
        if annotators:
            cells.append(_annotators_cell(findings["annotators"].get(name, {}), annotators))
        table.add_row(_row_name(intervals, name), *cells)
    console.print(table)
    if any(_is_uncertain(intervals, name) for name in measured):
        say(
            f"* too few surgeries: an interval over fewer than {FEWEST_SURGERIES} is too narrow, "
            "and one surgery has none"
        )
    _print_every_decoder(findings["every_decoder"])


def _print_every_decoder(every_decoder: Mapping[str, Any]) -> None:
    """What all decoders say on all frames."""
    columns = {
        "known_dice": "known pixels",
        "every_dice": "every frame",
        "absent_area": "area where absent",
        "presence_auroc": "presence AUROC",
    }
    table = Table("", title="every decoder, percent; Dice of known pixels and of every frame")
    for title in columns.values():
        table.add_column(title, justify="right")
    for name in every_decoder["known_dice"]:
        cells = [_number(every_decoder[key].get(name)) for key in columns]
        table.add_row(name.replace("_", " "), *cells)
    console.print(table)
    say(f"pixels of several organs: {_number(every_decoder['overlap']['mean'])} %")


def _is_measured(intervals: Mapping[str, Any], name: str) -> bool:
    """Whether a row has a Dice, or at least a specificity."""
    has_specificity = intervals["specificity"][name]["mean"] is not None
    return bool(intervals["dice"][name]["surgeries"]) or has_specificity


def _is_uncertain(intervals: Mapping[str, Any], name: str) -> bool:
    return bool(intervals["dice"][name]["surgeries"] < FEWEST_SURGERIES)


def _row_name(intervals: Mapping[str, Any], name: str) -> str:
    if name != "mean":
        return name.replace("_", " ")
    rows = [row for anatomy, row in intervals["dice"].items() if anatomy != "mean"]
    return f"mean of {sum(row['surgeries'] > 0 for row in rows)}"


def _cells(intervals: Mapping[str, Any], name: str) -> list[str]:
    """The mean of each metric; that of Dice with its interval, and a star if that is uncertain."""
    dice, *others = (_number(intervals[metric][name]["mean"]) for metric in MEASURES)
    low = intervals["dice"][name]["low"]
    high = intervals["dice"][name]["high"]
    if low is not None:
        dice = f"{dice} ({_number(low)} .. {_number(high)})"
    if _is_uncertain(intervals, name):
        dice = f"{dice}*"
    return [dice, *others]


def _annotators_cell(drawn: Mapping[str, Any], annotators: Sequence[str]) -> str:
    """Dice and number of frames of each annotator, ``-`` for one who drew none of an anatomy."""
    rows = [drawn.get(annotator) for annotator in annotators]
    return " / ".join(f"{_number(row['dice'])} ({row['frames']})" if row else "-" for row in rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
