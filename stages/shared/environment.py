"""What the machine and a cluster's variables mean for the work ahead, said before it begins."""

import os
from collections.abc import Callable

import torch

from pipeline.environment import load_warning, shared_memory, temporary_warning
from pipeline.handover import needed
from pipeline.machine import Machine
from stages.shared.console import readable, say


def say_environment(machine: Machine) -> None:
    """Say where temporary files go instead, and whether the cores are free.

    Args:
        machine: devices and loader workers.

    Raises:
        MtkdError: temporary files can go nowhere.
    """
    on_cpu = machine.torch_device.type == "cpu"
    load = load_warning(torch.get_num_threads() if on_cpu else 1, machine.workers * machine.devices)
    for line in (temporary_warning(), load):
        if line is not None:
            say(f"warning: {line}")


def say_handover(machine: Machine, batch: Callable[[], int]) -> None:
    """Say if batches will not fit into shared memory.

    Args:
        machine: devices and loader workers.
        batch: bytes of what a loader process loads at once.
    """
    processes = machine.workers * machine.devices
    free = shared_memory()
    if not processes or free is None:
        return
    wanted = needed(batch(), processes)
    if free < wanted:
        say(
            f"warning: /dev/shm has {readable(free)} free, {processes} loader processes fill "
            f"about {readable(wanted)}: "
            "batches go through pipes instead, which takes longer; start Docker with "
            "--shm-size=1g, or use fewer "
            "--workers"
        )


def say_launch(machine: Machine) -> bool:
    """Say what the variables of a cluster mean for a training.

    Returns:
        Whether this process is the one that talks.

    Raises:
        MtkdError: as of ``plan_launch``.
    """
    from pipeline.launch import plan_launch

    launch = plan_launch(machine.devices, os.environ)
    if launch.note:
        say(f"note: {launch.note}")
    return launch.is_first
