"""Colours, and patterns that are drawn once, then sampled at any scale and angle."""

from collections.abc import Iterable
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator
Plane = NDArray[np.float32]
TILE = 512


def colour(*values: float) -> Plane:
    """A colour as float32."""
    return np.array(values, np.float32)


def tinted(base: Plane, slope: Plane, pattern: Plane) -> Plane:
    """The colours (h, w, 3) ``base + slope * pattern``.

    They are made plane by plane, which is several times faster.
    """
    return cv2.merge([b + k * pattern for b, k in zip(base, slope, strict=True)])


def over(above: Plane, below: Plane, cover: Plane) -> Plane:
    """Colours (h, w, 3) mixed by the share (h, w) of the upper ones."""
    return cv2.blendLinear(above, below, cover, 1 - cover)


def fractal(rng: Rng, size: tuple[int, int], cells: Iterable[tuple[float, float]]) -> Plane:
    """Smooth noise (H, W) of unit deviation: enlarged random grids.

    Args:
        rng: of the grids.
        size: (H, W).
        cells: (height, width) of the cells of each grid, in pixels.
    """
    height, width = size
    total = np.zeros(size, np.float32)
    for down, across in cells:
        grid = rng.standard_normal((int(height / down) + 3, int(width / across) + 3)).astype(
            np.float32
        )
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * np.float32(
            np.sqrt(down)
        )
    return np.asarray((total - total.mean()) / total.std(), np.float32)


def _lobules(rng: Rng, cell: float, bend: Plane) -> Plane:
    """Cushions (TILE, TILE) in 0..1 with furrows between them, as fat and glands have."""
    count = int((TILE / cell) ** 2)
    seeds = np.full((TILE, TILE), 255, np.uint8)
    seeds[tuple(rng.integers(0, TILE, (2, count)))] = 0
    _, owner = cv2.distanceTransformWithLabels(
        seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    walls = (
        cv2.morphologyEx(owner.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8))
        == 0
    )
    depth = cv2.distanceTransform(walls.astype(np.uint8), cv2.DIST_L2, 5) / (0.45 * cell)
    y, x = np.mgrid[:TILE, :TILE].astype(np.float32)
    shift = 0.25 * cell * bend
    bent = cv2.remap(
        np.sqrt(np.clip(depth, 0, 1)),
        x + shift,
        y + shift.T,
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )
    return np.asarray(cv2.GaussianBlur(bent, (0, 0), cell / 12), np.float32)


def _vessels(rng: Rng) -> Plane:
    """Branching fine vessels (TILE, TILE), 0..1."""
    lines = np.zeros((TILE, TILE), np.uint8)
    stems = [(*rng.uniform(0, TILE, 2), rng.uniform(0, 6.3), 3.2) for _ in range(14)]
    while stems:
        x, y, angle, width = stems.pop()
        turns = angle + np.cumsum(rng.normal(0, 0.16, 14 + int(9 * width)))
        path = np.cumsum(np.stack([np.cos(turns), np.sin(turns)], 1) * 7, 0) + np.array([x, y])
        cv2.polylines(
            lines,
            [(path * 8).astype(np.int32)],
            False,
            int(70 * width),
            max(1, round(width)),
            cv2.LINE_AA,
            3,
        )
        if width > 1.3:
            forks = path[rng.integers(3, len(path), 5)]
            stems += [(*fork, turns[-1] + rng.choice((-0.8, 0.8)), width * 0.62) for fork in forks]
    return np.asarray(cv2.GaussianBlur(lines, (0, 0), 0.9) / np.float32(255), np.float32)


@lru_cache(maxsize=1)
def textures(seed: int) -> dict[str, Plane]:
    """The tiles (TILE, TILE) of a data set.

    They cost a few hundred milliseconds once, so that a frame costs a look-up.
    """
    rng = np.random.default_rng([seed, 0])
    size = (TILE, TILE)
    clouds = fractal(rng, size, [(c, c) for c in (128, 64, 32, 16, 8)])
    fibres = fractal(rng, size, [(5, 90), (9, 140), (3, 40), (24, 200)])
    coarse = _lobules(rng, 46, clouds)
    fine = _lobules(rng, 20, clouds)
    return {
        "clouds": clouds,
        "grain": fractal(rng, size, [(c, c) for c in (12, 6, 3)]),
        "fibres": fibres,
        "lobules": np.asarray(0.72 * coarse + 0.28 * fine, np.float32),
        "vessels": _vessels(rng),
        "sensor": cv2.GaussianBlur(rng.standard_normal(size, np.float32), (0, 0), 0.6) * 2,
    }
