"""Pixels of a mask against a label, and what is computed from them.

Three sums per frame do not warrant a metrics library, whose import costs more than the computation.
"""

from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Counts:
    """Pixels of one frame: true positive, false positive, false negative, true negative.

    What would divide by nothing is NaN, and left out of every mean.
    """

    tp: int
    fp: int
    fn: int
    tn: int

    def __add__(self, other: "Counts") -> "Counts":
        """Of both frames together."""
        return Counts(
            self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn
        )

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN) in 0..1; NaN if label and mask are both empty."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN) in 0..1; NaN as for ``dice``."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float:
        """TP / (TP + FP) in 0..1; NaN if the mask is empty."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """TP / (TP + FN) in 0..1; NaN if the label is empty."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float:
        """TN / (TN + FP) in 0..1; NaN if the label covers the whole frame."""
        return _ratio(self.tn, self.tn + self.fp)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else nan


def count_masks(mask: NDArray[np.bool_], label: NDArray[np.bool_]) -> Counts:
    """Counts of one frame; mask and label (H, W) bool."""
    tp = int((mask & label).sum())
    predicted = int(mask.sum())
    labelled = int(label.sum())
    return Counts(
        tp=tp,
        fp=predicted - tp,
        fn=labelled - tp,
        tn=mask.size - predicted - labelled + tp,
    )
