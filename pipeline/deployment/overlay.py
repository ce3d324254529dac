"""Masks drawn on frames; pictures are RGB, uint8."""

from collections.abc import Sequence
from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.deployment.palette import PALETTE, Colour


def draw(
    frame: NDArray[np.uint8],
    masks: NDArray[np.bool_],
    colours: Sequence[Colour],
    opacity: float,
    outline: Colour | None = None,
) -> NDArray[np.uint8]:
    """Tint and outline every mask on a frame; where masks overlap, the last one is on top.

    Args:
        frame: (H, W, 3).
        masks: (N, H, W).
        colours: one per mask.
        opacity: of the tint, 0..1.
        outline: colour of all outlines; None for that of their mask.
    """
    picture = frame.copy()
    for mask, colour in zip(masks, colours, strict=True):
        left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
        if width:
            box = (slice(top, top + height), slice(left, left + width))
            _draw_inside(picture[box], mask[box], colour, opacity, outline or colour)
    return picture


def _draw_inside(
    part: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    colour: Colour,
    opacity: float,
    outline: Colour,
) -> None:
    """Tint and outline a mask on the part of a picture that it reaches."""
    inside = np.ascontiguousarray(mask).view(np.uint8)
    tint = np.full_like(part, colour)
    cv2.copyTo(cv2.addWeighted(part, 1 - opacity, tint, opacity, 0), inside, part)
    outlines, _ = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(part, outlines, -1, outline, 1)


def strip(frame: NDArray[np.uint8], masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.uint8]:
    """The frame, and once more with each mask, side by side with a gap of four white pixels."""
    gap = np.full((frame.shape[0], 4, 3), 255, np.uint8)
    columns = [frame]
    for mask in masks:
        columns += [gap, draw(frame, mask[None], [PALETTE["bluish green"]], 0.55, PALETTE["white"])]
    return np.concatenate(columns, axis=1)


def add_legend(
    picture: NDArray[np.uint8], names: Sequence[str], colours: Sequence[Colour]
) -> NDArray[np.uint8]:
    """Name every anatomy beside its colour, in the upper left corner, on the picture itself.

    Lines are as high as lets all of them fit.
    """
    line = min(
        max(12, picture.shape[0] // 45), max(6, (picture.shape[0] - 4) // max(1, len(names)))
    )
    for i, (name, colour) in enumerate(zip(names, colours, strict=True)):
        top = 4 + i * line
        cv2.rectangle(picture, (4, top), (4 + line - 4, top + line - 4), colour, -1)
        baseline = (4 + line, top + line - 4 - line // 8)
        _write_with_rim(picture, name.replace("_", " "), baseline, line / 30)
    return picture


def _write_with_rim(
    picture: NDArray[np.uint8], text: str, baseline: tuple[int, int], scale: float
) -> None:
    """White text with a black rim of shifted copies: a heavier font is spaced more widely."""
    x, y = baseline
    shifts = [shift for shift in product((-1, 0, 1), repeat=2) if shift != (0, 0)]
    for dx, dy in shifts:
        _write(picture, text, (x + dx, y + dy), scale, (0, 0, 0))
    _write(picture, text, (x, y), scale, (255, 255, 255))


def _write(
    picture: NDArray[np.uint8], text: str, baseline: tuple[int, int], scale: float, colour: Colour
) -> None:
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(picture, text, baseline, font, scale, colour, 1, cv2.LINE_AA)


def numbered(masks: NDArray[np.bool_], values: Sequence[int]) -> NDArray[np.uint8]:
    """One value per pixel: 0 = none, else the mask's value; where masks overlap, the last one's.

    Args:
        masks: (N, H, W).
        values: one per mask.

    Returns:
        (H, W).
    """
    labels = np.zeros(masks.shape[1:], np.uint8)
    for value, mask in zip(values, masks, strict=True):
        labels[mask] = value
    return labels
