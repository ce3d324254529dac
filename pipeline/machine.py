"""Where to compute: settings that change the time a result takes and not what it means.

Sharing a batch changes the last digits of sums, and what batch norm sees: a piece at a time, except
on CUDA, where the processes compute its statistics together.
"""

import ctypes
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.environment import require_semaphores
from pipeline.errors import MtkdError
from pipeline.handover import HandedOver, HandOver, Loader

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")
M_TRIM_THRESHOLD = -1  # of malloc.h
M_MMAP_MAX = -4
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class Machine:
    """The devices and their feeders.

    Attributes:
        device: a Fabric accelerator: auto, cpu, cuda, mps; for inference also one of several,
            cuda:1.
        workers: loader processes of each device; 0 loads in the computing process.
        devices: training processes, one per device, that share every batch.
        accumulate: pieces in which each of them computes its share, one after another, to need less
            memory.
        compile: whether networks are compiled for training.
    """

    device: str = "auto"
    workers: int = 0
    devices: int = 1
    accumulate: int = 1
    compile: bool = False

    @property
    def torch_device(self) -> torch.device:
        """The device itself, for inference; training leaves it to Fabric.

        Raises:
            MtkdError: it is not in this machine.
        """
        name = self.device
        if name == "auto":
            mps = "mps" if torch.backends.mps.is_available() else "cpu"
            name = "cuda" if torch.cuda.is_available() else mps
        available = {
            "cpu": True,
            "cuda": torch.cuda.is_available(),
            "mps": torch.backends.mps.is_available(),
        }
        if not available[name.partition(":")[0]]:
            raise MtkdError(
                f"--device {name}: torch {torch.__version__} sees none here; choose cpu or auto"
            )
        return torch.device(name)


@contextmanager
def float32_products(device: torch.device, precision: str) -> Iterator[None]:
    """Compute float32 products meanwhile as IEEE 754 has it, or with TF32 if asked for.

    These are convolutions and products of matrices.
    TF32 keeps ten of the 23 bits of each factor. Left to itself PyTorch uses it on CUDA in
    convolutions and nowhere else. The setting is the whole process's: threads must take turns.

    Args:
        device: where it is computed; others than CUDA have no TF32.
        precision: 32-true, tf32, bf16-mixed or 16-mixed. The last two concern what they leave in
            float32.
    """
    if device.type != "cuda":
        yield
        return
    backends: tuple[Any, Any] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = precision == "tf32"
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


@contextmanager
def computing(device: torch.device, precision: str) -> Iterator[None]:
    """For a network's forward pass: what ``precision`` says of products and casts.

    In training Fabric casts.

    Args:
        device: where it is computed.
        precision: 32-true, tf32, bf16-mixed or 16-mixed.
    """
    casts = torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST)
    with float32_products(device, precision), casts:
        yield


def to_host(tensor: Tensor) -> Callable[[], NDArray[Any]]:
    """Begin to copy a tensor from the device.

    Returns:
        A function that waits for the end of the copy, and returns the array.
    """
    if tensor.device.type != "cuda":
        return tensor.cpu().numpy
    host = tensor.to("cpu", non_blocking=True)  # into pinned memory
    end = torch.cuda.current_stream(tensor.device).record_event()

    def arrived() -> NDArray[Any]:
        end.synchronize()
        return host.numpy()

    return arrived


def weights_format(device: torch.device, precision: str) -> torch.memory_format:
    """How the weights of a network that is trained lie in memory.

    Frames are channels last everywhere.

    Milliseconds of a training step under bf16-mixed on an H100, eight frames of 640x512, channels
    last and contiguous: SegFormer-B3 154 and 127, MiniNetv2 with eleven decoders 86 and 72,
    SegFormer-B0 with eleven 92 and 90. In float32 they are the same there, and on a CPU channels
    last is faster.
    """
    mixed_on_gpu = device.type == "cuda" and precision in AUTOCAST
    return torch.contiguous_format if mixed_on_gpu else torch.channels_last


def require_trainable(device: torch.device, precision: str) -> None:
    """Refuse what the device can't train in.

    Raises:
        MtkdError: 16-mixed on a CPU, of which Fabric would make bf16-mixed without a word.
    """
    if precision == "16-mixed" and device.type == "cpu":
        raise MtkdError(
            "precision 16-mixed trains on a GPU alone, and this is a CPU: use 32-true or "
            "bf16-mixed, or --device cuda"
        )


def make_fabric(machine: Machine, precision: str) -> "Fabric":
    """Devices and precision of a training run.

    With several devices, this code runs once on each from here on.

    Under torchrun the processes are there already and their number holds. No other launcher is
    asked (:mod:`pipeline.launch`).

    Raises:
        MtkdError: there are not so many devices; they can't train in this precision; another
            launcher started several processes; not all of them came.
    """
    require_trainable(machine.torch_device, precision)
    from lightning_fabric import Fabric  # takes seconds, which inference does not need to spend

    from pipeline.launch import Processes, cluster_environment, forget, marked, plan_launch

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)

    launch = plan_launch(machine.devices, os.environ)
    kind = machine.torch_device.type
    _require_devices(launch.devices, kind)
    if launch.is_first and not launch.by_torchrun:
        forget(os.environ)
    strategy = Processes() if launch.devices > 1 else "auto"
    fabric = Fabric(
        accelerator=kind,
        strategy="ddp" if launch.by_torchrun and launch.devices * launch.nodes > 1 else strategy,
        devices=launch.devices,
        num_nodes=launch.nodes,
        precision="32-true" if precision == "tf32" else precision,  # type: ignore[arg-type]
        plugins=[cluster_environment(launch)],
    )
    with marked(os.environ):
        fabric.launch()
    return fabric


def _require_devices(devices: int, kind: str) -> None:
    most = {"cuda": torch.cuda.device_count(), "mps": 1}.get(kind, devices)
    if devices > most:
        raise MtkdError(f"--devices {devices}: torch sees only {most} of type {kind}")


def make_loader(
    dataset: Dataset[T],
    batch_sampler: Iterable[list[Any]],
    workers: int,
    collate: Callable[[list[T]], Any] | None = None,
    *,
    pin: bool = False,
) -> DataLoader[T]:
    """A loader whose worker processes, if any, live as long as it does.

    Args:
        dataset: with items by key.
        batch_sampler: keys of each batch.
        workers: loader processes.
        collate: from items to a batch, as torch has it.
        pin: for batches that go to a CUDA device; a run on the CPU must not need the GPU's driver.

    Raises:
        MtkdError: processes can't work together on this machine.
    """
    if workers:
        require_semaphores(workers)
    processes = workers * (
        torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    )
    # OpenCV's pool of threads would compete with the computation, and a forked worker waits forever
    # for the threads that its parent had.
    cv2.setNumThreads(1)
    return Loader(
        HandedOver(dataset),
        batch_sampler=batch_sampler,
        num_workers=workers,
        collate_fn=HandOver(collate, processes),
        persistent_workers=workers > 0,
        pin_memory=pin,
        generator=torch.Generator(),  # its own: a loader with workers would draw from dropout's
    )


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks instead of giving each large one back to the kernel.

    Activations are large blocks that come and go with every layer: on the CPU, mapping them anew
    each time costs more than some of the layers.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent in musl
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
