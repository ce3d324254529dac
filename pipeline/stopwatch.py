"""Doing two things at once, and knowing where the time went."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import Queue
from threading import Event, Thread
from time import perf_counter
from typing import TypeVar, cast

import torch

S = TypeVar("S")
T = TypeVar("T")
Mark = float | torch.cuda.Event  # a moment on the host's clock in seconds, or in what a GPU has to do


class Stopwatch:
    """Seconds that went into each of several steps.

    On the host's clock, or on a GPU's: there, the time of a step is that of the work which it gave to the GPU. The GPU
    lags behind the host, so time that the host spends in a step counts only as far as the GPU has nothing to do.

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


def ahead(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The items of an iterable, fetched by a thread while the caller works on those before.

    Args:
        items: what to fetch; an error that it raises is raised here in its place.
        depth: how many may wait.
    """
    queue: Queue[tuple[T | None, BaseException | None]] = Queue(depth)
    stop = Event()

    def fetch() -> None:
        try:
            for item in items:
                queue.put((item, None))
                if stop.is_set():
                    return
            queue.put((None, StopIteration()))
        except BaseException as error:  # handed to the caller, whatever it is
            queue.put((None, error))

    thread = Thread(target=fetch, daemon=True)
    thread.start()
    try:
        while True:
            item, error = queue.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        while thread.is_alive():  # it may wait for room to put what nobody wants
            while not queue.empty():
                queue.get_nowait()
            thread.join(0.01)


def delayed(items: Iterable[T], depth: int) -> Iterator[T]:
    """The items, each when ``depth`` more have been asked for: what they began goes on in the meantime."""
    begun: deque[T] = deque()
    for item in items:
        begun.append(item)
        if len(begun) > depth:
            yield begun.popleft()
    yield from begun


def by_threads(function: Callable[[S], T], items: Iterable[S], threads: int) -> Iterator[T]:
    """What a function makes of each item, in order; ``threads`` of them work on those that come next."""
    with ThreadPoolExecutor(threads) as pool:
        try:
            for result in delayed((pool.submit(function, item) for item in items), 2 * threads):
                yield result.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # of what nobody wants any more
