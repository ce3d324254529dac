"""What train_teacher and train_student share: data, progress, curves, checkpoint and metrics of one training run."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from dvclive import Live

from pipeline.checkpoint import save_checkpoint
from pipeline.datasets import FrameDataset, SoftTargets
from pipeline.errors import MtkdError
from pipeline.files import write_json
from pipeline.machine import Machine
from pipeline.models import create_model
from pipeline.models.network import Network
from pipeline.prepared import Frame, load_frame, load_label
from pipeline.settings import Training
from pipeline.training import Epoch, Objective, best_epoch, fit
from stages.console import progress, say
from stages.layout import frames_of


def class_weights(frames: Sequence[Frame], anatomies: Sequence[str]) -> torch.Tensor:
    """Kolbinger's weights per anatomy, n / (2 count) for background and anatomy: (N, 2)."""
    weights = []
    for anatomy in anatomies:
        labels = [load_label(frame.label) for frame in frames if frame.anatomy == anatomy]
        pixels, positive = sum(label.size for label in labels), sum(int(label.sum()) for label in labels)
        if not 0 < positive < pixels:
            raise MtkdError(f"class_weights: the training masks of {anatomy} hold only one class; set it to false")
        weights.append([pixels / (2 * (pixels - positive)), pixels / (2 * positive)])
    return torch.tensor(weights)


def seeded_network(settings: Training, anatomies: Sequence[str]) -> Network:
    """A network whose random weights depend on the seed alone, with a decoder for each anatomy."""
    torch.manual_seed(settings.seed)
    network = create_model(settings.arch, len(anatomies), settings.pretrained)
    network.anatomies = tuple(anatomies)
    return network


def train_run(
    title: str,
    frames: Sequence[Frame],
    anatomies: Sequence[str],
    settings: Training,
    machine: Machine,
    objective: Objective,
    *,
    soft_targets: SoftTargets | None = None,
    checkpoint: Path,
    metrics: Path,
    curves: Path,
) -> None:
    """Train one network on prepared frames; write its checkpoint, metrics and curves.

    Args:
        title: what the lines on the screen call it.
        frames: to train on.
        anatomies: one decoder each, in this order.
        settings: of the teacher or student.
        machine: device and loader workers.
        objective: what is minimised.
        soft_targets: the teachers' stored logits, or None.
        checkpoint: the weights of the best epoch.
        metrics: Dice per anatomy on the validation surgeries at that epoch, in percent.
        curves: folder for the values of every epoch.
    """
    train = FrameDataset(frames, anatomies, settings.seed, soft_targets)
    val = FrameDataset(frames_of("val", anatomies), anatomies)
    network = seeded_network(settings, anatomies)
    height, width = load_frame(train.frames[0].image).shape[:2]
    say(f"{title}: {settings.arch}, {len(train)} training and {len(val)} validation frames, {settings.epochs} epochs")
    say(f"{title}: {network.start}")
    shutil.rmtree(curves, ignore_errors=True)
    with (
        Live(str(curves), save_dvc_exp=False, dvcyaml=None, report=None) as live,
        progress(f"{title}: batches") as bar,
    ):
        history = fit(
            network,
            train,
            val,
            objective,
            settings,
            machine,
            done=lambda epoch: _log(live, title, anatomies, epoch),
            step=lambda epoch, done, total: bar(epoch * total + done, settings.epochs * total),
        )
    best = best_epoch(history)
    save_checkpoint(checkpoint, network, (height, width))
    percent = {name: _percent(value) for name, value in {"mean": best.mean_dice, **best.dice}.items()}
    write_json(metrics, {"val_dice": percent, "best_epoch": best.epoch, "epochs": len(history)})
    say(f"{title}: best epoch {best.epoch + 1}, validation Dice {percent['mean']} -> {checkpoint}")


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
    live.next_step()
    say(f"{title}: epoch {epoch.epoch + 1}  " + "  ".join(parts))


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else round(100 * fraction, 1)
