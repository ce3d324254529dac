"""The machine that a time holds for."""

import platform
from pathlib import Path
from typing import Any

import torch

from pipeline.machine import Machine


def machine_record(machine: Machine) -> dict[str, Any]:
    """Processor, threads, device and library, as they stand beside every time."""
    device = machine.torch_device
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
