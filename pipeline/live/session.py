"""From a source to views: capture and network side by side, and the newest frame always first.

Between the two lies one frame: what comes while the network computes replaces it, so that a slow
network shows fewer frames and not later ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Thread
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.deployment.video import upright
from pipeline.live.latest import Latest
from pipeline.live.recording import Recorder
from pipeline.live.smoothing import Smoothing
from pipeline.live.sources import PATIENCE, Capture, Captured, Source, square
from pipeline.live.statistics import Window
from pipeline.live.view import View

# Seconds without a frame, or without an answer of the network, after which the page says so.
STALLED = 2.0
OnView = Callable[[], None]


@dataclass(frozen=True)
class LiveModel:
    """What segments frames.

    Attributes:
        name: of its file, for the page.
        precision: what it computes in now, for the page.
        anatomies: N names.
        claims: from a frame (H, W, 3) uint8 to margins (N, h, w) float32 on the network's grid, or
            to masks (N, H, W) bool.
        margins: which of the two.
        one_organ: whether a pixel belongs to one anatomy at most in such masks.
    """

    name: str
    precision: Callable[[], str]
    anatomies: tuple[str, ...]
    claims: Callable[[NDArray[np.uint8]], NDArray[Any]]
    margins: bool
    one_organ: bool = False


class Session:
    """Segments a source until it is stopped.

    Args:
        source: where frames come from.
        model: what segments them.
        one_organ: whether a pixel belongs to one anatomy at most.
        smooth: see :class:`Smoothing`; 0 for none.
        recorder: what keeps all views, or None.

    Attributes:
        newest: the view of the newest frame; None before the first.
        segmented: how many frames were.
    """

    def __init__(
        self,
        source: Source,
        model: LiveModel,
        *,
        one_organ: bool = False,
        smooth: float = 0.0,
        recorder: Recorder | None = None,
    ) -> None:
        self.model = model
        self.recorder = recorder
        self._one_organ = one_organ
        self._smoothing = Smoothing(smooth) if smooth else None
        self._frames: Latest[Captured] = Latest()
        self.capture = Capture(source, self._frames)
        self.newest: View | None = None
        self.segmented = 0
        self._rate = Window()
        self._latency = Window()
        self._network = Window()
        self._problem: str | None = None
        self._opening = 0
        self._begun: float | None = None  # while the network computes
        self._listeners: list[OnView] = []
        self._thread = Thread(target=self._run, name="network", daemon=True)

    def start(self) -> None:
        """Begin to capture and to segment."""
        self.capture.start()
        self._thread.start()

    def stop(self) -> None:
        """End both, and complete the recording."""
        self._frames.close()
        self.capture.stop()
        self._thread.join(2 * PATIENCE)
        if self.recorder is not None:
            self.recorder.close()

    def listen(self, on_view: OnView) -> None:
        """Have a function called, in the network's thread, whenever there is a new view."""
        self._listeners.append(on_view)

    def was_shown(self, view: View) -> None:
        """Note that a page shows a view now."""
        self._latency.add(monotonic() - view.captured)

    def status(self) -> dict[str, Any]:
        """What the page says: the source, speed, and what is recorded.

        Returns:
            ``state``, ``message``; ``fps``: frames that were segmented each second; ``network_ms``:
            median; ``latency_ms`` and ``latency_p95_ms``: from a frame's arrival until a page has
            drawn it; these are None while nothing is live; ``captured``, ``dropped``: frames of the
            session, and those that a newer one replaced; ``segmented``: frames; ``precision``;
            ``recording``: a sentence or None.
        """
        state, message = self._state()
        if state != "live":
            for window in (self._rate, self._latency, self._network):
                window.clear()
        median, late = self._latency.percentiles(50, 95)
        (network,) = self._network.percentiles(50)
        return {
            "state": state,
            "message": message,
            "fps": _rounded(self._rate.per_second(), 1),
            "network_ms": _rounded(network, 1),
            "latency_ms": _rounded(median and 1000 * median, 0),
            "latency_p95_ms": _rounded(late and 1000 * late, 0),
            "captured": self.capture.captured,
            "dropped": self._frames.dropped,
            "segmented": self.segmented,
            "precision": self.model.precision(),
            "recording": None if self.recorder is None else self.recorder.status(),
        }

    def _state(self) -> tuple[str, str]:
        status = self.capture.status
        if self._problem is not None:
            return "failed", self._problem
        if status.state == "live" and self.capture.silence > STALLED:
            return "stalled", f"No frame for more than {STALLED:.0f} seconds"
        begun = self._begun
        is_slow = begun is not None and monotonic() - begun > STALLED
        if status.state == "live" and is_slow and self.segmented:  # the first frame takes longer
            return "stalled", f"The network has not answered for more than {STALLED:.0f} seconds"
        return status.state, status.message

    def _run(self) -> None:
        while not self._frames.closed:
            captured = self._fresh(self._frames.take())
            if captured is None:
                continue
            try:
                view = self._segmented(captured)
            except Exception as error:  # whatever a runtime raises: the page says it
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                self._problem = f"Frame {captured.number} could not be segmented: {reason}"
                continue
            self._problem = None
            self.newest = view
            self.segmented += 1
            self._rate.add(1.0)
            if self.recorder is not None:
                self.recorder.put(view)
            for on_view in self._listeners:
                on_view()

    def _fresh(self, captured: Captured | None) -> Captured | None:
        """A frame, or the one after it where that is nearer: it will be shown as long after."""
        interval = self.capture.interval
        if captured is None or interval is None:
            return captured
        age = monotonic() - captured.time
        if not interval / 2 < age < interval:
            return captured
        newer = self._frames.take(1.25 * interval - age)
        if newer is None:
            return captured
        self._frames.dropped += 1
        return newer

    def _segmented(self, captured: Captured) -> View:
        frame = square(upright(captured.frame), captured.aspect)
        if self._smoothing is not None and captured.opening != self._opening:
            self._smoothing.begin_anew()
        self._opening = captured.opening
        self._begun = begun = monotonic()
        try:
            claims = self.model.claims(frame)
        finally:
            self._begun = None
        if self._smoothing is not None:
            claims = self._smoothing(frame, claims)
        self._network.add(1000 * (monotonic() - begun))
        return View(captured.number, self.segmented, captured.time, frame, claims, self._one_organ)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
