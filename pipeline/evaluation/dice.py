"""Dice and IoU: as in Kolbinger's evaluation (2023), and over all pixels that are known.

Kolbinger measures per frame, on the anatomy that the frame is labelled for; the formulae are
:class:`pipeline.counts.Counts`. Three sums per frame do not warrant a metrics library, whose import
costs more than the computation.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.counts import Counts


def known_counts(masks: Tensor, target: Tensor) -> Tensor:
    """The numbers of :class:`Counts` of each frame and decoder, over the pixels that are known.

    Args:
        masks: (B, N, H, W) bool.
        target: (B, N, H, W), see :func:`pipeline.labels.targets`.

    Returns:
        (B, N, 4) int64, on the masks' device, without waiting for it.
    """
    present = target == 1
    absent = target == 0
    parts = (masks & present, masks & absent, ~masks & present, ~masks & absent)
    return torch.stack([part.sum(dim=(2, 3)) for part in parts], dim=2)


def pooled(counts: Iterable[Counts]) -> Counts:
    """The pixels of all frames together."""
    return sum(counts, start=Counts(0, 0, 0, 0))


def mean(values: Sequence[float]) -> float | None:
    """The mean of all values that are not NaN; None if there are none."""
    numbers = [v for v in values if not np.isnan(v)]
    return float(np.mean(numbers)) if numbers else None


def mean_dice(counts: Sequence[Counts], anatomies: Sequence[str]) -> dict[str, float | None]:
    """Per anatomy, the mean over its frames of their Dice in 0..1.

    Args:
        counts: one per frame.
        anatomies: the anatomy that each frame is labelled for.
    """
    by_anatomy: dict[str, list[float]] = {}
    for frame_counts, anatomy in zip(counts, anatomies, strict=True):
        by_anatomy.setdefault(anatomy, []).append(frame_counts.dice)
    return {anatomy: mean(values) for anatomy, values in by_anatomy.items()}
