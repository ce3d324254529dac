"""Masks drawn on frames; pictures are RGB, uint8."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.deployment.palette import COLOURS, Colour
from pipeline.files import write_atomically


def draw(
    frame: NDArray[np.uint8],
    masks: NDArray[np.bool_],
    colours: Sequence[Colour],
    opacity: float,
    outline: Colour | None = None,
) -> NDArray[np.uint8]:
    """Tint and outline every mask (N, H, W) on a frame (H, W, 3); where masks overlap, the last one is on top.

    Outlines have their mask's colour, or the one that is given.
    """
    picture = frame.copy()
    for mask, colour in zip(masks, colours, strict=True):
        inside = mask.astype(np.uint8)
        tint = np.full_like(frame, colour)
        cv2.copyTo(cv2.addWeighted(picture, 1 - opacity, tint, opacity, 0), inside, picture)
        outlines, _ = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, outline or colour, 1)
    return picture


def strip(frame: NDArray[np.uint8], masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.uint8]:
    """The frame, and once more with each mask, side by side with a gap of four white pixels."""
    gap = np.full((frame.shape[0], 4, 3), 255, np.uint8)
    pictures = [
        frame,
        *(
            draw(frame, mask[None], [COLOURS["bluish green"]], 0.55, COLOURS["white"])
            for mask in masks
        ),
    ]
    return np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=1)


def add_legend(
    picture: NDArray[np.uint8], names: Sequence[str], colours: Sequence[Colour]
) -> NDArray[np.uint8]:
    """Name every anatomy beside its colour, in the upper left corner, on the picture itself; all of them fit."""
    line = min(
        max(12, picture.shape[0] // 45), max(6, (picture.shape[0] - 4) // max(1, len(names)))
    )
    scale = line / 30
    for i, (name, colour) in enumerate(zip(names, colours, strict=True)):
        top = 4 + i * line
        cv2.rectangle(picture, (4, top), (4 + line - 4, top + line - 4), colour, -1)
        x, y = 4 + line, top + line - 4 - line // 8
        # A black rim of shifted copies: a heavier font is spaced more widely.
        rim = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy]
        for (dx, dy), shade in [*((shift, (0, 0, 0)) for shift in rim), ((0, 0), (255, 255, 255))]:
            cv2.putText(
                picture,
                name.replace("_", " "),
                (x + dx, y + dy),
                cv2.FONT_HERSHEY_SIMPLEX,
                scale,
                shade,
                1,
                cv2.LINE_AA,
            )
    return picture


def label_map(masks: NDArray[np.bool_], values: Sequence[int]) -> NDArray[np.uint8]:
    """One value per pixel, (H, W): 0 = none, else the mask's value; where masks overlap, the last one's."""
    found = np.zeros(masks.shape[1:], np.uint8)
    for value, mask in zip(values, masks, strict=True):
        found[mask] = value
    return found


def write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a picture (H, W, 3)."""
    _, encoded = cv2.imencode(".png", picture[..., ::-1])
    write_atomically(path, encoded.tobytes())
