"""Calibration of probabilities over pixels: expected calibration error and Brier score."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """Sums over pixels, so that frames can be added up.

    Attributes:
        pixels: (15,) number of pixels per bin of the anatomy's probability, bins of equal width.
        probability: (15,) sum of that probability.
        positive: (15,) number of pixels that are the anatomy.
        squared_error: sum of (probability - label)^2.
    """

    pixels: NDArray[np.float64]
    probability: NDArray[np.float64]
    positive: NDArray[np.float64]
    squared_error: float

    @property
    def ece(self) -> float:
        """Expected calibration error in 0..1 (Guo et al. 2017).

        The mean over bins, weighted by pixels, of |share of positives - mean probability|.
        """
        return float(np.abs(self.positive - self.probability).sum() / self.pixels.sum())

    @property
    def brier(self) -> float:
        """Brier score in 0..1: the mean squared error of the probability."""
        return float(self.squared_error / self.pixels.sum())


def calibration(probability: NDArray[np.float32], label: NDArray[np.bool_]) -> Calibration:
    """Of one frame: the anatomy's probability (H, W) in 0..1, and its label (H, W)."""
    p = probability.astype(np.float64).ravel()
    y = label.ravel()
    bins = np.minimum((p * BINS).astype(int), BINS - 1)

    def per_bin(weights: NDArray[np.float64] | None) -> NDArray[np.float64]:
        return np.bincount(bins, weights, minlength=BINS).astype(np.float64)

    return Calibration(
        per_bin(None), per_bin(p), per_bin(y.astype(np.float64)), float(((p - y) ** 2).sum())
    )


def total(parts: Sequence[Calibration]) -> Calibration:
    """Of several frames together."""
    return Calibration(
        np.sum([c.pixels for c in parts], 0),
        np.sum([c.probability for c in parts], 0),
        np.sum([c.positive for c in parts], 0),
        sum(c.squared_error for c in parts),
    )
