"""The training loop of both stages: a teacher is a network with one decoder, a student one with N.

An ``Objective`` says what the loss of a batch is; :func:`fit` does the rest: Adam with an exponential schedule,
validation after each epoch, and the weights of the epoch with the best mean Dice on the validation surgeries.

A batch may be computed in pieces, by several processes (DDP) and one after another (accumulation). Every term is a mean
over frames, so the pieces' gradients, each weighted with its share of the frames, add up to those of the whole batch.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor

from pipeline import metrics
from pipeline.counts import Counts
from pipeline.datasets import EpochBatches, FrameDataset, Sample, Share, clean_batches
from pipeline.depthwise import exact_depthwise
from pipeline.errors import MtkdError
from pipeline.guards import mendable
from pipeline.losses.partial_labels import IGNORE, partial_label_cross_entropy, partial_targets
from pipeline.machine import Machine, make_loader
from pipeline.models.network import Network, normalise, resize
from pipeline.resume import Resume
from pipeline.settings import Training
from pipeline.stopwatch import Stopwatch

Terms = dict[str, Tensor]
T = TypeVar("T")


@dataclass(frozen=True)
class Objective:
    """What is minimised: the weighted sum over terms and decoders.

    Attributes:
        terms: from logits (B, N, 2, h, w) and their batch to named terms, each (N,): one value per decoder.
        weights: the weight of each term of the loss, which is a mean over frames; terms without one are counts, and
            only logged.
        frames: from a batch to the number of frames, () int64, that each weighted term is a mean over.
    """

    terms: Callable[[Tensor, Sample], Terms]
    weights: Mapping[str, float]
    frames: Callable[[Sample], Terms]


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

    return Objective(terms, {"cross_entropy": 1.0}, lambda batch: {"cross_entropy": _count(batch["anatomy"])})


def _count(of_frames: Tensor) -> Tensor:
    return torch.full((), len(of_frames), device=of_frames.device)


def learning_rate(settings: Training, epoch: int) -> float:
    """lr(e) = lr * (final / lr)^(e / E), stepped once per epoch e = 0 .. E - 1."""
    ratio = settings.final_learning_rate / settings.learning_rate
    return float(settings.learning_rate * ratio ** (epoch / settings.epochs))


def fit(
    fabric: Fabric,
    network: Network,
    train: FrameDataset,
    val: FrameDataset,
    objective: Objective,
    settings: Training,
    machine: Machine,
    *,
    done: Callable[[Epoch], None],
    step: Callable[[int, int, int], None],
    check: Callable[[], None] = lambda: None,
    resume: Resume | None = None,
    stopwatch: Stopwatch | None = None,
) -> list[Epoch]:
    """Train a network and leave in it the weights of its best epoch (of the last, without validation frames).

    Args:
        fabric: devices and precision, launched.
        network: maps normalised frames to logits (B, N, 2, h, w).
        train: training frames, augmented.
        val: validation frames, clean; may be empty.
        objective: the loss terms of a batch.
        settings: epochs, batch size, learning rates, seed.
        machine: loader workers, and the pieces in which each device computes its share of a batch.
        done: called after each epoch, on every process; of a resumed run, for the epochs before as well.
        step: called after each batch with (epoch, batches done, batches in all).
        check: called after each epoch, before anything of it is kept, on one process; raises if it must not be.
        resume: where the run stands; None to begin anew and keep nothing.
        stopwatch: counts the time of ``data`` (waiting for it) and of ``network``.

    Returns:
        One entry per epoch.

    Raises:
        MtkdError: a loss term is not finite; too little memory for a batch; a process ended; a frame or a stored
            answer can't be read.
    """
    synchronised = synchronises(fabric.device.type, fabric.world_size)
    if synchronised:
        from timm.layers.norm_act import convert_sync_batchnorm  # torch's drops the activation of BatchNormAct2d

        convert_sync_batchnorm(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate, fused=True)
    model, optimizer = fabric.setup(network.to(memory_format=torch.channels_last), optimizer)
    share = Share(fabric.global_rank, fabric.world_size, machine.accumulate, least=1 if synchronised else 2)
    sampler = EpochBatches(len(train), settings.batch_size, settings.seed, share)
    clean = clean_batches(len(val), settings.batch_size, share)
    pin = fabric.device.type == "cuda"
    loaders = [make_loader(data, order, machine.workers, pin=pin) for data, order in ((train, sampler), (val, clean))]
    train_loader, val_loader = fabric.setup_dataloaders(*loaders, use_distributed_sampler=False)
    stopwatch = stopwatch or Stopwatch()

    history, best = _resumed(resume, fabric, network, optimizer)
    for epoch in history:
        done(epoch)
    for number in range(len(history), settings.epochs):
        rate = learning_rate(settings, number)
        for group in optimizer.param_groups:
            group["lr"] = rate
        # Dropout, too, depends on seed, epoch and process alone.
        torch.manual_seed(settings.seed * 100_003 + number + fabric.global_rank * 1_000_003)
        sampler.epoch = number
        with mendable():
            batches = zip(_grouped(stopwatch.waiting("data", train_loader), share.pieces), sampler.sizes(), strict=True)
            require_finite = partial(_require_finite, fabric, objective, train.anatomies, number)
            told = partial(step, number)
            terms, norms = _train_epoch(
                fabric, model, network, batches, sampler.steps, optimizer, objective, require_finite, told, stopwatch
            )
            counts = _validate(fabric, network, val_loader, len(val))
        dice = metrics.mean_dice(counts, [frame.anatomy for frame in val.frames])
        history.append(Epoch(number, rate, terms, norms, dice))
        if history[-1] is best_epoch(history):
            best = {k: v.detach().clone() for k, v in network.state_dict().items()}
        if fabric.is_global_zero:
            check()
        if resume is not None and fabric.is_global_zero:
            resume.save(_state(history, best, fabric, network, optimizer))
        done(history[-1])
    network.load_state_dict(best)
    return history


def synchronises(kind: str, processes: int) -> bool:
    """Whether the processes of a run compute batch norm's statistics together (SyncBatchNorm knows CUDA only)."""
    return kind == "cuda" and processes > 1


def _state(
    history: list[Epoch], best: dict[str, Tensor], fabric: Fabric, network: Network, optimizer: Any
) -> dict[str, Any]:
    return {
        "history": [asdict(epoch) for epoch in history],
        "best": best,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "precision": fabric.strategy.precision.state_dict(),
    }


def _resumed(
    resume: Resume | None, fabric: Fabric, network: Network, optimizer: Any
) -> tuple[list[Epoch], dict[str, Tensor]]:
    """The epochs that are done, with everything as it was after the last of them; the best weights so far."""
    state = resume.load()[0] if resume is not None else None
    if state is None:
        return [], {}
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    fabric.strategy.precision.load_state_dict(state["precision"])
    return [Epoch(**epoch) for epoch in state["history"]], state["best"]


def best_epoch(history: list[Epoch]) -> Epoch:
    """The first epoch with the highest mean validation Dice; the last one if there is nothing to validate on."""
    if all(e.mean_dice is None for e in history):
        return history[-1]
    return max(history, key=lambda e: -math.inf if e.mean_dice is None else e.mean_dice)


Batches = Iterator[tuple[Sequence[Sample], Sequence[int]]]  # the pieces of each batch, and their numbers of own frames


def _train_epoch(
    fabric: Fabric,
    model: Any,
    network: Network,
    batches: Batches,
    steps: int,
    optimizer: Any,
    objective: Objective,
    require_finite: Callable[[int, Terms], None],
    step: Callable[[int, int], None],
    stopwatch: Stopwatch,
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """One pass over the training frames; the mean of each term over batches, and the first batch's gradient norms."""
    model.train()
    sums: dict[str, Tensor] = {}
    norms: dict[str, float] = {}
    for number, (pieces, sizes) in enumerate(batches, start=1):
        with stopwatch.step("network"):
            optimizer.zero_grad(set_to_none=True)
            terms, squares = _backward(fabric, model, network, pieces, sizes, objective, measured=number == 1)
            require_finite(number, terms)
            optimizer.step()
        norms = norms or {name: float(square.sqrt()) for name, square in squares.items()}
        sums = {name: sums.get(name, 0) + term for name, term in terms.items()}
        step(number, steps)
    return {name: (total / steps).tolist() for name, total in sums.items()}, norms


def _backward(
    fabric: Fabric,
    model: Any,
    network: Network,
    pieces: Sequence[Sample],
    sizes: Sequence[int],
    objective: Objective,
    *,
    measured: bool,
) -> tuple[Terms, Terms]:
    """The gradients of one batch; its terms, and the squared norm of each weighted term's gradient at the logits."""
    own = [_first(piece, size) for piece, size in zip(pieces, sizes, strict=True)]
    counted = [{k: v * bool(size) for k, v in objective.frames(o).items()} for o, size in zip(own, sizes, strict=True)]
    whole = _over_all(fabric, {name: torch.stack([c[name] for c in counted]).sum() for name in objective.weights})
    sums: Terms = {}
    squares = {name: torch.zeros((), device=fabric.device) for name in objective.weights if measured}
    for number, (piece, kept, size) in enumerate(zip(pieces, own, sizes, strict=True)):
        # Processes exchange gradients once per batch, with its last piece.
        with fabric.no_backward_sync(model, enabled=number + 1 < len(pieces)):
            with exact_depthwise(fabric.device):
                logits = model(normalise(piece["frame"], network))[: len(kept["anatomy"])]
            terms = objective.terms(logits, kept)
            for name, term in terms.items():
                of_whole = counted[number][name] / whole[name].clamp(min=1) if name in whole else bool(size)
                terms[name] = term * of_whole
            weighted = {name: weight * terms[name].sum() for name, weight in objective.weights.items()}
            squares = {name: square + _squared(weighted[name], logits) for name, square in squares.items()}
            # DDP takes the mean over processes; the sum is wanted.
            fabric.backward(torch.stack(list(weighted.values())).sum() * fabric.world_size)
        sums = {name: sums.get(name, 0) + term.detach() for name, term in terms.items()}
    return _over_all(fabric, sums), _over_all(fabric, squares)


def _over_all(fabric: Fabric, sums: Terms) -> Terms:
    """The sum over processes of each value."""
    return cast(Terms, fabric.all_reduce(sums, reduce_op="sum"))


def _grouped(items: Iterator[T], size: int) -> Iterator[tuple[T, ...]]:
    """Consecutive items, ``size`` at a time."""
    return zip(*[items] * size, strict=True)


def _first(piece: Sample, size: int) -> Sample:
    """The frames of a piece that are its own; one, whose terms will not count, if it has none."""
    return cast(Sample, {key: cast(Tensor, value)[: max(size, 1)] for key, value in piece.items()})


def _squared(term: Tensor, logits: Tensor) -> Tensor:
    """How hard a term pulls at the logits: the squared norm of its gradient."""
    return torch.autograd.grad(term, logits, retain_graph=True)[0].float().norm().square()


def _require_finite(
    fabric: Fabric, objective: Objective, anatomies: Sequence[str], epoch: int, step: int, terms: Terms
) -> None:
    lost = {
        name: [a for a, value in zip(anatomies, terms[name].tolist(), strict=True) if not math.isfinite(value)]
        for name in objective.weights
    }
    which = " and the ".join(f"{name} is not finite ({', '.join(whose)})" for name, whose in lost.items() if whose)
    if which and fabric.is_global_zero:
        stores = "" if lost.get("cross_entropy") else "; `mtkd cache verify` says whether the stored logits are whole"
        raise MtkdError(
            f"the {which} in epoch {epoch + 1}, step {step}: lower learning_rate, or use precision 32-true{stores}"
        )
    if which:  # the first process says it for all
        raise SystemExit(1)


@torch.no_grad()
def _validate(fabric: Fabric, network: Network, loader: Any, frames: int) -> list[Counts]:
    """Counts of clean frames at their full size, as in evaluation; every process sees its own frames, and all counts.

    The network is asked without DDP around it, which would wait for processes that have no frames left.
    """
    network.eval()
    table = torch.zeros((frames, 4), dtype=torch.int64, device=fabric.device)
    for batch in loader:
        with fabric.autocast():
            logits = network(normalise(batch["frame"], network))
        size = (batch["label"].shape[-2], batch["label"].shape[-1])
        counts = metrics.count(metrics.own_masks(logits, batch["anatomy"], size), batch["label"])
        table[batch["position"]] = torch.tensor([[c.tp, c.fp, c.fn, c.tn] for c in counts], device=fabric.device)
    return [Counts(*row) for row in _over_all(fabric, {"counts": table})["counts"].tolist()]
