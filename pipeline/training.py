"""The training loop of both stages: a teacher is a network with one decoder, a student one with N.

An ``Objective`` says what the loss of a batch is; :func:`fit` does the rest: Adam with an exponential schedule,
validation after each epoch, and the weights of the epoch with the best mean Dice on the validation surgeries.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from pipeline import metrics
from pipeline.counts import Counts
from pipeline.datasets import EpochBatches, FrameDataset, Sample
from pipeline.errors import MtkdError
from pipeline.losses.partial_labels import IGNORE, partial_label_cross_entropy, partial_targets
from pipeline.machine import Machine, make_fabric, make_loader
from pipeline.models.network import Network, normalise, resize
from pipeline.prepared import Frame
from pipeline.settings import Training

Terms = dict[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """What is minimised: the weighted sum over terms and decoders.

    Attributes:
        terms: from logits (B, N, 2, h, w) and their batch to named terms, each (N,): one value per decoder.
        weights: the weight of each term of the loss; terms without one are only logged.
    """

    terms: Callable[[Tensor, Sample], Terms]
    weights: Mapping[str, float]


@dataclass
class Epoch:
    """What one epoch gave.

    Attributes:
        epoch: 0, 1, ...
        learning_rate: of this epoch.
        terms: mean over batches of each term per decoder, unweighted, (N,) floats.
        gradient_norms: of each weighted term, its gradient's norm at the logits of the epoch's first batch.
        dice: validation Dice in 0..1 per anatomy, None without a frame; empty without validation frames.
    """

    epoch: int
    learning_rate: float
    terms: dict[str, list[float]]
    gradient_norms: dict[str, float]
    dice: dict[str, float | None] = field(default_factory=dict)

    @property
    def mean_dice(self) -> float | None:
        """The mean over the anatomies that have validation frames."""
        return metrics.mean([d for d in self.dice.values() if d is not None])


def supervised(decoders: int, class_weights: Tensor | None) -> Objective:
    """The objective of teachers and of the student without distillation: L_CE (Equation 1, partial labels)."""

    def terms(logits: Tensor, batch: Sample) -> Terms:
        target = partial_targets(batch["label"].long(), batch["anatomy"], decoders)
        full = resize(logits, (target.shape[-2], target.shape[-1]))
        return {
            "cross_entropy": partial_label_cross_entropy(full, target, class_weights),
            "valid_pixels": (target != IGNORE).sum(dim=(0, 2, 3)).float(),
        }

    return Objective(terms, {"cross_entropy": 1.0})


def learning_rate(settings: Training, epoch: int) -> float:
    """lr(e) = lr * (final / lr)^(e / E), stepped once per epoch e = 0 .. E - 1."""
    ratio = settings.final_learning_rate / settings.learning_rate
    return float(settings.learning_rate * ratio ** (epoch / settings.epochs))


def fit(
    network: Network,
    train: FrameDataset,
    val: FrameDataset,
    objective: Objective,
    settings: Training,
    machine: Machine,
    *,
    done: Callable[[Epoch], None],
    step: Callable[[int, int, int], None],
) -> list[Epoch]:
    """Train a network and leave in it the weights of its best epoch (of the last, without validation frames).

    Args:
        network: maps normalised frames to logits (B, N, 2, h, w).
        train: training frames, augmented.
        val: validation frames, clean; may be empty.
        objective: the loss terms of a batch.
        settings: epochs, batch size, learning rates, precision, seed.
        machine: device and loader workers.
        done: called after each epoch.
        step: called after each batch with (epoch, batches done, batches in all).

    Returns:
        One entry per epoch.

    Raises:
        MtkdError: a loss term is not finite.
    """
    fabric = make_fabric(machine, settings.precision)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate, fused=True)
    model, optimizer = fabric.setup(network.to(memory_format=torch.channels_last), optimizer)
    sampler = EpochBatches(len(train), settings.batch_size, shuffle=settings.seed)
    loaders = (
        make_loader(train, sampler, machine.workers),
        make_loader(val, EpochBatches(len(val), settings.batch_size), machine.workers),
    )
    train_loader, val_loader = fabric.setup_dataloaders(*loaders, use_distributed_sampler=False)

    history: list[Epoch] = []
    best: dict[str, Tensor] = {}
    for epoch in range(settings.epochs):
        rate = learning_rate(settings, epoch)
        for group in optimizer.param_groups:
            group["lr"] = rate
        # Dropout, too, depends on seed and epoch alone.
        torch.manual_seed(settings.seed * 100_003 + epoch)
        sampler.epoch = epoch
        terms, norms = _train_epoch(fabric, model, network, train_loader, optimizer, objective, partial(step, epoch))
        history.append(Epoch(epoch, rate, terms, norms, _validate(model, network, val_loader, val.frames)))
        if history[-1] is best_epoch(history):
            best = {k: v.detach().clone() for k, v in network.state_dict().items()}
        done(history[-1])
    network.load_state_dict(best)
    return history


def best_epoch(history: list[Epoch]) -> Epoch:
    """The first epoch with the highest mean validation Dice; the last one if there is nothing to validate on."""
    if all(e.mean_dice is None for e in history):
        return history[-1]
    return max(history, key=lambda e: -math.inf if e.mean_dice is None else e.mean_dice)


def _train_epoch(
    fabric: Fabric,
    model: Any,
    network: Network,
    loader: Any,
    optimizer: Any,
    objective: Objective,
    step: Callable[[int, int], None],
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """One pass over the training frames; the mean of each term over batches, and the first batch's gradient norms."""
    model.train()
    sums: dict[str, Tensor] = {}
    norms: dict[str, float] = {}
    for number, batch in enumerate(loader, start=1):
        logits = model(normalise(batch["frame"], network))
        terms = objective.terms(logits, batch)
        weighted = {name: weight * terms[name].sum() for name, weight in objective.weights.items()}
        loss = torch.stack(list(weighted.values())).sum()
        _require_finite(terms, loss)
        norms = norms or _gradient_norms(weighted, logits)
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        optimizer.step()
        sums = {name: sums.get(name, 0) + term.detach() for name, term in terms.items()}
        step(number, len(loader))
    return {name: (total / len(loader)).tolist() for name, total in sums.items()}, norms


def _gradient_norms(weighted: Terms, logits: Tensor) -> dict[str, float]:
    """How hard each term pulls at the logits."""
    gradients = {name: torch.autograd.grad(term, logits, retain_graph=True)[0] for name, term in weighted.items()}
    return {name: float(gradient.float().norm()) for name, gradient in gradients.items()}


def _require_finite(terms: Terms, loss: Tensor) -> None:
    if not torch.isfinite(loss):
        bad = ", ".join(name for name, term in terms.items() if not torch.isfinite(term).all())
        raise MtkdError(f"the {bad} is not finite: lower learning_rate, or use precision 32-true")


@torch.no_grad()
def _validate(model: Any, network: Network, loader: Any, frames: Sequence[Frame]) -> dict[str, float | None]:
    """Dice in 0..1 per anatomy on clean frames at their full size, as in evaluation."""
    model.eval()
    counts: list[Counts] = []
    for batch in loader:
        logits = model(normalise(batch["frame"], network))
        size = (batch["label"].shape[-2], batch["label"].shape[-1])
        counts += metrics.count(metrics.own_masks(logits, batch["anatomy"], size), batch["label"])
    return metrics.mean_dice(counts, [frame.anatomy for frame in frames])
