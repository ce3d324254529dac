"""Dice and IoU of trained networks on the test surgeries, frame by frame."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import metrics
from pipeline.inference import answers, clean_questions
from pipeline.machine import Machine
from pipeline.models.network import Network
from pipeline.prepared import Frame, load_label


@dataclass(frozen=True)
class Result:
    """One network on one frame.

    Attributes:
        frame: the frame, which is labelled for ``frame.anatomy``.
        counts: pixels of that anatomy's decoder against the label.
    """

    frame: Frame
    counts: metrics.Counts


def masks(
    network: Network, frames: Sequence[Frame], anatomies: Sequence[str], batch_size: int, machine: Machine
) -> Iterator[tuple[Frame, NDArray[np.bool_], NDArray[np.uint8]]]:
    """The mask (H, W) of each frame's own decoder, and the label (H, W) of 0 and 1."""
    batches = [range(i, min(i + batch_size, len(frames))) for i in range(0, len(frames), batch_size)]
    outputs = answers(network, clean_questions(frames), batches, "32-true", machine)
    for batch, (logits, _) in zip(batches, outputs, strict=True):
        chosen = [frames[i] for i in batch]
        labels = [load_label(frame.label) for frame in chosen]
        own = torch.tensor([list(anatomies).index(frame.anatomy) for frame in chosen])
        predicted = metrics.own_masks(torch.from_numpy(logits), own, labels[0].shape)
        yield from zip(chosen, predicted.numpy(), labels, strict=True)


def evaluate(
    network: Network, frames: Sequence[Frame], anatomies: Sequence[str], batch_size: int, machine: Machine
) -> list[Result]:
    """One result per frame, in order."""
    return [
        Result(frame, metrics.count(torch.from_numpy(mask)[None], torch.from_numpy(label)[None])[0])
        for frame, mask, label in masks(network, frames, anatomies, batch_size, machine)
    ]


def summarise(results: Sequence[Result], anatomies: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """``{"dice": {"mean": percent, "<anatomy>": percent or None}, "iou": {...}}`` with one decimal.

    An anatomy's value is the mean over its frames, ``mean`` that over the anatomies that have one.
    """
    table = {}
    for name in ("dice", "iou"):
        per_anatomy = {
            anatomy: metrics.mean([getattr(r.counts, name) for r in results if r.frame.anatomy == anatomy])
            for anatomy in anatomies
        }
        overall = metrics.mean([value for value in per_anatomy.values() if value is not None])
        table[name] = {
            key: None if value is None else round(100 * value, 1)
            for key, value in {"mean": overall, **per_anatomy}.items()
        }
    return table
