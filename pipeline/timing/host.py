"""The machine that figures come from."""

import os
import platform
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from pipeline.machine import Machine

LIBRARIES = ("numpy", "transformers", "onnxruntime", "openvino", "nncf")


def machine_record(machine: Machine, used: Sequence[str] = ()) -> dict[str, Any]:
    """Processor, threads, device and libraries, as they stand beside every time and evaluation.

    Args:
        machine: where it is computed.
        used: libraries that other processes use; those that this one has loaded are named in any
            case.
    """
    device = machine.torch_device
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "allocator": _allocator(),
        "libraries": _libraries(used),
    }


def _libraries(used: Sequence[str]) -> dict[str, str]:
    """Versions as the modules report them.

    Several packages bring ``onnxruntime``, and more than one of them may be installed.
    """
    for name in used:
        # Whatever a library raises that is not installed, or cannot be loaded here.
        with suppress(Exception):
            import_module(name)
    loaded = {name: sys.modules[name] for name in LIBRARIES if name in sys.modules}
    return {name: str(getattr(module, "__version__", "unknown")) for name, module in loaded.items()}


def _allocator() -> str:
    """The allocator of memory, which decides over half of the time of a large frame on a CPU."""
    preloaded = os.environ.get("LD_PRELOAD", "")
    for name in ("jemalloc", "tcmalloc", "mimalloc"):
        if name in preloaded:
            return name
    return "glibc, freed blocks kept" if sys.platform.startswith("linux") else "of the system"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
