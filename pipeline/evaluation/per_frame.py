"""Trained networks on the test surgeries, frame by frame.

Tables and pictures are made from these results.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from math import nan
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.counts import Counts, count_masks
from pipeline.environment import clean_processes, require_semaphores
from pipeline.evaluation import dice
from pipeline.evaluation.calibration import Calibration, calibration
from pipeline.evaluation.every_decoder import EveryDecoder, tables, unpacked
from pipeline.evaluation.surface import Surface, compare_outlines
from pipeline.inference import clean_inputs, in_flight, on_device, to_device
from pipeline.labels import NOT_LABELLED, FrameLabels, load_labels
from pipeline.machine import Machine, to_host
from pipeline.models.frozen import Frozen
from pipeline.models.network import Network, resize
from pipeline.prefetch import ahead, delayed
from pipeline.prepared import Frame
from pipeline.stopwatch import Stopwatch
from pipeline.surgeries import surgery_id

T = TypeVar("T")
_Own = tuple[NDArray[np.bool_], NDArray[np.bool_]]
_Row = tuple[Frame, NDArray[np.float32], _Own, NDArray[np.int64], EveryDecoder]
_Measured = tuple[Counts, Surface, Calibration]


@dataclass(frozen=True)
class Result:
    """One network on one frame, whose label is that of ``frame.anatomy``.

    Attributes:
        frame: the frame.
        counts: pixels that the labelled anatomy's decoder predicts, against the label; as in
            ``surface`` and ``calibration``, pixels that are not labelled count nowhere.
        surface: the outline of its mask against the label's.
        calibration: its probabilities against the label.
        inside: pixels of the label that each decoder predicts, in the decoders' order.
        predicted: pixels of the frame that each decoder predicts.
        overlaps: pixels of the frame that no decoder, one, or several predict.
        every_decoder: what all decoders say, against all that is known of the frame.
        picture: the same for frames of several sub-data sets that are one picture.
    """

    frame: Frame
    counts: Counts
    surface: Surface
    calibration: Calibration
    inside: tuple[int, ...]
    predicted: tuple[int, ...]
    overlaps: tuple[int, int, int]
    every_decoder: EveryDecoder
    picture: str

    @property
    def surgery(self) -> str | int:
        """The id of its surgery, whose folder may be 3 under one anatomy and 03 under another."""
        return surgery_id(self.frame.surgery)

    def value(self, measure: str) -> float:
        """A measure by its name, see ``MEASURES``; NaN where it has none."""
        return float(getattr(self.surface if measure in ("hd95", "nsd") else self.counts, measure))


# Shares are reported in percent, hd95 in pixels.
MEASURES = ("dice", "iou", "precision", "recall", "specificity", "nsd", "hd95")


@contextmanager
def outline_processes(machine: Machine) -> Iterator[Executor | None]:
    """Processes that measure frames while the device computes the next.

    Yields:
        None where there are no loader processes.

    Raises:
        MtkdError: processes can't work together on this machine.
    """
    if not machine.workers:
        yield None
        return
    require_semaphores(machine.workers)
    context = clean_processes("pipeline.evaluation.surface")
    with ProcessPoolExecutor(machine.workers, context, torch.set_num_threads, (1,)) as processes:
        yield processes


def evaluate(
    networks: Network | Sequence[Network],
    frames: Sequence[Frame],
    anatomies: Sequence[str],
    batch_size: int,
    tolerance: float | None,
    machine: Machine,
    processes: Executor | None = None,
) -> Iterator[Result]:
    """One result per frame, in order.

    Args:
        networks: one or several, that together have a decoder for each of ``anatomies``, in their
            order.
        frames: labelled for one of them each.
        anatomies: names of the decoders.
        batch_size: frames per forward pass.
        tolerance: of the normalised surface Dice, in pixels; None leaves distances of outlines out.
        machine: where.
        processes: to measure in, see :func:`outline_processes`; None for this one.
    """
    batches = _batches(_several(networks), frames, anatomies, batch_size, machine)
    measuring = _measuring(batches, tolerance, machine, processes)
    n = len(anatomies)
    waiting = 4 * machine.workers if processes else 0
    for frame, measured, pixels, every_decoder in delayed(measuring, waiting):
        values = pixels.tolist()
        yield Result(
            frame,
            *measured(),
            inside=tuple(values[:n]),
            predicted=tuple(values[n : 2 * n]),
            overlaps=(values[-3], values[-2], values[-1]),
            every_decoder=every_decoder,
            picture=sha256(frame.image.read_bytes()).hexdigest(),
        )


def _several(networks: Network | Sequence[Network]) -> Sequence[Network]:
    return [networks] if isinstance(networks, Network) else networks


def predicted_masks(
    networks: Network | Sequence[Network],
    frames: Sequence[Frame],
    anatomies: Sequence[str],
    machine: Machine,
) -> dict[str, NDArray[np.bool_]]:
    """By a frame's id, the mask (H, W) of the decoder that it is labelled for."""
    masks = {}
    for batch in _batches(_several(networks), frames, anatomies, 1, machine):
        for frame, margin, *_ in batch.rows():
            masks[frame.id] = margin > 0
    return masks


@dataclass(frozen=True)
class _Batch:
    """Frames that went through the network together, and what is on its way from the device.

    Attributes:
        frames: b frames.
        labels: of each frame, its label (H, W), and where it says something (H, W).
        margins: by how much the logit of the labelled anatomy exceeds the background's, (b, H, W)
            float32.
        pixels: of each frame, (b, 2 N + 3) int64: as ``inside``, ``predicted`` and ``overlaps`` of
            :class:`Result`.
        tables: (b, K) int64, see :func:`pipeline.evaluation.every_decoder.tables`.
        highest: (b, N) float32, likewise.
    """

    frames: list[Frame]
    labels: Sequence[_Own]
    margins: Callable[[], NDArray[np.float32]]
    pixels: Callable[[], NDArray[np.int64]]
    tables: Callable[[], NDArray[np.int64]]
    highest: Callable[[], NDArray[np.float32]]

    def rows(self) -> Iterator[_Row]:
        """A frame, its margin, its label, its pixels and every decoder, one after another."""
        every_decoder = map(unpacked, self.tables(), self.highest())
        return zip(
            self.frames, self.margins(), self.labels, self.pixels(), every_decoder, strict=True
        )


def _batches(
    networks: Sequence[Network],
    frames: Sequence[Frame],
    anatomies: Sequence[str],
    batch_size: int,
    machine: Machine,
) -> Iterator[_Batch]:
    """What needs every decoder's map is computed on the device: one map of each frame leaves it."""
    parts = [range(i, min(i + batch_size, len(frames))) for i in range(0, len(frames), batch_size)]
    groups = [list(frames[part.start : part.stop]) for part in parts]
    labels = ahead(_labels(group, anatomies) for group in groups)
    frozen = [Frozen(network, machine.torch_device, torch.float32) for network in networks]
    outputs = on_device(
        lambda batch: torch.cat([network.margins(batch) for network in frozen], 1),
        clean_inputs(frames),
        parts,
        "32-true",
        machine,
        Stopwatch(),
    )
    for group, (known, mapped), (native, _) in zip(groups, labels, outputs, strict=True):
        decoders = [list(anatomies).index(frame.anatomy) for frame in group]
        label = known[0] == np.array(decoders)[:, None, None]
        margins = resize(native[:, :, None], (label.shape[1], label.shape[2]))[:, :, 0]
        pixels = _pixels(margins > 0, to_device(label, margins.device))
        every_decoder, highest = tables(
            margins, _on_device(known, margins.device), _on_device(mapped, margins.device)
        )
        labelled = torch.stack([m[i] for m, i in zip(margins, decoders, strict=True)])
        copies = map(to_host, (labelled, pixels, every_decoder, highest))
        yield _Batch(group, list(zip(label, known[0] != NOT_LABELLED, strict=True)), *copies)


_Known = tuple[NDArray[np.int16], NDArray[np.bool_]]


def _on_device(known: _Known, device: torch.device) -> tuple[Tensor, Tensor]:
    organ, background = known
    return to_device(organ, device), to_device(background, device)


def _labels(frames: Sequence[Frame], anatomies: Sequence[str]) -> tuple[_Known, _Known]:
    """What is known of several frames of one size, without their label maps, and with them.

    That is (b, H, W) and (b, N), see :class:`pipeline.labels.FrameLabels`.
    """
    known = [load_labels(frame, anatomies, (0, 0), maps=False) for frame in frames]
    mapped = [
        load_labels(frame, anatomies, (0, 0)) if frame.map else labels
        for frame, labels in zip(frames, known, strict=True)
    ]
    return _stacked(known), _stacked(mapped)


def _stacked(known: Sequence[FrameLabels]) -> _Known:
    organs = np.stack([labels.organ for labels in known])
    return organs, np.stack([labels.background for labels in known])


def _pixels(masks: Tensor, labels: Tensor) -> Tensor:
    """See ``_Batch.pixels``; masks (b, N, H, W) bool, labels (b, H, W) bool."""
    inside = (masks & labels[:, None]).sum((2, 3))
    predicted = masks.sum((2, 3))
    decoders = masks.sum(1)
    overlaps = [decoders == 0, decoders == 1, decoders > 1]
    return torch.cat([inside, predicted, torch.stack([o.sum((1, 2)) for o in overlaps], 1)], 1)


def _measuring(
    batches: Iterator[_Batch],
    tolerance: float | None,
    machine: Machine,
    processes: Executor | None,
) -> Iterator[tuple[Frame, Callable[[], _Measured], NDArray[np.int64], EveryDecoder]]:
    """Frames whose measurement has begun; while one batch is measured, others are computed."""
    for batch in delayed(batches, in_flight(machine.torch_device)):
        for frame, margin, own, pixels, every_decoder in batch.rows():
            measured = _begin(processes, _measure, margin, *own, tolerance)
            yield frame, measured, pixels, every_decoder


def _measure(
    margin: NDArray[np.float32],
    label: NDArray[np.bool_],
    known: NDArray[np.bool_],
    tolerance: float | None,
) -> _Measured:
    """The decoder of the labelled anatomy against the label, where it says something: (H, W).

    Outlines would match where unlabelled pixels cut them, so such frames have no distances.
    """
    mask = margin > 0
    if tolerance is None or not known.all():
        surface = Surface(nan, nan)
    else:
        surface = compare_outlines(mask, label, tolerance)
    where = slice(None) if known.all() else known
    probability = 1 / (1 + np.exp(-margin[where].clip(-60, 60)))
    return (
        count_masks(mask[where], label[where]),
        surface,
        calibration(probability, label[where]),
    )


def _begin(
    processes: Executor | None, function: Callable[..., T], *arguments: Any
) -> Callable[[], T]:
    """Call a function, in another process if there are some; returns what waits for the result."""
    if processes is not None:
        return processes.submit(function, *arguments).result
    result = function(*arguments)
    return lambda: result


def summarise(
    results: Sequence[Result], anatomies: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """``{"dice": {"mean": percent, "<anatomy>": percent or None}, "iou": {...}}`` with one decimal.

    An anatomy's value is the mean over its frames, ``mean`` that over the anatomies that have one.
    """
    table = {}
    for measure in ("dice", "iou"):
        per_anatomy = {anatomy: _mean(results, anatomy, measure) for anatomy in anatomies}
        overall = dice.mean([value for value in per_anatomy.values() if value is not None])
        shares = {"mean": overall, **per_anatomy}
        table[measure] = {name: _percent(share) for name, share in shares.items()}
    return table


def _mean(results: Sequence[Result], anatomy: str, measure: str) -> float | None:
    return dice.mean([r.value(measure) for r in results if r.frame.anatomy == anatomy])


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 1)
