"""Who gets which GPU, and how many cores, where several processes compute side by side."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.environment import loaders

Slot = dict[str, str]


def slots(jobs: int | None, kind: str) -> list[Slot]:
    """The environment of each process that runs at the same time.

    On CUDA each has one GPU, in turn where there are more processes than GPUs, and its share of the
    cores for loader processes; how many were asked for in MTKD_WORKERS holds. Elsewhere each has
    its share of the threads that torch has here.

    Args:
        jobs: how many processes; None for one per GPU, or a single one without any.
        kind: of device: cpu, cuda or mps.
    """
    if kind != "cuda":
        threads = max(1, torch.get_num_threads() // (jobs or 1))
        return [{"MTKD_DEVICE": kind, "OMP_NUM_THREADS": str(threads)} for _ in range(jobs or 1)]
    present = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(present)))
    gpus = visible.split(",")[:present]  # CUDA ends at the first name that no device has
    count = jobs or len(gpus)
    workers = os.environ.get("MTKD_WORKERS") or str(loaders(count))
    shared = {"MTKD_DEVICE": kind, "MTKD_WORKERS": workers}
    return [{**shared, "CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(count)]


@contextmanager
def environment(slot: Slot) -> Iterator[None]:
    """Variables for processes that are started meanwhile: CUDA reads them at its start."""
    before = dict(os.environ)
    os.environ.update(slot)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
