"""Pixels of which no label is known: filled from their neighbours, left out, or refused.

No layout that is read here can say "unknown". So such a pixel never becomes background by itself.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import distance_transform_edt

from pipeline.convert.plans import Content, Mask
from pipeline.dsad import DataError


@dataclass(frozen=True)
class UnknownPixels:
    """What is done with pixels of which no label is known.

    Attributes:
        fill: an unknown pixel takes the labels of the nearest known one, if that is at most so
            many pixels away.
        skip: whether a frame that still has some is left out; else it is a problem.
    """

    fill: int = 0
    skip: bool = False

    def settle(self, content: Content, origin: str) -> Content | None:
        """The content without unknown pixels; None if the frame is left out.

        Args:
            content: of one frame.
            origin: names it in an error.

        Raises:
            DataError: pixels stay unknown.
        """
        unknown = content.unknown
        if unknown is None or not unknown.any():
            return content
        if unknown.all():
            return self._left(content, origin, unknown, farthest=0)
        distance, nearest = distance_transform_edt(unknown, return_indices=True)
        farthest = int(np.ceil(distance.max()))
        if farthest > self.fill:
            return self._left(content, origin, unknown, farthest)
        masks = {anatomy: mask[tuple(nearest)] for anatomy, mask in content.masks.items()}
        return replace(content, masks=masks, unknown=None)

    def _left(self, content: Content, origin: str, unknown: Mask, farthest: int) -> Content | None:
        if self.skip:
            return None
        fill = f"--fill {farthest} gives them their neighbours' labels; " if farthest else ""
        why = f" ({content.unknown_as})" if content.unknown_as else ""
        raise DataError(
            [
                f"{origin}: {int(unknown.sum())} pixels ({unknown.mean():.2%}) have no known "
                f"label{why}, and no layout here can say so: {fill}--skip-unknown leaves the frame "
                "out"
            ]
        )
