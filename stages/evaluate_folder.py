"""``mtkd evaluate --checkpoint``: any checkpoint of this project on any data set, without DVC and params.yaml."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from rich.table import Table

from pipeline import findings
from pipeline.beside_masks import read_presence
from pipeline.checkpoint import Card, load_checkpoint
from pipeline.dsad import DataError, Splits, read_mask, surgery_ids
from pipeline.errors import MtkdError
from pipeline.evaluation import METRICS, evaluate
from pipeline.files import write_json
from pipeline.machine import Machine
from pipeline.prepared import Frame, list_frames, prepare
from stages.console import console, progress, say
from stages.evaluation_tables import write_per_frame, write_per_surgery

BATCH, TOLERANCE = 16, 2.0


def run(checkpoint: Path, data: Path, output: Path, machine: Machine) -> None:
    """Measure a checkpoint on every frame of a data set.

    Args:
        checkpoint: a teacher or a student.
        data: a folder in DSAD's layout; or one of complete label maps, ``<surgery>/imageMM.png`` and ``labelMM.png``
            with 0 = none and i = the i-th line of ``anatomies.txt`` (in the folder or above it), or without such a file
            the checkpoint's i-th anatomy.
        output: folder for per_frame.csv, per_surgery.csv and evaluation.json.
        machine: where.

    Raises:
        MtkdError: no checkpoint, or nothing in the data that it could be measured on.
    """
    network, card = load_checkpoint(checkpoint, "train_student")
    with tempfile.TemporaryDirectory() as folder:
        frames, presence = _prepared(data, card, Path(folder))
        results = []
        with progress("frames evaluated") as bar:
            for result in evaluate(network, frames, card.anatomies, BATCH, TOLERANCE, machine):
                results.append(result)
                bar(len(results), len(frames))
    name = checkpoint.stem
    write_per_frame(output / "per_frame.csv", {name: results})
    write_per_surgery(output / "per_surgery.csv", {name: results})
    intervals = findings.intervals(results, card.anatomies)
    write_json(
        output / "evaluation.json",
        {
            "checkpoint": str(checkpoint),
            "data": str(data),
            "image_size": list(card.image_size),
            "surgeries": len({r.frame.surgery for r in results}),
            "tolerance": TOLERANCE,
            "intervals": intervals,
            "false_alarms": findings.false_alarms(results, card.anatomies, presence),
            "confusion": findings.confusion(results, card.anatomies),
            "claimants": findings.claimants(results),
            "calibration": findings.calibrated(results, card.anatomies),
        },
    )
    _print(intervals, f"{checkpoint} on {len(frames)} frames of {data}")
    say(f"-> {output}")


def _prepared(data: Path, card: Card, folder: Path) -> tuple[list[Frame], dict[str, dict[str, bool]]]:
    root = data
    if data.is_dir() and any(data.glob("*/label*.png")):
        root = _unfolded(data, card, folder / "masks")
    there = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    own = [anatomy for anatomy in card.anatomies if anatomy in there]
    if not own:
        raise MtkdError(f"{data} holds none of the checkpoint's anatomies ({', '.join(card.anatomies)})")
    everyone = Splits(val=(), test=tuple(surgery_ids(root)))
    frames, labels = folder / "frames", folder / "labels"
    with progress("frames checked and resized") as bar:
        prepare(root, own, everyone, card.image_size, frames, labels, workers=2, progress=bar, least_training=0)
    presence = {k: v for a in own for k, v in read_presence(labels / "test" / a).items()}
    return list_frames(frames, labels, "test", own), presence


def _unfolded(data: Path, card: Card, root: Path) -> Path:
    """Complete label maps as a data set in DSAD's layout: every frame stands in every anatomy's folder."""
    names = _map_names(data, card.anatomies)
    for path in sorted(data.glob("*/label*.png")):
        number = re.sub(r"\D", "", path.stem)
        image = path.with_name(f"image{number}.png")
        if not image.is_file():
            raise DataError([f"{path}: its frame {image.name} is missing"])
        read_mask(path)  # refuses what is no whole PNG
        values = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        for i, anatomy in enumerate(names, start=1):
            if anatomy not in card.anatomies:
                continue
            place = root / anatomy / path.parent.name
            place.mkdir(parents=True, exist_ok=True)
            (place / image.name).symlink_to(image.resolve())
            cv2.imwrite(str(place / f"mask{number}.png"), np.where(values == i, 255, 0).astype(np.uint8))
    return root


def _map_names(data: Path, default: Sequence[str]) -> Sequence[str]:
    for folder in (data, data.resolve().parent):
        file = folder / "anatomies.txt"
        if file.is_file():
            return file.read_text().split()
    return default


def _print(intervals: dict[str, dict[str, dict[str, float | None]]], title: str) -> None:
    table = Table(title=f"{title}: percent (hd95: pixels), 95 % interval of Dice over surgeries")
    table.add_column("")
    for metric in METRICS:
        table.add_column(metric, justify="right")
    for name, dice in intervals["dice"].items():
        if dice["mean"] is None:
            continue
        cells = [_number(intervals[metric][name]["mean"]) for metric in METRICS]
        cells[0] += f" ({_number(dice['low'])} .. {_number(dice['high'])})"
        table.add_row(name.replace("_", " "), *cells)
    console.print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
