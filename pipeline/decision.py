"""From logit margins to masks: each anatomy alone, or one anatomy per pixel.

Each decoder alone may claim a pixel, as in the paper. By arg max over [0, margins] a pixel belongs
to the anatomy with the largest margin, or to none.
"""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def one_organ(margins: Tensor) -> Tensor:
    """The anatomy of each pixel.

    Args:
        margins: (B, N, H, W) float, by how much each anatomy's logit exceeds the background's.

    Returns:
        (B, H, W) int64, 0 = none, i = the i-th decoder; of equal margins the first.
    """
    largest, winner = margins.max(1)
    return torch.where(largest > 0, winner + 1, 0)


def masks_of_one_organ(margins: Tensor) -> Tensor:
    """The same as (B, N, H, W) bool, of which at most one is true in each pixel."""
    decoders = torch.arange(1, margins.shape[1] + 1, device=margins.device)[:, None, None]
    return one_organ(margins)[:, None] == decoders


def label_map(margins: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The anatomy of each pixel of a frame, from margins on a network's own grid.

    As :func:`one_organ` of margins that are enlarged bilinearly, without writing them: one plane at
    a time is enlarged and compared, in the processor's cache.

    Args:
        margins: (N, h, w).
        size: (H, W) of the frame.

    Returns:
        (H, W), 0 = none, i = the i-th decoder.
    """
    largest = np.zeros(size, np.float32)
    labels = np.zeros(size, np.uint8)
    number = np.empty(size, np.uint8)
    for i, plane in enumerate(margins, start=1):
        if plane.max() <= 0:  # then so is all between its values
            continue
        full = enlarged(plane, size)
        number.fill(i)
        cv2.copyTo(number, cv2.compare(full, largest, cv2.CMP_GT), labels)
        cv2.max(full, largest, largest)
    return labels


def enlarged(plane: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """A plane (h, w) at a frame's size (H, W), bilinear, corners not aligned."""
    return cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR)
