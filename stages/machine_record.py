"""The machine that figures come from."""

import os
import platform
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from pipeline.machine import Machine

LIBRARIES = ("numpy", "transformers", "onnxruntime", "openvino", "nncf")


def machine_record(machine: Machine) -> dict[str, Any]:
    """Processor, threads, device and library, as they stand beside every time and evaluation."""
    device = machine.torch_device
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "allocator": _allocator(),
        "libraries": {name: version(name) for name in LIBRARIES if find_spec(name) is not None},
    }


def _allocator() -> str:
    """Who hands out memory: on the CPU it decides over half of the time of a large frame."""
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
