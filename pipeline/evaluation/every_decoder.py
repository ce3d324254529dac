"""What every decoder says of a frame, against what is known of it.

Kolbinger's Dice asks a decoder about frames that show its anatomy. Here all decoders are asked
about all frames: over the pixels of which something is known (:mod:`pipeline.labels`), which is
every pixel of a frame that has a complete label map.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.counts import Counts
from pipeline.decision import masks_of_one_organ, one_organ
from pipeline.evaluation.dice import known_counts
from pipeline.labels import NO_ANATOMY, NOT_LABELLED, UNKNOWN, targets

# Probabilities above which a pixel may be claimed.
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class EveryDecoder:
    """What N decoders say of one frame.

    Attributes:
        known: of each decoder, its mask against the pixels that are known to it without a label
            map.
        every: the same with the frame's complete label map, over every pixel; None of a decoder to
            which a pixel is unknown.
        known_one_organ: as ``known``, where each pixel belongs to the anatomy with the largest
            margin, if that is positive.
        every_one_organ: likewise.
        curve: (thresholds, N, 2) int64, of each of :data:`THRESHOLDS` and each decoder the known
            pixels above it that show the anatomy, and those that do not.
        confusion: (N + 1, N + 1) int64 pixels, by what they are known to show (0 = none of the
            anatomies), with a map, and by the arg max.
        highest: (N,) float32, the largest margin of each decoder.
    """

    known: tuple[Counts, ...]
    every: tuple[Counts | None, ...]
    known_one_organ: tuple[Counts, ...]
    every_one_organ: tuple[Counts | None, ...]
    curve: NDArray[np.int64]
    confusion: NDArray[np.int64]
    highest: NDArray[np.float32]


Known = tuple[Tensor, Tensor]  # organ (B, H, W) and background (B, N), see FrameLabels


def tables(margins: Tensor, known: Known, mapped: Known) -> tuple[Tensor, Tensor]:
    """What :func:`unpacked` makes :class:`EveryDecoder` of, on the margins' device.

    Nothing waits for the device.

    Args:
        margins: (B, N, H, W) float, by how much an anatomy's logit exceeds the background's.
        known: what is known without label maps.
        mapped: the same with them.

    Returns:
        (B, K) int64 and (B, N) float32.
    """
    single = masks_of_one_organ(margins)
    target = targets(*known)
    complete = targets(*mapped)
    unknown = (complete == UNKNOWN) & (mapped[0] != NOT_LABELLED)[:, None]
    parts = [
        known_counts(margins > 0, target),
        known_counts(single, target),
        known_counts(margins > 0, complete),
        known_counts(single, complete),
        _curve(margins, target),
        _confusion(one_organ(margins), *mapped),
        (~unknown.flatten(2).any(2)).long(),
    ]
    return torch.cat([part.flatten(1) for part in parts], 1), margins.amax((2, 3)).float()


def _curve(margins: Tensor, target: Tensor) -> Tensor:
    """(B, thresholds, N, 2)."""
    curve = []
    for threshold in THRESHOLDS:
        above = margins > float(np.log(threshold / (1 - threshold)))
        of_threshold = [(above & (target == value)).sum((2, 3)) for value in (1, 0)]
        curve.append(torch.stack(of_threshold, 2))
    return torch.stack(curve, 1)


def _confusion(winner: Tensor, organ: Tensor, background: Tensor) -> Tensor:
    """(B, N + 1, N + 1), over the pixels of which it is known what they show."""
    size = background.shape[1] + 1
    is_none = (organ == NO_ANATOMY) & background.all(1)[:, None, None]
    has_decoder = (organ >= 0) & (organ < size - 1)
    truth = torch.where(has_decoder, organ.long() + 1, torch.where(is_none, 0, size))
    cells = (truth * size + winner).flatten(1)
    table = torch.zeros(len(cells), (size + 1) * size, dtype=torch.int64, device=cells.device)
    table.scatter_add_(1, cells, torch.ones_like(cells))
    return table[:, : size * size]


def unpacked(integers: NDArray[np.int64], highest: NDArray[np.float32]) -> EveryDecoder:
    """One row of :func:`tables`."""
    n = len(highest)
    sizes = (*[4 * n] * 4, len(THRESHOLDS) * n * 2, (n + 1) ** 2)
    *counts, curve, confusion, complete = np.split(integers, np.cumsum(sizes))
    known, known_one_organ, every, every_one_organ = map(_counts, counts)
    return EveryDecoder(
        known=known,
        every=_where(complete, every),
        known_one_organ=known_one_organ,
        every_one_organ=_where(complete, every_one_organ),
        curve=curve.reshape(len(THRESHOLDS), n, 2),
        confusion=confusion.reshape(n + 1, n + 1),
        highest=highest,
    )


def _where(complete: NDArray[np.int64], counts: tuple[Counts, ...]) -> tuple[Counts | None, ...]:
    return tuple(c if known else None for c, known in zip(counts, complete, strict=True))


def _counts(numbers: NDArray[np.int64]) -> tuple[Counts, ...]:
    return tuple(Counts(*row) for row in numbers.reshape(-1, 4).tolist())
