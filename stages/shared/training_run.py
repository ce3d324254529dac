"""One training run of a teacher or a student.

Data, progress, curves, checkpoint and metrics.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import torch
from dvclive import Live
from lightning_fabric import Fabric

from cache.errors import StoreBusyError
from cache.lock import ScratchLock
from pipeline.checkpoint import save_checkpoint
from pipeline.datasets import FrameDataset, SoftTargets
from pipeline.errors import MtkdError
from pipeline.files import Unchanged, emptied, require_writable, write_json
from pipeline.handover import nbytes
from pipeline.machine import Machine, make_fabric
from pipeline.models import create_model
from pipeline.models.network import Network
from pipeline.prepared import Frame, frames_digest, labels_digest, load_frame, load_label
from pipeline.resume import Resume, run_identity
from pipeline.settings import Training
from pipeline.stopwatch import Stopwatch
from pipeline.training import (
    Callbacks,
    Epoch,
    Objective,
    TrainingTask,
    best_epoch,
    fit,
    supervised,
    synchronises,
)
from pipeline.training_errors import translated_errors
from stages.shared.console import Step, counted, hush, progress, say
from stages.shared.environment import say_environment, say_handover, say_launch
from stages.shared.preflight import preflight
from stages.shared.project import Project

# Seconds that a killed process of the same run may take to end.
PATIENCE = 10.0


@dataclass(frozen=True)
class Lesson:
    """What a network is trained on.

    Attributes:
        frames: training frames.
        objective: what is minimised.
        validated_on: the anatomies whose validation frames are predicted after each epoch.
        negatives: further training frames, of other anatomies.
        drawn: how many of these each epoch has.
        soft_targets: the teachers' stored logits, or None.
        identity: what else determines the result: settings of distillation, identities of the
            stores.
        files: of the stores; none of them may change during the run.
        digest: of the frames' list and pixels if it is known already, see ``frames_digest``.
    """

    frames: Sequence[Frame]
    objective: Objective
    validated_on: Sequence[str]
    negatives: Sequence[Frame] = ()
    drawn: int = 0
    soft_targets: SoftTargets | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[Path] = ()
    digest: str | None = None


@dataclass(frozen=True)
class Outputs:
    """Where a training run writes.

    Attributes:
        checkpoint: the weights of the best epoch.
        metrics: Dice per anatomy on the validation surgeries at that epoch, in percent.
        curves: folder for the values of every epoch.
    """

    checkpoint: Path
    metrics: Path
    curves: Path


def class_weights(frames: Sequence[Frame], anatomies: Sequence[str]) -> torch.Tensor:
    """Kolbinger's weights per anatomy, n / (2 count) for background and anatomy: (N, 2).

    Raises:
        MtkdError: the masks of an anatomy hold only one class.
    """
    masks = list(chain.from_iterable(frame.labels for frame in frames))
    weights = []
    for anatomy in anatomies:
        labels = [load_label(each.label) for each in masks if each.anatomy == anatomy]
        positive = sum(int((label == 1).sum()) for label in labels)
        pixels = positive + sum(int((label == 0).sum()) for label in labels)
        if not 0 < positive < pixels:
            raise MtkdError(
                f"class_weights: the training masks of {anatomy} hold only one class; set it to "
                "false"
            )
        weights.append([pixels / (2 * (pixels - positive)), pixels / (2 * positive)])
    return torch.tensor(weights)


def objective_on_labels(
    frames: Sequence[Frame], anatomies: Sequence[str], settings: Training
) -> Objective:
    """The loss on the frames' labels, weighted as the settings say.

    Raises:
        MtkdError: as of :func:`class_weights`.
    """
    weights = class_weights(frames, anatomies) if settings.class_weights else None
    return supervised(weights, settings.absence_weight)


def seeded_network(settings: Training, anatomies: Sequence[str]) -> Network:
    """A network whose random weights depend on the seed alone, with a decoder for each anatomy."""
    torch.manual_seed(settings.seed)
    network = create_model(
        settings.arch, len(anatomies), settings.pretrained, shared=settings.shared
    )
    network.anatomies = tuple(anatomies)
    return network


@translated_errors()
def train_run(
    project: Project,
    title: str,
    anatomies: Sequence[str],
    settings: Training,
    lesson: Lesson,
    outputs: Outputs,
    machine: Machine,
) -> None:
    """Train one network on prepared frames; write its checkpoint, metrics and curves.

    A run that was stopped goes on after the last epoch that it kept, if nothing that determines it
    has changed.

    Args:
        project: where everything lies.
        title: what the lines on the screen call it.
        anatomies: one decoder each, in this order.
        settings: of the teacher or student.
        lesson: frames and objective.
        outputs: files to write.
        machine: devices and loader workers.

    Raises:
        MtkdError: as of ``fit``; another process trains the same; a batch can't be shared by so
            many.
    """
    _require_shareable(settings, machine)
    seen = [*lesson.frames, *lesson.negatives]
    train = FrameDataset(seen, anatomies, settings.seed, lesson.soft_targets)
    _say_before(project, settings, train, machine)
    fabric = make_fabric(machine, settings.precision)
    hush(not fabric.is_global_zero)
    # An epoch is chosen by what other data sets have, too.
    val = FrameDataset(project.frames_of("val", lesson.validated_on), anatomies, maps=False)
    network = seeded_network(settings, anatomies)
    # Batch norm sees a piece at a time, so that pieces are part of what determines the weights.
    pieces = {"processes": fabric.world_size, "accumulate": machine.accumulate}
    digests = _digests(lesson, seen, val.frames)
    trained_on = {"settings": settings.model_dump(), **pieces, **digests, **lesson.identity}
    place = _state_place(project, outputs)
    on_device = {"device": fabric.device.type, "compile": machine.compile}
    identity = run_identity({**trained_on, **on_device}, network.state_dict())
    resume = Resume(place.with_name(f"{place.name}.pt"), identity)
    height, width = load_frame(train.frames[0].image).shape[:2]
    stopwatch = Stopwatch(fabric.device)
    with _running(title, place, outputs.curves, fabric) as (live, bar):
        sizes = f"{len(train)} training and {len(val)} validation frames"
        say(f"{title}: {settings.arch}, {sizes}, {counted(settings.epochs, 'epoch')}")
        _say_start(title, network, resume, fabric.world_size)
        with _ended_together(fabric):
            history = fit(
                fabric,
                network,
                TrainingTask(train, val, lesson.objective, len(lesson.negatives), lesson.drawn),
                settings,
                machine,
                Callbacks(
                    lambda epoch: _log(live, title, anatomies, epoch) if live else None,
                    lambda epoch, done, total: bar(epoch * total + done, settings.epochs * total),
                    Unchanged([*_files(train.frames), *_files(val.frames), *lesson.files]).check,
                ),
                resume=resume,
                stopwatch=stopwatch,
            )
        if not fabric.is_global_zero:
            return
        save_checkpoint(outputs.checkpoint, network, (height, width), trained_on)
        best = best_epoch(history, settings.select_by)
        _write_metrics(outputs.metrics, best, len(history))
        resume.done()
    say(f"{title}: time of training: {stopwatch} (data: waiting for frames)")
    dice = f"validation Dice {_percent(best.mean_dice)}, known {_percent(best.mean_known_dice)}"
    say(f"{title}: best epoch {best.epoch + 1}, {dice} -> {outputs.checkpoint}")


def _require_shareable(settings: Training, machine: Machine) -> None:
    """Every piece has the frames that batch norm needs."""
    synchronised = synchronises(machine.torch_device.type, machine.devices)
    pieces = machine.devices * machine.accumulate
    least, frames = (1, "one frame") if synchronised else (2, "two frames")
    if settings.batch_size < least * pieces:
        options = f"--devices {machine.devices}, --accumulate {machine.accumulate}"
        raise MtkdError(
            f"batch_size {settings.batch_size} makes no {pieces} pieces of at least {frames} "
            f"({options}): batch norm needs them"
        )


def _say_before(
    project: Project, settings: Training, train: FrameDataset, machine: Machine
) -> None:
    """Say what the machine means for the run; of several processes, the first one does."""
    if not say_launch(machine):
        return
    preflight(project)
    say_environment(machine)
    piece = -(-settings.batch_size // (machine.devices * machine.accumulate))
    say_handover(machine, lambda: piece * nbytes([train[0, 0]]))


def _digests(lesson: Lesson, seen: Sequence[Frame], val: Sequence[Frame]) -> dict[str, str]:
    """Of ids, pixels and labels."""
    return {
        "frames": lesson.digest or frames_digest(seen),
        "labels": labels_digest(seen),
        "validation_frames": frames_digest(val),
        "validation_labels": labels_digest(val),
    }


def _state_place(project: Project, outputs: Outputs) -> Path:
    """Where the state of a run is kept, without a suffix; beside it lies its lock.

    Raises:
        MtkdError: it, or an output, cannot be written.
    """
    checkpoint = outputs.checkpoint
    place = project.scratch / "training" / checkpoint.parent.name / checkpoint.stem
    for folder in (place.parent, checkpoint.parent, outputs.metrics.parent, outputs.curves):
        require_writable(folder)
    return place


@contextmanager
def _running(
    title: str, place: Path, curves: Path, fabric: Fabric
) -> Iterator[tuple[Live | None, Step]]:
    """The curves and the bar of a run that no other process may train meanwhile."""
    with (
        _alone(place, fabric),
        _curves(curves, fabric) as live,
        progress(f"{title}: batches") as bar,
    ):
        yield live, bar


def _say_start(title: str, network: Network, resume: Resume, processes: int) -> None:
    if processes > 1:
        say(f"{title}: {processes} processes share every batch")
    say(f"{title}: {network.initial_weights}")
    state, unusable = resume.load()
    if state is not None:
        say(f"{title}: goes on after epoch {len(state['history'])}")
    elif unusable:
        say(f"{title}: begins anew, {unusable}")


@contextmanager
def _alone(place: Path, fabric: Fabric) -> Iterator[None]:
    """Refuse to train what another process trains; the processes of one run are one."""
    if not fabric.is_global_zero:
        yield
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with _lock(place):
        yield


def _lock(place: Path) -> ScratchLock:
    """The lock of the store's writers, which also works where there is no flock."""
    until = monotonic() + PATIENCE
    while True:
        try:
            return ScratchLock(place)
        except StoreBusyError as error:
            if monotonic() > until:
                raise MtkdError(f"another process trains this: {error}") from error
        sleep(0.1)


@contextmanager
def _curves(folder: Path, fabric: Fabric) -> Iterator[Live | None]:
    """The curves of this run, from its first epoch.

    Of several processes the first one writes them.
    """
    if not fabric.is_global_zero:
        yield None
        return
    with Live(str(emptied(folder)), save_dvc_exp=False, dvcyaml=None, report=None) as live:
        yield live


@contextmanager
def _ended_together(fabric: Fabric) -> Iterator[None]:
    """When the first process fails, the others would wait for it."""
    try:
        yield
    except BaseException:
        for process in getattr(fabric.strategy.launcher, "procs", ()):
            process.kill()
        raise


def _files(frames: Sequence[Frame]) -> list[Path]:
    labels = chain.from_iterable(frame.labels for frame in frames)
    return [frame.image for frame in frames] + [frame.label for frame in labels]


def _log(live: Live, title: str, anatomies: Sequence[str], epoch: Epoch) -> None:
    """One line on the screen, every value to the curves."""
    live.log_metric("learning_rate", epoch.learning_rate)
    parts = []
    for name, per_decoder in epoch.terms.items():
        live.log_metric(f"{name}/sum", sum(per_decoder))
        if name in epoch.gradient_norms:
            live.log_metric(f"gradient_norm/{name}", epoch.gradient_norms[name])
            parts.append(f"{name.replace('_', ' ')} {sum(per_decoder):.3f}")
        if len(anatomies) > 1:
            for anatomy, value in zip(anatomies, per_decoder, strict=True):
                live.log_metric(f"{name}/{anatomy}", value)
    if epoch.mean_dice is not None:
        live.log_metric("val_dice/mean", 100 * epoch.mean_dice)
        parts.append(f"validation Dice {100 * epoch.mean_dice:.1f}")
    if epoch.mean_known_dice is not None:
        live.log_metric("val_known_dice/mean", 100 * epoch.mean_known_dice)
        parts.append(f"known {100 * epoch.mean_known_dice:.1f}")
    live.next_step()
    say(f"{title}: epoch {epoch.epoch + 1}  " + "  ".join(parts))


def _write_metrics(path: Path, best: Epoch, epochs: int) -> None:
    """Write the Dice of the best epoch, in percent."""
    write_json(
        path,
        {
            "val_dice": _percentages(best.mean_dice, best.dice),
            "val_known_dice": _percentages(best.mean_known_dice, best.known_dice),
            "best_epoch": best.epoch,
            "epochs": epochs,
        },
    )


def _percentages(
    mean: float | None, of_anatomies: Mapping[str, float | None]
) -> dict[str, float | None]:
    return {"mean": _percent(mean)} | {name: _percent(dice) for name, dice in of_anatomies.items()}


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else round(100 * fraction, 1)
