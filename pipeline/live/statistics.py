"""What the page says of speed: rates and latencies of the last seconds."""

from collections import deque
from threading import Lock
from time import monotonic

import numpy as np

SECONDS = 10.0  # that are looked back on


class Window:
    """Values of the last seconds, with their times."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._values: deque[tuple[float, float]] = deque()
        self._lock = Lock()

    def add(self, value: float, now: float | None = None) -> None:
        """Note a value, of now if no time is given."""
        now = monotonic() if now is None else now
        with self._lock:
            self._values.append((now, value))
            self._forget(now)

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._values.clear()

    def per_second(self, now: float | None = None) -> float | None:
        """How many values came each second; None before the second one."""
        now = monotonic() if now is None else now
        with self._lock:
            self._forget(now)
            if len(self._values) < 2:
                return None
            return len(self._values) / max(1e-9, now - self._values[0][0])

    def percentiles(self, *shares: float, now: float | None = None) -> list[float | None]:
        """Percentiles (0..100) of the values; None where there are none."""
        now = monotonic() if now is None else now
        with self._lock:
            self._forget(now)
            values = [value for _, value in self._values]
        if not values:
            return [None for _ in shares]
        return [float(each) for each in np.percentile(values, shares)]

    def _forget(self, now: float) -> None:
        while self._values and self._values[0][0] < now - self._seconds:
            self._values.popleft()
