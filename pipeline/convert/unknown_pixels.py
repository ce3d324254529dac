"""Pixels of which no label is known: filled from their neighbours, kept, left out, or refused.

Such a pixel never becomes background by itself. Label maps can say that it has no label, masks
cannot.
"""

from collections.abc import Mapping
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
        skip: whether a frame that still has some is left out.
        keep: else, whether it keeps them if its format has such pixels; otherwise it is a problem.
    """

    fill: int = 0
    skip: bool = False
    keep: bool = False

    def settle(self, content: Content, origin: str) -> Content | None:
        """The content with what is left of its unknown pixels; None if the frame is left out.

        Args:
            content: of one frame.
            origin: names it in an error.

        Raises:
            DataError: pixels stay unknown, and may not.
        """
        unknown = content.unknown
        if unknown is None or not unknown.any():
            return content
        if unknown.all():
            return self._left(content, origin, unknown, farthest=0)
        if self._keeps(content) and not self.fill:
            return _labelled_outside(content, content.masks, unknown)
        distance, nearest = distance_transform_edt(unknown, return_indices=True)
        masks = {anatomy: mask[tuple(nearest)] for anatomy, mask in content.masks.items()}
        left = distance > self.fill
        if not left.any():
            return replace(content, masks=masks, unknown=None)
        if self._keeps(content):
            return _labelled_outside(content, masks, left)
        return self._left(content, origin, unknown, int(np.ceil(distance.max())))

    def _keeps(self, content: Content) -> bool:
        return self.keep and content.documented and not self.skip

    def _left(self, content: Content, origin: str, unknown: Mask, farthest: int) -> Content | None:
        """What becomes of a frame whose unknown pixels were not filled."""
        if self.skip:
            return None
        if self._keeps(content):
            return content
        maps = "--as maps keeps them as such; " if content.documented and not self.keep else ""
        fill = f"--fill {farthest} gives them their neighbours' labels; " if farthest else ""
        why = f" ({content.unknown_as})" if content.unknown_as else ""
        raise DataError(
            [
                f"{origin}: {int(unknown.sum())} pixels ({unknown.mean():.2%}) have no known "
                f"label{why}. Fix: {maps}{fill}--skip-unknown leaves the frame out"
            ]
        )


def _labelled_outside(content: Content, masks: Mapping[str, Mask], unknown: Mask) -> Content:
    """The content with some masks, of which unknown pixels show nothing."""
    labelled = {anatomy: mask & ~unknown for anatomy, mask in masks.items()}
    return replace(content, masks=labelled, unknown=unknown)
