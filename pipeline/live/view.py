"""A frame and what the network says of it, for the page and for a recording."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.decision import enlarged, label_map
from pipeline.deployment.overlay import numbered

JPEG_QUALITY = 85
LARGEST_SIDE = 960  # of the picture on the page, which shows it about as large
MOST_ANATOMIES = 24  # a bit of the page's three bytes each


@dataclass(frozen=True)
class View:
    """One frame with its masks.

    Attributes:
        number: of the captured frame.
        captured: when it came, of :func:`time.monotonic`.
        frame: (H, W, 3) uint8 RGB.
        claims: margins (N, h, w) float32 on the network's own grid, or masks (N, H, W) bool.
        one_organ: whether a pixel belongs to one anatomy at most.
    """

    number: int
    captured: float
    frame: NDArray[np.uint8]
    claims: NDArray[Any]
    one_organ: bool

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the frame."""
        return self.frame.shape[0], self.frame.shape[1]

    @cached_property
    def labels(self) -> NDArray[np.uint8]:
        """The label map (H, W), 0 = none, i = the i-th anatomy.

        By the largest margin; where masks came without margins, the first that claims a pixel.
        """
        if self.claims.dtype == np.float32:
            return label_map(self.claims, self.size)
        return numbered(self.claims[::-1], range(len(self.claims), 0, -1))

    @cached_property
    def masks(self) -> NDArray[np.bool_]:
        """(N, H, W)."""
        if self.one_organ:
            numbers = np.arange(1, len(self.claims) + 1, dtype=np.uint8)
            return self.labels == numbers[:, None, None]
        if self.claims.dtype == bool:
            return self.claims
        return np.stack([enlarged(plane, self.size) > 0 for plane in self.claims])

    def bits(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Which anatomies claim a pixel, at a size (H, W).

        Returns:
            (H, W) with a bit for each of up to eight anatomies, or (H, W, 3) for up to
            :data:`MOST_ANATOMIES`, the first eight in the first byte.
        """
        if self.one_organ:
            labels = self._labels_at(size)
            masks = [cv2.compare(labels, i, cv2.CMP_EQ) for i in range(1, len(self.claims) + 1)]
        else:
            masks = [self._mask(plane, size) for plane in self.claims]
        planes = [np.zeros(size, np.uint8) for _ in range(1 if len(masks) <= 8 else 3)]
        for number, mask in enumerate(masks):
            plane = planes[number // 8]
            cv2.bitwise_or(plane, 1 << number % 8, plane, mask)
        return planes[0] if len(planes) == 1 else np.dstack(planes)

    def _labels_at(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        if self.claims.dtype == np.float32:
            return label_map(self.claims, size)  # faster than at the frame's size
        return cv2.resize(self.labels, size[::-1], interpolation=cv2.INTER_NEAREST)

    @staticmethod
    def _mask(plane: NDArray[Any], size: tuple[int, int]) -> NDArray[np.uint8]:
        if plane.dtype == np.float32:
            return cv2.compare(enlarged(plane, size), 0.0, cv2.CMP_GT)
        values = plane.view(np.uint8)
        return cv2.resize(values, size[::-1], interpolation=cv2.INTER_NEAREST)

    def message(self) -> bytes:
        """What the page draws: the length of a header, the header, a JPEG, and a PNG of bits."""
        picture = shown(self.frame)
        height, width = picture.shape[:2]
        jpeg = encoded(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        # Filters of lines would take four times as long.
        fast = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
        png = encoded(".png", self.bits((height, width)), fast)
        header = {"number": self.number, "width": width, "height": height, "jpeg": len(jpeg)}
        text = json.dumps(header).encode()
        return len(text).to_bytes(4, "little") + text + jpeg + png


def shown(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A frame (H, W, 3) as large as the page shows it."""
    share = LARGEST_SIDE / max(frame.shape[:2])
    if share >= 1:
        return frame
    return cv2.resize(frame, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)


def encoded(kind: str, pixels: NDArray[np.uint8], options: Sequence[int] = ()) -> bytes:
    """A picture (H, W, 3) RGB or (H, W) grey as a file of this kind, such as ``.png``."""
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
    _, content = cv2.imencode(kind, bgr, options)
    return content.tobytes()
