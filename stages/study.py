"""Comparing students that were trained in different ways on one project's frames, teachers and stores.

A case is one training run. It has a process of its own, and leaves one file of results; a study that is started
again measures only the cases whose file is missing or was made from other settings, frames or teachers.
"""

import json
import os
import re
import resource
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor

from cache import open_store
from pipeline.augmentation import valid_cells
from pipeline.checkpoint import load_checkpoint
from pipeline.datasets import FrameDataset, Key, Sample
from pipeline.distillation import distilled
from pipeline.evaluation import evaluate, summarise
from pipeline.files import write_json
from pipeline.machine import Machine, keep_freed_memory, make_fabric
from pipeline.models.network import Network, normalise
from pipeline.prepared import Frame
from pipeline.settings import Distill, Params, Training
from pipeline.training import Objective, Terms, fit, supervised
from stages.console import progress, say
from stages.layout import RESULTS, frames_of, store, taught_frames, teacher_checkpoint
from stages.params import PARAMS, load_params
from stages.soft_targets import open_stores
from stages.training_run import class_weights, seeded_network

Arm = Literal["stores", "pseudo_labels", "live"]
FOLDER = RESULTS / "study"
CERTAIN = 30.0  # a logit whose softmax is 1 up to 1e-13


@dataclass(frozen=True)
class Case:
    """One student, trained in one way.

    Attributes:
        name: of the way, as tables call it.
        student: the student and its schedule.
        distill: how it is distilled, or None for partial labels alone.
        arm: where the teachers' answers come from: ``stores``; ``pseudo_labels``: only the classes that the stored
            logits choose; ``live``: teachers in memory, asked on each batch as the student sees it.
        folder: the project whose frames, teachers and stores are used.
        unlabelled: whether the teachers also speak on frames without a label, if there are any.
    """

    name: str
    student: Training
    distill: Distill | None
    arm: Arm = "stores"
    folder: Path = Path()
    unlabelled: bool = True


def measure_all(cases: Sequence[Case], jobs: int, machine: Machine) -> list[dict[str, Any]]:
    """The results of all cases, in order; those that an earlier run left are read."""
    files = [case_file(case) for case in cases]
    missing = [(case, file) for case, file in zip(cases, files, strict=True) if not file.is_file()]
    say(f"{len(cases) - len(missing)} of {len(cases)} runs are there, {len(missing)} to go")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = get_context("spawn")
    # A process per case: the memory of another case would hide this one's peak.
    with (
        ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool,
        progress("students trained") as bar,
    ):
        asked = {pool.submit(_measure, case, threads, machine): (case, file) for case, file in missing}
        for number, done in enumerate(as_completed(asked), start=1):
            (case, file), result = asked[done], done.result()
            write_json(file, result)
            say(f"{case.name} {case.student.arch} seed {case.student.seed}: test Dice {result['dice']['mean']}")
            bar(number, len(missing))
    return [json.loads(file.read_text()) for file in files]


def case_file(case: Case) -> Path:
    """Where the result of a case lies; its name holds a hash of the settings and stores that determine it."""
    params = load_params(case.folder / PARAMS)
    inputs = {
        "arm": case.arm,
        "unlabelled": case.unlabelled,
        "student": case.student.model_dump(),
        "distill": case.distill.model_dump() if case.distill else None,
        "data": params.data.model_dump(),
        "stores": [open_store(case.folder / store(anatomy)).identity for anatomy in params.data.anatomies],
    }
    digest = sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:10]
    name = re.sub(r"\W+", "_", case.name)
    return FOLDER / f"{name}-{case.student.arch}-{case.student.seed}-{digest}.json"


def _measure(case: Case, threads: int, machine: Machine) -> dict[str, Any]:
    """Train and test one student, in a process of its own."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    os.chdir(case.folder)
    params = load_params()
    anatomies = params.data.anatomies
    objective, data = _lesson(case, params, machine)
    network = seeded_network(case.student, anatomies)
    ends = [perf_counter()]
    history = fit(
        make_fabric(machine, case.student.precision),
        network,
        data,
        FrameDataset(frames_of("val", anatomies), anatomies),
        objective,
        case.student,
        machine,
        done=lambda epoch: ends.append(perf_counter()),
        step=lambda *_: None,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    test = frames_of("test", anatomies)
    results = list(evaluate(network.eval(), test, anatomies, params.evaluate.batch_size, None, machine))
    return {
        "name": case.name,
        "arch": case.student.arch,
        "seed": case.student.seed,
        "epochs": case.student.epochs,
        "dice": summarise(results, anatomies)["dice"],
        "val_dice": [None if e.mean_dice is None else round(100 * e.mean_dice, 1) for e in history],
        "seconds_per_epoch": round(median(b - a for a, b in pairwise(ends)), 2),
        "peak_mib": round(peak),
        "threads": threads,
    }


def _lesson(case: Case, params: Params, machine: Machine) -> tuple[Objective, FrameDataset]:
    """What a case's student is taught: the objective, and frames with the targets that it needs."""
    anatomies, frames, seed = params.data.anatomies, frames_of("train", params.data.anatomies), case.student.seed
    weights = class_weights(frames, anatomies) if case.student.class_weights else None
    alone = supervised(len(anatomies), weights)
    if case.distill is None:
        return alone, FrameDataset(frames, anatomies, seed)
    both = distilled(alone, case.distill)
    frames = taught_frames(anatomies) if case.unlabelled else frames
    if case.arm == "live":
        teachers = _teachers(params, machine)
        return _live(both, teachers), _WithCells(frames, anatomies, seed, stride=teachers[0].output_stride)
    data = FrameDataset(frames, anatomies, seed, open_stores(params))
    return (_hardened(both) if case.arm == "pseudo_labels" else both), data


def _hardened(objective: Objective) -> Objective:
    """The class that the teachers' logits choose, as certain as logits can be."""

    def terms(logits: Tensor, batch: Sample) -> Terms:
        chosen = batch["teachers"].argmax(2)
        hard = torch.stack([1 - chosen, chosen], 2).float() * CERTAIN
        return objective.terms(logits, Sample(**{**batch, "teachers": hard}))

    return replace(objective, terms=terms)


class _WithCells(FrameDataset):
    """Frames with the cells of the teachers' grid that lie inside the original, for teachers that are asked live."""

    def __init__(self, frames: Sequence[Frame], anatomies: Sequence[str], augment: int, *, stride: int) -> None:
        super().__init__(frames, anatomies, augment)
        self.stride = stride

    def __getitem__(self, key: Key) -> Sample:
        item, (epoch, position) = super().__getitem__(key), key
        height, width = item["frame"].shape[-2:]
        affine = self._augmentation(epoch, self.frames[position], (height, width)).affine
        cells = valid_cells(affine, (-(-height // self.stride), -(-width // self.stride)))
        return Sample(**{**item, "valid": torch.from_numpy(cells)})


def _teachers(params: Params, machine: Machine) -> list[Network]:
    paths = [(teacher_checkpoint(anatomy), f"train_teacher@{anatomy}") for anatomy in params.data.anatomies]
    return [load_checkpoint(*one)[0].to(machine.torch_device) for one in paths]


def _live(objective: Objective, teachers: Sequence[Network]) -> Objective:
    """Teachers in memory answer on each batch as the student sees it."""

    def terms(logits: Tensor, batch: Sample) -> Terms:
        with torch.no_grad():
            answers = torch.cat([teacher(normalise(batch["frame"], teacher)) for teacher in teachers], 1)
        return objective.terms(logits, Sample(**{**batch, "teachers": answers.float()}))

    return replace(objective, terms=terms)
