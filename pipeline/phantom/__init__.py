"""The embedded data set: a procedural laparoscopic phantom in DSAD's layout.

Its seed determines every byte. It has eleven anatomies under their DSAD names, and surgeries with
their own anatomy, tissue colours and scope. Every frame stands in one sub-data set, and the other
organs in it are visible and unlabelled. What a network scores here says whether the pipeline works,
and nothing about patients.
"""

import csv
import multiprocessing
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MtkdError
from pipeline.phantom.optics import instrument, light, scope
from pipeline.phantom.patient import ANATOMIES, REGIONS, Patient, look, patient
from pipeline.phantom.scene import Scene
from pipeline.phantom.textures import textures

# Least visible share of a frame for the anatomy that it is filed under; thin structures need less.
LEAST = {
    "inferior_mesenteric_artery": 0.006,
    "intestinal_veins": 0.006,
    "ureter": 0.005,
    "vesicular_glands": 0.012,
}
LEAST_OTHER = 0.03
ATTEMPTS = 8
# Zoom; what is small is looked at from closer by.
CLOSE = (1.15, 1.6)
WIDE = (1.0, 1.45)
# Runs only: noise compresses no better with more effort.
PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]

Job = tuple[str, int, int]  # anatomy, surgery, frame


@dataclass(frozen=True)
class PhantomSettings:
    """Which data set is written.

    Attributes:
        seed: the same seed gives the same bytes.
        surgeries: number of surgeries.
        frames: frames per anatomy and surgery.
        size: (height, width) of a frame in pixels.
        difficulty: see :func:`render`.
        label_maps: whether complete label maps are written, too.
        mapped: the surgeries that they are written of; None for all.
    """

    seed: int
    surgeries: int
    frames: int
    size: tuple[int, int] = (256, 320)
    difficulty: float = 0.5
    label_maps: bool = False
    mapped: Collection[int | str] | None = None

    def maps(self, surgery: int) -> bool:
        """Whether the label maps of a surgery are written."""
        return self.label_maps and (self.mapped is None or surgery in self.mapped)


def render(
    anatomy: str, surgery: int, frame: int, *, seed: int, size: tuple[int, int], difficulty: float
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One frame of one surgery, with the anatomy in view.

    Args:
        anatomy: one of ``ANATOMIES``.
        surgery: 1, 2, ...
        frame: 0, 1, ...
        seed: of the data set.
        size: (height, width).
        difficulty: 0..1; spreads colours and light, adds smoke, instruments, noise and unlabelled
            look-alikes.

    Returns:
        The frame (H, W, 3) uint8 RGB, and its complete label map (H, W) uint8: 0 = none, i =
        ``ANATOMIES[i - 1]``.
    """
    index = ANATOMIES.index(anatomy)
    who = patient(np.random.default_rng([seed, 1, surgery]), difficulty)
    least = LEAST.get(anatomy, LEAST_OTHER) * size[0] * size[1]
    best: tuple[int, NDArray[np.uint8], NDArray[np.uint8]] | None = None
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng([seed, 2, surgery, index, frame, attempt])
        pixels, labels = _draw(rng, anatomy, who, textures(seed), size, difficulty)
        visible = int((labels == index + 1).sum())
        if best is None or visible > best[0]:
            best = visible, pixels, labels
        if visible >= least:
            break
    assert best is not None
    return best[1], best[2]


def _draw(
    rng: np.random.Generator,
    anatomy: str,
    who: Patient,
    tiles: dict[str, NDArray[np.float32]],
    size: tuple[int, int],
    difficulty: float,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    regions = [name for name, organs in REGIONS.items() if anatomy in organs]
    region = regions[rng.integers(len(regions))]
    u, v = REGIONS[region][anatomy] + who.moved[anatomy]
    zoom = rng.uniform(*(CLOSE if anatomy in LEAST else WIDE))
    scene = Scene(rng, who, look(rng, (u, v), who, zoom, size), region, tiles, difficulty)
    canvas = scene.paint()
    picture = light(canvas, rng, who, scene.grain, scene.clouds)
    labels = canvas.labels
    for _ in range(rng.binomial(2, 0.15 + 0.35 * difficulty)):
        instrument(rng, picture, labels)
    return scope(rng, picture, labels, who, tiles["sensor"], difficulty), labels


def write_phantom(
    root: Path,
    settings: PhantomSettings,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write a data set.

    ``<root>/<anatomy>/<NN>/`` gets ``imageMM.png``, ``maskMM.png`` (0 and 255) and
    ``weak_labels.csv``; ``<root>/multilabel/<anatomy>/<NN>/labelMM.png`` are the label maps, and
    ``<root>/multilabel/anatomies.txt`` their legend.

    Args:
        root: is created.
        settings: which data set; the bytes do not depend on ``workers``.
        workers: processes.
        progress: called with (done, total).

    Returns:
        The number of frames.

    Raises:
        MtkdError: a setting is out of range.
    """
    _check(settings)
    surgeries = range(1, settings.surgeries + 1)
    jobs = list(product(ANATOMIES, surgeries, range(settings.frames)))
    work = partial(_write_frame, root=root, settings=settings)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, context, initializer=cv2.setNumThreads, initargs=(1,)
    ) as pool:
        rows = []
        for row in pool.map(work, jobs, chunksize=4):
            rows.append(row)
            if progress is not None:
                progress(len(rows), len(jobs))
    _write_weak_labels(root, jobs, rows)
    if any(settings.maps(surgery) for surgery in surgeries):
        legend = "".join(f"{anatomy}\n" for anatomy in ANATOMIES)
        (root / "multilabel" / "anatomies.txt").write_text(legend)
    return len(jobs)


def _check(settings: PhantomSettings) -> None:
    if settings.surgeries < 1 or settings.frames < 1:
        raise MtkdError(
            "a phantom needs at least one surgery and one frame, not "
            f"{settings.surgeries} and {settings.frames}"
        )
    height, width = settings.size
    if min(height, width) < 64:
        raise MtkdError(f"a phantom frame needs at least 64x64 pixels, not {width}x{height}")
    if not 0 <= settings.difficulty <= 1:
        raise MtkdError(f"difficulty lies in 0..1, not {settings.difficulty}")


def _write_frame(job: Job, *, root: Path, settings: PhantomSettings) -> list[int]:
    """Write one frame; 0 or 1 for each anatomy that it shows."""
    anatomy, surgery, frame = job
    pixels, labels = render(
        anatomy,
        surgery,
        frame,
        seed=settings.seed,
        size=settings.size,
        difficulty=settings.difficulty,
    )
    mask = np.where(labels == ANATOMIES.index(anatomy) + 1, 255, 0).astype(np.uint8)
    place = Path(anatomy) / f"{surgery:02d}"
    _write_png(root / place / f"image{frame:02d}.png", pixels[..., ::-1])
    _write_png(root / place / f"mask{frame:02d}.png", mask)
    if settings.maps(surgery):
        _write_png(root / "multilabel" / place / f"label{frame:02d}.png", labels)
    return [int((labels == i).any()) for i in range(1, len(ANATOMIES) + 1)]


def _write_weak_labels(root: Path, jobs: Sequence[Job], rows: Sequence[Sequence[int]]) -> None:
    """Which anatomies each frame shows: ``weak_labels.csv`` in every surgery's folder."""
    tables: dict[Path, list[list[object]]] = {}
    for (anatomy, surgery, frame), row in zip(jobs, rows, strict=True):
        folder = root / anatomy / f"{surgery:02d}"
        tables.setdefault(folder, []).append([f"image{frame:02d}.png", *row])
    for folder, table in tables.items():
        with (folder / "weak_labels.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([["image", *ANATOMIES], *table])


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _, encoded = cv2.imencode(".png", pixels, PNG)
    path.write_bytes(encoded.tobytes())
