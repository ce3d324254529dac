"""Where the time of a long work went."""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TypeVar, cast

import torch

T = TypeVar("T")
# A moment on the host's clock in seconds, or in what a GPU has to do.
Mark = float | torch.cuda.Event


class Stopwatch:
    """Seconds that went into each of several steps.

    On the host's clock, or on a GPU's: there, the time of a step is that of the work which it gave
    to the GPU. The GPU lags behind the host, so time that the host spends in a step counts only as
    far as the GPU has nothing to do.

    Args:
        device: whose clock; the host's, unless it is a CUDA device.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._on_gpu = device is not None and device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._spans: deque[tuple[str, Mark, Mark]] = deque()

    @property
    def seconds(self) -> dict[str, float]:
        """The sum of each step so far; waits for a GPU to end what it was given."""
        self._settle(wait=True)
        return self._seconds

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Count the time of a block."""
        start = self._mark()
        try:
            yield
        finally:
            self._spans.append((name, start, self._mark()))
            self._settle(wait=False)

    def waiting(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """The items, with the time that each took to come."""
        iterator = iter(items)
        while True:
            with self.step(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def _mark(self) -> Mark:
        if not self._on_gpu:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _settle(self, *, wait: bool) -> None:
        """Add up the spans that have ended; all of them with ``wait``."""
        while self._spans:
            name, start, end = self._spans[0]
            if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
                if not (wait or end.query()):
                    return
                end.synchronize()
                took = start.elapsed_time(end) / 1000
            else:
                took = cast(float, end) - cast(float, start)
            self._seconds[name] = self._seconds.get(name, 0.0) + took
            self._spans.popleft()

    def __str__(self) -> str:
        seconds = self.seconds
        total = sum(seconds.values()) or 1.0
        return ", ".join(f"{name} {100 * part / total:.0f} %" for name, part in seconds.items())
