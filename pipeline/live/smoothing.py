"""Steadier masks: logit margins that follow what the network says with a delay."""

import cv2
import numpy as np
from numpy.typing import NDArray

# Frames are compared at this height and width.
GRID = (18, 32)
# A mean difference of grey values above this, of 0..255, is a cut: another scene.
CUT = 30.0


class Smoothing:
    """Exponential smoothing of margins over time, which begins anew at a cut.

    Args:
        share: how much of the frames before stays, 0 (none) up to less than 1. A change then takes
            effect with 1 - share at once, and with 1 - share^k after k frames.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._margins: NDArray[np.float32] | None = None
        self._small: NDArray[np.uint8] | None = None

    def __call__(
        self, frame: NDArray[np.uint8], margins: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """The margins of a frame, smoothed.

        Args:
            frame: (H, W, 3) uint8, which tells of a cut.
            margins: (N, h, w) float32.
        """
        before = self._margins
        is_cut = self._is_cut(frame)
        if before is None or before.shape != margins.shape or is_cut:
            before = margins
        if not np.isfinite(before).all():  # once in the mean it would never leave it
            before = margins
        self._margins = self.share * before + np.float32(1 - self.share) * margins
        return self._margins

    def begin_anew(self) -> None:
        """Forget the frames before, as of another scene."""
        self._margins = None

    def _is_cut(self, frame: NDArray[np.uint8]) -> bool:
        small = cv2.resize(frame, GRID[::-1], interpolation=cv2.INTER_AREA)
        before = small if self._small is None else self._small
        self._small = small
        return float(cv2.absdiff(small, before).mean()) > CUT


def flicker(labels: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    """The share of pixels that differ between two label maps (H, W) of one scene, 0..1."""
    return float((labels != others).mean())
