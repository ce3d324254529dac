"""Running inference: native logits of trained networks on frames, clean or as a stored view."""

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
class InferenceInput:
    """One frame as it is given to a teacher.

    Attributes:
        frame: which frame.
        augmentation: how it is changed before.
    """

    frame: Frame
    augmentation: Augmentation


def clean_inputs(frames: Sequence[Frame]) -> list[InferenceInput]:
    """Every frame as it is."""
    return [InferenceInput(frame, Augmentation()) for frame in frames]


def view_inputs(
    frames: Sequence[Frame], seed: int, view: int, size: tuple[int, int]
) -> list[InferenceInput]:
    """Every frame under one fixed augmented view, which the student's data set will replay."""
    return [InferenceInput(frame, sample(seed, view, frame.id, size)) for frame in frames]


Pixels = tuple[NDArray[np.uint8], int]  # of one frame (3, H, W), and their fingerprint
Batch = tuple[Tensor, list[int]]  # frames (b, 3, H, W) uint8, and their fingerprints


class _InputPixels(Dataset[Pixels]):
    """The pixels (3, H, W) uint8 of each input, and their fingerprint."""

    def __init__(self, inputs: Sequence[InferenceInput]) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Pixels:
        item = self.inputs[index]
        pixels = augment_frame(load_frame(item.frame.image), item.augmentation)
        return pixels.transpose(2, 0, 1), fingerprint(pixels)


def fingerprints(inputs: Sequence[InferenceInput]) -> Iterator[int]:
    """Fingerprints of each input's pixels, as of :func:`predictions`, without inference."""
    pixels = _InputPixels(inputs)
    return (pixels[i][1] for i in range(len(pixels)))


@torch.inference_mode()
def predictions(
    network: Network,
    inputs: Sequence[InferenceInput],
    batches: Sequence[range],
    precision: str,
    machine: Machine,
    stopwatch: Stopwatch | None = None,
) -> Iterator[tuple[NDArray[np.float32], list[int]]]:
    """The network's native logits on each batch of inputs.

    A GPU computes the next batch while the caller works on this one.

    Args:
        network: in eval mode.
        inputs: frames and how they are augmented, in order.
        batches: which inputs go together; the caller decides, so that no batch crosses a shard.
        precision: 32-true, tf32, bf16-mixed or 16-mixed.
        machine: device and loader workers.
        stopwatch: counts the time that frames and the network took.

    Yields:
        Logits (b, N, 2, h, w) float32 and the fingerprints of the b frames' input pixels.
    """
    stopwatch = stopwatch or Stopwatch()
    network = network.to(machine.torch_device)

    def compute(frames: Tensor) -> Tensor:
        return network(normalise(frames, network))

    outputs = on_device(compute, inputs, batches, precision, machine, stopwatch)
    copies = ((to_host(logits), fingerprints) for logits, fingerprints in outputs)
    for arrived, fingerprints in delayed(copies, in_flight(machine.torch_device)):
        with stopwatch.step("network"):
            logits = arrived()
        yield logits, fingerprints


@torch.inference_mode()
def on_device(
    compute: Callable[[Tensor], Tensor],
    inputs: Sequence[InferenceInput],
    batches: Sequence[range],
    precision: str,
    machine: Machine,
    stopwatch: Stopwatch,
) -> Iterator[tuple[Tensor, list[int]]]:
    """As :func:`predictions`, of any function of frames (b, 3, H, W) uint8.

    Yields:
        Its results in float32, on the device, which may still compute them; and the fingerprints.
    """
    device = machine.torch_device
    order = [list(batch) for batch in batches]
    loaded = _loaded(_InputPixels(inputs), order, machine.workers, device)
    for frames, fingerprints in stopwatch.waiting("frames", ahead(_on(device, loaded))):
        with stopwatch.step("network"):
            with computing(device, precision):
                output = compute(frames.to(device, non_blocking=True))
            output = output.float()
        yield output, fingerprints


def in_flight(device: torch.device) -> int:
    """Batches that the device computes while the caller works on the one before.

    A CPU is the caller's own.
    """
    return 1 if device.type == "cuda" else 0


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor on the device, which it may not have reached yet."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _loaded(
    pixels: _InputPixels, order: list[list[int]], workers: int, device: torch.device
) -> Iterable[Batch]:
    """The batches, loaded by processes.

    By threads where there may be no processes, as in dask's daemonic workers.
    """
    if workers and current_process().daemon:
        cv2.setNumThreads(1)  # as loaders do
        return by_threads(lambda batch: _batch([pixels[i] for i in batch]), order, workers)
    return make_loader(pixels, order, workers, _batch, pin=device.type == "cuda")


def _batch(items: Sequence[Pixels]) -> Batch:
    """Stacked by NumPy: in a thread of its own torch would start a second team of threads.

    These would fight with the network's.
    """
    frames = np.stack([pixels for pixels, _ in items])
    return torch.from_numpy(frames), [fingerprint for _, fingerprint in items]


def _on(device: torch.device, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, for a GPU with a number.

    Memory would be pinned by the first GPU, and so take some of its own.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # of the thread that loads
    yield from batches
