"""Prepared frames of any size for measurements, that cost as much to read as a video's."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.preparation.pictures import PNG
from stages.shared.project import Places


def write_example(places: Places, anatomy: str, number: int, size: tuple[int, int]) -> None:
    """A training frame (H, W) of a project, with its label.

    Smooth shapes with a little grain, which compress about as a video frame does.
    """
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 255, (9, 11, 3)).astype(np.uint8)
    frame = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
    frame = np.clip(frame + rng.normal(0, 3, frame.shape), 0, 255).astype(np.uint8)
    label = (frame[..., 0] > 150).astype(np.uint8)
    place = Path("train") / anatomy / "01" / f"image{number:02d}.png"
    _write(places.prepared_frames / place, frame)
    _write(places.prepared_labels / place, label)


def _write(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels, PNG)
