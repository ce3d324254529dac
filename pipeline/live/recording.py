"""Keeping what is seen: a video of overlays, and a lossless one of label maps with their times."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.deployment.overlay import add_legend, draw
from pipeline.deployment.palette import colours_of
from pipeline.deployment.video import VideoWriter
from pipeline.errors import MtkdError
from pipeline.files import naming
from pipeline.live.view import View

WAITING = 8  # views that may wait to be written
LARGEST_SIDE = 1920  # of what is written: label maps of more are many times the network's own
OPACITY = 0.45
RATE = Fraction(25)  # what players assume; every frame has its own time
MILLISECOND = Fraction(1, 1000)


def labels_path(path: Path) -> Path:
    """Where the label maps of a recording lie: beside it, as ``<name>.labels.mkv``."""
    return path.with_suffix(".labels.mkv")


class LabelWriter:
    """A lossless video (FFV1) of label maps: a pixel's grey value is its anatomy, 0 = none.

    Times are milliseconds since the first frame. The anatomies' names, separated by commas, stand
    in the metadata as ``ANATOMIES``. What was written is readable whatever stops the writing.

    Args:
        path: the file.
        size: (H, W).
        anatomies: their names.
    """

    def __init__(self, path: Path, size: tuple[int, int], anatomies: Sequence[str]) -> None:
        self.path = path
        self.size = size
        self._last = -1
        with naming(path, av.FFmpegError):
            options = {"flush_packets": "1", "cluster_time_limit": "1000"}
            self._container = av.open(f"file:{path}", "w", format="matroska", options=options)
            self._container.metadata["anatomies"] = ",".join(anatomies)
            self._stream = self._container.add_stream("ffv1", rate=RATE)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "gray"
        self._stream.codec_context.time_base = MILLISECOND

    def write(self, labels: NDArray[np.uint8], time: float) -> None:
        """Write a label map (H, W) at its time in seconds; it is resized to the first one's size.

        Raises:
            MtkdError: it cannot be written.
        """
        if labels.shape != self.size:
            labels = cv2.resize(labels, self.size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(labels), format="gray")
        frame.time_base = MILLISECOND
        self._last = max(self._last + 1, round(1000 * time))
        frame.pts = self._last
        with naming(self.path, av.FFmpegError):
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what the encoder still holds."""
        with naming(self.path, av.FFmpegError):
            try:
                self._container.mux(self._stream.encode())
            finally:
                self._container.close()


class Recorder:
    """Writes views in a thread of its own; the page never waits for it.

    Views that come faster than they can be written are left out and counted. If nothing more can
    be written, as on a full disk, the recording ends and what it has is kept.

    Args:
        path: of the overlays, .mp4; label maps come beside, see :func:`labels_path`.
        anatomies: their names.

    Raises:
        MtkdError: ``path`` is no .mp4 file, or there is a recording of that name.
    """

    def __init__(self, path: Path, anatomies: Sequence[str]) -> None:
        if path.suffix.lower() != ".mp4":
            raise MtkdError(f"--record {path}: expected an .mp4 file")
        # The last one is what a killed recording leaves.
        for file in (path, labels_path(path), path.with_name(f".{path.stem}.partial.mp4")):
            if file.exists():
                cut_off = ", or rename what a killed recording has left" * (file.name[0] == ".")
                raise MtkdError(f"--record: {file} exists: choose another name{cut_off}")
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.written = 0
        self.left_out = 0
        self.problem: str | None = None
        self._anatomies = anatomies
        self._colours = [colour for _, colour in colours_of(anatomies).values()]
        self._overlays: VideoWriter | None = None
        self._labels: LabelWriter | None = None
        self._start = 0.0
        self._queue: Queue[View] = Queue(WAITING)
        self._ending = Event()
        self._thread = Thread(target=self._run, name="recording", daemon=True)
        self._thread.start()

    def put(self, view: View) -> None:
        """Have a view written, unless too many wait."""
        if self.problem is not None:
            return
        try:
            self._queue.put_nowait(view)
        except Full:
            self.left_out += 1

    def close(self) -> None:
        """Write what waits, and complete both files."""
        self._ending.set()
        self._thread.join()

    def status(self) -> str:
        """A sentence for the page."""
        if self.problem is not None:
            return f"Recording has stopped: {self.problem}"
        left_out = f", {self.left_out} left out" if self.left_out else ""
        verb = "Recorded in" if self._ending.is_set() else "Recording to"
        return f"{verb} {self.path.name}: {self.written} frames{left_out}"

    def _run(self) -> None:
        try:
            while not (self._ending.is_set() and self._queue.empty()):
                try:
                    view = self._queue.get(timeout=0.1)
                except Empty:
                    continue
                self._write(view)
        except Exception as error:  # whatever it is, the page says it
            self.problem = str(error) or type(error).__name__
        finally:
            self._complete()

    def _write(self, view: View) -> None:
        view = view.within(LARGEST_SIDE)
        if self._overlays is None or self._labels is None:
            self._start = view.captured
            self._overlays = VideoWriter(self.path, view.size, RATE)
            self._labels = LabelWriter(labels_path(self.path), view.size, self._anatomies)
        time = view.captured - self._start
        picture = draw(view.frame, view.masks, self._colours, OPACITY)
        add_legend(picture, self._anatomies, self._colours)
        self._overlays.write(picture, Fraction(round(1000 * time), 1000))
        self._labels.write(view.labels, time)
        self.written += 1

    def _complete(self) -> None:
        for writer in (self._overlays, self._labels):
            try:
                if writer is not None:
                    writer.close()
            except (MtkdError, OSError) as error:
                self.problem = self.problem or str(error)
