"""Dice of masks that another runtime than training's computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.counts import Counts, count_masks
from pipeline.deployment.export import Run
from pipeline.deployment.segmenter import resized
from pipeline.evaluation.dice import known_counts, mean, mean_dice, pooled
from pipeline.label_maps import NO_LABEL
from pipeline.labels import NOT_LABELLED, UNKNOWN, load_labels, targets
from pipeline.prepared import Frame, load_frame, load_label

NEAREST = cv2.INTER_NEAREST_EXACT


@dataclass(frozen=True)
class RuntimeDice:
    """What ``mtkd evaluate`` also measures, in percent.

    Attributes:
        own: per anatomy the mean over its labelled frames, then the mean over anatomies.
        every: per anatomy over all pixels of the frames whose label map names it, then the mean
            over anatomies; None where there is none.
    """

    own: float | None
    every: float | None


def runtime_dice(
    run: Run, frames: Sequence[Frame], anatomies: Sequence[str], size: tuple[int, int]
) -> RuntimeDice:
    """Dice on the frames of each anatomy, and of all decoders on every frame.

    Args:
        run: from a frame (H, W, 3) uint8 to masks (N, H, W) bool.
        frames: prepared ones.
        anatomies: in the order of the masks.
        size: (H, W) that ``run`` takes; frames and labels are brought to it.
    """
    own: list[Counts] = []
    every: dict[str, list[Counts | None]] = {}  # of each picture once
    for frame in frames:
        image = load_frame(frame.image)
        masks = run(resized(image, size))
        own.append(_own_counts(masks, frame, anatomies))
        if frame.map:
            every[sha256(image.tobytes()).hexdigest()] = _every_counts(masks, frame, anatomies)
    per_anatomy = mean_dice(own, [frame.anatomy for frame in frames]).values()
    by_decoder = zip(*every.values(), strict=True)
    over_all = [pooled(filter(None, counts)).dice for counts in by_decoder]
    return RuntimeDice(
        _percent([dice for dice in per_anatomy if dice is not None]), _percent(over_all)
    )


def _percent(shares: Sequence[float]) -> float | None:
    value = mean(shares)
    return None if value is None else round(100 * value, 2)


def _own_counts(masks: NDArray[np.bool_], frame: Frame, anatomies: Sequence[str]) -> Counts:
    mask = masks[anatomies.index(frame.anatomy)]
    label = cv2.resize(load_label(frame.label), mask.shape[::-1], interpolation=NEAREST)
    known = label != NO_LABEL
    return count_masks(mask[known], label[known] == 1)


def _every_counts(
    masks: NDArray[np.bool_], frame: Frame, anatomies: Sequence[str]
) -> list[Counts | None]:
    """Of each decoder; None where the label map does not name its anatomy."""
    height, width = masks.shape[1:]
    labels = load_labels(frame, anatomies, (height, width))
    organ = torch.from_numpy(cv2.resize(labels.organ, (width, height), interpolation=NEAREST))
    target = targets(organ[None], torch.from_numpy(labels.background)[None])
    unknown = ((target == UNKNOWN) & (organ != NOT_LABELLED))[0].any((1, 2))
    counts = known_counts(torch.from_numpy(masks)[None], target)[0]
    rows = zip(counts.tolist(), unknown.tolist(), strict=True)
    return [None if hidden else Counts(*row) for row, hidden in rows]
