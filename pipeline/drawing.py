"""Masks of several anatomies on one frame, with a legend."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.palette import Colour


def draw(
    frame: NDArray[np.uint8], masks: NDArray[np.bool_], colours: Sequence[Colour], opacity: float
) -> NDArray[np.uint8]:
    """Tint and outline every mask (N, H, W) on a frame (H, W, 3); where masks overlap, the last one is on top."""
    picture = frame.copy()
    for mask, colour in zip(masks, colours, strict=True):
        inside = mask.astype(np.uint8)
        tint = np.full_like(frame, colour)
        cv2.copyTo(cv2.addWeighted(picture, 1 - opacity, tint, opacity, 0), inside, picture)
        outlines, _ = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, colour, 1)
    return picture


def add_legend(picture: NDArray[np.uint8], names: Sequence[str], colours: Sequence[Colour]) -> NDArray[np.uint8]:
    """Name every anatomy beside its colour, in the upper left corner, on the picture itself."""
    scale = max(0.35, picture.shape[0] / 1400)
    line = max(12, int(30 * scale))
    for i, (name, colour) in enumerate(zip(names, colours, strict=True)):
        top = 4 + i * line
        cv2.rectangle(picture, (4, top), (4 + line - 4, top + line - 4), colour, -1)
        place = (4 + line, top + line - 6)
        for shade, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.putText(
                picture, name.replace("_", " "), place, cv2.FONT_HERSHEY_SIMPLEX, scale, shade, width, cv2.LINE_AA
            )
    return picture


def label_map(masks: NDArray[np.bool_], values: Sequence[int]) -> NDArray[np.uint8]:
    """One value per pixel, (H, W): 0 = none, else the mask's value; where masks overlap, the last one's."""
    found = np.zeros(masks.shape[1:], np.uint8)
    for value, mask in zip(values, masks, strict=True):
        found[mask] = value
    return found
