"""Asking trained networks: native logits on frames, clean or as a stored view shows them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from pipeline.augmentation import Augmentation, augment_frame, fingerprint, sample
from pipeline.machine import AUTOCAST, Machine, make_loader
from pipeline.models.network import Network, normalise
from pipeline.prepared import Frame, load_frame
from pipeline.stopwatch import Stopwatch, ahead


@dataclass(frozen=True)
class Question:
    """One frame as it is shown to a teacher.

    Attributes:
        frame: which frame.
        augmentation: how it is changed before it is shown.
    """

    frame: Frame
    augmentation: Augmentation


def clean_questions(frames: Sequence[Frame]) -> list[Question]:
    """Every frame as it is."""
    return [Question(frame, Augmentation()) for frame in frames]


def view_questions(frames: Sequence[Frame], seed: int, view: int, size: tuple[int, int]) -> list[Question]:
    """Every frame under one fixed augmented view, the same that the student's data set will replay."""
    return [Question(frame, sample(seed, view, frame.id, size)) for frame in frames]


Shown = tuple[NDArray[np.uint8], int]


class _Shown(Dataset[Shown]):
    """The pixels (3, H, W) uint8 of each question, and their fingerprint."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions = questions

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> Shown:
        question = self.questions[index]
        shown = augment_frame(load_frame(question.frame.image), question.augmentation)
        return shown.transpose(2, 0, 1), fingerprint(shown)


def fingerprints(questions: Sequence[Question]) -> Iterator[int]:
    """The fingerprint of the pixels of each question, as :func:`answers` gives it, without asking anybody."""
    shown = _Shown(questions)
    return (shown[i][1] for i in range(len(shown)))


def _batch(shown: Sequence[Shown]) -> tuple[torch.Tensor, list[int]]:
    """By NumPy: in a thread of its own torch would start a second team of threads, to fight with the network's."""
    return torch.from_numpy(np.stack([pixels for pixels, _ in shown])), [fingerprint for _, fingerprint in shown]


@torch.inference_mode()
def answers(
    network: Network,
    questions: Sequence[Question],
    batches: Sequence[range],
    precision: str,
    machine: Machine,
    stopwatch: Stopwatch | None = None,
) -> Iterator[tuple[NDArray[np.float32], list[int]]]:
    """The network's native logits on each batch of questions.

    Args:
        network: in eval mode.
        questions: what to ask, in order.
        batches: which questions go together; the caller decides, so that no batch crosses a shard.
        precision: 32-true, bf16-mixed or 16-mixed.
        machine: device and loader workers.
        stopwatch: counts the time that frames and the network took.

    Yields:
        Logits (b, N, 2, h, w) float32 and the fingerprints of the b frames as they were shown.
    """
    device, stopwatch = machine.torch_device, stopwatch or Stopwatch()
    network = network.to(device)
    order, pin = [list(batch) for batch in batches], device.type == "cuda"
    loader = make_loader(_Shown(questions), order, machine.workers, _batch, pin=pin)
    for frames, fingerprints in stopwatch.waiting("frames", ahead(loader)):
        with stopwatch.step("network"):
            with torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST):
                logits = network(normalise(frames.to(device, non_blocking=True), network))
            answer = logits.float().cpu().numpy()
        yield answer, fingerprints
