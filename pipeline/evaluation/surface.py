"""Distances between the outline of a mask and that of its label, by MONAI.

They are in pixels of the evaluated size.
"""

import warnings
from dataclasses import dataclass
from math import hypot, nan

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Surface:
    """Agreement of two outlines.

    Neither mask nor label: NaN, and left out of every mean, as for Dice. Only one of them: the
    worst there is, a distance of the frame's diagonal and no outline within the tolerance.

    Attributes:
        hd95: 95th percentile of the distances between the outlines, in pixels; the larger of the
            two directions.
        nsd: normalised surface Dice, the share of both outlines that lies within the tolerance of
            the other, 0..1.
    """

    hd95: float
    nsd: float


def compare_outlines(
    mask: NDArray[np.bool_], label: NDArray[np.bool_], tolerance: float
) -> Surface:
    """Compare the outlines of a mask and a label.

    Args:
        mask: (H, W) bool.
        label: (H, W) bool.
        tolerance: in pixels.
    """
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice  # takes seconds

    if not mask.any() and not label.any():
        return Surface(nan, nan)
    if not mask.any() or not label.any():
        return Surface(hypot(*label.shape), 0.0)
    pair = [torch.from_numpy(np.ascontiguousarray(array))[None, None] for array in (mask, label)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI's, about its own call of itself
        distance = compute_hausdorff_distance(*pair, include_background=True, percentile=95)
        dice = compute_surface_dice(*pair, class_thresholds=[tolerance], include_background=True)
    return Surface(float(distance[0, 0]), float(dice[0, 0]))
