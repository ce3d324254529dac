"""The training loop of both stages: a teacher is a network with one decoder, a student one with N.

An ``Objective`` says what the loss of a batch is; :func:`fit` does the rest: Adam with an
exponential schedule, validation after each epoch, and the weights of the epoch with the best mean
Dice on the validation surgeries.

A batch may be computed in pieces, by several processes (DDP) and one after another (accumulation).
Every term is a mean over frames, so the pieces' gradients, each weighted with its share of the
frames, add up to those of the whole batch.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pipeline.counts import Counts
from pipeline.datasets import EpochBatches, FrameDataset, Sample, Share, clean_batches
from pipeline.depthwise import exact_depthwise
from pipeline.evaluation.dice import anatomy_masks, count, mean, mean_dice
from pipeline.losses.partial_labels import IGNORE, partial_label_cross_entropy, partial_targets
from pipeline.machine import Machine, float32_products, make_loader, weights_format
from pipeline.models.network import Network, normalise, resize
from pipeline.resume import Resume
from pipeline.settings import Training
from pipeline.stopwatch import Stopwatch
from pipeline.training_errors import FiniteTerms, mendable

Terms = dict[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """What is minimised: the weighted sum over terms and decoders.

    Attributes:
        terms: from logits (B, N, 2, h, w) and their batch to named terms, each (N,): one value per
            decoder.
        weights: the weight of each term of the loss, which is a mean over frames; terms without one
            are counts, and only logged.
        frames: from a batch to the number of frames, () int64, that a weighted term is a mean over;
            terms that are not there are means over all frames.
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
        gradient_norms: of each weighted term, its gradient's norm at the logits of the epoch's
            first batch.
        dice: validation Dice in 0..1 per anatomy, None without a frame; empty without validation
            frames.
    """

    epoch: int
    learning_rate: float
    terms: dict[str, list[float]]
    gradient_norms: dict[str, float]
    dice: dict[str, float | None] = field(default_factory=dict)

    @property
    def mean_dice(self) -> float | None:
        """The mean over the anatomies that have validation frames."""
        return mean([d for d in self.dice.values() if d is not None])


def supervised(decoders: int, class_weights: Tensor | None) -> Objective:
    """The objective of teachers and of the student without distillation: L_CE (Equation 1, partial labels)."""
    weights_on = None if class_weights is None else placed(class_weights)

    def terms(logits: Tensor, batch: Sample) -> Terms:
        target = partial_targets(batch["label"].long(), batch["anatomy"], decoders)
        full = resize(logits, (target.shape[-2], target.shape[-1]))
        weights = weights_on(logits.device) if weights_on else None
        return {
            "cross_entropy": partial_label_cross_entropy(full, target, weights),
            "valid_pixels": (target != IGNORE).sum(dim=(0, 2, 3)).float(),
        }

    return Objective(terms, {"cross_entropy": 1.0}, lambda batch: {})


def placed(constant: Tensor) -> Callable[[torch.device], Tensor]:
    """A tensor on each device that asks for it, copied once: a GPU would end all its work before each copy."""
    return cache(lambda device: constant.to(device))


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
        machine: loader workers, the pieces in which each device computes its share of a batch, and
            whether the network is compiled.
        done: called after each epoch, on every process; of a resumed run, for the epochs before as
            well.
        step: called after each batch with (epoch, batches done, batches in all).
        check: called after each epoch, before anything of it is kept, on one process; raises if it
            must not be.
        resume: where the run stands; None to begin anew and keep nothing.
        stopwatch: counts the time of ``data`` (nothing to compute, as no batch is there) and of
            ``network``.

    Returns:
        One entry per epoch.

    Raises:
        MtkdError: a loss term is not finite; too little memory for a batch; a process ended; a
            frame or a stored answer can't be read.
    """
    synchronised = synchronises(fabric.device.type, fabric.world_size)
    if synchronised:
        synchronise(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate, fused=True)
    network.to(memory_format=weights_format(fabric.device, settings.precision))
    module = cast(nn.Module, torch.compile(network, dynamic=False)) if machine.compile else network
    model, optimizer = fabric.setup(module, optimizer)
    share = Share(
        fabric.global_rank, fabric.world_size, machine.accumulate, least=1 if synchronised else 2
    )
    sampler = EpochBatches(len(train), settings.batch_size, settings.seed, share)
    clean = clean_batches(len(val), settings.batch_size, share)
    pin = fabric.device.type == "cuda"
    loaders = [
        make_loader(data, order, machine.workers, pin=pin)
        for data, order in ((train, sampler), (val, clean))
    ]
    train_loader, val_loader = fabric.setup_dataloaders(*loaders, use_distributed_sampler=False)
    loop = _Loop(
        fabric,
        model,
        network,
        optimizer,
        objective,
        stopwatch or Stopwatch(fabric.device),
        machine.compile,
    )

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
        with mendable(), float32_products(fabric.device, settings.precision):
            finite = FiniteTerms(
                objective.weights, train.anatomies, number, speaks=fabric.is_global_zero
            )
            batches = _batches(loop.stopwatch.waiting("data", train_loader), sampler)
            terms, norms = _train_epoch(loop, batches, sampler.steps, finite, partial(step, number))
            counts = _validate(fabric, network, val_loader, len(val))
        dice = mean_dice(counts, [frame.anatomy for frame in val.frames])
        history.append(Epoch(number, rate, terms, norms, dice))
        if history[-1] is best_epoch(history):
            best = {k: v.detach().clone() for k, v in network.state_dict().items()}
        if fabric.is_global_zero:
            check()
        if (
            resume is not None
            and fabric.is_global_zero
            and (resume.is_due or number + 1 == settings.epochs)
        ):
            resume.save(_state(history, best, fabric, network, optimizer))
        done(history[-1])
    network.load_state_dict(best)
    return history


def synchronises(kind: str, processes: int) -> bool:
    """Whether the processes of a run compute batch norm's statistics together (SyncBatchNorm knows CUDA only)."""
    return kind == "cuda" and processes > 1


def synchronise(network: Network) -> None:
    """Replace batch norm by one that computes its statistics over all processes; names and parameters stay."""
    from timm.layers.norm_act import (
        convert_sync_batchnorm,
    )  # torch's own drops the activations of BatchNormAct2d

    convert_sync_batchnorm(network)


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


@dataclass(frozen=True)
class _Batch:
    """What one process computes of a batch.

    Attributes:
        pieces: its frames, one piece after another.
        sizes: of each piece, how many frames are its own and not there to fill it up.
        frames: of the batch, over all processes.
        full: whether these are as many as ``batch_size``; the last batch may have fewer.
    """

    pieces: Sequence[Sample]
    sizes: Sequence[int]
    frames: int
    full: bool


def _batches(pieces: Iterator[Sample], sampler: EpochBatches) -> Iterator[_Batch]:
    grouped = zip(*[pieces] * sampler.share.pieces, strict=True)
    for own, sizes, frames in zip(grouped, sampler.sizes(), sampler.whole(), strict=True):
        yield _Batch(own, sizes, frames, frames == sampler.batch_size)


@dataclass(frozen=True)
class _Loop:
    """What stays the same from step to step.

    Attributes:
        fabric: devices and precision.
        model: the network as Fabric has set it up, maybe compiled; for gradients.
        network: the network itself.
        optimizer: as Fabric has set it up.
        objective: the loss terms of a batch.
        stopwatch: counts the time of ``network``.
        compiled: whether the model is compiled.
    """

    fabric: Fabric
    model: Any
    network: Network
    optimizer: Any
    objective: Objective
    stopwatch: Stopwatch
    compiled: bool = False

    def uncompiled(self, *, when: bool) -> AbstractContextManager[object]:
        """In here the model is computed without what was compiled for it, in some cases."""
        return torch.compiler.set_stance("force_eager") if self.compiled and when else nullcontext()


def _train_epoch(
    loop: _Loop,
    batches: Iterator[_Batch],
    steps: int,
    finite: FiniteTerms,
    step: Callable[[int, int], None],
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """One pass over the training frames; the mean of each term over batches, and the first batch's gradient norms.

    Nothing here waits for the device to end a step: the host gives it the next one meanwhile.
    """
    loop.model.train()
    sums: dict[str, Tensor] = {}
    norms: dict[str, Tensor] = {}
    for number, batch in enumerate(batches, start=1):
        with loop.stopwatch.step("network"):
            loop.optimizer.zero_grad(set_to_none=True)
            # Transformers installs hooks in its first call, and another size of batch would be
            # compiled anew.
            with loop.uncompiled(when=number == 1 or not batch.full):
                terms, squares = _backward(loop, batch, measured=number == 1)
            finite.add(number, terms)
            loop.optimizer.step()
        norms = norms or {name: square.sqrt() for name, square in squares.items()}
        sums = {name: sums.get(name, 0) + term for name, term in terms.items()}
        step(number, steps)
    finite.judge()
    return (
        {name: (total / steps).tolist() for name, total in sums.items()},
        {name: float(norm) for name, norm in norms.items()},
    )


def _backward(loop: _Loop, batch: _Batch, *, measured: bool) -> tuple[Terms, Terms]:
    """The gradients of one batch; its terms, and the squared norm of each weighted term's gradient at the logits."""
    fabric, weights = loop.fabric, loop.objective.weights
    own = [_first(piece, size) for piece, size in zip(batch.pieces, batch.sizes, strict=True)]
    shares = _shares(loop, batch, own)
    sums: Terms = {}
    squares = {name: torch.zeros((), device=fabric.device) for name in weights if measured}
    for number, (piece, kept, share) in enumerate(
        zip(batch.pieces, own, shares, strict=True), start=1
    ):
        # Processes exchange gradients once per batch, with its last piece.
        with fabric.no_backward_sync(loop.model, enabled=number < len(own)):
            with exact_depthwise(fabric.device):
                logits = loop.model(normalise(piece["frame"], loop.network))[: len(kept["anatomy"])]
            found = loop.objective.terms(logits, kept)
            terms = {
                name: term * share.get(name, bool(batch.sizes[number - 1]))
                for name, term in found.items()
            }
            weighted = {name: weight * terms[name].sum() for name, weight in weights.items()}
            squares = {
                name: square + _squared(weighted[name], logits) for name, square in squares.items()
            }
            # DDP takes the mean over processes; the sum is wanted.
            fabric.backward(torch.stack(list(weighted.values())).sum() * fabric.world_size)
        sums = {name: sums.get(name, 0) + term.detach() for name, term in terms.items()}
    summed = _over_all(fabric, [*sums.values(), *squares.values()])
    return dict(zip(sums, summed[: len(sums)], strict=True)), dict(
        zip(squares, summed[len(sums) :], strict=True)
    )


def _shares(loop: _Loop, batch: _Batch, own: Sequence[Sample]) -> list[dict[str, Tensor | float]]:
    """By piece and weighted term, the part of the frames that the term of the whole batch is a mean over."""
    counted = [
        {name: number * bool(size) for name, number in loop.objective.frames(piece).items()}
        for piece, size in zip(own, batch.sizes, strict=True)
    ]
    # Only these numbers have to be asked for.
    sums = [torch.stack([numbers[name] for numbers in counted]).sum() for name in counted[0]]
    whole = dict(zip(counted[0], _over_all(loop.fabric, sums), strict=True))
    return [
        dict.fromkeys(loop.objective.weights, size / batch.frames)
        | {name: number / whole[name].clamp(min=1) for name, number in numbers.items()}
        for numbers, size in zip(counted, batch.sizes, strict=True)
    ]


def _over_all(fabric: Fabric, values: Sequence[Tensor]) -> list[Tensor]:
    """The sum over processes of each value, in one message; Fabric's own would wait for all processes before each."""
    if fabric.world_size == 1 or not values:
        return list(values)
    message = torch.cat([value.flatten() for value in values])
    torch.distributed.all_reduce(message)
    parts = message.split([value.numel() for value in values])
    return [part.view(value.shape) for part, value in zip(parts, values, strict=True)]


def _first(piece: Sample, size: int) -> Sample:
    """The frames of a piece that are its own; one, whose terms will not count, if it has none."""
    return cast(Sample, {key: cast(Tensor, value)[: max(size, 1)] for key, value in piece.items()})


def _squared(term: Tensor, logits: Tensor) -> Tensor:
    """How hard a term pulls at the logits: the squared norm of its gradient."""
    return torch.autograd.grad(term, logits, retain_graph=True)[0].float().norm().square()


@torch.no_grad()
def _validate(fabric: Fabric, network: Network, loader: Any, frames: int) -> list[Counts]:
    """Counts of clean frames at their full size, as in evaluation; every process sees its own frames, and all counts.

    The network is asked without DDP around it, which would wait for processes that have no frames
    left.
    """
    network.eval()
    table = torch.zeros((frames, 4), dtype=torch.int64, device=fabric.device)
    for batch in loader:
        with fabric.autocast():
            logits = network(normalise(batch["frame"], network))
        size = (batch["label"].shape[-2], batch["label"].shape[-1])
        masks = anatomy_masks(logits, batch["anatomy"], size)
        table[batch["position"]] = count(masks, batch["label"])
    (summed,) = _over_all(fabric, [table])
    return [Counts(*row) for row in summed.tolist()]
