"""A frame and what the network says of it, for the page and for a recording."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.decision import enlarged, label_map
from pipeline.deployment.overlay import numbered
from pipeline.deployment.segmenter import masks_at

JPEG_QUALITY = 85
SHOWN = 960  # the longer side of the picture on the page, which shows it about as large
MOST_ANATOMIES = 24  # a bit of the page's three bytes each


@dataclass(frozen=True)
class View:
    """One frame with its masks.

    Attributes:
        number: of the captured frame.
        index: 0, 1, ... of the segmented frames.
        captured: when it came, of :func:`time.monotonic`.
        frame: (H, W, 3) uint8 RGB.
        claims: margins (N, h, w) float32 on the network's own grid, or masks (N, H, W) bool.
        one_organ: whether a pixel belongs to one anatomy at most.
    """

    number: int
    index: int
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

    def bits(self) -> NDArray[np.uint8]:
        """Which anatomies claim a pixel.

        Returns:
            (H, W) with a bit for each of up to eight anatomies, or (H, W, 3) for up to
            :data:`MOST_ANATOMIES`, the first eight in the first byte.
        """
        several = len(self.claims) > 8
        planes = self._planes(3 if several else 1)
        return np.dstack(planes) if several else planes[0]

    def _planes(self, number: int) -> list[NDArray[np.uint8]]:
        if self.one_organ:
            return [cv2.LUT(self.labels, _bit(byte)) for byte in range(number)]
        planes = [np.zeros(self.size, np.uint8) for _ in range(number)]
        for i, claim in enumerate(self.claims):
            cv2.bitwise_or(planes[i // 8], 1 << i % 8, planes[i // 8], self._mask(claim))
        return planes

    def _mask(self, claim: NDArray[Any]) -> NDArray[np.uint8]:
        """Where an anatomy is, (H, W), not 0."""
        if claim.dtype == np.float32:
            return cv2.compare(enlarged(claim, self.size), 0.0, cv2.CMP_GT)
        return claim.view(np.uint8)

    def within(self, side: int) -> "View":
        """The same with its longer side at most this long."""
        share = side / max(self.size)
        if share >= 1:
            return self
        # Down to a half each pixel has its part in linear interpolation, which takes a quarter.
        how = cv2.INTER_LINEAR if share >= 0.5 else cv2.INTER_AREA
        frame = cv2.resize(self.frame, None, fx=share, fy=share, interpolation=how)
        claims = self.claims
        if claims.dtype == bool:
            claims = masks_at(claims, frame.shape[:2])
        return replace(self, frame=frame, claims=claims)

    @cached_property
    def message(self) -> bytes:
        """What each page draws: the length of a header, the header, a JPEG, and a PNG of bits."""
        shown = self.within(SHOWN)
        height, width = shown.size
        jpeg = encoded(".jpg", shown.frame, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        # Filters of lines would take four times as long.
        fast = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
        png = encoded(".png", shown.bits(), fast)
        header = {
            "number": self.number,
            "index": self.index,
            "width": width,
            "height": height,
            "jpeg": len(jpeg),
        }
        text = json.dumps(header).encode()
        return len(text).to_bytes(4, "little") + text + jpeg + png


def _bit(byte: int) -> NDArray[np.uint8]:
    """For each label of 0..255 its bit in one of the bytes, (256,); 0 if it is in another."""
    table = np.zeros(256, np.uint8)
    table[8 * byte + 1 : 8 * byte + 9] = 1 << np.arange(8)
    return table


def encoded(kind: str, pixels: NDArray[np.uint8], options: Sequence[int] = ()) -> bytes:
    """A picture (H, W, 3) RGB or (H, W) grey as a file of this kind, such as ``.png``."""
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
    _, content = cv2.imencode(kind, bgr, options)
    return content.tobytes()
