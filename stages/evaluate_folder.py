"""``mtkd evaluate --checkpoint``: any checkpoint of this project on any data set, without DVC and params.yaml."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline.annotations import Annotation, matched, read_annotations, read_presence
from pipeline.dsad import Splits, surgery_names
from pipeline.errors import MtkdError
from pipeline.evaluation import analysis
from pipeline.evaluation.bootstrap import FEWEST_SURGERIES
from pipeline.evaluation.per_frame import MEASURES, evaluate, outline_processes
from pipeline.files import folders, write_json
from pipeline.label_maps import has_label_maps, unfold
from pipeline.machine import Machine
from pipeline.models.card import Card
from pipeline.prepared import Frame, list_frames, prepare
from pipeline.training_errors import mendable
from stages.reporting.evaluation_tables import write_per_frame, write_per_surgery
from stages.shared.console import console, progress, say
from stages.shared.given_checkpoint import load_given
from stages.shared.project import Places, require_folder

BATCH, TOLERANCE = 16, 2.0


@mendable("choose another --device, such as cpu")
def run(checkpoint: Path, data: Path, output: Path, machine: Machine) -> None:
    """Measure a checkpoint on every frame of a data set.

    Args:
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
    _require_folders(data, output)
    network, card = load_given(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        there = _prepared(data, card, Path(folder))
        results = []
        with progress("frames evaluated") as bar, outline_processes(machine) as processes:
            for result in evaluate(
                network, there.frames, card.anatomies, BATCH, TOLERANCE, machine, processes
            ):
                results.append(result)
                bar(len(results), len(there.frames))
    name = checkpoint.stem
    write_per_frame(output / "per_frame.csv", {name: results})
    write_per_surgery(output / "per_surgery.csv", {name: results})
    found = {
        "intervals": analysis.intervals(results, card.anatomies),
        "false_alarms": analysis.false_alarms(results, card.anatomies, there.presence),
        "confusion": analysis.confusion(results, card.anatomies),
        "claimants": analysis.overlaps(results),
        "calibration": analysis.calibrated(results, card.anatomies),
        "annotators": {a: analysis.annotators(own) for a, own in there.annotations.items()},
    }
    about = {
        "checkpoint": str(checkpoint),
        "data": str(data),
        "image_size": list(card.image_size),
        "surgeries": len({r.surgery for r in results}),
        "tolerance": TOLERANCE,
    }
    write_json(output / "evaluation.json", about | found)
    _print(found, f"{checkpoint} on {len(there.frames)} frames of {data}")
    say(f"-> {output}")


def _require_folders(data: Path, output: Path) -> None:
    """Before anything is measured."""
    if not data.is_dir():
        raise MtkdError(
            f"--data {data} {'is no folder' if data.exists() else 'does not exist'}: name a "
            "folder of frames"
        )
    require_folder(output)
    if output.resolve() == Places(Path()).results.resolve() and Path("dvc.yaml").is_file():
        raise MtkdError(
            f"--output {output} holds the tables of the evaluate stage: name another folder"
        )


@dataclass(frozen=True)
class _Prepared:
    """Frames to measure on, and what is known beside their masks: by a frame's id, and by anatomy."""

    frames: list[Frame]
    presence: dict[str, dict[str, bool]]
    annotations: dict[str, list[Annotation]]


def _prepared(data: Path, card: Card, folder: Path) -> _Prepared:
    root, presence = data, {}
    if has_label_maps(data):
        root = folder / "masks"
        presence = unfold(data, card.anatomies, root)
    there = [path.name for path in folders(root)]
    own = [anatomy for anatomy in card.anatomies if anatomy in there]
    for name, anatomy in zip(there, matched(there, card.anatomies), strict=True):
        if name not in own and anatomy in card.anatomies:
            say(f"warning: {root / name} is left out: the checkpoint spells it {anatomy}")
    if not own:
        raise MtkdError(
            f"{data} holds none of the checkpoint's anatomies ({', '.join(card.anatomies)})"
        )
    everyone = Splits(val=(), test=tuple(surgery_names(root)))
    frames, labels = folder / "frames", folder / "labels"
    with progress("frames checked and resized") as bar:
        summary = prepare(
            root,
            own,
            everyone,
            card.image_size,
            frames,
            labels,
            workers=2,
            progress=bar,
            least_training=0,
        )
    for warning in summary.files:
        say(f"warning: {warning}")
    found = list_frames(frames, labels, "test", own)
    if not found:
        raise MtkdError(
            f"{data} holds no frames: expected <surgery>/imageMM.png and maskMM.png under "
            f"{', '.join(own)}"
        )
    beside = {anatomy: labels / "test" / anatomy for anatomy in own}
    for place in beside.values():
        presence |= read_presence(place)
    return _Prepared(
        found, presence, {anatomy: read_annotations(place) for anatomy, place in beside.items()}
    )


def _print(found: Mapping[str, Any], title: str) -> None:
    table = Table(title=f"{title}: percent (hd95: pixels), 95 % interval of Dice over surgeries")
    table.add_column("")
    people = sorted(set().union(*found["annotators"].values()))
    for column in (*MEASURES, *([f"dice of {' / '.join(people)} (frames)"] if people else [])):
        table.add_column(column, justify="right")
    few = False
    counted = sum(
        one["surgeries"] > 0 for name, one in found["intervals"]["dice"].items() if name != "mean"
    )
    for name, dice in found["intervals"]["dice"].items():
        if not dice["surgeries"] and found["intervals"]["specificity"][name]["mean"] is None:
            continue
        cells = [_number(found["intervals"][metric][name]["mean"]) for metric in MEASURES]
        if dice["low"] is not None:
            cells[0] += f" ({_number(dice['low'])} .. {_number(dice['high'])})"
        if dice["surgeries"] < FEWEST_SURGERIES:
            cells[0], few = f"{cells[0]}*", True
        if people:
            drawn = [found["annotators"].get(name, {}).get(who) for who in people]
            cells.append(
                " / ".join(f"{_number(d['dice'])} ({d['frames']})" if d else "-" for d in drawn)
            )
        table.add_row(f"mean of {counted}" if name == "mean" else name.replace("_", " "), *cells)
    console.print(table)
    if few:
        say(
            f"* too few surgeries: an interval over fewer than {FEWEST_SURGERIES} is too narrow, "
            "and one surgery has none"
        )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
