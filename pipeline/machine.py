"""Where to compute: settings that change the time a result takes and not the result."""

import ctypes
import sys
from dataclasses import dataclass

from lightning_fabric import Fabric


@dataclass(frozen=True)
class Machine:
    """The device and its feeders.

    Attributes:
        device: a Fabric accelerator: auto, cpu, cuda, mps.
        workers: loader processes; 0 loads in the computing process.
    """

    device: str = "auto"
    workers: int = 0


def make_fabric(machine: Machine, precision: str) -> Fabric:
    """The device and its precision."""
    fabric = Fabric(accelerator=machine.device, devices=1, precision=precision)  # type: ignore[arg-type]
    fabric.launch()
    return fabric


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
