"""Augmentation as in Kolbinger et al. (2023).

One sampled transform moves frame, label and stored logits together. The geometry is sampled once,
as six numbers in unit coordinates, and one function warps every array on its own grid with pixel
centres aligned. What a transform does is a function of (seed, epoch or view, frame id) and nothing
else: the same for any number of workers or ranks, and after a resume.
"""

import os
import zlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import google_crc32c
import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

SHIFT = 0.1  # fraction of the frame
SCALE = 0.1
ROTATE = 5.0  # degrees
RGB_SHIFT = 20
BRIGHTNESS = 0.2
CONTRAST = 0.2
PROBABILITY = 0.5
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Augmentation:
    """One sampled transform.

    Attributes:
        affine: a, b, c, d, e, f with (u, v) of the original = (a u' + b v' + c, d u' + e v' + f),
            where u' and v' are coordinates in the augmented frame and every frame spans 0..1 in
            both directions.
        colour: seed of the colour transform, or None for unchanged colours.
    """

    affine: tuple[float, float, float, float, float, float] = IDENTITY
    colour: int | None = None


def sample(seed: int, epoch: int, frame: str, size: tuple[int, int]) -> Augmentation:
    """The augmentation of one frame in one epoch of the student, or in one stored view.

    Args:
        seed: seed of the run (or of the views).
        epoch: epoch or view.
        frame: the frame's id.
        size: (height, width) of the frame, since a rotation preserves angles in pixels and not in
            unit coordinates.
    """
    rng = np.random.default_rng([seed, epoch, zlib.crc32(frame.encode())])
    affine = _affine(rng, size) if rng.random() < PROBABILITY else IDENTITY
    return Augmentation(affine, colour=int(rng.integers(2**31)))


def _affine(
    rng: np.random.Generator, size: tuple[int, int]
) -> tuple[float, float, float, float, float, float]:
    """Shift, scale and rotation about the centre, from augmented to original unit coordinates."""
    shift = rng.uniform(-SHIFT, SHIFT, 2)
    scale = 1 + rng.uniform(-SCALE, SCALE)
    angle = np.deg2rad(rng.uniform(-ROTATE, ROTATE))
    height, width = size
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    pixels = np.array([width, height])
    linear = rotation * pixels[None, :] / pixels[:, None]
    offset = 0.5 - linear @ (0.5 + shift)
    a, b, c, d, e, f = map(float, np.column_stack([linear, offset]).ravel())
    return a, b, c, d, e, f


def grid_matrix(affine: tuple[float, ...], size: tuple[int, int]) -> Matrix:
    """The affine (2, 3) between pixel indices of a grid: augmented index -> original index.

    Args:
        affine: as in :class:`Augmentation`.
        size: (height, width) of the grid.
    """
    height, width = size
    a, b, c, d, e, f = affine
    pixels = np.array([width, height])
    linear = np.array([[a, b], [d, e]]) * pixels[:, None] / pixels[None, :]
    # Index i lies at (i + 0.5) / n of the frame: pixel centres, corners apart.
    offset = np.array([c, f]) * pixels + linear @ np.array([0.5, 0.5]) - 0.5
    return np.column_stack([linear, offset])


def warp(
    array: NDArray[np.generic],
    affine: tuple[float, ...],
    *,
    interpolation: int = cv2.INTER_LINEAR,
    border: int = cv2.BORDER_REFLECT_101,
    fill: float = 0,
) -> NDArray[np.generic]:
    """Warp (H, W) or (H, W, C) on its own grid.

    Outside the original comes the reflected border, or ``fill``.

    Returns:
        An array of the same shape and dtype (uint8, int16 or float32).
    """
    if affine == IDENTITY:
        return array
    height, width = array.shape[:2]
    matrix = grid_matrix(affine, (height, width))
    flags = interpolation | cv2.WARP_INVERSE_MAP

    def plane(part: NDArray[np.generic]) -> NDArray[np.generic]:
        return np.asarray(
            cv2.warpAffine(part, matrix, (width, height), None, flags, border, (fill,) * 4)
        )

    if array.ndim == 2 or array.shape[2] == 3:
        return plane(array)
    # OpenCV takes at most four channels, and interpolates two of them more coarsely than one or
    # three.
    return np.stack(
        [plane(np.ascontiguousarray(array[..., i])) for i in range(array.shape[2])], axis=2
    )


def warp_label(
    label: NDArray[np.integer[Any]], affine: tuple[float, ...], ignore: int
) -> NDArray[np.int16]:
    """Warp a label (H, W) of small integers by nearest neighbour.

    What lies outside the original frame becomes ``ignore``.
    """
    return warp(  # type: ignore[return-value]
        label.astype(np.int16),
        affine,
        interpolation=cv2.INTER_NEAREST,
        border=cv2.BORDER_CONSTANT,
        fill=ignore,
    )


def warp_logits(
    logits: NDArray[np.floating[Any]], affine: tuple[float, ...]
) -> NDArray[np.float32]:
    """Warp stored logits (..., h, w) on their grid as the frame was; the border is repeated."""
    planes = logits.astype(np.float32).reshape(-1, *logits.shape[-2:]).transpose(1, 2, 0)
    warped = warp(planes, affine, border=cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(warped.transpose(2, 0, 1), dtype=np.float32).reshape(logits.shape)


def valid_cells(affine: tuple[float, ...], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Cells (h, w) of a warped grid that come only from cells inside the original frame."""
    height, width = size
    matrix = grid_matrix(affine, size)
    y, x = np.mgrid[:height, :width]
    source = np.einsum("ij,jhw->ihw", matrix, np.stack([x, y, np.ones_like(x)]))
    slack = 1e-6  # of a pixel, for rounding
    inside_x = (source[0] >= -slack) & (source[0] <= width - 1 + slack)
    return np.asarray(inside_x & (source[1] >= -slack) & (source[1] <= height - 1 + slack))


def recolour(frame: NDArray[np.uint8], colour: int | None) -> NDArray[np.uint8]:
    """Shift the RGB channels, brightness and contrast of a frame (H, W, 3) uint8.

    Args:
        frame: the frame.
        colour: the seed that decides by how much, or None for unchanged colours.
    """
    if colour is None:
        return frame
    transform = _colour_transform()
    transform.set_random_seed(colour)
    return transform(image=frame)["image"]


@cache
def _colour_transform() -> Any:
    # Without this albumentations asks the package index for a newer version at every import.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as A

    return A.Compose(
        [
            A.RGBShift(RGB_SHIFT, RGB_SHIFT, RGB_SHIFT, p=PROBABILITY),
            A.RandomBrightnessContrast(BRIGHTNESS, CONTRAST, p=PROBABILITY),
        ]
    )


def augment_frame(frame: NDArray[np.uint8], augmentation: Augmentation) -> NDArray[np.uint8]:
    """A network's input (H, W, 3) uint8: warped, reflected at the border, recoloured."""
    warped: NDArray[np.uint8] = warp(frame, augmentation.affine)  # type: ignore[assignment]
    return recolour(warped, augmentation.colour)


def fingerprint(frame: NDArray[np.uint8]) -> int:
    """The crc32c of pixels (H, W, 3) uint8, by which a store knows its teacher's input."""
    return int(google_crc32c.value(np.ascontiguousarray(frame).tobytes()))
