"""Where live frames come from: a capture device, a stream, or a file that is paced as a camera."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from errno import EIO
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import Literal

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.deployment.video import aspect_of
from pipeline.errors import MtkdError
from pipeline.live.latest import Latest

Kind = Literal["camera", "stream", "file"]
State = Literal["opening", "live", "lost", "ended"]
SCHEMES = ("rtsp", "rtsps", "rtp", "udp", "srt", "tcp", "http", "https")
# Seconds until a source that does not open, or gives no frame, counts as lost.
PATIENCE = 5.0
# Seconds between attempts to open it again: each is twice the one before.
FIRST_WAIT = 0.5
LONGEST_WAIT = 10.0


@dataclass(frozen=True)
class Mode:
    """What a capture device is asked for; where it is None the device decides.

    Attributes:
        size: (H, W).
        rate: frames per second.
        format: of its pictures, as ``v4l2-ctl --list-formats`` or FFmpeg calls it: ``mjpeg``,
            ``yuyv422``, ``h264``.
    """

    size: tuple[int, int] | None = None
    rate: float | None = None
    format: str | None = None

    def options(self) -> dict[str, str]:
        """As FFmpeg's v4l2 input takes them."""
        size = self.size and f"{self.size[1]}x{self.size[0]}"
        rate = self.rate and f"{self.rate:g}"
        asked = {"video_size": size, "framerate": rate, "input_format": self.format}
        return {name: value for name, value in asked.items() if value}


AS_IT_IS = Mode()


@dataclass(frozen=True)
class Source:
    """A source of frames.

    Attributes:
        kind: ``camera``, ``stream`` or ``file``.
        address: what FFmpeg opens.
        loop: whether a file begins again when it ends.
        mode: of a camera.
    """

    kind: Kind
    address: str
    loop: bool = False
    mode: Mode = AS_IT_IS

    @property
    def shown(self) -> str:
        """What the page calls it: without a password, and of a file its name alone."""
        if self.kind == "file":
            return Path(self.address).name
        return re.sub(r"(?<=://)[^/@]*@", "***@", self.address)


def source_of(name: str, *, loop: bool = False, mode: Mode = AS_IT_IS) -> Source:
    """What a user means: a device, an address, or the name of a file.

    Args:
        name: as ``/dev/video0``, ``rtsp://camera/1`` or ``film.mp4``.
        loop: whether a file begins again when it ends.
        mode: what a capture device is asked for.

    Raises:
        MtkdError: there is no such device or file, the address is of no kind that is known,
            ``loop`` is asked of what is no file, or ``mode`` of what is no capture device.
    """
    source = _source_of(name, loop, mode)
    if loop and source.kind != "file":
        raise MtkdError(f"--loop: {name} is no file")
    if mode.options() and source.kind != "camera":
        raise MtkdError(f"--capture-size, -rate and -format: {name} is no capture device")
    return source


def _source_of(name: str, loop: bool, mode: Mode) -> Source:
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", name)
    path = Path(name)
    if scheme is not None:
        if scheme[1].lower() not in SCHEMES:
            known = ", ".join(f"{each}://" for each in SCHEMES)
            raise MtkdError(f"{name}: {scheme[1]}:// is not known; name one of {known}")
        return Source("stream", name)
    if path.is_char_device():
        return Source("camera", name, mode=mode)
    if path.is_file():
        return Source("file", name, loop)
    raise MtkdError(f"{name} is no capture device, stream or file. {_devices()}")


def _devices() -> str:
    found = sorted(str(path) for path in Path("/dev").glob("video*"))
    return f"Capture devices here: {', '.join(found) or 'none'}"


@dataclass(frozen=True)
class Captured:
    """A frame as it came.

    Attributes:
        number: 0, 1, ... over the whole session.
        frame: not yet converted, since most late frames never need to be.
        time: when it came, of :func:`time.monotonic`.
        aspect: width over height of a pixel of the upright frame.
        opening: how often the source had been opened.
    """

    number: int
    frame: av.VideoFrame
    time: float
    aspect: float = 1.0
    opening: int = 0


def square(frame: NDArray[np.uint8], aspect: float) -> NDArray[np.uint8]:
    """A frame (H, W, 3) with square pixels, as wide as a player shows it."""
    if aspect == 1:
        return frame
    size = round(frame.shape[1] * aspect), frame.shape[0]
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR))


@dataclass(frozen=True)
class Status:
    """How a source is.

    Attributes:
        state: ``opening``, ``live``, ``lost`` (it will be tried again) or ``ended``.
        message: a sentence for the page.
    """

    state: State
    message: str


class Capture:
    """Reads a source in a thread of its own, and opens it again when it is lost.

    Args:
        source: which.
        frames: where the newest frame lies.

    Attributes:
        status: how the source is now.
        captured: how many frames came.
        interval: seconds between frames, of late; None before the second one.
    """

    def __init__(self, source: Source, frames: Latest[Captured]) -> None:
        self.source = source
        self.status = Status("opening", f"Opening {source.shown}")
        self.captured = 0
        self.interval: float | None = None
        self._opened = 0
        self._frames = frames
        self._is_film = source.kind == "file"
        self._last = monotonic()
        self._stop = Event()
        self._thread = Thread(target=self._run, name="capture", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """End soon; a device that gives nothing is left alone."""
        self._stop.set()
        self._thread.join(2 * PATIENCE)

    @property
    def silence(self) -> float:
        """Seconds since the last frame came."""
        return monotonic() - self._last

    def _run(self) -> None:
        wait = FIRST_WAIT
        while not self._stop.is_set():
            before = self.captured
            reason = self._read()
            if self._stop.is_set():
                return
            because = f" ({reason})" if reason else ""
            if self.source.loop and self.captured > before:
                continue
            if self.source.kind == "file" or (self._is_film and reason is None):
                self.status = Status("ended", f"{self.source.shown} has ended{because}")
                return
            if self.captured > before:
                wait = FIRST_WAIT
            self.status = Status(
                "lost", f"{self.source.shown} is lost{because}. Trying again in {wait:g} s"
            )
            self._stop.wait(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    def _read(self) -> str | None:
        """Read until the source ends; returns why it could not go on, if there is a reason."""
        try:
            with _open(self.source) as container:
                if not container.streams.video:
                    return "it holds no video"
                self._opened += 1
                stream = container.streams.video[0]
                self._is_film = _is_film(container, self.source)
                for frame in self._due(_frames(container, self.source), stream):
                    self._keep(frame, float(aspect_of(stream, frame)))
                    if self._stop.is_set():
                        return None
        except av.ExitError:
            return f"no data for {PATIENCE:g} s"
        except (av.FFmpegError, OSError, ValueError) as error:
            return self._reason(error)
        return None

    def _reason(self, error: Exception) -> str:
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = reason.replace(self.source.address, self.source.shown)
        is_web = self.source.address.lower().startswith("http")
        if is_web and isinstance(error, OSError) and error.errno == EIO:
            reason += "; a film with its index at the end needs a server that gives parts of files"
        return reason

    def _keep(self, frame: av.VideoFrame, aspect: float) -> None:
        now = monotonic()
        if self.captured:
            since = now - self._last
            self.interval = since if self.interval is None else 0.9 * self.interval + 0.1 * since
        self._last = now
        self._frames.put(Captured(self.captured, frame, self._last, aspect, self._opened))
        self.captured += 1
        self.status = Status("live", f"Live from {self.source.shown}")

    def _due(
        self, frames: Iterator[av.VideoFrame], stream: av.VideoStream
    ) -> Iterator[av.VideoFrame]:
        """The frames of a film at their times, as a camera would give them.

        Where a time is missing or jumps, a frame follows at the film's rate.
        """
        if not self._is_film:
            yield from frames
            return
        step = float(1 / (stream.average_rate or 25))
        due = monotonic()
        before: float | None = None
        for frame in frames:
            if before is not None and frame.time is not None and 0 <= frame.time - before <= 1:
                due += frame.time - before
            elif self.captured:
                due += step
            before = frame.time
            self._stop.wait(max(0.0, due - monotonic()))
            yield frame
        self._stop.wait(step)


def _open(source: Source) -> av.container.InputContainer:
    """Open a source; one that does not answer raises."""
    if source.kind == "file":
        return av.open(f"file:{source.address}")
    if source.kind == "camera":
        options = source.mode.options()
        return av.open(source.address, format="v4l2", options=options, timeout=PATIENCE)
    is_rtsp = source.address.lower().startswith("rtsp")
    options = {"rtsp_transport": "tcp"} if is_rtsp else {}
    return av.open(source.address, options=options, timeout=PATIENCE)


def _is_film(container: av.container.InputContainer, source: Source) -> bool:
    """Whether frames are there before their time: in a file, here or on a web server."""
    if source.kind == "file":
        return True
    is_web = source.address.lower().startswith("http")
    return is_web and container.duration is not None and container.size > 0


def _frames(container: av.container.InputContainer, source: Source) -> Iterator[av.VideoFrame]:
    """All frames that can be decoded; what is broken is passed over."""
    stream = container.streams.video[0]
    # Threads that decode several frames at a time hold each back for as many frames.
    stream.thread_type = "AUTO" if source.kind == "file" else "SLICE"
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.InvalidDataError:
            continue
