"""Prepared frames of any size for measurements, that cost as much to read as a video's."""

import cv2
import numpy as np

from pipeline.prepared import PNG
from stages.shared.paths import PREPARED_FRAMES, PREPARED_LABELS


def write_example(anatomy: str, number: int, size: tuple[int, int]) -> None:
    """A training frame (H, W) with its label, in the current folder.

    Smooth shapes with a little grain, which compress about as a video frame does.
    """
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 255, (9, 11, 3)).astype(np.uint8)
    frame = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
    frame = np.clip(frame + rng.normal(0, 3, frame.shape), 0, 255).astype(np.uint8)
    for kind, pixels in (
        (PREPARED_FRAMES, frame),
        (PREPARED_LABELS, (frame[..., 0] > 150).astype(np.uint8)),
    ):
        path = kind / "train" / anatomy / "01" / f"image{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), pixels, PNG)
