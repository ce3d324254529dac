"""Items fetched by threads, in order, while the caller works on what came before."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Queue
from threading import Event, Thread
from typing import ParamSpec, TypeVar

S = TypeVar("S")
T = TypeVar("T")
P = ParamSpec("P")


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
    """The items, each when ``depth`` more have been begun: that work goes on in the meantime."""
    begun: deque[T] = deque()
    for item in items:
        begun.append(item)
        if len(begun) > depth:
            yield begun.popleft()
    yield from begun


def by_threads(function: Callable[[S], T], items: Iterable[S], threads: int) -> Iterator[T]:
    """What a function makes of each item, in order.

    So many threads work on the items that come next.
    """
    with ThreadPoolExecutor(threads) as pool:
        try:
            for result in delayed((pool.submit(function, item) for item in items), 2 * threads):
                yield result.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # of what nobody wants any more


class OneBehind:
    """A thread that does one thing at a time, while the caller prepares the next.

    An error is raised where the caller waits.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._begun: Future[object] | None = None

    def __enter__(self) -> "OneBehind":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def wait(self) -> None:
        """Until what was begun last has ended; an error of it is raised here."""
        if self._begun is not None:
            self._begun.result()

    def begin(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Begin to do something, when what was begun before has ended."""
        self.wait()
        self._begun = self._thread.submit(function, *args, **kwargs)
