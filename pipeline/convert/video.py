"""Frames of videos without masks, so many per second, without those that teach nothing new.

Left out are near-duplicates of the frame before, black frames, and frames outside of the body. The
last ones are those with too few reddish pixels: a coarse rule, which is no anonymisation.
"""

import hashlib
from collections.abc import Iterator, Set
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.convert.formats import FORMATS, Labels
from pipeline.convert.plans import Content, Plan, Planned, surgery_in, surgery_pattern
from pipeline.deployment.video import (
    ESTIMATED,
    InputFrame,
    frame_rate,
    is_video,
    read_video,
    video_frames,
)
from pipeline.dsad import DataError
from pipeline.errors import MtkdError
from pipeline.files import walk

THUMBNAIL = (32, 32)
BRIGHT = 32  # a pixel below this, of 255, counts as black
LEAST_BRIGHT = 0.05  # share of pixels that are not black
RED = 1.15  # red over the mean of green and blue, of a reddish pixel


@dataclass(frozen=True)
class Options:
    """How videos are read.

    Attributes:
        surgery: an expression whose one group is the surgery, searched in the video's name.
        rate: frames per second.
        least_change: a frame is a near-duplicate if its thumbnail differs less from the last frame
            that was kept: mean over pixels and channels, of 255. 0 keeps all.
        least_red: a frame is outside of the body if a smaller share of its bright pixels is
            reddish. 0 keeps all.
    """

    surgery: str = ""
    rate: float = 1.0
    least_change: float = 2.0
    least_red: float = 0.2


@dataclass(frozen=True)
class _Kept:
    """A frame that is kept: its number in the video, its time and a digest of its thumbnail."""

    number: int
    time: Fraction
    digest: str


def plan(source: Path, options: Options) -> Plan:
    """Which frames would be kept; every video is decoded once for it.

    Args:
        source: a video, or a folder of videos.
        options: how they are read.

    Raises:
        DataError: there is no video, or the surgeries are not given.
    """
    videos = _videos(source)
    pattern = surgery_pattern(options.surgery, f"'{videos[0].name}'")
    root = source if source.is_dir() else source.parent
    frames: list[Planned] = []
    problems: list[str] = []
    notes: list[str] = []
    for path in videos:
        place = path.relative_to(root).as_posix()
        try:
            surgery = surgery_in(pattern, place)
            kept, left_out = _select(path, options)
        except DataError as error:
            problems += error.problems
            continue
        except MtkdError as error:
            problems.append(str(error))
            continue
        notes.append(f"{place}: {len(kept)} frames are kept; {left_out}")
        reader = _Reader(path, {frame.number for frame in kept})
        frames += [_planned(surgery, place, frame, reader) for frame in kept]
    return Plan(frames, (), Labels.MAPS, problems, notes, in_order=True)


def _videos(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    paths = [path for path in walk(source) if is_video(path)] if source.is_dir() else []
    if not paths:
        raise DataError([f"{source}: holds no video; expected {FORMATS['video'].layout}"])
    return paths


def _planned(surgery: str, place: str, frame: _Kept, reader: "_Reader") -> Planned:
    stem = place.rsplit(".", 1)[0].replace("/", "_")
    name = f"{stem}_{frame.number:06d}"
    origin = f"{place} at {float(frame.time):.3f} s, frame {frame.number}"
    return Planned(surgery, name, origin, partial(reader.content, frame.number), frame.digest)


def _select(path: Path, options: Options) -> tuple[list[_Kept], str]:
    """The frames of a video that are kept, and how many others there are of which kind.

    Raises:
        DataError: a frame is broken, or none can be decoded.
    """
    kept: list[_Kept] = []
    last: NDArray[np.int16] | None = None
    counts = {"near-duplicates": 0, "black": 0, "outside of the body": 0}
    broken = []
    number = 0
    for number, frame, time in _sampled(path, options.rate):
        if frame.pixels is None:
            broken.append(frame.problem)
            continue
        thumbnail = cv2.resize(frame.pixels, THUMBNAIL, interpolation=cv2.INTER_AREA)
        small = thumbnail.astype(np.int16)
        kind = _kind(small, last, options)
        if kind:
            counts[kind] += 1
            continue
        last = small
        digest = hashlib.sha256(f"{frame.pixels.shape}".encode() + thumbnail.tobytes())
        kept.append(_Kept(number, time, digest.hexdigest()[:16]))
    if not kept and not any(counts.values()):
        raise DataError([f"{path}: no frame can be decoded", *broken[:3]])
    left_out = [f"{count} {kind}" for kind, count in counts.items()]
    left_out.append(f"{len(broken)} broken")
    return kept, f"left out: {', '.join(left_out)}{_ends_early(path, options.rate, number)}"


def _ends_early(path: Path, rate: float, last: int) -> str:
    """What is missing at the end of a video of which a frame is the last one that was sampled."""
    total, _ = video_frames(path)
    step = float(frame_rate(path)) / rate
    if last + step >= ESTIMATED * total:
        return ""
    return f"; it ends early: the file tells of {total} frames, and after {last} none is due"


def _sampled(path: Path, rate: float) -> Iterator[tuple[int, InputFrame, Fraction]]:
    """Number, frame and time of the first frame at or after each multiple of 1/rate seconds.

    Broken frames are among them.
    """
    clock = _Clock(1 / Fraction(rate).limit_denominator(1000), frame_rate(path))
    for number, frame in enumerate(read_video(path, clock.is_due)):
        if frame.pixels is not None or frame.problem:
            yield number, frame, clock.time_of(number, frame.time)


class _Clock:
    """Says which frames are due.

    Args:
        step: seconds between two of them.
        rate: frames per second, for those without a time.
    """

    def __init__(self, step: Fraction, rate: Fraction) -> None:
        self.step = step
        self.rate = rate
        self.next: Fraction | None = None
        self.last: Fraction | None = None

    def time_of(self, number: int, time: Fraction | None) -> Fraction:
        """A frame's time, by its number if it has none."""
        return Fraction(number) / self.rate if time is None else time

    def is_due(self, number: int, time: Fraction | None) -> bool:
        """Whether a frame is the first one at or after the time that is due."""
        now = self.time_of(number, time)
        if self.next is None or (self.last is not None and now < self.last):
            self.next = now  # also where times begin anew, as in concatenated videos
        self.last = now
        if now < self.next:
            return False
        self.next += ((now - self.next) // self.step + 1) * self.step
        return True


def _kind(thumbnail: NDArray[np.int16], last: NDArray[np.int16] | None, options: Options) -> str:
    """Why a frame is left out; empty if it is kept."""
    bright = thumbnail.max(axis=2) >= BRIGHT
    if bright.mean() < LEAST_BRIGHT:
        return "black"
    if red_share(thumbnail) < options.least_red:
        return "outside of the body"
    if last is not None and np.abs(thumbnail - last).mean() < options.least_change:
        return "near-duplicates"
    return ""


def red_share(pixels: NDArray[np.integer]) -> float:
    """The share of the bright pixels (H, W, 3) that are reddish, as tissue is; 0 of a black one."""
    bright = pixels[pixels.max(axis=2) >= BRIGHT].astype(np.float64)
    if not bright.size:
        return 0.0
    others = bright[:, 1:].mean(axis=1)
    return float((bright[:, 0] > RED * others).mean())


class _Reader:
    """Gives frames of a video by their numbers, which should rise; a lower one begins anew.

    Args:
        path: of the video.
        numbers: of all frames that may be read. A packet may give several frames at once.
    """

    def __init__(self, path: Path, numbers: Set[int]) -> None:
        self.path = path
        self.numbers = numbers
        self.frames: Iterator[tuple[int, InputFrame]] = iter(())
        self.last = -1

    def content(self, number: int) -> Content:
        """The pixels of a frame.

        Raises:
            DataError: it cannot be decoded any more.
        """
        if self.last < 0 or number <= self.last:
            self.frames = enumerate(read_video(self.path, lambda each, _: each in self.numbers))
        for index, frame in self.frames:
            self.last = index
            if index == number and frame.pixels is not None:
                return Content(frame.pixels)
        raise DataError([f"{self.path}: frame {number} cannot be decoded any more"])
