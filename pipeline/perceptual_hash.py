"""A fingerprint of how a frame looks, and frames that look alike.

The frame is made small and grey. The signs of its coarsest cosine waves against their median are
the bits: Zauner, *Implementation and benchmarking of perceptual image hash functions* (2010), with
12 waves a side instead of 8. A frame that is compressed again, resized, or made brighter keeps most
bits; another view of the same scene does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 64  # pixels, of the small frame
WAVES = 12  # a side
BITS = WAVES * WAVES - 1  # the constant wave is the brightness
# Bits in which frames that look alike may differ, from 41 frames of CholecSeg8k and 367 of CamVid.
# Changed copies differ in at most 16 bits: JPEG of quality 50, half the size, another aspect, a
# quarter brighter, 30 % darker, noise of 8 of 255. Frames of two surgeries of CholecSeg8k differ in
# at least 50.
ALIKE = 16
FLAT = 2.0  # of 255: a small frame with a smaller standard deviation has no waves to speak of
_ROWS = 1024  # frames that are compared with all others at once


@dataclass(frozen=True)
class Pair:
    """Two frames that look alike: their positions, and in how many bits they differ."""

    first: int
    second: int
    distance: int


def perceptual_hash(frame: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
    """The fingerprint of a frame.

    Args:
        frame: (H, W, 3) RGB.

    Returns:
        (``BITS``,); None of a frame without structure, such as a black one.
    """
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    if small.std() < FLAT:
        return None
    waves = cv2.dct(small)[:WAVES, :WAVES].ravel()[1:]
    return np.asarray(waves > np.median(waves))


def alike(
    hashes: Sequence[NDArray[np.bool_]], groups: Sequence[object], listed: int, most: int = ALIKE
) -> tuple[list[Pair], int]:
    """Frames of different groups that look alike.

    Args:
        hashes: of N frames.
        groups: what each frame belongs to, such as its surgery.
        listed: how many pairs are returned.
        most: bits in which two may differ.

    Returns:
        The pairs that are most alike, the closest first; and how many pairs there are.
    """
    if not hashes:
        return [], 0
    # The product of two signs is 1 where bits agree and -1 where they differ.
    signs = np.where(np.stack(hashes), 1, -1).astype(np.float32)
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    group = np.array([numbers[each] for each in groups])
    blocks = []
    for start in range(0, len(signs), _ROWS):
        rows = slice(start, start + _ROWS)
        distances = np.rint((BITS - signs[rows] @ signs.T) / 2).astype(np.int32)
        is_pair = np.triu((distances <= most) & (group[rows, None] != group), start + 1)
        row, column = np.nonzero(is_pair)
        blocks.append(np.stack([row + start, column, distances[row, column]], axis=1))
    pairs = np.concatenate(blocks)
    closest = pairs[np.argsort(pairs[:, 2], kind="stable")[:listed]]
    return [Pair(*map(int, pair)) for pair in closest], len(pairs)
