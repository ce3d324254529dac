"""What stays the same in one surgery, and how its scope is turned to an organ."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.phantom.shapes import View
from pipeline.phantom.textures import Plane, Rng, colour

ANATOMIES = (
    "abdominal_wall",
    "colon",
    "inferior_mesenteric_artery",
    "intestinal_veins",
    "liver",
    "pancreas",
    "small_intestine",
    "spleen",
    "stomach",
    "ureter",
    "vesicular_glands",
)

# What a region shows, and the point (u, v) of each organ that a frame filed under it turns to.
REGIONS = {
    "upper": {
        "abdominal_wall": (0.0, 1.75),
        "colon": (0.1, 0.12),
        "liver": (-0.75, 0.95),
        "pancreas": (0.22, 0.44),
        "spleen": (1.1, 0.98),
        "stomach": (0.42, 0.85),
    },
    "middle": {
        "abdominal_wall": (0.0, 1.75),
        "colon": (0.95, 0.8),
        "inferior_mesenteric_artery": (0.42, 0.6),
        "intestinal_veins": (-0.12, 0.62),
        "small_intestine": (-0.75, 0.55),
    },
    "pelvis": {
        "abdominal_wall": (0.0, 1.7),
        "colon": (-0.7, 0.65),
        "inferior_mesenteric_artery": (-0.1, 0.4),
        "small_intestine": (0.85, 0.25),
        "ureter": (0.5, 0.7),
        "vesicular_glands": (0.1, 0.98),
    },
}


@dataclass(frozen=True)
class Patient:
    """What stays the same in one surgery: anatomy, tissue colours, the scope and how it is held."""

    shapes: dict[str, int]
    moved: dict[str, Plane]
    sized: dict[str, float]
    tints: dict[str, Plane]
    light: Plane
    exposure: float
    contrast: float
    fat: float
    tilt: float
    roll: float
    view_radius: float
    view_centre: tuple[float, float]


def patient(rng: Rng, difficulty: float) -> Patient:
    """Draw a surgery."""
    hue = 0.05 + 0.13 * difficulty
    common = rng.normal(0, [0.5 * hue, 0.8 * hue, 0.8 * hue])
    names = (*ANATOMIES, "fat", "serosa", "other")
    return Patient(
        shapes={a: int(rng.integers(2**31)) for a in names},
        moved={a: rng.normal(0, (0.07, 0.04)).astype(np.float32) for a in names},
        sized={a: float(np.exp(rng.normal(0, 0.10))) for a in names},
        tints={a: _tint(rng, common, hue) for a in names},
        light=np.exp(rng.normal([0.04, 0.0, -0.04], 0.03 + 0.05 * difficulty)).astype(np.float32),
        exposure=float(np.exp(rng.normal(0.05, 0.08 + 0.14 * difficulty))),
        contrast=float(rng.uniform(0.9, 1.15)),
        fat=float(rng.uniform(0.2, 1.0)),
        tilt=float(rng.uniform(0.9, 1.4)),
        roll=float(rng.normal(0, 0.12)),
        view_radius=float(rng.choice([0.47, 0.52, 0.59, 2.0], p=[0.25, 0.3, 0.2, 0.25])),
        view_centre=(float(rng.uniform(0.47, 0.53)), float(rng.uniform(0.46, 0.54))),
    )


def _tint(rng: Rng, common: NDArray[np.floating], hue: float) -> Plane:
    """Factors on a tissue's red, green and blue: paler, redder or yellower, but not green."""
    red, green, blue = np.exp(common + rng.normal(0, hue) + rng.normal(0, hue / 2, 3))
    return colour(red, min(green, red), blue)


def look(
    rng: Rng, target: tuple[float, float], who: Patient, zoom: float, size: tuple[int, int]
) -> View:
    """Turn the scope so that a point of the plane falls near the middle of the picture."""
    height, width = size
    span = 0.62 * width * zoom
    tilt = who.tilt
    horizon = -0.34 * height * zoom
    matrix = np.array([[span, 0, 0], [0, horizon * tilt, 1.12 * height * zoom], [0, tilt, 1]])
    c = np.cos(who.roll + rng.normal(0, 0.1))
    s = np.sin(who.roll + rng.normal(0, 0.1))
    matrix = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ matrix
    x, y = View(matrix, size).pixels(np.array([target]))[0]
    to_x = width * rng.uniform(0.36, 0.64)
    to_y = height * rng.uniform(0.38, 0.62)
    return View(np.array([[1, 0, to_x - x], [0, 1, to_y - y], [0, 0, 1]]) @ matrix, size)
