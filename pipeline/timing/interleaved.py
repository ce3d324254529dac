"""Interleaved measurement: several subjects in one run, so that they can be compared.

Each has a process of its own, and their calls alternate. On CUDA they are measured one after
another in this process: no neighbour slows a GPU down, and processes that share one would wait for
each other's context at every call.
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
from pipeline.errors import MtkdError
from pipeline.machine import keep_freed_memory
from pipeline.training_errors import translated_errors

T = TypeVar("T")
SECONDS_ON_CUDA = 0.5  # that calls of a subject take at least: single ones are short, and noise


class Measurable(Protocol):
    """Something that can be called many times."""

    def build(self) -> Callable[[], NDArray[np.float32] | None]:
        """Prepare the call, in the process that will make it.

        The output of the last call is kept, see :class:`Timing`.
        """

    @property
    def device(self) -> torch.device:
        """Where it computes."""


@dataclass(frozen=True)
class Timing:
    """How long calls took, and what they needed.

    Attributes:
        first: seconds of the first call; it makes a graph, or compiles.
        seconds: of each counted call.
        peak: bytes that a call held at most, on top of what was there before the first one.
        output: of the last call; None if calls return nothing.
    """

    first: float
    seconds: list[float]
    peak: int
    output: NDArray[np.float32] | None

    @property
    def median(self) -> float:
        """Seconds."""
        return float(np.median(self.seconds))

    @property
    def p95(self) -> float:
        """Seconds that one call in twenty exceeds."""
        return float(np.quantile(self.seconds, 0.95))


def interleave(
    subjects: Sequence[Measurable],
    warmup: int,
    repeats: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    seconds: float = 0.0,
) -> list[Timing]:
    """As :func:`try_interleaved`, of subjects that must all be measured.

    Raises:
        MtkdError: the problem of the first one that can't be.
    """
    timings = []
    for timing in try_interleaved(subjects, warmup, repeats, progress, seconds=seconds):
        if isinstance(timing, MtkdError):
            raise timing
        timings.append(timing)
    return timings


def try_interleaved(
    subjects: Sequence[Measurable],
    warmup: int,
    repeats: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    seconds: float = 0.0,
) -> list[Timing | MtkdError]:
    """Call each subject ``repeats`` times after ``warmup`` calls that don't count.

    Each subject has a process of its own, with the same settings of the allocator: memory of
    another would hide its peak. Their calls are interleaved: a machine that slows down slows all of
    them. The first call never counts.

    Args:
        subjects: what to call.
        warmup: calls that don't count, at least one.
        repeats: calls that do.
        progress: is called after each round with how many are done, and of how many.
        seconds: that the counted calls of each subject take at least, if ``repeats`` are done
            sooner.

    Returns:
        In order; for a subject that can't be measured, its problem: too little memory, kernels
        that can't be launched, a process that ended by itself. The others are measured.
    """
    warmup = max(1, warmup)
    if subjects and all(subject.device.type == "cuda" for subject in subjects):
        timings = []
        for number, subject in enumerate(subjects, start=1):
            timings.append(_alone(subject, warmup, repeats, max(seconds, SECONDS_ON_CUDA)))
            progress(number, len(subjects))
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
            progress(done, max(done, warmup + repeats))
        return [process.timing(warmup) for process in processes]


def _alone(subject: Measurable, warmup: int, repeats: int, seconds: float) -> Timing | MtkdError:
    """Of one subject, in this process; its problem if it has one."""

    def timed() -> Timing:
        taken: list[float] = []
        _prepare(subject)
        while len(taken) < warmup + repeats or sum(taken[warmup:]) < seconds:
            taken.append(_call())
        return Timing(taken[0], taken[warmup:], *_end())

    try:
        return attempted(timed)
    finally:
        _forget()


def attempted(work: Callable[[], T]) -> T | MtkdError:
    """What the work returns; its problem, if that is one that a user can mend."""
    try:
        with translated_errors():
            return work()
    except MtkdError as error:
        # The frames of a traceback would keep what failed, and its memory.
        error.__cause__ = None
        error.__context__ = None
        return error.with_traceback(None)


def _forget() -> None:
    """Free the memory of the last subject for the next one."""
    global _subject
    _subject = None
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
    """Of one subject: its process, its problem if it has one, and how long its calls took."""

    pool: ProcessPoolExecutor
    problem: MtkdError | None = None
    seconds: list[float] = field(default_factory=list)

    def run(self, function: Callable[..., T], *arguments: Any) -> T | None:
        """The result of a function in the process; None if it has a problem.

        From then on the result is None in any case.
        """
        if self.problem:
            return None
        result = attempted(lambda: self.pool.submit(function, *arguments).result())
        if not isinstance(result, MtkdError):
            return result
        self.problem = result
        self.pool.shutdown()  # the others have its memory
        return None

    def call(self) -> None:
        taken = self.run(_call)
        if taken is not None:
            self.seconds.append(taken)

    def timing(self, warmup: int) -> Timing | MtkdError:
        end = self.run(_end)
        if self.problem:
            return self.problem
        assert end is not None
        return Timing(self.seconds[0], self.seconds[warmup:], *end)


def _shortest(processes: Sequence[_Process], warmup: int) -> float:
    """Seconds that the counted calls of each subject took at least; infinite if none is left."""
    return min(
        (sum(process.seconds[warmup:]) for process in processes if not process.problem),
        default=inf,
    )


@dataclass
class _Subject:
    """A subject in the process that calls it.

    Attributes:
        call: what is timed.
        device: where it computes.
        bytes_before: that were held before the first call.
        output: of the last call.
    """

    call: Callable[[], NDArray[np.float32] | None]
    device: torch.device
    bytes_before: int
    output: NDArray[np.float32] | None = None


_subject: Any = None  # a _Subject, in a process of its own


def _prepare(subject: Measurable) -> None:
    global _subject
    keep_freed_memory()
    torch.manual_seed(0)
    _subject = _Subject(subject.build(), subject.device, peak_memory(subject.device, reset=True))


def _call() -> float:
    start = perf_counter()
    _subject.output = _subject.call()
    if _subject.device.type != "cpu":  # whose calls return before their work is done
        torch.accelerator.synchronize(_subject.device)
    return perf_counter() - start


def _end() -> tuple[int, NDArray[np.float32] | None]:
    return peak_memory(_subject.device) - _subject.bytes_before, _subject.output


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
        return 1024 * _peak_kibibytes()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _peak_kibibytes() -> int:
    """Of this process, by Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
