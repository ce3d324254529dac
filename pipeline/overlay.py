"""Masks drawn on frames."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.files import write_atomically

# Okabe and Ito's bluish green: told from tissue by everyone, colour-blind or not.
COLOUR, OPACITY = (0, 158, 115), 0.55


def overlay(frame: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Tint the mask (H, W) and outline it on a frame (H, W, 3) RGB uint8."""
    picture = frame.copy()
    tint = np.array(COLOUR, dtype=np.float32)
    picture[mask] = ((1 - OPACITY) * frame[mask] + OPACITY * tint).astype(np.uint8)
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(picture, contours, -1, (255, 255, 255), 1))


def strip(frame: NDArray[np.uint8], masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.uint8]:
    """The frame and one overlay per mask, side by side with a gap of four white pixels."""
    gap = np.full((frame.shape[0], 4, 3), 255, np.uint8)
    pictures = [frame, *(overlay(frame, mask) for mask in masks)]
    return np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=1)


def write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write an RGB picture (H, W, 3)."""
    _, encoded = cv2.imencode(".png", picture[..., ::-1])
    write_atomically(path, encoded.tobytes())
