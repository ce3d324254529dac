"""Train and test the students of a study, on one project's frames, teachers and stores.

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
from dataclasses import asdict, dataclass, fields, replace
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
from pipeline.errors import MtkdError
from pipeline.evaluation.every_frame import Row, summarise_all
from pipeline.evaluation.per_frame import Result, evaluate, summarise
from pipeline.files import write_json
from pipeline.machine import Machine, keep_freed_memory, make_fabric
from pipeline.models import Network
from pipeline.prepared import frames_digest, labels_digest
from pipeline.surgeries import SPLITS
from pipeline.timing.interleaved import peak_memory
from pipeline.training import Callbacks, Epoch, TrainingTask, best_epoch, fit
from pipeline.training_errors import translated_errors
from stages.shared.console import progress, say
from stages.shared.environment import say_environment, say_launch
from stages.shared.project import Project, load_project
from stages.shared.remedies import explained
from stages.shared.slots import Slot, environment, slots
from stages.shared.training_run import seeded_network
from stages.study.targets import Case, training_material

Dice = dict[str, float | None]  # percent per anatomy, and "mean"
_epochs: Any = None  # how many this process has trained, where the study can read it


def prepare_page(output: Path) -> None:
    """The folder of a study's page, before hours of work.

    Raises:
        MtkdError: ``output`` is not a Markdown file.
    """
    if output.suffix != ".md" or output.is_dir():
        raise MtkdError(f"--output {output}: expected a Markdown file, .md")
    output.parent.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What one student reached, and what its training took; its file has the same keys.

    Attributes:
        name, arch, seed, epochs: of the case.
        class_weights: whether the loss on labels weighed rare classes up; files of earlier runs do
            not say.
        dice: percent on the test frames, per anatomy and ``mean``.
        validation: the same on the validation frames, of the best epoch.
        val_dice: mean percent on the validation frames, of each epoch.
        seconds_per_epoch: the median.
        peak_mib: MiB of memory at most.
        threads: of torch.
        every_decoder: what all decoders say on all test frames, see
            :func:`pipeline.evaluation.every_frame.summarise_all`; files of earlier runs do not
            say.
    """

    name: str
    arch: str
    seed: int
    epochs: int
    class_weights: bool | None = None
    dice: Dice
    validation: Dice
    val_dice: Sequence[float | None]
    seconds_per_epoch: float
    peak_mib: int
    threads: int
    every_decoder: dict[str, Row] | None = None

    @classmethod
    def read(cls, file: Path) -> "RunResult":
        """The result that a run left; keys that are not known are passed over."""
        content = json.loads(file.read_text())
        return cls(**{f.name: content[f.name] for f in fields(cls) if f.name in content})

    def dice_on(self, pixels: str) -> Dice:
        """Percent per anatomy and ``mean``; empty where an earlier run did not measure.

        Args:
            pixels: of own ``test`` or ``validation`` frames; or of the test surgeries all that are
                ``known``, or those of ``every`` frame with a label map.
        """
        everywhere = self.every_decoder or {}
        measured: dict[str, Dice | None] = {
            "test": self.dice,
            "validation": self.validation,
            "known": everywhere.get("known_dice"),
            "every": everywhere.get("every_dice"),
        }
        return measured[pixels] or {}


def measure_all(
    cases: Sequence[Case], folder: Path, jobs: int, machine: Machine
) -> list[RunResult]:
    """The results of all cases, in order; those that an earlier run left are read.

    Args:
        cases: what to train.
        folder: of the results, one file per case.
        jobs: runs at the same time.
        machine: where.

    Raises:
        MtkdError: the device is not in this machine; or runs failed, and the others are kept.
    """
    machine = replace(machine, device=machine.torch_device.type)
    free = slots(jobs, machine.device)
    files = _case_files(cases, folder)
    missing = [(case, file) for case, file in zip(cases, files, strict=True) if not file.is_file()]
    say(f"{len(cases) - len(missing)} of {len(cases)} runs are there, {len(missing)} to go")
    if missing:
        say_launch(machine)
        say_environment(machine)
    failed = _Processes(free, max(1, torch.get_num_threads() // jobs), machine).measure(missing)
    if failed:
        title = f"{len(failed)} of {len(missing)} runs failed, the others are kept:"
        raise MtkdError("\n".join([title, *failed]))
    return [RunResult.read(file) for file in files]


def _case_files(cases: Sequence[Case], folder: Path) -> list[Path]:
    roots = dict.fromkeys(case.folder for case in cases)
    projects = {root: load_project(root) for root in roots}
    data = {root: _data_identity(project) for root, project in projects.items()}
    return [
        folder / case_file_name(case, projects[case.folder], data[case.folder]) for case in cases
    ]


class _Processes:
    """Cases that are measured at the same time: a process and a slot of its own for each.

    The memory of another case would hide its peak, and a process that is killed ends alone.

    Args:
        free: slots that no case has yet.
        threads: of torch, for each case.
        machine: where the cases compute.
    """

    def __init__(self, free: list[Slot], threads: int, machine: Machine) -> None:
        self.free = free
        self.threads = threads
        self.machine = machine
        self.context = get_context("spawn")
        self.running: dict[Future[RunResult], tuple[Case, ProcessPoolExecutor, Slot]] = {}
        self.epochs: list[Any] = []  # how many each process has trained

    def measure(self, missing: Sequence[tuple[Case, Path]]) -> list[str]:
        """Measure cases, each into its file; returns a line for each that failed."""
        waiting = iter(missing)
        failed: list[str] = []
        total = sum(case.student.epochs for case, _ in missing)
        with progress("epochs of students") as bar:
            while True:
                for case, file in islice(waiting, len(self.free)):
                    self._start(case, file)
                if not self.running:
                    return failed
                failed += self._finish()
                bar(sum(counter.value for counter in self.epochs), total)

    def _start(self, case: Case, file: Path) -> None:
        counter = self.context.RawValue("q", 0)
        self.epochs.append(counter)
        process = ProcessPoolExecutor(1, self.context, _begin, (counter,))
        slot = self.free.pop(0)
        with environment(slot):  # which the process is started in
            future = process.submit(_keep, case, file.resolve(), self.threads, self.machine)
        self.running[future] = case, process, slot

    def _finish(self) -> list[str]:
        """Wait for a while, and free the slots of what has ended."""
        failed: list[str] = []
        for future in wait(self.running, timeout=5, return_when=FIRST_COMPLETED).done:
            case, process, slot = self.running.pop(future)
            failed += _outcome(case, future)
            process.shutdown()
            self.free.append(slot)
        return failed


def _outcome(case: Case, ended: Future[RunResult]) -> list[str]:
    """Say how a run ended, and return what went wrong, if anything did."""
    name = f"{case.name} {case.student.arch} seed {case.student.seed}"
    try:
        say(f"{name}: test Dice {ended.result().dice['mean']}")
        return []
    except BrokenProcessPool:
        reason = "its process ended by itself, as when the kernel needs its memory"
        problem = f"{name}: {reason}: try fewer --jobs"
    except (MtkdError, StoreError, OSError) as error:
        problem = f"{name}: {explained(error, case.folder, 'study')}"
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


def _data_identity(project: Project) -> str:
    """The identity of all prepared frames and labels of a project."""
    frames = list(chain(*(project.frames_of(split) for split in SPLITS)))
    return frames_digest(frames) + labels_digest(frames)


def case_file_name(case: Case, project: Project, data: str) -> str:
    """The file of a case's result; its name holds a hash of what determines it.

    Args:
        case: settings.
        project: whose stores.
        data: identity of frames and labels.
    """
    settings = project.params.data
    inputs: dict[str, Any] = {
        # A setting that came later is left out at the value of before, so that earlier runs still
        # count.
        "student": case.student.model_dump(
            exclude={"decoders"} if not case.student.shared else None
        ),
        "data": settings.model_dump(exclude={"unlabelled_root"}),
        "frames and labels": data,
    }
    if case.distill:
        inputs |= {
            "arm": case.targets,
            "unlabelled": settings.unlabelled_root if case.unlabelled else None,
            "distill": case.distill.model_dump(
                exclude={"grid"} if case.distill.grid == "stores" else None
            ),
            "stores": [
                open_store(project.store(anatomy)).identity for anatomy in settings.anatomies
            ],
        }
    digest = sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:10]
    name = re.sub(r"\W+", "_", case.name)
    return f"{name}-{case.student.arch}-{case.student.seed}-{digest}.json"


def _keep(case: Case, file: Path, threads: int, machine: Machine) -> RunResult:
    """Measure a case and leave its file."""
    result = _measure(case, threads, machine)
    write_json(file, asdict(result))
    return result


@translated_errors()
def _measure(case: Case, threads: int, machine: Machine) -> RunResult:
    """Train and test one student, in a process of its own."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    project = load_project(case.folder)
    network, history, ends = _train(case, project, machine)
    peak = peak_memory(machine.torch_device) / 2**20
    measured = tested(network.eval(), project, project.anatomies, machine)
    return RunResult(
        name=case.name,
        arch=case.student.arch,
        seed=case.student.seed,
        epochs=case.student.epochs,
        class_weights=case.student.class_weights,
        dice=summarise(measured, project.anatomies)["dice"],
        validation=_in_percent(best_epoch(history, case.student.select_by)),
        val_dice=[_percent(epoch.mean_dice) for epoch in history],
        seconds_per_epoch=round(median(b - a for a, b in pairwise(ends)), 2),
        peak_mib=round(peak),
        threads=threads,
        every_decoder=summarise_all(measured, project.anatomies),
    )


def _train(
    case: Case, project: Project, machine: Machine
) -> tuple[Network, list[Epoch], list[float]]:
    """The student, its epochs, and the times at which they began and ended, in seconds."""
    anatomies = project.anatomies
    objective, data = training_material(case, project, machine)
    network = seeded_network(case.student, anatomies)
    val = FrameDataset(project.frames_of("val"), anatomies, maps=False)
    ends = [perf_counter()]

    def epoch_done(_: Epoch) -> None:
        ends.append(perf_counter())
        if _epochs is not None:
            _epochs.value += 1

    history = fit(
        make_fabric(machine, case.student.precision),
        network,
        TrainingTask(data, val, objective),
        case.student,
        machine,
        Callbacks(epoch_done),
    )
    return network, history, ends


def tested(
    networks: Network | Sequence[Network],
    project: Project,
    anatomies: Sequence[str],
    machine: Machine,
) -> list[Result]:
    """One or several networks, on the test frames of the anatomies that they have decoders for."""
    frames = project.frames_of("test", anatomies)
    batch_size = project.params.evaluate.batch_size
    return list(evaluate(networks, frames, anatomies, batch_size, None, machine))


def _in_percent(epoch: Epoch) -> Dice:
    values = {"mean": epoch.mean_dice, **epoch.dice}
    return {name: _percent(value) for name, value in values.items()}


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 1)
