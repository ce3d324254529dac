"""How sure a mean over a few surgeries is: bootstrap over surgeries.

Surgeries are drawn, and not frames, since frames of one surgery are alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
FEWEST_SURGERIES = 6  # for a test of significance; an interval over fewer is too narrow


@dataclass(frozen=True)
class Value:
    """One frame's value of a metric; NaN where it has none."""

    surgery: str | int
    anatomy: str
    value: float


@dataclass(frozen=True)
class Estimate:
    """A mean and the 2.5 and 97.5 percentiles of its bootstrap distribution; NaN without a value.

    One surgery has a mean and no interval.
    """

    mean: float
    low: float
    high: float
    surgeries: int


def estimates(
    values: Sequence[Value], anatomies: Sequence[str], seed: int = 0
) -> dict[str, Estimate]:
    """The mean over frames of each anatomy with its 95 % interval, by the anatomy's name.

    Under ``mean`` stands the mean over anatomies. A resample draws as many surgeries as there are,
    with replacement, and takes all their frames.
    """
    sums, counts = _per_surgery(values, anatomies)
    surgeries = len(sums)
    if not surgeries:
        return dict.fromkeys(("mean", *anatomies), Estimate(nan, nan, nan, 0))
    ones = np.ones((1, surgeries))
    weights = np.random.default_rng(seed).multinomial(
        surgeries, np.full(surgeries, 1 / surgeries), RESAMPLES
    )
    exact = _means(ones, sums, counts)
    resampled = _means(weights.astype(np.float64), sums, counts)
    behind = (surgeries, *np.count_nonzero(counts, axis=0).tolist())
    by_name = {}
    for i, name in enumerate(("mean", *anatomies)):
        low, high = _percentiles(resampled[:, i]) if behind[i] > 1 else (nan, nan)
        by_name[name] = Estimate(float(exact[0, i]), low, high, surgeries=behind[i])
    return by_name


def paired(new: Sequence[Value], old: Sequence[Value]) -> list[Value]:
    """The difference on every frame that has both values.

    Args:
        new: of one network.
        old: of another, on the same frames in the same order.
    """
    both = zip(new, old, strict=True)
    return [Value(a.surgery, a.anatomy, a.value - b.value) for a, b in both]


def significance(differences: Sequence[Value]) -> float | None:
    """The p of Wilcoxon's signed-rank test over the mean difference of each surgery.

    None for fewer than six surgeries.
    """
    per_surgery = surgery_means(differences)
    if len(per_surgery) < FEWEST_SURGERIES:
        return None
    from scipy.stats import wilcoxon

    return float(wilcoxon(list(per_surgery.values())).pvalue) if any(per_surgery.values()) else 1.0


def surgery_means(values: Sequence[Value]) -> dict[str | int, float]:
    """Mean over each surgery's frames; surgeries without a value are left out."""
    by_surgery: dict[str | int, list[float]] = {}
    for v in values:
        if not isnan(v.value):
            by_surgery.setdefault(v.surgery, []).append(v.value)
    return {name: float(np.mean(numbers)) for name, numbers in by_surgery.items()}


def _per_surgery(
    values: Sequence[Value], anatomies: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums and numbers of values, (surgeries, anatomies)."""
    measured = [v for v in values if not isnan(v.value)]
    names = dict.fromkeys(v.surgery for v in measured)
    rows = {name: i for i, name in enumerate(names)}
    sums, counts = np.zeros((2, len(rows), len(anatomies)))
    for v in measured:
        cell = rows[v.surgery], list(anatomies).index(v.anatomy)
        sums[cell] += v.value
        counts[cell] += 1
    return sums, counts


def _means(
    weights: NDArray[np.float64], sums: NDArray[np.float64], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Per resample, the mean over anatomies and then each anatomy's, (R, 1 + A).

    An anatomy without a frame is NaN.
    """
    number = weights @ counts
    means = np.divide(weights @ sums, number, out=np.full(number.shape, nan), where=number > 0)
    is_measured = ~np.isnan(means)
    total = np.where(is_measured, means, 0).sum(1, keepdims=True)
    overall = np.divide(
        total,
        is_measured.sum(1, keepdims=True),
        out=np.full(total.shape, nan),
        where=is_measured.any(1, keepdims=True),
    )
    return np.hstack([overall, means])


def _percentiles(samples: NDArray[np.float64]) -> tuple[float, float]:
    measured = samples[~np.isnan(samples)]
    if not len(measured):
        return nan, nan
    low, high = np.percentile(measured, [2.5, 97.5])
    return float(low), float(high)
