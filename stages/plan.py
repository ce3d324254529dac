"""``mtkd plan``: hours, disk and memory of a whole run, from what is measured on this machine."""

import csv
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline.files import write_json
from pipeline.machine import Machine
from pipeline.models import create_model
from pipeline.settings import Params, Splits, Training
from pipeline.surgeries import SPLITS, surgery_id
from pipeline.timing.decoders import DecoderCase, Task, measure
from pipeline.timing.host import machine_record
from stages.benchmarks import loading
from stages.shared.console import console, counted, say
from stages.shared.params import load_params
from stages.shared.project import Places, Project, load_project

HALF = 2  # bytes of a float16
SECONDS = 1.0  # that calls are repeated for at least: a few short ones on a GPU are noise


@dataclass(frozen=True)
class FrameCounts:
    """How many frames there are.

    Attributes:
        labelled: by split, then by anatomy.
        training: pictures of training that have a label: one for several anatomies counts once.
        stored: pictures of which the teachers' logits are stored.
    """

    labelled: dict[str, dict[str, int]]
    training: int
    stored: int


@dataclass(frozen=True)
class Rates:
    """What was measured: seconds and bytes.

    Attributes:
        teacher_step, student_step: one optimiser step on a whole batch.
        teacher_frame: native logits of one frame, in the batches and the precision of cache_logits.
        student_frame: the same in the batches of the student's validation.
        load_frame: one core from disk to augmented tensor, with stored logits to warp.
        memory: of a training step of teacher and of student, on top of the network, largest.
        frame_bytes: one prepared frame and its label.
    """

    teacher_step: float
    student_step: float
    teacher_frame: float
    student_frame: float
    load_frame: float
    memory: int
    frame_bytes: int


def run(
    places: Places,
    what: str,
    devices: Sequence[int],
    repeats: int,
    output: Path,
    machine: Machine,
) -> None:
    """Measure, compute, print and write as JSON.

    Args:
        places: of the project; ``dsad`` needs none.
        what: ``dsad``: the paper's recipe on DSAD; ``here``: params.yaml on the prepared frames.
        devices: for how many devices.
        repeats: calls per measurement, at least; they are repeated for a second.
        output: JSON file.
        machine: where to measure.
    """
    params, counts = _dsad() if what == "dsad" else _of_project(load_project(places.root))
    say(
        f"measuring {params.teacher.arch} and {params.student.arch} at {_size(params)} on this "
        "machine, "
        f"{repeats + 1} calls of each, or a second of them: seconds on a GPU, minutes on a CPU"
    )
    rates = _measure(params, len(counts.labelled["train"]), repeats, machine)
    plans = {str(n): hours(params, counts, rates, n) for n in devices}
    needs = disk(params, counts, rates)
    write_json(
        output,
        {
            "machine": machine_record(machine),
            "frames": {split: sum(each.values()) for split, each in counts.labelled.items()},
            "pictures": {"training": counts.training, "stored": counts.stored},
            "measured": {name: round(value, 6) for name, value in vars(rates).items()},
            "hours": plans,
            "disk_gib": needs,
        },
    )
    _print(plans, needs, rates, params)
    say(f"-> {output}")


def _dsad() -> tuple[Params, FrameCounts]:
    with as_file(files("stages") / "presets" / "paper.yaml") as path:
        params = load_params(path)
    return params, dsad_counts(params.data.splits, params.data.anatomies)


def _of_project(project: Project) -> tuple[Params, FrameCounts]:
    labelled = {str(split): _counted(project, split) for split in SPLITS}
    training = len(project.frames_of("train"))
    return project.params, FrameCounts(labelled, training, len(project.distillation_frames()))


def _counted(project: Project, split: str) -> dict[str, int]:
    """Prepared frames of a split, by anatomy."""
    return {a: len(project.frames_of(split, [a])) for a in project.anatomies}


def dsad_counts(splits: Splits, anatomies: Sequence[str]) -> FrameCounts:
    """DSAD's frames, from the counts per anatomy and surgery in its public file lists.

    A picture that stands in several sub-data sets counts in each: the lists do not tell them.
    """
    text = (files("stages") / "paper" / "dsad_counts.csv").read_text()
    counts: dict[str, dict[str, int]] = {split: dict.fromkeys(anatomies, 0) for split in SPLITS}
    for row in csv.DictReader(text.splitlines()):
        for surgery, frames in row.items():
            if isinstance(surgery_id(surgery), int) and row["anatomy"] in anatomies:
                counts[splits.of(surgery)][row["anatomy"]] += int(frames)
    training = sum(counts["train"].values())
    return FrameCounts(counts, training, training)


def _measure(params: Params, decoders: int, repeats: int, machine: Machine) -> Rates:
    """Each in the batches of its stage; loading on one core."""
    teacher = params.teacher
    student = params.student
    caching = params.cache

    def measured(
        trained: Training, n: int, task: Task, batch: int, precision: str
    ) -> dict[str, Any]:
        """In a process of its own: memory of another measurement would hide its peak."""
        arch = trained.arch
        size = params.data.image_size
        case = DecoderCase(arch, n, "joined", task, precision, batch, size, machine, trained.shared)
        (result,) = measure([case], 1, repeats, SECONDS)
        say(
            f"{arch}, {counted(n, 'decoder')}, {task}, {counted(batch, 'frame')}: "
            f"{result['milliseconds']:.4g} ms"
        )
        return result

    teach = measured(teacher, 1, "train", teacher.batch_size, teacher.precision)
    infer = measured(teacher, 1, "infer", caching.batch_size, caching.precision)
    learn = measured(student, decoders, "train", student.batch_size, student.precision)
    validate = measured(student, decoders, "infer", student.batch_size, student.precision)
    read = loading.measure(params.data.image_size, decoders, 3)
    return Rates(
        teach["milliseconds"] / 1000,
        learn["milliseconds"] / 1000,
        infer["milliseconds"] / 1000 / caching.batch_size,
        validate["milliseconds"] / 1000 / student.batch_size,
        read["milliseconds"]["all with logits"] / 1000,
        round(max(teach["peak_mib"], learn["peak_mib"]) * 2**20),
        read["bytes_per_frame"],
    )


def hours(params: Params, counts: FrameCounts, rates: Rates, devices: int) -> dict[str, float]:
    """Hours of each stage.

    Teachers train side by side, each on one device, the longest first. The logits and the
    students' batches are shared by the devices, as if that cost nothing.
    """
    teachers = [
        params.teacher.epochs
        * (
            _steps(frames, params.teacher) * rates.teacher_step
            + counts.labelled["val"][anatomy] * rates.teacher_frame
        )
        for anatomy, frames in counts.labelled["train"].items()
    ]
    student = params.student.epochs * (
        _steps(counts.training, params.student) * rates.student_step
        + sum(counts.labelled["val"].values()) * rates.student_frame
    )
    views = max(1, params.cache.views)
    stages = {
        "teachers": makespan(teachers, devices),
        "cache_logits": len(teachers) * views * counts.stored * rates.teacher_frame / devices,
        "student, baseline": student / devices,
        "student, distilled": student / devices,
    }
    stages["all"] = sum(stages.values())
    return {name: round(seconds / 3600, 2) for name, seconds in stages.items()}


def _steps(frames: int, settings: Training) -> int:
    full, rest = divmod(frames, settings.batch_size)
    return full + (rest > 1)


def makespan(seconds: Sequence[float], devices: int) -> float:
    """Time until the last job ends, if each free device takes the longest that is left."""
    ends = [0.0] * devices
    for job in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + job)
    return max(ends)


def disk(params: Params, counts: FrameCounts, rates: Rates) -> dict[str, float]:
    """GiB of the prepared frames, and of the stores before they are compressed."""
    height, width = params.data.image_size
    stride = create_model(params.teacher.arch, 1).output_stride
    logits = 2 * -(-height // stride) * -(-width // stride) * HALF
    labelled = sum(sum(each.values()) for each in counts.labelled.values())
    every = labelled + counts.stored - counts.training
    teachers = len(counts.labelled["train"])
    frames = counts.stored * max(1, params.cache.views)
    sizes = {"prepared": every * rates.frame_bytes, "stores": teachers * frames * logits}
    return {name: round(size / 2**30, 2) for name, size in sizes.items()}


def _size(params: Params) -> str:
    height, width = params.data.image_size
    return f"{width}x{height}"


def _print(
    plans: dict[str, dict[str, float]], needs: dict[str, float], rates: Rates, params: Params
) -> None:
    table = Table(title="hours")
    table.add_column("stage")
    for n in plans:
        table.add_column(f"{n} device{'s' * (n != '1')}", justify="right")
    for stage in next(iter(plans.values())):
        table.add_row(stage, *(f"{plan[stage]:.1f}" for plan in plans.values()))
    console.print(table)
    say(
        f"disk: prepared frames {needs['prepared']} GiB, stores {needs['stores']} GiB before "
        "compression"
    )
    say(
        f"memory of a training step, on top of the network: {rates.memory / 2**30:.1f} GiB per "
        "device"
    )
    hungry = params.student.batch_size / rates.student_step
    say(
        f"the student takes {hungry:.1f} frames/s per device, one core loads "
        f"{1 / rates.load_frame:.0f}: "
        f"--workers {max(1, round(hungry * rates.load_frame + 0.5))}"
    )
