"""A place for one thing between two threads: what comes late replaces what nobody took."""

from threading import Condition
from time import monotonic
from typing import Generic, TypeVar

T = TypeVar("T")


class Latest(Generic[T]):
    """Holds the newest item; an older one that was not taken is dropped and counted.

    Attributes:
        dropped: how many items nobody took.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._item: T | None = None
        self._closed = False
        self._changed = Condition()

    def put(self, item: T) -> None:
        """Leave an item, in place of one that nobody took."""
        with self._changed:
            if self._item is not None:
                self.dropped += 1
            self._item = item
            self._changed.notify_all()

    def take(self, timeout: float | None = None) -> T | None:
        """The newest item; None if none comes in ``timeout`` seconds, or after :meth:`close`."""
        end = None if timeout is None else monotonic() + timeout
        with self._changed:
            while self._item is None and not self._closed:
                left = None if end is None else end - monotonic()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(left)
            item = self._item
            self._item = None
            return None if self._closed else item

    def close(self) -> None:
        """Wake whoever waits; nothing is taken any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed
