"""Where to compute: settings that change the time a result takes and not the result."""

import ctypes
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class Machine:
    """The device and its feeders.

    Attributes:
        device: a Fabric accelerator: auto, cpu, cuda, mps.
        workers: loader processes; 0 loads in the computing process.
    """

    device: str = "auto"
    workers: int = 0

    @property
    def torch_device(self) -> torch.device:
        """The device itself, for inference; training leaves it to Fabric."""
        if self.device != "auto":
            return torch.device(self.device)
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def make_fabric(machine: Machine, precision: str) -> "Fabric":
    """Device and precision of a training run."""
    from lightning_fabric import Fabric  # takes seconds, which inference does not need to spend

    fabric = Fabric(accelerator=machine.device, devices=1, precision=precision)  # type: ignore[arg-type]
    fabric.launch()
    return fabric


def make_loader(
    dataset: Dataset[T],
    batch_sampler: Iterable[list[Any]],
    workers: int,
    collate: Callable[[list[T]], Any] | None = None,
) -> DataLoader[T]:
    """A loader whose worker processes, if any, live as long as it does; ``collate`` as torch has it."""
    # OpenCV's pool of threads would compete with the computation, and a forked worker waits forever for the threads
    # that its parent had.
    cv2.setNumThreads(1)
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own: a loader with workers would draw from dropout's
    )


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks instead of giving each large one back to the kernel.

    Activations are large blocks that come and go with every layer: on the CPU, mapping them anew each time costs more
    than some of the layers.
    """
    if not sys.platform.startswith("linux"):
        return
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent in musl
    if mallopt is not None:
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)
