"""A film of the phantom's test surgeries: the camera moves, the sensor is noisy, scenes change.

    python docs/scripts/moving_phantom.py FILM.mp4 SECONDS

writes a film of 1280x720 at 30 frames per second, for ``mtkd live FILM.mp4 --loop``.
``moving_frames`` gives the same frames with their label maps, in memory.
"""

from collections.abc import Iterator
from fractions import Fraction
from itertools import cycle, islice, product
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import shared
import typer
from numpy.typing import NDArray

from pipeline.deployment.video import VideoWriter
from pipeline.phantom import render
from pipeline.phantom.patient import ANATOMIES
from pipeline.settings import Data
from stages.shared.project import load_project

RATE = 30
SCENE = 90  # frames until the next cut
SWAY = 0.04  # how far the camera moves, as a share of the frame
NOISE = 3.0  # standard deviation of the sensor's noise, of 0..255
Moment = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # a frame, and its label map


def main(film: Path, seconds: Annotated[float, typer.Argument(min=0.1)]) -> None:
    """Write a film of so many SECONDS."""
    shared.refuse_existing(film)
    data = load_project().params.data
    writer = VideoWriter(film, (720, 1280), Fraction(RATE))
    for number, (frame, _) in enumerate(
        islice(moving_frames(data, (720, 1280)), round(RATE * seconds))
    ):
        writer.write(frame, Fraction(number, RATE))
    writer.close()
    print(f"-> {film}")


def moving_frames(data: Data, size: tuple[int, int], *, sway: float = SWAY) -> Iterator[Moment]:
    """Frames (H, W, 3) of the test surgeries with their label maps (H, W), for ever.

    Args:
        data: settings of the phantom.
        size: (H, W).
        sway: how far the camera moves, as a share of the frame; 0 for a still scene.
    """
    noise = np.random.default_rng(0)
    surgeries = [
        number
        for number in range(1, data.phantom.surgeries + 1)
        if data.splits.of(f"{number:02d}") == "test"
    ]
    for surgery, anatomy in cycle(product(surgeries, ANATOMIES)):
        scene = render(
            anatomy,
            surgery,
            0,
            seed=data.phantom.seed,
            size=data.phantom.image_size,
            difficulty=data.phantom.difficulty,
        )
        for number in range(SCENE):
            matrix = _camera(number, scene[1].shape, size, sway)
            pixels = cv2.warpAffine(
                scene[0], matrix, size[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
            )
            labels = cv2.warpAffine(
                scene[1], matrix, size[::-1], flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT
            )
            grain = noise.normal(0, NOISE, pixels.shape).astype(np.float32)
            yield np.clip(pixels + grain, 0, 255).astype(np.uint8), labels


def _camera(
    number: int, scene: tuple[int, ...], size: tuple[int, int], sway: float
) -> NDArray[np.float64]:
    """From a scene to a frame, one frame of a camera that goes round in two seconds."""
    turn = 2 * np.pi * number / (2 * RATE)
    zoom = 1.1 + sway * np.sin(turn)
    scale = np.array([size[1] / scene[1], size[0] / scene[0]]) * zoom
    offset = -(zoom - 1) / 2 + sway * np.array([np.cos(turn), np.sin(turn)])
    shift = offset * np.array([size[1], size[0]])
    return np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]])


if __name__ == "__main__":
    shared.run(main)
