"""Measuring several things in one run so that they can be compared: a process each, their calls in turn."""

import resource
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import MtkdError
from pipeline.machine import keep_freed_memory


class Measurable(Protocol):
    """Something that can be called many times."""

    def build(self) -> Callable[[], NDArray[np.float32] | None]:
        """Prepare the call, in the process that will make it; what the call returns can be asked for afterwards."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""


@dataclass(frozen=True)
class Timing:
    """How long calls took, and what they needed.

    Attributes:
        first: seconds of the first call, that nothing was ready for.
        seconds: of each counted call.
        peak: bytes that a call held at most, on top of what was there before the first one.
        answer: what a call returned.
    """

    first: float
    seconds: list[float]
    peak: int
    answer: NDArray[np.float32] | None

    @property
    def median(self) -> float:
        """Seconds."""
        return float(np.median(self.seconds))

    @property
    def p95(self) -> float:
        """Seconds that one call in twenty exceeds."""
        return float(np.quantile(self.seconds, 0.95))


def take_turns(
    subjects: Sequence[Measurable],
    warmup: int,
    repeats: int,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> list[Timing]:
    """Call each subject ``repeats`` times after ``warmup`` calls that don't count (at least one: the first).

    Each subject has a process of its own, with the same settings of the allocator: memory of another would hide its
    peak. Their calls take turns: a machine that slows down slows all of them. ``told`` hears after each round how many
    are done, and of how many.

    Raises:
        MtkdError: a process ended by itself.
    """
    warmup = max(1, warmup)
    with ExitStack() as stack:
        pools = [stack.enter_context(_process_of(subject)) for subject in subjects]
        try:
            rounds = []
            for _ in range(warmup + repeats):
                rounds.append([pool.submit(_call).result() for pool in pools])
                told(len(rounds), warmup + repeats)
            ends = [pool.submit(_end).result() for pool in pools]
        except BrokenProcessPool as error:
            raise MtkdError(
                "a process that was measured ended by itself, as when the kernel needs its memory"
            ) from error
    return [
        Timing(seconds[0], list(seconds[warmup:]), *end)
        for seconds, end in zip(zip(*rounds, strict=True), ends, strict=True)
    ]


def _process_of(subject: Measurable) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_prepare, initargs=(subject,))


@dataclass
class _Measured:
    """A call, where it computes, the bytes that were held before the first one, and what the last one returned."""

    call: Callable[[], NDArray[np.float32] | None]
    device: torch.device
    before: int
    answer: NDArray[np.float32] | None = None


_measured: _Measured  # in a subject's own process


def _prepare(subject: Measurable) -> None:
    global _measured
    keep_freed_memory()
    torch.manual_seed(0)
    _measured = _Measured(subject.build(), subject.device, _peak(subject.device, reset=True))


def _call() -> float:
    start = perf_counter()
    _measured.answer = _measured.call()
    if _measured.device.type == "cuda":
        torch.cuda.synchronize(_measured.device)
    return perf_counter() - start


def _end() -> tuple[int, NDArray[np.float32] | None]:
    return _peak(_measured.device) - _measured.before, _measured.answer


def _peak(device: torch.device, *, reset: bool = False) -> int:
    """Bytes that this process held at most (since the last reset, where the system knows one)."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    if sys.platform.startswith("linux"):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
