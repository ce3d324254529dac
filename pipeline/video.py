"""Frames from files and videos, and back: reading, drawing and encoding each go on beside the network."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.dsad import DataError, read_frame
from pipeline.errors import MtkdError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
VIDEOS = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".mpg", ".mpeg", ".m4v")


@dataclass(frozen=True)
class Shown:
    """A frame of the input.

    Attributes:
        name: its file, or its number in a video.
        pixels: (H, W, 3) uint8 RGB; None if it is broken.
        time: presentation time in seconds; None for files.
        problem: what is broken.
    """

    name: str
    pixels: NDArray[np.uint8] | None
    time: Fraction | None = None
    problem: str = ""


def is_video(path: Path) -> bool:
    """By its suffix."""
    return path.suffix.lower() in VIDEOS


def list_images(path: Path) -> list[Path]:
    """A frame, or all frames of a folder and the folders in it.

    Raises:
        MtkdError: there are none.
    """
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGES)
    if not found:
        raise MtkdError(f"{path} is neither a frame, a folder of frames nor a video ({', '.join(IMAGES + VIDEOS)})")
    return found


def read_images(paths: list[Path]) -> Iterator[Shown]:
    """Frames from files; a broken one says so."""
    for path in paths:
        try:
            yield Shown(str(path), _read_image(path))
        except DataError as error:
            yield Shown(str(path), None, problem=str(error))


def _read_image(path: Path) -> NDArray[np.uint8]:
    if path.suffix.lower() == ".png":
        return read_frame(path)
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise DataError([f"{path}: cannot be decoded"])
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def video_frames(path: Path) -> int:
    """Number of frames as the container tells it; 0 if it doesn't.

    Raises:
        MtkdError: the file can't be opened, or holds no video.
    """
    with _open(path) as container:
        stream = container.streams.video[0]
        if stream.frames:
            return int(stream.frames)
        rate, seconds = stream.average_rate, (container.duration or 0) / av.time_base
        return int(rate * seconds) if rate else 0


def _open(path: Path) -> av.container.InputContainer:
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise MtkdError(f"{path} cannot be opened as a video ({error})") from error
    if not container.streams.video:
        container.close()
        raise MtkdError(f"{path} holds no video")
    return container


def read_video(path: Path) -> Iterator[Shown]:
    """The frames of a video, packet by packet; a packet that can't be decoded says so."""
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        number = 0
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except av.FFmpegError as error:
                yield Shown(f"{path} frame {number}", None, problem=f"{path}: frame {number} is broken ({error})")
                number += 1
                continue
            for frame in decoded:
                untimed = frame.pts is None or frame.time_base is None
                time = None if untimed else Fraction(frame.pts * frame.time_base)  # type: ignore[operator]
                pixels = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
                yield Shown(f"{path} frame {number}", pixels, time)
                number += 1


class VideoWriter:
    """An H.264 video in fragments: what is written stays playable whatever stops the writing."""

    TIME_BASE = Fraction(1, 90_000)

    def __init__(self, path: Path, size: tuple[int, int], rate: Fraction) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
        self.container = av.open(str(path), "w", format="mp4", options=options)
        # Without frames that refer to later ones, times need no shift, which a fragmented file could not record.
        encoder = {"crf": "18", "preset": "veryfast", "g": "50", "bf": "0"}
        self.stream = self.container.add_stream("libx264", rate=rate, options=encoder)
        height, width = size
        # H.264 with halved colour needs even sizes: a last odd row or column is left out.
        self.stream.width, self.stream.height, self.stream.pix_fmt = width // 2 * 2, height // 2 * 2, "yuv420p"
        self.stream.codec_context.time_base = self.TIME_BASE
        self.rate, self.written = rate, 0

    def write(self, pixels: NDArray[np.uint8], time: Fraction | None) -> None:
        """Encode one frame (H, W, 3) at its time in seconds, or one frame after the last."""
        cut = np.ascontiguousarray(pixels[: self.stream.height, : self.stream.width])
        frame = av.VideoFrame.from_ndarray(cut, format="rgb24")
        frame.time_base = self.TIME_BASE
        frame.pts = round((self.written / self.rate if time is None else time) / self.TIME_BASE)
        self.container.mux(self.stream.encode(frame))
        self.written += 1

    def close(self) -> None:
        """Write what the encoder still holds."""
        try:
            self.container.mux(self.stream.encode())
        finally:
            self.container.close()


def frame_rate(path: Path) -> Fraction:
    """Frames per second of a video, 25 if it doesn't say."""
    with _open(path) as container:
        return Fraction(container.streams.video[0].average_rate or 25)
