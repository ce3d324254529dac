"""The training loop of both stages: a teacher is a network with one decoder, a student with N.

An ``Objective`` says what the loss of a batch is; :func:`fit` does the rest: Adam with an
exponential schedule, validation after each epoch, and the weights of the epoch with the best mean
Dice on the validation surgeries.

A batch may be computed in pieces, by several processes (DDP) and one after another (accumulation).
Every term is a mean over frames, so the pieces' gradients, each weighted with its share of the
frames, add up to those of the whole batch.
"""

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
from pipeline.evaluation.dice import known_counts, mean, mean_dice, pooled
from pipeline.labels import UNKNOWN, absences, targets
from pipeline.losses.partial_labels import partial_label_cross_entropy
from pipeline.machine import Machine, float32_products, make_loader, weights_format
from pipeline.models.network import Network, normalise, resize
from pipeline.resume import Resume
from pipeline.settings import SelectBy, Training
from pipeline.stopwatch import Stopwatch
from pipeline.training_errors import FiniteTerms, translated_errors

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
        dice: validation Dice in 0..1 per anatomy, of its own frames; None without a frame, empty
            without validation frames.
        known_dice: the same over all pixels of which it is known whether they show the anatomy.
    """

    epoch: int
    learning_rate: float
    terms: dict[str, list[float]]
    gradient_norms: dict[str, float]
    dice: dict[str, float | None] = field(default_factory=dict)
    known_dice: dict[str, float | None] = field(default_factory=dict)

    @property
    def mean_dice(self) -> float | None:
        """The mean over the anatomies that have validation frames."""
        return mean([d for d in self.dice.values() if d is not None])

    @property
    def mean_known_dice(self) -> float | None:
        """The same of ``known_dice``."""
        return mean([d for d in self.known_dice.values() if d is not None])

    def selected_by(self, measure: SelectBy) -> float | None:
        """What the best epoch is chosen by."""
        return self.mean_dice if measure == "own" else self.mean_known_dice


def supervised(class_weights: Tensor | None = None, absence_weight: float = 0.0) -> Objective:
    """The objective of teachers and of the student without distillation.

    L_CE (Equation 1, partial labels).

    Args:
        class_weights: (N, 2) weights of background and anatomy, or None.
        absence_weight: of a pixel that is background only because the anatomy is known to be
            absent from the frame; 0 is the paper's objective.
    """
    weights_on = None if class_weights is None else placed(class_weights)

    def terms(logits: Tensor, batch: Sample) -> Terms:
        organ = batch["organ"]
        pixel_weights = None
        if absence_weight:
            absent = absences(organ, batch["background"], batch["labelled"])
            pixel_weights = torch.where(absent, absence_weight, 1.0)
        target = targets(organ, batch["background" if absence_weight else "labelled"])
        full = resize(logits, (target.shape[-2], target.shape[-1]))
        weights = weights_on(logits.device) if weights_on else None
        return {
            "cross_entropy": partial_label_cross_entropy(full, target, weights, pixel_weights),
            "valid_pixels": (target != UNKNOWN).sum(dim=(0, 2, 3)).float(),
        }

    return Objective(terms, {"cross_entropy": 1.0}, lambda batch: {})


def placed(constant: Tensor) -> Callable[[torch.device], Tensor]:
    """A tensor on each device that needs it, copied once.

    A GPU would end all its work before each copy.
    """
    return cache(lambda device: constant.to(device))


def learning_rate(settings: Training, epoch: int) -> float:
    """lr(e) = lr * (final / lr)^(e / E), stepped once per epoch e = 0 .. E - 1."""
    ratio = settings.final_learning_rate / settings.learning_rate
    return float(settings.learning_rate * ratio ** (epoch / settings.epochs))


@dataclass(frozen=True)
class TrainingTask:
    """What a network learns from, and what is minimised.

    Attributes:
        train: training frames, augmented.
        val: validation frames, clean; may be empty.
        objective: the loss terms of a batch.
        others: how many training frames, the last ones, are not in every epoch.
        drawn: how many of these an epoch has.
    """

    train: FrameDataset
    val: FrameDataset
    objective: Objective
    others: int = 0
    drawn: int = 0


@dataclass(frozen=True)
class Callbacks:
    """What is called while a network is trained.

    Attributes:
        done: after each epoch, on every process; of a resumed run, for the epochs before as well.
        step: after each batch with (epoch, batches done, batches in all).
        check: after each epoch, before anything of it is kept, on one process; raises if it must
            not be.
    """

    done: Callable[[Epoch], None]
    step: Callable[[int, int, int], None] = lambda epoch, done, total: None
    check: Callable[[], None] = lambda: None


def fit(
    fabric: Fabric,
    network: Network,
    task: TrainingTask,
    settings: Training,
    machine: Machine,
    callbacks: Callbacks,
    *,
    resume: Resume | None = None,
    stopwatch: Stopwatch | None = None,
) -> list[Epoch]:
    """Train a network and leave in it the weights of its best epoch.

    Without validation frames these are the weights of the last one.

    Args:
        fabric: devices and precision, launched.
        network: maps normalised frames to logits (B, N, 2, h, w).
        task: frames and objective.
        settings: epochs, batch size, learning rates, seed.
        machine: loader workers, the pieces in which each device computes its share of a batch, and
            whether the network is compiled.
        callbacks: called after steps and epochs.
        resume: where the run stands; None to begin anew and keep nothing.
        stopwatch: counts the time of ``data`` (nothing to compute, as no batch is there) and of
            ``network``.

    Returns:
        One entry per epoch.

    Raises:
        MtkdError: a loss term is not finite; too little memory for a batch; a process ended; a
            frame or a stored logit can't be read.
    """
    trainer = _set_up(
        fabric, network, task.objective, settings, machine, stopwatch or Stopwatch(fabric.device)
    )
    loaders = _loaders(fabric, task, settings, machine)
    history, best = trainer.resumed(resume)
    for epoch in history:
        callbacks.done(epoch)
    for number in range(len(history), settings.epochs):
        history.append(trainer.epoch(number, task, loaders, partial(callbacks.step, number)))
        if history[-1] is best_epoch(history, settings.select_by):
            best = {k: v.detach().clone() for k, v in network.state_dict().items()}
        if fabric.is_global_zero:
            callbacks.check()
            if resume is not None and (resume.is_due or number + 1 == settings.epochs):
                resume.save(trainer.state(history, best))
        callbacks.done(history[-1])
    network.load_state_dict(best)
    return history


def _set_up(
    fabric: Fabric,
    network: Network,
    objective: Objective,
    settings: Training,
    machine: Machine,
    stopwatch: Stopwatch,
) -> "Trainer":
    """Network and optimizer on the devices of a run."""
    if synchronises(fabric.device.type, fabric.world_size):
        synchronise(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate, fused=True)
    network.to(memory_format=weights_format(fabric.device, settings.precision))
    module = cast(nn.Module, torch.compile(network, dynamic=False)) if machine.compile else network
    model, optimizer = fabric.setup(module, optimizer)
    return Trainer(
        fabric, model, network, optimizer, objective, settings, stopwatch, machine.compile
    )


def synchronises(kind: str, processes: int) -> bool:
    """Whether the processes of a run compute batch norm's statistics together.

    SyncBatchNorm knows CUDA only.
    """
    return kind == "cuda" and processes > 1


def synchronise(network: Network) -> None:
    """Replace batch norm by one that computes its statistics over all processes.

    Names and parameters stay.
    """
    # torch's own drops the activations of BatchNormAct2d.
    from timm.layers.norm_act import convert_sync_batchnorm

    convert_sync_batchnorm(network)


@dataclass(frozen=True)
class _Loaders:
    """Where batches come from.

    Attributes:
        train: pieces of the batches that ``sampler`` draws.
        val: clean batches.
        sampler: the order of the training frames.
    """

    train: Any
    val: Any
    sampler: EpochBatches


def _loaders(fabric: Fabric, task: TrainingTask, settings: Training, machine: Machine) -> _Loaders:
    least = 1 if synchronises(fabric.device.type, fabric.world_size) else 2
    share = Share(fabric.global_rank, fabric.world_size, machine.accumulate, least=least)
    sampler = EpochBatches(
        len(task.train) - task.others,
        settings.batch_size,
        settings.seed,
        share,
        others=task.others,
        drawn=task.drawn,
    )
    clean = clean_batches(len(task.val), settings.batch_size, share)
    pin = fabric.device.type == "cuda"
    train, val = fabric.setup_dataloaders(
        make_loader(task.train, sampler, machine.workers, pin=pin),
        make_loader(task.val, clean, machine.workers, pin=pin),
        use_distributed_sampler=False,
    )
    return _Loaders(train, val, sampler)


def best_epoch(history: list[Epoch], select_by: SelectBy) -> Epoch:
    """The first epoch with the highest mean validation Dice.

    The last one if there is nothing to validate on.
    """
    values = [epoch.selected_by(select_by) for epoch in history]
    known = [value for value in values if value is not None]
    return history[values.index(max(known))] if known else history[-1]


@dataclass(frozen=True)
class _Batch:
    """What one process computes of a batch.

    Attributes:
        pieces: its frames, one piece after another.
        sizes: of each piece, how many of its frames count; the others only fill it up.
        frames: of the batch, over all processes.
        full: whether these are as many as ``batch_size``; the last batch may have fewer.
    """

    pieces: Sequence[Sample]
    sizes: Sequence[int]
    frames: int
    full: bool


def _batches(pieces: Iterator[Sample], sampler: EpochBatches) -> Iterator[_Batch]:
    grouped = zip(*[pieces] * sampler.share.pieces, strict=True)
    for batch, sizes, frames in zip(grouped, sampler.sizes(), sampler.whole(), strict=True):
        yield _Batch(batch, sizes, frames, frames == sampler.batch_size)


@dataclass(frozen=True)
class Trainer:
    """What stays the same from step to step of a training.

    Attributes:
        fabric: devices and precision.
        model: the network as Fabric has set it up, maybe compiled; for gradients.
        network: the network itself.
        optimizer: as Fabric has set it up.
        objective: the loss terms of a batch.
        settings: epochs, learning rates, seed.
        stopwatch: counts the time of ``data`` and of ``network``.
        compiled: whether the model is compiled.
    """

    fabric: Fabric
    model: Any
    network: Network
    optimizer: Any
    objective: Objective
    settings: Training
    stopwatch: Stopwatch
    compiled: bool = False

    def resumed(self, resume: Resume | None) -> tuple[list[Epoch], dict[str, Tensor]]:
        """Put everything where it was after the last epoch that was kept.

        Returns:
            The epochs that are done, and the best weights so far.
        """
        state = resume.load()[0] if resume is not None else None
        if state is None:
            return [], {}
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        return [Epoch(**epoch) for epoch in state["history"]], state["best"]

    def state(self, history: list[Epoch], best: dict[str, Tensor]) -> dict[str, Any]:
        """What :meth:`resumed` needs."""
        return {
            "history": [asdict(epoch) for epoch in history],
            "best": best,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def epoch(
        self,
        number: int,
        task: TrainingTask,
        loaders: _Loaders,
        step: Callable[[int, int], None],
    ) -> Epoch:
        """Train for one epoch, and validate.

        Args:
            number: 0, 1, ...
            task: frames and objective.
            loaders: of these frames.
            step: called after each batch with (batches done, batches in all).
        """
        rate = learning_rate(self.settings, number)
        self._begin(number, rate)
        loaders.sampler.epoch = number
        with translated_errors(), float32_products(self.fabric.device, self.settings.precision):
            finite = FiniteTerms(
                self.objective.weights,
                task.train.anatomies,
                number,
                speaks=self.fabric.is_global_zero,
            )
            pieces = self.stopwatch.waiting("data", loaders.train)
            batches = _batches(pieces, loaders.sampler)
            terms, norms = self._train_epoch(batches, loaders.sampler.steps, finite, step)
            counts = _validate(self.fabric, self.network, loaders.val, len(task.val))
        return Epoch(number, rate, terms, norms, *_validation_dice(counts, task.val))

    def _begin(self, number: int, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Dropout, too, depends on seed, epoch and process alone.
        rank = self.fabric.global_rank
        torch.manual_seed(self.settings.seed * 100_003 + number + rank * 1_000_003)

    def _train_epoch(
        self,
        batches: Iterator[_Batch],
        steps: int,
        finite: FiniteTerms,
        step: Callable[[int, int], None],
    ) -> tuple[dict[str, list[float]], dict[str, float]]:
        """One pass over the training frames.

        Nothing here waits for the device to end a step: the host gives it the next one meanwhile.

        Returns:
            The mean of each term over batches, and the first batch's gradient norms.
        """
        self.model.train()
        sums: dict[str, Tensor] = {}
        norms: dict[str, Tensor] = {}
        for number, batch in enumerate(batches, start=1):
            with self.stopwatch.step("network"):
                self.optimizer.zero_grad(set_to_none=True)
                # Transformers installs hooks in its first call, and another size of batch would be
                # compiled anew.
                with self._uncompiled(when=number == 1 or not batch.full):
                    terms, squares = self._backward(batch, measured=number == 1)
                finite.add(number, terms)
                self.optimizer.step()
            norms = norms or {name: square.sqrt() for name, square in squares.items()}
            sums = _added(sums, terms)
            step(number, steps)
        finite.judge()
        return (
            {name: (total / steps).tolist() for name, total in sums.items()},
            {name: float(norm) for name, norm in norms.items()},
        )

    def _uncompiled(self, *, when: bool) -> AbstractContextManager[object]:
        """In here the model is computed without what was compiled for it, in some cases."""
        return torch.compiler.set_stance("force_eager") if self.compiled and when else nullcontext()

    def _backward(self, batch: _Batch, *, measured: bool) -> tuple[Terms, Terms]:
        """The gradients of one batch.

        Returns:
            Its terms; if ``measured``, the squared norm of each weighted term's gradient at the
            logits.
        """
        counted = [_first(p, size) for p, size in zip(batch.pieces, batch.sizes, strict=True)]
        shares = self.shares(batch, counted)
        weights = self.objective.weights
        sums: Terms = {}
        squares: Terms = {}
        if measured:
            squares = {name: torch.zeros((), device=self.fabric.device) for name in weights}
        for number, frames in enumerate(counted):
            # Processes exchange gradients once per batch, with its last piece.
            is_last = number + 1 == len(counted)
            with self.fabric.no_backward_sync(self.model, enabled=not is_last):
                logits = self._logits(batch.pieces[number], len(frames["labelled"]))
                terms = {
                    name: term * shares[number].get(name, bool(batch.sizes[number]))
                    for name, term in self.objective.terms(logits, frames).items()
                }
                weighted = {name: weight * terms[name].sum() for name, weight in weights.items()}
                for name in squares:
                    squares[name] = squares[name] + _squared(weighted[name], logits)
                # DDP takes the mean over processes; the sum is wanted.
                loss = torch.stack(list(weighted.values())).sum() * self.fabric.world_size
                self.fabric.backward(loss)
            sums = _added(sums, {name: term.detach() for name, term in terms.items()})
        summed = _over_all(self.fabric, [*sums.values(), *squares.values()])
        return (
            dict(zip(sums, summed[: len(sums)], strict=True)),
            dict(zip(squares, summed[len(sums) :], strict=True)),
        )

    def _logits(self, piece: Sample, frames: int) -> Tensor:
        """Of the first frames of a piece, of which all are computed."""
        with exact_depthwise(self.fabric.device, self.settings.precision):
            logits: Tensor = self.model(normalise(piece["frame"], self.network))
            return logits[:frames]

    def shares(self, batch: _Batch, counted: Sequence[Sample]) -> list[dict[str, Tensor | float]]:
        """By piece and weighted term, the share of the frames that the batch's mean is over.

        Args:
            batch: the whole batch of this process.
            counted: of each piece, the frames that count.
        """
        by_piece = [
            self._frames(frames, size) for frames, size in zip(counted, batch.sizes, strict=True)
        ]
        names = list(by_piece[0])
        sums = []
        for name in names:
            sums.append(torch.stack([numbers[name] for numbers in by_piece]).sum())
        # Only these numbers have to be exchanged.
        whole = dict(zip(names, _over_all(self.fabric, sums), strict=True))
        shares = []
        for numbers, size in zip(by_piece, batch.sizes, strict=True):
            share: dict[str, Tensor | float] = {}
            share |= dict.fromkeys(self.objective.weights, size / batch.frames)
            share |= {n: number / whole[n].clamp(min=1) for n, number in numbers.items()}
            shares.append(share)
        return shares

    def _frames(self, frames: Sample, size: int) -> Terms:
        """How many frames of a piece each term is a mean over; none, if none of them counts."""
        numbers = self.objective.frames(frames)
        return {name: number * bool(size) for name, number in numbers.items()}


def _added(sums: Terms, terms: Terms) -> Terms:
    return {name: sums.get(name, 0) + term for name, term in terms.items()}


def _over_all(fabric: Fabric, values: Sequence[Tensor]) -> list[Tensor]:
    """The sum over processes of each value, in one message.

    Fabric's own would wait for all processes before each.
    """
    if fabric.world_size == 1 or not values:
        return list(values)
    message = torch.cat([value.flatten() for value in values])
    torch.distributed.all_reduce(message)
    parts = message.split([value.numel() for value in values])
    return [part.view(value.shape) for part, value in zip(parts, values, strict=True)]


def _first(piece: Sample, size: int) -> Sample:
    """The frames of a piece that count; one, whose terms will not count, if it has none."""
    return cast(Sample, {key: cast(Tensor, value)[: max(size, 1)] for key, value in piece.items()})


def _squared(term: Tensor, logits: Tensor) -> Tensor:
    """How hard a term pulls at the logits: the squared norm of its gradient."""
    return torch.autograd.grad(term, logits, retain_graph=True)[0].float().norm().square()


@torch.no_grad()
def _validate(fabric: Fabric, network: Network, loader: Any, frames: int) -> list[list[Counts]]:
    """Counts of clean frames at their full size, of each frame and decoder over its known pixels.

    Every process predicts its share of the frames, and gets the counts of all. The network runs
    without DDP around it, which would wait for processes that have no frames left.
    """
    network.eval()
    table = torch.zeros((frames, network.decoders, 4), dtype=torch.int64, device=fabric.device)
    for batch in loader:
        with fabric.autocast():
            logits = network(normalise(batch["frame"], network))
        target = targets(batch["organ"], batch["background"])
        full = resize(logits.float(), (target.shape[-2], target.shape[-1]))
        masks = full[:, :, 1] > full[:, :, 0]
        table[batch["position"]] = known_counts(masks, target)
    (summed,) = _over_all(fabric, [table])
    return [_counts(rows) for rows in summed.tolist()]


def _counts(rows: Sequence[Sequence[int]]) -> list[Counts]:
    return [Counts(*row) for row in rows]


def _validation_dice(
    counts: Sequence[Sequence[Counts]], data: FrameDataset
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Dice per anatomy on its own frames, and over all known pixels; empty without frames.

    Args:
        counts: of each frame and decoder.
        data: the frames.
    """
    if not counts:
        return {}, {}
    anatomies = data.anatomies
    by_decoder = zip(anatomies, zip(*counts, strict=True), strict=True)
    known = {anatomy: mean([pooled(of_frames).dice]) for anatomy, of_frames in by_decoder}
    labelled = [frame.anatomy for frame in data.frames]
    pairs = zip(counts, labelled, strict=True)
    own = [of_frame[anatomies.index(a)] for of_frame, a in pairs if a in anatomies]
    return mean_dice(own, [a for a in labelled if a in anatomies]), known
