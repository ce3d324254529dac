"""Asking trained networks: native logits on frames, clean or as a stored view shows them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import current_process
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.augmentation import Augmentation, augment_frame, fingerprint, sample
from pipeline.machine import Machine, computing, make_loader, to_host
from pipeline.models.network import Network, normalise
from pipeline.prefetch import ahead, by_threads, delayed
from pipeline.prepared import Frame, load_frame
from pipeline.stopwatch import Stopwatch


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


def view_questions(
    frames: Sequence[Frame], seed: int, view: int, size: tuple[int, int]
) -> list[Question]:
    """Every frame under one fixed augmented view, the same that the student's data set will replay."""
    return [Question(frame, sample(seed, view, frame.id, size)) for frame in frames]


Shown = tuple[NDArray[np.uint8], int]
Batch = tuple[Tensor, list[int]]  # frames (b, 3, H, W) uint8, and their fingerprints


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


def _batch(shown: Sequence[Shown]) -> Batch:
    """By NumPy: in a thread of its own torch would start a second team of threads, to fight with the network's."""
    return torch.from_numpy(np.stack([pixels for pixels, _ in shown])), [
        fingerprint for _, fingerprint in shown
    ]


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

    A GPU computes the next batch while the caller works on this one.

    Args:
        network: in eval mode.
        questions: what to ask, in order.
        batches: which questions go together; the caller decides, so that no batch crosses a shard.
        precision: 32-true, tf32, bf16-mixed or 16-mixed.
        machine: device and loader workers.
        stopwatch: counts the time that frames and the network took.

    Yields:
        Logits (b, N, 2, h, w) float32 and the fingerprints of the b frames as they were shown.
    """
    stopwatch = stopwatch or Stopwatch()
    network = network.to(machine.torch_device)

    def ask(frames: Tensor) -> Tensor:
        return network(normalise(frames, network))

    outputs = on_device(ask, questions, batches, precision, machine, stopwatch)
    copies = ((to_host(logits), fingerprints) for logits, fingerprints in outputs)
    for arrived, fingerprints in delayed(copies, in_flight(machine.torch_device)):
        with stopwatch.step("network"):
            answer = arrived()
        yield answer, fingerprints


@torch.inference_mode()
def on_device(
    ask: Callable[[Tensor], Tensor],
    questions: Sequence[Question],
    batches: Sequence[range],
    precision: str,
    machine: Machine,
    stopwatch: Stopwatch,
) -> Iterator[tuple[Tensor, list[int]]]:
    """As :func:`answers`, of any function of frames (b, 3, H, W) uint8; on the device, which may still compute it."""
    device = machine.torch_device
    loaded = _loaded(_Shown(questions), [list(batch) for batch in batches], machine.workers, device)
    for frames, fingerprints in stopwatch.waiting("frames", ahead(_on(device, loaded))):
        with stopwatch.step("network"):
            with computing(device, precision):
                answer = ask(frames.to(device, non_blocking=True))
            answer = answer.float()
        yield answer, fingerprints


def in_flight(device: torch.device) -> int:
    """Batches that the device computes while the caller works on the one before: a CPU is the caller's own."""
    return 1 if device.type == "cuda" else 0


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor on the device, which it may not have reached yet."""
    tensor = torch.from_numpy(array)
    return (
        tensor.pin_memory().to(device, non_blocking=True)
        if device.type == "cuda"
        else tensor.to(device)
    )


def _loaded(
    shown: _Shown, order: list[list[int]], workers: int, device: torch.device
) -> Iterable[Batch]:
    """The batches, loaded by processes; by threads where there may be none, as in dask's daemonic workers."""
    if workers and current_process().daemon:
        cv2.setNumThreads(1)  # as loaders do
        return by_threads(lambda batch: _batch([shown[i] for i in batch]), order, workers)
    return make_loader(shown, order, workers, _batch, pin=device.type == "cuda")


def _on(device: torch.device, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, for a GPU with a number: memory would be pinned by the first GPU, and so take some of its own."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # of the thread that loads
    yield from batches
