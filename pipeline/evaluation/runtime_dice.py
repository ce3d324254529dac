"""Dice of masks that another runtime than training's computed."""

from collections.abc import Sequence

import cv2

from pipeline.counts import Counts, count_masks
from pipeline.deployment.export import Run
from pipeline.deployment.segmenter import resized
from pipeline.evaluation.dice import mean, mean_dice
from pipeline.prepared import Frame, load_frame, load_label


def runtime_dice(
    run: Run, frames: Sequence[Frame], anatomies: Sequence[str], size: tuple[int, int]
) -> float | None:
    """Dice in percent: per anatomy the mean over its labelled frames, then the mean over anatomies.

    Args:
        run: from a frame (H, W, 3) uint8 to masks (N, H, W) bool.
        frames: prepared ones.
        anatomies: in the order of the masks.
        size: (H, W) that ``run`` takes; frames and labels are brought to it.
    """
    counts = [_counts(run, frame, anatomies, size) for frame in frames]
    per_anatomy = mean_dice(counts, [frame.anatomy for frame in frames])
    value = mean([dice for dice in per_anatomy.values() if dice is not None])
    return None if value is None else round(100 * value, 2)


def _counts(run: Run, frame: Frame, anatomies: Sequence[str], size: tuple[int, int]) -> Counts:
    masks = run(resized(load_frame(frame.image), size))
    label = resized(load_label(frame.label), size, cv2.INTER_NEAREST_EXACT) > 0
    return count_masks(masks[anatomies.index(frame.anatomy)], label)
