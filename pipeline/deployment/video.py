"""Frames from files and videos, and back into files and videos."""

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.dsad import DataError, is_label, read_frame
from pipeline.errors import MtkdError
from pipeline.files import naming, walk

# A video is cut off below this share of the frames that its file tells of, where those are an
# estimate.
ESTIMATED = 0.95
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
BT_709 = 1  # its number in H.264, for primaries and transfer function
VIDEOS = (
    ".mp4", ".mkv", ".avi", ".mov", ".webm", ".mpg", ".mpeg", ".m4v", ".ts", ".mts", ".m2ts",
    ".vob", ".wmv", ".mxf", ".flv", ".ogv", ".3gp", ".h264", ".hevc",
)  # fmt: skip
OTHER_IMAGES = (
    ".webp", ".gif", ".jp2", ".jfif", ".ppm", ".pgm", ".avif", ".heic", ".dcm", ".exr", ".tga",
)  # fmt: skip

# From a frame's number and presentation time, whether its pixels are wanted.
Wanted = Callable[[int, Fraction | None], bool]


@dataclass(frozen=True)
class InputFrame:
    """A frame of the input.

    Attributes:
        name: its file, or its number in a video.
        pixels: (H, W, 3) uint8 RGB; None if it is broken.
        time: presentation time in seconds; None for files.
        problem: what is wrong with a broken one.
    """

    name: str
    pixels: NDArray[np.uint8] | None
    time: Fraction | None = None
    problem: str = ""


def is_video(path: Path) -> bool:
    """By its suffix."""
    return path.suffix.lower() in VIDEOS


def list_images(path: Path) -> list[Path]:
    """A frame, or all frames of a folder and the folders in it, linked ones too.

    Masks in a data set's folder are left out.

    Raises:
        MtkdError: there are none.
    """
    _require(path)
    if not path.is_dir():
        return [path]
    frames = [file for file in walk(path) if is_frame(file)]
    if not frames:
        raise MtkdError(
            f"{path} holds no frame ({', '.join(IMAGES)}): name a frame, a folder of frames or a "
            "video"
        )
    return frames


def unread_media(folder: Path) -> list[Path]:
    """What a user may wrongly believe to be read in a folder of frames.

    These are pictures of other formats, videos, links to nothing, and folders that are read under
    another name.
    """
    unread = (*OTHER_IMAGES, *VIDEOS)
    return [path for path in walk(folder) if path.suffix.lower() in unread or not path.is_file()]


def is_frame(path: Path) -> bool:
    """By its suffix; hidden files are not frames.

    Nor are ``maskMM.png`` and ``labelMM.png`` beside or below an ``imageMM.png``.
    """
    is_image = path.suffix.lower() in IMAGES and not path.name.startswith(".")
    return is_image and path.is_file() and not is_label(path)


def _require(path: Path) -> None:
    if not path.exists():
        raise MtkdError(f"{path} does not exist: name a frame, a folder of frames or a video")


def read_images(paths: list[Path]) -> Iterator[InputFrame]:
    """Frames from files; a broken one says so, whatever its decoder raises."""
    for path in paths:
        try:
            yield InputFrame(str(path), _read_image(path))
        except DataError as error:
            yield InputFrame(str(path), None, problem=str(error))
        except Exception as error:
            reason = str(error) or type(error).__name__
            yield InputFrame(str(path), None, problem=f"{path}: cannot be decoded ({reason})")


def _read_image(path: Path) -> NDArray[np.uint8]:
    if path.suffix.lower() == ".png":
        return read_frame(path)
    with Image.open(path) as image:
        pages = getattr(image, "n_frames", 1)
        if image.format == "TIFF" and pages > 1:
            raise DataError(
                [f"{path}: holds {pages} pictures, expected one: save each as a file of its own"]
            )
        image.load()  # OpenCV takes a JPEG that is cut off for whole
        pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if pixels is not None:
            return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def video_frames(path: Path) -> tuple[int, bool]:
    """Number of frames of a video, and whether the container counts them.

    If it does not, the number is estimated, or 0 if that is impossible.

    Raises:
        MtkdError: the file can't be opened, or holds no video.
    """
    with _open(path) as container:
        stream = container.streams.video[0]
        if stream.frames:
            return int(stream.frames), True
        rate = stream.average_rate
        seconds = (container.duration or 0) / av.time_base
        return int(rate * seconds) if rate else 0, False


def _open(path: Path) -> av.container.InputContainer:
    _require(path)
    try:
        container = av.open(f"file:{path}")  # or a colon in the name would be taken for a protocol
    except (av.FFmpegError, OSError) as error:
        raise MtkdError(f"{path} cannot be opened as a video ({error})") from error
    if not container.streams.video:
        container.close()
        raise MtkdError(f"{path} holds no video")
    return container


def read_video(path: Path, wanted: Wanted | None = None) -> Iterator[InputFrame]:
    """The frames of a video, packet by packet.

    A packet that can't be decoded, or an early end, is a frame with a problem.

    Args:
        path: of the video.
        wanted: from a frame's number and time, whether its pixels are wanted; all are without it. A
            frame that is not wanted has neither pixels nor a problem, which saves half of the time.
    """
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        number = 0
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except Exception as error:
                yield _broken(path, number, f"it ends early, at frame {number} ({error})")
                return
            if packet is None:
                return
            try:
                decoded = _decoded(packet, number, wanted)
            except Exception as error:
                yield _broken(path, number, f"frame {number} is broken ({error})")
                number += 1
                continue
            for time, pixels in decoded:
                yield InputFrame(f"{path} frame {number}", pixels, time)
                number += 1


def _decoded(
    packet: "av.Packet[av.VideoStream]", first: int, wanted: Wanted | None
) -> list[tuple[Fraction | None, NDArray[np.uint8] | None]]:
    """Times and pixels of a packet's frames, of which ``first`` is the number of the first one."""
    frames = []
    for number, frame in enumerate(packet.decode(), start=first):
        time = _time(frame)
        is_wanted = wanted is None or wanted(number, time)
        frames.append((time, upright(frame) if is_wanted else None))
    return frames


def _broken(path: Path, number: int, problem: str) -> InputFrame:
    return InputFrame(f"{path} frame {number}", None, problem=f"{path}: {problem}")


def _time(frame: av.VideoFrame) -> Fraction | None:
    """Presentation time in seconds."""
    if frame.pts is None or frame.time_base is None:
        return None
    return Fraction(frame.pts * frame.time_base)


def upright(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """The pixels as a player shows them: turned as the file says, which counts anticlockwise."""
    pixels = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


class VideoWriter:
    """An H.264 video, each frame in a fragment.

    What is written stays playable whatever stops the writing. The video is written beside its place
    and moved there when it is closed: until then an older video stays complete.

    Attributes:
        path: the video's place.
        kept: whether it holds a frame and is in its place; None until it is closed.
    """

    TIME_BASE = Fraction(1, 90_000)

    def __init__(
        self, path: Path, size: tuple[int, int], rate: Fraction, aspect: Fraction = Fraction(1)
    ) -> None:
        height, width = size
        if min(size) < 2:
            raise MtkdError(
                f"{path}: frames of {width}x{height} can't be a video, which needs 2x2 pixels"
            )
        self.path = path
        self.size = size
        self.rate = rate
        self.kept: bool | None = None
        self.written = 0
        self.partial = path.with_name(f".{path.stem}.partial.mp4")
        self.last: int | None = None
        self.container = self._open()
        self.stream = self._add_stream(aspect)

    def _open(self) -> av.container.OutputContainer:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The first fragment counts as a later one of a longer video: so its start is kept.
        options = {
            "movflags": "frag_every_frame+empty_moov+default_base_moof+frag_discont",
            "avoid_negative_ts": "make_non_negative",
        }
        with naming(self.path, av.FFmpegError):
            return av.open(f"file:{self.partial}", "w", format="mp4", options=options)

    def _add_stream(self, aspect: Fraction) -> av.VideoStream:
        # Without frames that refer to later ones, times need no shift, which a fragmented file
        # could not record.
        encoder = {"crf": "18", "preset": "veryfast", "g": "50", "bf": "0"}
        stream = self.container.add_stream("libx264", rate=self.rate, options=encoder)
        # H.264 with halved colour needs even sizes: a last odd row or column is left out.
        height, width = self.size
        stream.width = width // 2 * 2
        stream.height = height // 2 * 2
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.time_base = self.TIME_BASE
        codec.sample_aspect_ratio = aspect
        # The file states its colours, since players guess otherwise.
        codec.colorspace = Colorspace.ITU709
        codec.color_range = ColorRange.MPEG
        codec.color_primaries = BT_709
        codec.color_trc = BT_709
        return stream

    def write(self, pixels: NDArray[np.uint8], time: Fraction | None) -> None:
        """Encode one frame (H, W, 3) at its time in seconds.

        It follows the last frame at once if it has no time or an earlier one, as in concatenated
        videos. It is resized to the first frame's size.

        Raises:
            MtkdError: the video can't be written.
        """
        if pixels.shape[:2] != self.size:
            pixels = np.asarray(cv2.resize(pixels, self.size[::-1], interpolation=cv2.INTER_AREA))
        cut = np.ascontiguousarray(pixels[: self.stream.height, : self.stream.width])
        frame = av.VideoFrame.from_ndarray(cut, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        frame.time_base = self.TIME_BASE
        frame.pts = self._pts(time)
        with naming(self.path, av.FFmpegError):
            self.container.mux(self.stream.encode(frame))
        self.written += 1

    def _pts(self, time: Fraction | None) -> int:
        """The frame's time in units of the time base; times only go on."""
        step = max(1, round(1 / self.rate / self.TIME_BASE))
        following = 0 if self.last is None else self.last + step
        pts = following if time is None else round(time / self.TIME_BASE)
        if self.last is not None and pts <= self.last:
            # A time that is given twice moves no later frame; one that goes back begins another
            # video.
            pts = self.last + 1 if pts == self.last else following
        self.last = pts
        return self.last

    def close(self) -> None:
        """Write what the encoder still holds, and move the video into place if it has a frame.

        Raises:
            MtkdError: its end can't be written; what was written until then is in place.
        """
        if self.kept is not None:
            return
        try:
            with naming(self.path, av.FFmpegError):
                self._finish()
        finally:
            _cut_unfinished(self.partial)
            complete = _complete_packets(self.partial)
            self.kept = complete > 0
            if self.kept:
                self.partial.replace(self.path)
            self.partial.unlink(missing_ok=True)
        # FFmpeg reports no error in what it writes while it closes a file.
        if complete < self.written:
            raise MtkdError(
                f"{self.path} holds {complete} of {self.written} frames: make room, or choose "
                "another place"
            )

    def _finish(self) -> None:
        try:
            self.container.mux(self.stream.encode())
        finally:
            self.container.close()


def _cut_unfinished(path: Path) -> None:
    """Cut an MP4 file behind its last complete fragment.

    A fragment is a ``moof`` box and the ``mdat`` box after it.
    """
    size = path.stat().st_size
    end = 0
    complete = 0
    with path.open("rb") as file:
        while end + 8 <= size:
            file.seek(end)
            length, kind = struct.unpack(">I4s", file.read(8))
            end += max(8, length)
            if end <= size and kind != b"moof":
                complete = end
    os.truncate(path, complete)


def _complete_packets(path: Path) -> int:
    """How many frames a video holds, without decoding them."""
    count = 0
    with suppress(MtkdError, av.FFmpegError), _open(path) as container:
        for packet in container.demux(container.streams.video[0]):
            count += packet.size > 0 and not packet.is_corrupt
    return count


def pixel_aspect(path: Path) -> Fraction:
    """Width over height of a pixel on the screen."""
    with _open(path) as container:
        stream = container.streams.video[0]
        return aspect_of(stream, _first_frame(container, stream))


def aspect_of(stream: av.VideoStream, frame: av.VideoFrame | None) -> Fraction:
    """Width over height of a pixel of a frame that stands :func:`upright`."""
    aspect = Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
    is_lying = frame is not None and bool(round(frame.rotation / 90) % 2)
    return 1 / aspect if is_lying else aspect


def _first_frame(
    container: av.container.InputContainer, stream: av.VideoStream
) -> av.VideoFrame | None:
    """The first that can be decoded, if any can."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            frames = [] if packet is None else packet.decode()
        except Exception:  # reading the video says what is broken
            continue
        if frames:
            return frames[0]
        if packet is None:
            return None


def frame_rate(path: Path) -> Fraction:
    """Frames per second of a video, 25 if it doesn't say."""
    with _open(path) as container:
        return Fraction(container.streams.video[0].average_rate or 25)
