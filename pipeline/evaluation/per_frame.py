"""Trained networks on the test surgeries, frame by frame: everything that tables and pictures are made from."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import nan
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.counts import Counts, count_masks
from pipeline.dsad import surgery_id
from pipeline.environment import clean_processes, require_semaphores
from pipeline.evaluation import dice
from pipeline.evaluation.calibration import Calibration, calibration
from pipeline.evaluation.surface import Surface, compare_outlines
from pipeline.inference import clean_questions, in_flight, on_device, to_device
from pipeline.machine import Machine, to_host
from pipeline.models.frozen import Frozen
from pipeline.models.network import Network, resize
from pipeline.prefetch import ahead, delayed
from pipeline.prepared import Frame, load_label
from pipeline.stopwatch import Stopwatch

T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """One network on one frame, whose label is that of ``frame.anatomy``.

    Attributes:
        frame: the frame.
        counts: pixels of the own anatomy's decoder against the label.
        surface: its outline against the label's.
        calibration: its probabilities against the label.
        inside: pixels of the label that each decoder claims, in the decoders' order.
        claimed: pixels of the frame that each decoder claims.
        claimants: pixels of the frame that no decoder, one, or several claim.
    """

    frame: Frame
    counts: Counts
    surface: Surface
    calibration: Calibration
    inside: tuple[int, ...]
    claimed: tuple[int, ...]
    claimants: tuple[int, int, int]

    @property
    def surgery(self) -> str | int:
        """The id of its surgery, whose folder may be 3 under one anatomy and 03 under another."""
        return surgery_id(self.frame.surgery)

    def value(self, metric: str) -> float:
        """A metric by its name, see ``METRICS``; NaN where it has none."""
        return float(getattr(self.surface if metric in ("hd95", "nsd") else self.counts, metric))


# What is a share is told in percent, hd95 in pixels.
METRICS = ("dice", "iou", "precision", "recall", "specificity", "nsd", "hd95")


@contextmanager
def outline_processes(machine: Machine) -> Iterator[Executor | None]:
    """Processes that measure frames while the device computes the next; None where there are no loader processes.

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
    network: Network,
    frames: Sequence[Frame],
    anatomies: Sequence[str],
    batch_size: int,
    tolerance: float | None,
    machine: Machine,
    processes: Executor | None = None,
) -> Iterator[Result]:
    """One result per frame, in order.

    Args:
        network: has a decoder for each of ``anatomies``, in their order.
        frames: labelled for one of them each.
        anatomies: names of the decoders.
        batch_size: frames that the network is asked at once.
        tolerance: of the normalised surface Dice, in pixels; None leaves distances of outlines out.
        machine: where.
        processes: that measure, see :func:`outline_processes`; None for this one.
    """
    batches = _batches(network, frames, anatomies, batch_size, machine)
    measuring = (
        (frame, _begin(processes, _measure, margin, label, tolerance), pixels)
        for batch in delayed(batches, in_flight(machine.torch_device))
        for frame, margin, label, pixels in batch.rows()
    )
    for frame, measured, pixels in delayed(measuring, 4 * machine.workers if processes else 0):
        n, values = len(anatomies), pixels.tolist()
        yield Result(
            frame,
            *measured(),
            tuple(values[:n]),
            tuple(values[n : 2 * n]),
            (values[-3], values[-2], values[-1]),
        )


def own_masks(
    network: Network, frames: Sequence[Frame], anatomies: Sequence[str], machine: Machine
) -> dict[str, NDArray[np.bool_]]:
    """By a frame's id, the mask (H, W) of the decoder that it is labelled for."""
    batches = _batches(network, frames, anatomies, 1, machine)
    return {frame.id: margin > 0 for batch in batches for frame, margin, _, _ in batch.rows()}


@dataclass(frozen=True)
class _Batch:
    """Frames that were asked together, and what is on its way from the device.

    Attributes:
        frames: b frames.
        labels: (b, H, W) bool.
        margins: by how much the logit of a frame's own anatomy exceeds the background's, (b, H, W)
            float32.
        pixels: of each frame, (b, 2 N + 3) int64: of the label that each decoder claims; that each
            claims; that no decoder, one, or several claim.
    """

    frames: list[Frame]
    labels: NDArray[np.bool_]
    margins: Callable[[], NDArray[np.float32]]
    pixels: Callable[[], NDArray[np.int64]]

    def rows(
        self,
    ) -> Iterator[tuple[Frame, NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64]]]:
        """A frame, its margin, its label and its pixels, one after another."""
        return zip(self.frames, self.margins(), self.labels, self.pixels(), strict=True)


def _batches(
    network: Network,
    frames: Sequence[Frame],
    anatomies: Sequence[str],
    batch_size: int,
    machine: Machine,
) -> Iterator[_Batch]:
    """All that needs every decoder's map is computed on the device: one map of each frame leaves it."""
    parts = [range(i, min(i + batch_size, len(frames))) for i in range(0, len(frames), batch_size)]
    own = [[frames[i] for i in part] for part in parts]
    labels = ahead(
        np.stack([load_label(frame.label).astype(bool) for frame in some]) for some in own
    )
    frozen = Frozen(network, machine.torch_device, torch.float32)
    outputs = on_device(
        frozen.margins, clean_questions(frames), parts, "32-true", machine, Stopwatch()
    )
    for some, label, (native, _) in zip(own, labels, outputs, strict=True):
        margins = resize(native[:, :, None], (label.shape[1], label.shape[2]))[:, :, 0]
        pixels = _pixels(margins > 0, to_device(label, margins.device))
        own_margins = [
            m[list(anatomies).index(frame.anatomy)] for m, frame in zip(margins, some, strict=True)
        ]
        yield _Batch(some, label, to_host(torch.stack(own_margins)), to_host(pixels))


def _pixels(masks: Tensor, labels: Tensor) -> Tensor:
    """See ``_Batch.pixels``; masks (b, N, H, W) bool, labels (b, H, W) bool."""
    claims = masks.sum(1)
    claimants = [(claims == 0), (claims == 1), (claims > 1)]
    inside, claimed = (masks & labels[:, None]).sum((2, 3)), masks.sum((2, 3))
    return torch.cat([inside, claimed, torch.stack([one.sum((1, 2)) for one in claimants], 1)], 1)


def _measure(
    margin: NDArray[np.float32], label: NDArray[np.bool_], tolerance: float | None
) -> tuple[Counts, Surface, Calibration]:
    """The own anatomy's decoder against the label, both (H, W)."""
    mask = margin > 0
    surface = Surface(nan, nan) if tolerance is None else compare_outlines(mask, label, tolerance)
    return (
        count_masks(mask, label),
        surface,
        calibration(1 / (1 + np.exp(-margin.clip(-60, 60))), label),
    )


def _begin(
    processes: Executor | None, function: Callable[..., T], *arguments: Any
) -> Callable[[], T]:
    """Call a function, in another process if there are some; what is returned gives its result."""
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
    for name in ("dice", "iou"):
        per_anatomy = {
            anatomy: dice.mean([r.value(name) for r in results if r.frame.anatomy == anatomy])
            for anatomy in anatomies
        }
        overall = dice.mean([value for value in per_anatomy.values() if value is not None])
        table[name] = {
            key: None if value is None else round(100 * value, 1)
            for key, value in {"mean": overall, **per_anatomy}.items()
        }
    return table
