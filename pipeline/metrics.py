"""Dice and IoU as in Kolbinger's evaluation (2023): per frame, on the anatomy that the frame is labelled for.

Three sums per frame do not warrant a metrics library, whose import costs more than the computation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
import torch
from torch import Tensor

from pipeline.models.network import resize


@dataclass(frozen=True)
class Counts:
    """Pixels of one frame: true positive, false positive, false negative."""

    tp: int
    fp: int
    fn: int

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN) in 0..1; NaN for a frame that neither has nor is given the anatomy."""
        total = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / total if total else nan

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN) in 0..1; NaN as for ``dice``."""
        total = self.tp + self.fp + self.fn
        return self.tp / total if total else nan


def own_masks(logits: Tensor, anatomy: Tensor, size: tuple[int, int]) -> Tensor:
    """The mask of the decoder that each frame is labelled for: arg max at full size.

    Args:
        logits: (B, N, 2, h, w).
        anatomy: (B,) int64.
        size: (H, W) of the frames.

    Returns:
        (B, H, W) bool.
    """
    own = logits[torch.arange(len(logits), device=logits.device), anatomy][:, None]
    full = resize(own.float(), size)[:, 0]
    return full[:, 1] > full[:, 0]


def count(masks: Tensor, labels: Tensor) -> list[Counts]:
    """Counts of each frame; masks (B, H, W) bool, labels (B, H, W) with 1 = anatomy, 0 = background."""
    positive = labels == 1
    sums = [(a & b).flatten(1).sum(1).tolist() for a, b in ((masks, positive), (masks, ~positive), (~masks, positive))]
    return [Counts(tp, fp, fn) for tp, fp, fn in zip(*sums, strict=True)]


def mean(values: Sequence[float]) -> float | None:
    """The mean of what is a number; None if nothing is."""
    known = [v for v in values if not np.isnan(v)]
    return float(np.mean(known)) if known else None


def mean_dice(counts: Sequence[Counts], anatomies: Sequence[str]) -> dict[str, float | None]:
    """Per anatomy, the mean over its frames of their Dice in 0..1; ``anatomies`` names each frame's."""
    names = dict.fromkeys(anatomies)
    return {n: mean([c.dice for c, a in zip(counts, anatomies, strict=True) if a == n]) for n in names}
