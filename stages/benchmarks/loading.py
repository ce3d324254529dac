"""``mtkd benchmark loading``: training frames from the disk to augmented tensors, on one core."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.augmentation import augment_frame, sample, warp_label
from pipeline.datasets import FrameDataset
from pipeline.files import write_json
from pipeline.losses.partial_labels import IGNORE
from pipeline.machine import Machine
from pipeline.prepared import Frame, load_frame, load_label
from pipeline.timing.host import machine_record
from stages.benchmarks.synthetic_frames import write_example
from stages.shared.console import say
from stages.shared.project import Places

OUTPUT = Path("results/benchmark_loading.json")
ANATOMY = "organ"
FRAMES = 32


class _StoredLogits:
    """Stored logits without the cost of reading them, which ``mtkd benchmark store`` measures."""

    views = 0
    view_seed = 0

    def __init__(self, teachers: int, size: tuple[int, int]) -> None:
        shape = (teachers, 2, -(-size[0] // 4), -(-size[1] // 4))
        self.logits = np.random.default_rng(0).normal(size=shape).astype(np.float16)

    def read(self, frame: str, view: int, pixels: int) -> NDArray[np.float16]:
        """The same for every frame."""
        return self.logits


def run(size: tuple[int, int], teachers: int, rounds: int, output: Path) -> None:
    """Measure, print and write as JSON; ``size`` is (H, W)."""
    measured = {
        "machine": machine_record(Machine("cpu")),
        "image_size": list(size),
        "teachers": teachers,
        **measure(size, teachers, rounds),
    }
    write_json(output, measured)
    for name, step in measured["milliseconds"].items():
        say(f"{name}: {step:.2f} ms")
    say(
        f"{measured['frames_per_second']:.0f} frames/s per core, "
        f"{measured['frames_per_second_taught']:.0f} with the logits of {teachers} teachers to warp"
    )
    say(f"-> {output}")


def measure(size: tuple[int, int], teachers: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of each step and frames per second, on one core, files in the system's cache.

    Args:
        size: (H, W) of the prepared frames.
        teachers: how many; their stored logits, at a quarter of the size, are warped with each
            frame.
        rounds: how often the frames are loaded; the fastest round counts.
    """
    threads = cv2.getNumThreads()
    with tempfile.TemporaryDirectory() as folder:
        places = Places(Path(folder))
        for number in range(FRAMES):
            write_example(places, ANATOMY, number, size)
        try:
            cv2.setNumThreads(1)
            return _measured(_frames(places), size, teachers, rounds)
        finally:
            cv2.setNumThreads(threads)


def _frames(places: Places) -> list[Frame]:
    frames = places.prepared_frames
    labels = places.prepared_labels
    images = sorted((frames / "train" / ANATOMY / "01").glob("*.png"))
    masks = [labels / image.relative_to(frames) for image in images]
    return [
        Frame(f"{ANATOMY}/{image.stem}", ANATOMY, "01", image, mask)
        for image, mask in zip(images, masks, strict=True)
    ]


def _measured(
    frames: list[Frame], size: tuple[int, int], teachers: int, rounds: int
) -> dict[str, Any]:
    plain = FrameDataset(frames, [ANATOMY], 1)
    distilled = FrameDataset(frames, [ANATOMY], 1, _StoredLogits(teachers, size))
    pixels = load_frame(frames[0].image)
    label = load_label(frames[0].label)
    moves = [sample(1, 0, frame.id, size) for frame in frames]

    def fastest(call: Callable[[int], object]) -> float:
        """Seconds for one frame."""
        times = []
        for _ in range(rounds):
            start = perf_counter()
            for i in range(len(frames)):
                call(i)
            times.append((perf_counter() - start) / len(frames))
        return min(times)

    steps = {
        "read frame": fastest(lambda i: load_frame(frames[i].image)),
        "read label": fastest(lambda i: load_label(frames[i].label)),
        "augment frame": fastest(lambda i: augment_frame(pixels, moves[i])),
        "warp label": fastest(lambda i: warp_label(label, moves[i].affine, IGNORE)),
        "all": fastest(lambda i: plain[0, i]),
        "all with logits": fastest(lambda i: distilled[0, i]),
    }
    return {
        "milliseconds": {name: round(1000 * seconds, 2) for name, seconds in steps.items()},
        "frames_per_second": round(1 / steps["all"], 1),
        "frames_per_second_taught": round(1 / steps["all with logits"], 1),
        "bytes_per_frame": sum(f.image.stat().st_size + f.label.stat().st_size for f in frames)
        // len(frames),
    }
