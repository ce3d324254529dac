"""What is known of a pixel, for a frame and every decoder: 1, 0, or nothing.

| source | what it says of a decoder |
|---|---|
| the frame's mask | 1 on its anatomy and 0 elsewhere, for the anatomy's own decoder |
| mutual exclusivity | 0 on the mask of another anatomy |
| a weak label | 0 on the whole frame, where the anatomy is not visible |
| a label map | 1 or 0 on every pixel that has a label, for each anatomy that its legend names |

All else is unknown: only teachers may speak there. Losses, where teachers are overruled, and all
measures ask here. Mutual exclusivity is of Kolbinger et al. (2023) and the paper, section 2,
stage 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.prepared import Frame, load_label, load_map

UNKNOWN = -1  # a target
# Values of an organ map:
NO_ANATOMY = -1  # none that is known
NOT_LABELLED = -2  # outside the original frame, without a label, or with contradictory ones


@dataclass(frozen=True)
class FrameLabels:
    """What is known of one frame.

    Attributes:
        organ: (H, W) int16, the anatomy that a pixel is known to show: the position of its decoder,
            or N if it has none; ``NO_ANATOMY``; or ``NOT_LABELLED``.
        background: (N,) bool, the decoders to which a pixel of ``NO_ANATOMY`` is background. To the
            others it is unknown.
        labelled: (N,) bool, the decoders whose anatomy has a mask, or is named by a label map.
        own: position of the decoder of the frame's own anatomy; N if it has none.
    """

    organ: NDArray[np.int16]
    background: NDArray[np.bool_]
    labelled: NDArray[np.bool_]
    own: int


def load_labels(
    frame: Frame, anatomies: Sequence[str], size: tuple[int, int], *, maps: bool = True
) -> FrameLabels:
    """What masks, weak labels and label map of a prepared frame say together.

    Masks of several anatomies that overlap contradict each other: there nothing is known.

    Args:
        frame: with a label, with several (``frame.copies``), or without one.
        anatomies: of the N decoders, in order.
        size: (H, W) of a frame without a label.
        maps: whether label maps beside masks are used, too.

    Raises:
        MissingFileError, DamagedFileError: of a label.
    """
    if not frame.labelled:
        nothing = np.full(size, NOT_LABELLED, np.int16)
        none = np.zeros(len(anatomies), bool)
        return FrameLabels(nothing, none, none, len(anatomies))
    labels = [_labels_of(each, anatomies, maps) for each in frame.labels]
    return reduce(_together, labels)


def _labels_of(frame: Frame, anatomies: Sequence[str], maps: bool) -> FrameLabels:
    """What is known of a frame by its own anatomy's mask, and what lies beside it.

    A label map that names the frame's own anatomy holds its mask, too.
    """
    if frame.map is None or not (maps or frame.labelled_by_map):
        return _said(frame, load_label(frame.label), (frame.anatomy,), anatomies)
    mapped = _said(frame, load_map(frame.map), frame.legend, anatomies)
    if frame.anatomy in frame.legend:
        return mapped
    return _together(_said(frame, load_label(frame.label), (frame.anatomy,), anatomies), mapped)


def _said(
    frame: Frame, values: NDArray[np.uint8], legend: Sequence[str], anatomies: Sequence[str]
) -> FrameLabels:
    """What values (H, W) with a legend say, and the frame's weak labels."""
    organs = np.full(256, NOT_LABELLED, np.int16)
    organs[0] = NO_ANATOMY
    for value, name in enumerate(legend, start=1):
        organs[value] = _position(anatomies, name)
    absent = {name for name, shown in frame.shows.items() if not shown}
    labelled = np.array([name in legend for name in anatomies])
    background = labelled | np.array([name in absent for name in anatomies])
    return FrameLabels(organs[values], background, labelled, _position(anatomies, frame.anatomy))


def _together(first: FrameLabels, second: FrameLabels) -> FrameLabels:
    """What two labels of one picture say."""
    organ = np.where(first.organ == NO_ANATOMY, second.organ, first.organ)
    contradicted = (second.organ != NO_ANATOMY) & (organ != second.organ)
    return FrameLabels(
        np.where(contradicted, np.int16(NOT_LABELLED), organ),
        first.background | second.background,
        first.labelled | second.labelled,
        first.own,
    )


def _position(anatomies: Sequence[str], name: str) -> int:
    """Of an anatomy's decoder; N if it has none."""
    return anatomies.index(name) if name in anatomies else len(anatomies)


def own_decoder(anatomy: Tensor, decoders: int) -> Tensor:
    """Which decoder a frame is labelled for.

    Args:
        anatomy: (B,) int64, its position; ``decoders`` for none.
        decoders: number of decoders N.

    Returns:
        (B, N) bool.
    """
    return anatomy[:, None] == torch.arange(decoders, device=anatomy.device)


def absences(organ: Tensor, background: Tensor, labelled: Tensor) -> Tensor:
    """Where a decoder's target is background because its anatomy is known to be absent.

    Neither its own label nor another anatomy's mask says so.

    Args:
        organ: (B, H, W), see :class:`FrameLabels`.
        background: (B, N) bool.
        labelled: (B, N) bool.

    Returns:
        (B, N, H, W) bool.
    """
    absent = background & ~labelled
    return (organ == NO_ANATOMY)[:, None] & absent[:, :, None, None]


def targets(organ: Tensor, background: Tensor) -> Tensor:
    """What each decoder may learn from a pixel, or be measured by.

    Args:
        organ: (B, H, W) integers, see :class:`FrameLabels`.
        background: (B, N) bool.

    Returns:
        (B, N, H, W) int64: 1 = anatomy, 0 = background, ``UNKNOWN``.
    """
    decoders = torch.arange(background.shape[1], device=organ.device)[:, None, None]
    is_own = organ[:, None] == decoders
    is_other = (organ[:, None] >= 0) & ~is_own
    is_background = (organ[:, None] == NO_ANATOMY) & background[:, :, None, None]
    return torch.where(is_own, 1, torch.where(is_other | is_background, 0, UNKNOWN))
