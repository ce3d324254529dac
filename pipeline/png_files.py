"""PNG files that move into place whole."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.files import write_atomically

EFFORT = [cv2.IMWRITE_PNG_COMPRESSION, 3]


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a picture (H, W) or (H, W, 3) RGB.

    Raises:
        MtkdError: the file can't be written.
    """
    ordered = pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., ::-1])
    _, encoded = cv2.imencode(".png", ordered, EFFORT)
    write_atomically(path, encoded.tobytes())
