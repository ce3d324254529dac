"""Measuring several things in one run so that they can be compared: a process each, their calls in turn.

On CUDA one after another in this process: no neighbour slows a GPU down, and processes that share
one would wait for each other's context at every call.
"""

import gc
import resource
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.environment import clean_processes
from pipeline.machine import keep_freed_memory
from pipeline.training_errors import TooLittleMemoryError, mendable

T = TypeVar("T")
SECONDS_ON_CUDA = 0.5  # that calls of a subject take at least: single ones are short, and noise
REMEDY = "choose smaller networks, fewer decoders, smaller frames or batches, or another --device"


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
    *,
    seconds: float = 0.0,
) -> list[Timing]:
    """As :func:`try_turns`, of subjects that must all fit into memory.

    Raises:
        TooLittleMemoryError: one of them does not.
        MtkdError: a process ended by itself.
    """
    timings = [
        timing
        for timing in try_turns(subjects, warmup, repeats, told, seconds=seconds)
        if timing is not None
    ]
    if len(timings) < len(subjects):
        raise TooLittleMemoryError(f"too little memory: {REMEDY}")
    return timings


def try_turns(
    subjects: Sequence[Measurable],
    warmup: int,
    repeats: int,
    told: Callable[[int, int], None] = lambda done, total: None,
    *,
    seconds: float = 0.0,
) -> list[Timing | None]:
    """Call each subject ``repeats`` times after ``warmup`` calls that don't count (at least one: the first).

    Each subject has a process of its own, with the same settings of the allocator: memory of
    another would hide its peak. Their calls take turns: a machine that slows down slows all of
    them.

    Args:
        subjects: what to call.
        warmup: calls that don't count.
        repeats: calls that do.
        told: hears after each round how many are done, and of how many.
        seconds: that the counted calls of each subject take at least, if ``repeats`` are done
            sooner.

    Returns:
        In order; None for a subject that the memory is too little for.

    Raises:
        MtkdError: a process ended by itself.
    """
    warmup = max(1, warmup)
    if subjects and all(subject.device.type == "cuda" for subject in subjects):
        timings = []
        for number, subject in enumerate(subjects, start=1):
            timings.append(_alone(subject, warmup, repeats, max(seconds, SECONDS_ON_CUDA)))
            told(number, len(subjects))
        return timings
    with ExitStack() as stack:
        processes = [_Process(stack.enter_context(_new_process())) for _ in subjects]
        for process, subject in zip(processes, subjects, strict=True):
            process.run(_prepare, subject)
        done = 0
        while done < warmup + repeats or _shortest(processes, warmup) < seconds:
            for process in processes:
                process.call()
            done += 1
            told(done, max(done, warmup + repeats))
        return [process.timing(warmup) for process in processes]


def _alone(subject: Measurable, warmup: int, repeats: int, seconds: float) -> Timing | None:
    """Of one subject, in this process; None if the memory is too little."""
    taken: list[float] = []
    try:
        with mendable(REMEDY):
            _prepare(subject)
            while len(taken) < warmup + repeats or sum(taken[warmup:]) < seconds:
                taken.append(_call())
            return Timing(taken[0], taken[warmup:], *_end())
    except TooLittleMemoryError:
        return None
    finally:
        _forget()


def _forget() -> None:
    """The memory of what was measured last is the next one's."""
    global _measured
    _measured = None
    torch.compiler.reset()  # it keeps what it compiled, and of one function no more than eight
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _new_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        1, mp_context=clean_processes("pipeline.timing.latency", "pipeline.timing.decoders")
    )


@dataclass
class _Process:
    """Of one subject: its process, whether its memory suffices, and how long its calls took."""

    pool: ProcessPoolExecutor
    fits: bool = True
    seconds: list[float] = field(default_factory=list)

    def run(self, function: Callable[..., T], *arguments: Any) -> T | None:
        """What a function returns in the process; None, from then on, if there is too little memory for it."""
        if not self.fits:
            return None
        try:
            with mendable(REMEDY):
                return self.pool.submit(function, *arguments).result()
        except TooLittleMemoryError:
            self.fits = False
            self.pool.shutdown()  # the others have its memory
            return None

    def call(self) -> None:
        taken = self.run(_call)
        if taken is not None:
            self.seconds.append(taken)

    def timing(self, warmup: int) -> Timing | None:
        end = self.run(_end)
        return None if end is None else Timing(self.seconds[0], self.seconds[warmup:], *end)


def _shortest(processes: Sequence[_Process], warmup: int) -> float:
    """Seconds that the counted calls of each subject took at least; infinite if none is left."""
    return min(
        (sum(process.seconds[warmup:]) for process in processes if process.fits), default=inf
    )


@dataclass
class _Measured:
    """A call, where it computes, the bytes that were held before the first one, and what the last one returned."""

    call: Callable[[], NDArray[np.float32] | None]
    device: torch.device
    before: int
    answer: NDArray[np.float32] | None = None


_measured: Any = None  # a _Measured, in a subject's own process


def _prepare(subject: Measurable) -> None:
    global _measured
    keep_freed_memory()
    torch.manual_seed(0)
    _measured = _Measured(subject.build(), subject.device, peak_memory(subject.device, reset=True))


def _call() -> float:
    start = perf_counter()
    _measured.answer = _measured.call()
    if _measured.device.type != "cpu":  # whose calls return before their work is done
        torch.accelerator.synchronize(_measured.device)
    return perf_counter() - start


def _end() -> tuple[int, NDArray[np.float32] | None]:
    return peak_memory(_measured.device) - _measured.before, _measured.answer


def peak_memory(device: torch.device, *, reset: bool = False) -> int:
    """Bytes that this process held at most, on a CUDA device or else in the machine's memory.

    Since the last reset, where the system knows one.
    """
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    if sys.platform.startswith("linux"):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return 1024 * next(
            int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
