"""Comparing students that were trained in different ways on one project's frames, teachers and stores.

A case is one training run. It has a process of its own, and leaves one file of results; a study
that is started again measures only the cases whose file is missing or was made from other settings,
frames, labels or teachers.
"""

import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from hashlib import sha256
from itertools import chain, islice, pairwise
from multiprocessing import get_context, parent_process
from pathlib import Path
from statistics import median
from threading import Thread
from time import perf_counter
from typing import Any

import torch

from cache import StoreError, open_store
from pipeline.datasets import FrameDataset
from pipeline.dsad import SPLITS
from pipeline.errors import MtkdError
from pipeline.evaluation.per_frame import evaluate, summarise
from pipeline.files import write_json
from pipeline.machine import Machine, keep_freed_memory, make_fabric
from pipeline.prepared import frames_digest, labels_digest
from pipeline.timing.interleaved import peak_memory
from pipeline.training import Epoch, best_epoch, fit
from pipeline.training_errors import mendable
from stages.shared.console import progress, say
from stages.shared.environment import say_environment, say_launch
from stages.shared.project import Project, load_project
from stages.shared.remedies import explained
from stages.shared.slots import Slot, environment, slots
from stages.shared.training_run import seeded_network
from stages.study.targets import Case, training_material

FOLDER = Path("results/study")
_epochs: Any = None  # how many this process has trained, where the study can read it


def prepare_page(output: Path) -> None:
    """The folder of a study's page, before hours of work.

    Raises:
        MtkdError: ``output`` is no Markdown file.
    """
    if output.suffix != ".md" or output.is_dir():
        raise MtkdError(f"--output {output}: expected a Markdown file, .md")
    output.parent.mkdir(parents=True, exist_ok=True)


def measure_all(cases: Sequence[Case], jobs: int, machine: Machine) -> list[dict[str, Any]]:
    """The results of all cases, in order; those that an earlier run left are read.

    Raises:
        MtkdError: the device is not in this machine; or runs failed, and the others are kept.
    """
    machine = replace(machine, device=machine.torch_device.type)
    free = slots(jobs, machine.device)
    projects = {folder: load_project(folder) for folder in {case.folder for case in cases}}
    data = {folder: _data(project) for folder, project in projects.items()}
    files = [case_file(case, projects[case.folder], data[case.folder]) for case in cases]
    missing = [(case, file) for case, file in zip(cases, files, strict=True) if not file.is_file()]
    say(f"{len(cases) - len(missing)} of {len(cases)} runs are there, {len(missing)} to go")
    if missing:
        say_launch(machine)
        say_environment(machine)
    threads = max(1, torch.get_num_threads() // jobs)
    context = get_context("spawn")
    epochs, total = list[Any](), sum(case.student.epochs for case, _ in missing)
    waiting, failed = iter(missing), list[str]()
    running: dict[Future[dict[str, Any]], tuple[Case, ProcessPoolExecutor, Slot]] = {}
    with progress("epochs of students") as bar:
        while True:
            for case, file in islice(waiting, len(free)):
                # A process per case: the memory of another would hide its peak, and one that is
                # killed ends alone.
                epochs.append(context.RawValue("q", 0))
                process, slot = ProcessPoolExecutor(1, context, _begin, (epochs[-1],)), free.pop(0)
                with environment(slot):  # which the process is started in
                    begun = process.submit(_keep, case, file.resolve(), threads, machine)
                running[begun] = case, process, slot
            if not running:
                break
            for ended in wait(running, timeout=5, return_when=FIRST_COMPLETED).done:
                case, process, slot = running.pop(ended)
                failed += _told(case, ended)
                process.shutdown()
                free.append(slot)
            bar(sum(counted.value for counted in epochs), total)
    if failed:
        raise MtkdError(
            "\n".join(
                [f"{len(failed)} of {len(missing)} runs failed, the others are kept:", *failed]
            )
        )
    return [json.loads(file.read_text()) for file in files]


def _told(case: Case, ended: Future[dict[str, Any]]) -> list[str]:
    """Say how a run ended; again what went wrong, if anything did."""
    name = f"{case.name} {case.student.arch} seed {case.student.seed}"
    try:
        say(f"{name}: test Dice {ended.result()['dice']['mean']}")
        return []
    except BrokenProcessPool:
        problem = f"{name}: its process ended by itself, as when the kernel needs its memory: try fewer --jobs"
    except (MtkdError, StoreError, OSError) as error:
        problem = f"{name}: {explained(error)}"
    except Exception as error:
        problem = f"{name}: {type(error).__name__}: {error}"
    say(problem)
    return [problem]


def _begin(epochs: Any) -> None:
    """Prepare a process for a case: it counts epochs, and ends when the study is killed."""
    global _epochs
    _epochs = epochs

    def watch() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _data(project: Project) -> str:
    """The identity of all prepared frames and labels of a project."""
    frames = list(chain(*(project.frames_of(split) for split in SPLITS)))
    return frames_digest(frames) + labels_digest(frames)


def case_file(case: Case, project: Project, data: str) -> Path:
    """Where the result of a case lies; its name holds a hash of what determines it.

    Args:
        case: settings.
        project: whose stores.
        data: identity of frames and labels.
    """
    settings = project.params.data
    inputs: dict[str, Any] = {
        "student": case.student.model_dump(),
        "data": settings.model_dump(exclude={"unlabelled_root"}),
        "frames and labels": data,
    }
    if case.distill:
        inputs |= {
            "arm": case.targets,
            "unlabelled": settings.unlabelled_root if case.unlabelled else None,
            # A setting that came later is left out at its default, so that runs of before still
            # count.
            "distill": case.distill.model_dump(exclude_defaults=True),
            "stores": [
                open_store(project.store(anatomy)).identity for anatomy in settings.anatomies
            ],
        }
    digest = sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:10]
    name = re.sub(r"\W+", "_", case.name)
    return FOLDER / f"{name}-{case.student.arch}-{case.student.seed}-{digest}.json"


def _keep(case: Case, file: Path, threads: int, machine: Machine) -> dict[str, Any]:
    """Measure a case and leave its file."""
    result = _measure(case, threads, machine)
    write_json(file, result)
    return result


@mendable("lower student.batch_size, or choose fewer --jobs")
def _measure(case: Case, threads: int, machine: Machine) -> dict[str, Any]:
    """Train and test one student, in a process of its own."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    project = load_project(case.folder)
    params = project.params
    anatomies = project.anatomies
    objective, data = training_material(case, project, machine)
    network = seeded_network(case.student, anatomies)
    ends = [perf_counter()]

    def epoch_done(_: Epoch) -> None:
        ends.append(perf_counter())
        if _epochs is not None:
            _epochs.value += 1

    history = fit(
        make_fabric(machine, case.student.precision),
        network,
        data,
        FrameDataset(project.frames_of("val"), anatomies),
        objective,
        case.student,
        machine,
        done=epoch_done,
        step=lambda *_: None,
    )
    peak = peak_memory(machine.torch_device) / 2**20
    test = project.frames_of("test")
    results = list(
        evaluate(network.eval(), test, anatomies, params.evaluate.batch_size, None, machine)
    )
    return {
        "name": case.name,
        "arch": case.student.arch,
        "seed": case.student.seed,
        "epochs": case.student.epochs,
        "class_weights": case.student.class_weights,
        "dice": summarise(results, anatomies)["dice"],
        "validation": _in_percent(best_epoch(history)),
        "val_dice": [None if e.mean_dice is None else round(100 * e.mean_dice, 1) for e in history],
        "seconds_per_epoch": round(median(b - a for a, b in pairwise(ends)), 2),
        "peak_mib": round(peak),
        "threads": threads,
    }


def _in_percent(epoch: Epoch) -> dict[str, float | None]:
    values = {"mean": epoch.mean_dice, **epoch.dice}
    return {
        name: None if value is None else round(100 * value, 1) for name, value in values.items()
    }
