"""Trained networks on the test surgeries, frame by frame: everything that tables and pictures are made from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import metrics
from pipeline.calibration import Calibration, calibration
from pipeline.counts import Counts, count_masks
from pipeline.dsad import surgery_id
from pipeline.inference import answers, clean_questions
from pipeline.machine import Machine
from pipeline.models.network import Network, resize
from pipeline.prepared import Frame, load_label
from pipeline.surface import Surface, compare_outlines


@dataclass(frozen=True)
class Result:
    """One network on one frame, whose label is that of ``frame.anatomy``.

    Attributes:
        frame: the frame.
        counts: pixels of the own anatomy's decoder against the label.
        surface: its outline against the label's.
        calibration: its probabilities against the label.
        inside: pixels of the label that each decoder claims, in the decoders' order.
        claimed: pixels of the frame that each decoder claims.
        claimants: pixels of the frame that no decoder, one, or several claim.
    """

    frame: Frame
    counts: Counts
    surface: Surface
    calibration: Calibration
    inside: tuple[int, ...]
    claimed: tuple[int, ...]
    claimants: tuple[int, int, int]

    @property
    def surgery(self) -> str | int:
        """The id of its surgery, whose folder may be 3 under one anatomy and 03 under another."""
        return surgery_id(self.frame.surgery)

    def value(self, metric: str) -> float:
        """A metric by its name, see ``METRICS``; NaN where it has none."""
        return float(getattr(self.surface if metric in ("hd95", "nsd") else self.counts, metric))


# What is a share is told in percent, hd95 in pixels.
METRICS = ("dice", "iou", "precision", "recall", "specificity", "nsd", "hd95")


def _leads(
    network: Network, frames: Sequence[Frame], batch_size: int, machine: Machine
) -> Iterator[tuple[Frame, NDArray[np.float32], NDArray[np.bool_]]]:
    """How far each decoder's logit of the anatomy leads that of the background, (N, H, W), and the label (H, W)."""
    batches = [range(i, min(i + batch_size, len(frames))) for i in range(0, len(frames), batch_size)]
    outputs = answers(network, clean_questions(frames), batches, "32-true", machine)
    for batch, (logits, _) in zip(batches, outputs, strict=True):
        labels = [load_label(frames[i].label).astype(bool) for i in batch]
        native = torch.from_numpy(logits[:, :, 1] - logits[:, :, 0])[:, :, None]
        full = resize(native, (labels[0].shape[0], labels[0].shape[1]))[:, :, 0].numpy()
        yield from zip((frames[i] for i in batch), full, labels, strict=True)


def evaluate(
    network: Network,
    frames: Sequence[Frame],
    anatomies: Sequence[str],
    batch_size: int,
    tolerance: float | None,
    machine: Machine,
) -> Iterator[Result]:
    """One result per frame, in order.

    Args:
        network: has a decoder for each of ``anatomies``, in their order.
        frames: labelled for one of them each.
        anatomies: names of the decoders.
        batch_size: frames that the network is asked at once.
        tolerance: of the normalised surface Dice, in pixels; None leaves distances of outlines out.
        machine: where.
    """
    for frame, lead, label in _leads(network, frames, batch_size, machine):
        own = list(anatomies).index(frame.anatomy)
        masks = lead > 0
        claims = masks.sum(0)
        yield Result(
            frame,
            count_masks(masks[own], label),
            Surface(nan, nan) if tolerance is None else compare_outlines(masks[own], label, tolerance),
            calibration(1 / (1 + np.exp(-lead[own].clip(-60, 60))), label),
            tuple(int((mask & label).sum()) for mask in masks),
            tuple(int(mask.sum()) for mask in masks),
            (int((claims == 0).sum()), int((claims == 1).sum()), int((claims > 1).sum())),
        )


def own_masks(
    network: Network, frames: Sequence[Frame], anatomies: Sequence[str], machine: Machine
) -> dict[str, NDArray[np.bool_]]:
    """By a frame's id, the mask (H, W) of the decoder that it is labelled for."""
    found = _leads(network, frames, 1, machine)
    return {frame.id: lead[list(anatomies).index(frame.anatomy)] > 0 for frame, lead, _ in found}


def summarise(results: Sequence[Result], anatomies: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """``{"dice": {"mean": percent, "<anatomy>": percent or None}, "iou": {...}}`` with one decimal.

    An anatomy's value is the mean over its frames, ``mean`` that over the anatomies that have one.
    """
    table = {}
    for name in ("dice", "iou"):
        per_anatomy = {
            anatomy: metrics.mean([r.value(name) for r in results if r.frame.anatomy == anatomy])
            for anatomy in anatomies
        }
        overall = metrics.mean([value for value in per_anatomy.values() if value is not None])
        table[name] = {
            key: None if value is None else round(100 * value, 1)
            for key, value in {"mean": overall, **per_anatomy}.items()
        }
    return table
