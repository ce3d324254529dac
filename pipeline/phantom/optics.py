"""What a scope makes of a scene: its light, instruments, smoke, the field of view, the sensor."""

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.phantom.patient import Patient
from pipeline.phantom.scene import Canvas
from pipeline.phantom.shapes import slopes, soften
from pipeline.phantom.textures import TILE, Plane, Rng, colour, fractal


def light(canvas: Canvas, rng: Rng, who: Patient, grain: Plane, wet: Plane) -> Plane:
    """The lit picture (H, W, 3), linear.

    The light comes from the scope itself: relief, falloff with distance, highlights where it is
    wet.

    Args:
        canvas: the painted scene.
        rng: of the frame.
        who: the patient, whose scope has a colour and an exposure.
        grain: fine relief (H, W).
        wet: where the surface is wet (H, W).
    """
    height, width = canvas.labels.shape
    y, x = np.ogrid[:height, :width]
    lx = ((width * rng.uniform(0.40, 0.60) - x) / height).astype(np.float32)
    ly = ((height * rng.uniform(0.42, 0.66) - y) / height).astype(np.float32)
    away = lx * lx + ly * ly
    gx, gy = canvas.slope
    length = cv2.sqrt((1 + gx * gx + gy * gy) * (away + np.float32(0.8)))
    cosine = np.clip((np.float32(0.894) - gx * lx - gy * ly) / length, 0, 1)
    power = np.clip(canvas.near, 0.15, 1.15) * (np.float32(2.1) / (1 + np.float32(2.8) * away))
    lit = (
        (np.float32(0.25) + np.float32(0.75) * cosine)
        * (np.float32(0.25) + np.float32(0.75) * canvas.shade)
        * power
    )
    # Tissue scatters red light furthest: what is turned away or in shadow goes red, not grey.
    dark = 1 - cosine * canvas.shade
    ripple = slopes(grain * np.float32(0.4 * height / 256))
    gx = np.float32(0.8) * gx + ripple[0]
    gy = np.float32(0.8) * gy + ripple[1]
    length = cv2.sqrt((1 + gx * gx + gy * gy) * (1 + np.float32(0.3) * away))
    mirror = np.clip((1 - np.float32(0.55) * (gx * lx + gy * ly)) / length, 0, 1)
    glint = np.clip((mirror - np.float32(0.990)) * 150, 0, 1) * np.clip(
        wet * np.float32(0.8) - np.float32(0.15), 0, 1
    )
    sheen = cv2.pow(mirror, 24)
    shine = canvas.gloss * (glint + np.float32(0.07) * sheen) * power * canvas.shade
    lamp = who.light * np.float32(who.exposure)
    planes = zip(cv2.split(canvas.albedo), lamp, colour(0.0, 0.22, 0.27), strict=True)
    return cv2.merge([albedo * (lit * (k - k * red * dark)) + shine for albedo, k, red in planes])


def instrument(rng: Rng, picture: Plane, labels: NDArray[np.uint8]) -> None:
    """Draw a shaft that enters from the rim, with a metal wrist and two jaws.

    What it hides has no label. Both arrays, (H, W, 3) and (H, W), are changed in place.
    """
    height, width = labels.shape
    angle = rng.choice(
        (rng.normal(0.6, 0.4), rng.normal(2.55, 0.4), rng.uniform(0, 6.3)), p=(0.45, 0.45, 0.1)
    )
    axis = -np.array([np.cos(angle), np.sin(angle)], np.float32)
    tip = np.array([width, height]) * (0.5 + 0.3 * rng.uniform(-1, 1, 2) - 0.12 * axis)
    radius = height * rng.uniform(0.026, 0.042)
    y, x = np.ogrid[:height, :width]
    right = ((x - tip[0]) / radius).astype(np.float32)
    down = ((y - tip[1]) / radius).astype(np.float32)
    along = right * axis[0] + down * axis[1]
    # The shaft comes towards the scope and widens on the way.
    side = (down * axis[0] - right * axis[1]) / (1 - np.float32(0.025) * np.minimum(along, 0))
    opening = np.float32(rng.uniform(0.05, 0.32))
    reach = np.float32(rng.uniform(3.5, 5.5))
    taper = cv2.sqrt(np.clip(np.float32(1.05) - along / reach, 0, 1))
    jaws = (along > -0.2) & (
        np.abs(np.abs(side) - np.float32(0.28) - opening * along) < np.float32(0.42) * taper
    )
    solid = (jaws | ((np.abs(side) < 1) & (along <= 0))).astype(np.float32)
    shift = np.array([[1, 0, 0.03 * height], [0, 1, 0.04 * height]])
    shadow = soften(cv2.warpAffine(solid, shift, (width, height)), 5 * height / 256)
    picture *= (1 - np.float32(0.5) * shadow)[..., None]
    cover = cv2.GaussianBlur(solid, (0, 0), 0.6)
    labels[cover > 0.5] = 0
    where = np.nonzero(cover > 0.01)
    picture[where] += (
        _steel(rng, along[where], side[where], jaws[where]) - picture[where]
    ) * cover[where][:, None]


def _steel(rng: Rng, along: Plane, side: Plane, jaws: NDArray[np.bool_]) -> Plane:
    """Colours (n, 3) of an instrument's pixels, by their place along and across it in radii."""
    metal = colour(0.58, 0.60, 0.62) * np.float32(rng.uniform(0.6, 1.0))
    insulated = (along < -3.5) & (rng.random() < 0.6)
    curve = np.sqrt(np.clip(1 - side**2, 0, 1))
    glow = 0.22 + 0.5 * curve + 0.9 * np.exp(-(((side + 0.3) / 0.13) ** 2))
    glow = np.where(jaws, 0.45 + 0.4 * (np.sin(along * 5) < 0.3), glow)
    return np.asarray(
        np.where(insulated[:, None], colour(0.035, 0.035, 0.04), metal) * glow[:, None], np.float32
    )


def scope(
    rng: Rng,
    picture: Plane,
    labels: NDArray[np.uint8],
    who: Patient,
    noise: Plane,
    difficulty: float,
) -> NDArray[np.uint8]:
    """The frame (H, W, 3) uint8 after smoke, defocus, the field of view and the sensor.

    Labels (H, W) outside the view are cleared in place; the picture is overwritten.
    """
    height, width = labels.shape
    if rng.random() < 0.12 + 0.3 * difficulty:
        clouds = fractal(rng, (height, width), [(height / 2, height / 2), (height / 4, height / 4)])
        haze = (
            np.clip(0.5 + 0.35 * clouds, 0, 1) * rng.uniform(0.08, 0.2 + 0.35 * difficulty)
        ).astype(np.float32)
        picture += (colour(0.42, 0.40, 0.40) * np.float32(who.exposure) - picture) * haze[..., None]
    picture = cv2.GaussianBlur(
        picture, (0, 0), rng.uniform(0.45, 0.6 + 0.6 * difficulty) * height / 256
    )
    y, x = np.ogrid[:height, :width]
    cx, cy = who.view_centre
    away = np.hypot((x - width * cx).astype(np.float32), (y - height * cy).astype(np.float32))
    seen = np.clip((np.float32(width * who.view_radius) - away) / np.float32(0.008 * width), 0, 1)
    # A camera's tone curve: bright tissue saturates softly.
    picture = cv2.sqrt(1 - cv2.exp(np.float32(-1.7 * who.contrast) * np.maximum(picture, 0)))
    spots = rng.integers(0, 160, (3, 2))
    tiled = np.pad(
        noise, ((0, max(0, height + 160 - TILE)), (0, max(0, width + 160 - TILE))), mode="wrap"
    )
    sensor = np.stack([tiled[j : j + height, i : i + width] for j, i in spots], axis=-1)
    picture += np.float32(0.008 + 0.022 * difficulty) * sensor
    labels[seen <= 0.5] = 0
    return np.asarray(np.clip(picture * cv2.merge([255 * seen] * 3), 0, 255), np.uint8)
