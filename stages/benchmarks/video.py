"""``mtkd benchmark video``: a video to its overlay, beside the network alone."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Protocol

from pipeline.deployment.export import Run
from pipeline.deployment.video import read_video
from pipeline.errors import MtkdError
from pipeline.files import write_json
from pipeline.machine import Machine
from pipeline.prefetch import by_threads
from pipeline.timing.host import machine_record
from stages.shared.console import say

OUTPUT = Path("results/benchmark_video.json")
FRAMES = 32  # that the network alone computes


class Model(Protocol):
    """What ``mtkd predict`` segments frames with."""

    @property
    def segment(self) -> Run:
        """From a frame to its masks."""

    @property
    def in_flight(self) -> int:
        """How many frames it takes at the same time."""


@dataclass(frozen=True)
class Prediction:
    """What ``mtkd predict`` does.

    Attributes:
        model: the file that it predicts with.
        load: opens it.
        write: the overlay of the video, into a file.
    """

    model: Path
    load: Callable[[], Model]
    write: Callable[[Path], None]


def run(source: Path, prediction: Prediction, repeats: int, output: Path, machine: Machine) -> None:
    """Measure, print and write as JSON.

    Args:
        source: a video.
        prediction: what is measured.
        repeats: how often each is measured; the median counts, and they take turns.
        output: JSON file.
        machine: where a checkpoint computes.

    Raises:
        MtkdError: as of ``mtkd predict``; or the video has no frame.
    """
    loaded = prediction.load()
    frames = [frame.pixels for frame in read_video(source)]
    pixels = list(islice((each for each in frames if each is not None), FRAMES))
    if not pixels:
        raise MtkdError(f"{source}: no frame of it can be decoded")
    whole: list[float] = []
    alone: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        overlay = Path(folder) / "overlay.mp4"
        for _ in range(repeats):
            alone.append(len(pixels) / _seconds(lambda: _compute(loaded, pixels)))
            whole.append(len(frames) / _seconds(lambda: prediction.write(overlay)))
    share = median(whole) / median(alone)
    measured: dict[str, Any] = {
        "model": str(prediction.model),
        "frames": len(frames),
        "image_size": list(pixels[0].shape[:2]),
        "frames_per_second": round(median(whole), 2),
        "network_frames_per_second": round(median(alone), 2),
        "share": round(share, 3),
        "machine": machine_record(machine),
    }
    write_json(output, measured)
    say(
        f"video to overlay: {median(whole):.1f} frames/s, {share:.0%} of the network's alone "
        f"({median(alone):.1f}); {len(frames)} frames -> {output}"
    )


def _compute(model: Model, frames: list[Any]) -> None:
    for _ in by_threads(model.segment, frames, model.in_flight):
        pass


def _seconds(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start
