"""Stage ``evaluate``: Dice and IoU of teachers, baseline and distilled student on the test surgeries."""

import csv
import io
import shutil
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.checkpoint import load_checkpoint
from pipeline.evaluation import Result, evaluate, masks, summarise
from pipeline.files import write_atomically, write_json
from pipeline.machine import Machine
from pipeline.models.network import Network
from pipeline.overlay import strip, write_png
from pipeline.prepared import Frame, load_frame, load_label
from pipeline.settings import Params
from stages.console import progress, say
from stages.elsewhere import is_elsewhere
from stages.layout import METRICS, RESULTS, frames_of, student_checkpoint, teacher_checkpoint
from stages.params import load_params

QUALITATIVE = RESULTS / "qualitative"
PER_FRAME = RESULTS / "per_frame.csv"
STUDENTS = ("baseline", "mtkd")


def run(machine: Machine) -> None:
    """Write metrics/evaluate.json, the table of all frames, and a picture per anatomy."""
    params = load_params()
    frames = frames_of("test", params.data.anatomies)
    results = {
        "teachers": _teachers(frames, params, machine),
        **{name: _student(name, frames, params, machine) for name in STUDENTS},
    }
    tables = {name: summarise(rows, params.data.anatomies) for name, rows in results.items()}
    write_json(METRICS / "evaluate.json", {**tables, "gain": _gain(tables["mtkd"], tables["baseline"])})
    _write_per_frame(results)
    _draw(_median_frames(results["mtkd"]), machine)
    counted = len({row.frame.anatomy for row in results["mtkd"]})
    for name, table in tables.items():
        say(f"{name:>8}: Dice {table['dice']['mean']} over {counted} of {len(params.data.anatomies)} anatomies")


def _teacher(anatomy: str) -> Network:
    return load_checkpoint(teacher_checkpoint(anatomy), f"train_teacher@{anatomy}")[0]


def _teachers(frames: list[Frame], params: Params, machine: Machine) -> list[Result]:
    """Every teacher that is here on the test frames of its own anatomy; one teacher in memory at a time."""
    results = []
    with progress("teachers evaluated") as bar:
        for done, anatomy in enumerate(params.data.anatomies, start=1):
            own = [frame for frame in frames if frame.anatomy == anatomy]
            if own and not is_elsewhere(teacher_checkpoint(anatomy)):
                results += evaluate(_teacher(anatomy), own, [anatomy], params.evaluate.batch_size, machine)
            bar(done, len(params.data.anatomies))
    return results


def _student(name: str, frames: list[Frame], params: Params, machine: Machine) -> list[Result]:
    network, card = load_checkpoint(student_checkpoint(name), f"train_student@{name}")
    return evaluate(network, frames, card.anatomies, params.evaluate.batch_size, machine)


def _gain(new: dict[str, dict[str, float | None]], old: dict[str, dict[str, float | None]]) -> dict[str, object]:
    """Difference in percentage points, None where there is nothing to compare."""

    def minus(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else round(a - b, 1)

    return {metric: {key: minus(value, old[metric][key]) for key, value in new[metric].items()} for metric in new}


def _write_per_frame(results: dict[str, list[Result]]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["network", "anatomy", "surgery", "frame", "tp", "fp", "fn", "dice", "iou"])
    for name, rows in results.items():
        for row in rows:
            c = row.counts
            place = (row.frame.anatomy, row.frame.surgery, row.frame.id)
            table.writerow([name, *place, c.tp, c.fp, c.fn, f"{c.dice:.4f}", f"{c.iou:.4f}"])
    write_atomically(PER_FRAME, text.getvalue().encode())


def _median_frames(results: Sequence[Result]) -> list[Frame]:
    """Per anatomy, the frame with the median Dice: chosen by rule and not by hand."""
    chosen = []
    for anatomy in dict.fromkeys(row.frame.anatomy for row in results):
        rows = sorted((r for r in results if r.frame.anatomy == anatomy), key=lambda r: np.nan_to_num(r.counts.dice))
        chosen.append(rows[len(rows) // 2].frame)
    return chosen


def _draw(frames: list[Frame], machine: Machine) -> None:
    """One strip per anatomy: frame, label, teacher (untouched if it is not here), baseline, distilled."""
    shutil.rmtree(QUALITATIVE, ignore_errors=True)
    students = {name: load_checkpoint(student_checkpoint(name), f"train_student@{name}") for name in STUDENTS}
    for frame in frames:
        label = load_label(frame.label).astype(bool)
        columns = [label, np.zeros_like(label)]
        if not is_elsewhere(teacher_checkpoint(frame.anatomy)):
            columns[1] = _mask(_teacher(frame.anatomy), frame, [frame.anatomy], machine)
        columns += [_mask(network, frame, card.anatomies, machine) for network, card in students.values()]
        write_png(QUALITATIVE / f"{frame.anatomy}.png", strip(load_frame(frame.image), columns))


def _mask(network: Network, frame: Frame, anatomies: Sequence[str], machine: Machine) -> NDArray[np.bool_]:
    _, mask, _ = next(masks(network, [frame], anatomies, 1, machine))
    return mask
