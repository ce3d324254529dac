"""Shapes on the sensor: signed distance to the outline and relief, both in pixels."""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.phantom.textures import Plane, Rng

Box = tuple[slice, slice]


@dataclass(frozen=True)
class View:
    """How the plane of the scene falls on the sensor: a homography (u, v, 1) -> pixels."""

    matrix: NDArray[np.float64]
    size: tuple[int, int]

    def pixels(self, points: NDArray[np.floating]) -> Plane:
        """Points (n, 2) of the plane -> pixels (n, 2), x first."""
        moved = np.column_stack([points, np.ones(len(points))]) @ self.matrix.T
        return np.asarray(moved[:, :2] / moved[:, 2:], np.float32)

    def nearness(self, points: NDArray[np.floating]) -> Plane:
        """1 at the scope's edge of the plane, falling with the distance."""
        return np.asarray(
            1 / (np.column_stack([points, np.ones(len(points))]) @ self.matrix[2]), np.float32
        )

    def scale(self, points: NDArray[np.floating]) -> Plane:
        """Pixels per unit of u at points of the plane."""
        return np.asarray(
            self.nearness(points) * np.hypot(self.matrix[0, 0], self.matrix[1, 0]), np.float32
        )

    def ground(self) -> Plane:
        """Nearness (H, W) of the plane at every pixel."""
        a, b, c = np.linalg.inv(self.matrix)[2].astype(np.float32)
        y, x = np.ogrid[: self.size[0], : self.size[1]]
        return np.asarray(np.clip(a * x + b * y + c, 0.15, 1.6), np.float32)


def spline(path: NDArray[np.floating], steps: int = 12, closed: bool = False) -> Plane:
    """Points on a Catmull-Rom spline through a path (n, 2)."""
    if closed:
        p = np.concatenate([path[-1:], path, path[:2]])
    else:
        p = np.concatenate([2 * path[:1] - path[1:2], path, 2 * path[-1:] - path[-2:-1]])
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    pieces = 0.5 * (
        2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
    )
    return np.asarray(pieces.reshape(-1, 2), np.float32)


def wander(rng: Rng, path: Iterable[tuple[float, float]], bend: float) -> Plane:
    """A path whose inner points stray."""
    points = np.array(list(path), np.float32)
    points[1:-1] += rng.normal(0, bend, points[1:-1].shape)
    return points


@dataclass
class Patch:
    """The part of the picture that a shape touches.

    Attributes:
        box: rows and columns of the picture; the arrays cover these.
        inside: signed distance to the outline, positive inside; clipped far from it.
        height: relief.
        near: nearness.
    """

    box: Box
    inside: Plane
    height: Plane
    near: Plane | float


@dataclass
class Tube(Patch):
    """Tubes around paths, unrolled.

    Attributes:
        along: length along the path in radii.
        across: -1 at one wall, 0 on the axis, 1 at the other.
    """

    along: Plane
    across: Plane


def tube(
    view: View, paths: list[tuple[Plane, float]], least: float = 0.0, haustra: float = 0.0
) -> Tube | None:
    """Tubes along splines (n, 2) of the plane with radii in units of u; None when out of view.

    The distance transform names the nearest point of the axis, and with it the place on the tube.
    """
    table = _densify(
        np.concatenate([_axis(view, path, radius, least, haustra) for path, radius in paths])
    )
    reach = int(table[:, 2].max()) + 3
    box = _box(table[:, :2], reach, view.size)
    if box is None:
        return None
    rows, columns = box
    pad = min(reach, view.size[0] // 3)
    shape = rows.stop - rows.start + 2 * pad, columns.stop - columns.start + 2 * pad
    x, y = (table[:, :2].round().astype(int) + np.array([pad - columns.start, pad - rows.start])).T
    seen = (x >= 0) & (x < shape[1]) & (y >= 0) & (y < shape[0])
    if not seen.any():
        return None
    axis = np.full(shape, 255, np.uint8)
    axis[y[seen], x[seen]] = 0
    far, owner = cv2.distanceTransformWithLabels(
        axis, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    look_up = np.zeros((table.shape[1], owner.max() + 1), np.float32)
    look_up[:, owner[y[seen], x[seen]]] = table[seen].T
    window = slice(pad, -pad), slice(pad, -pad)
    mine = np.ascontiguousarray(owner[window])
    px, py, radius, along, dx, dy, near = (np.take(column, mine) for column in look_up)
    distance = far[window]
    yy, xx = np.ogrid[rows, columns]
    share = distance / radius
    across = np.copysign(
        share, dx * (yy.astype(np.float32) - py) - dy * (xx.astype(np.float32) - px)
    )
    relief = radius * cv2.sqrt(np.maximum(np.float32(1.02) - share * share, np.float32(0.0004)))
    return Tube(box, radius - distance, relief, near, along, across)


def _axis(
    view: View, path: Plane, radius: float, least: float, haustra: float
) -> NDArray[np.floating]:
    """Points down the axis of a tube.

    Returns:
        Rows of x, y and radius in pixels, length in radii, step along x and y, and nearness.
    """
    line = spline(path)
    spots = view.pixels(line)
    widths = np.maximum(view.scale(line) * radius, least)
    step = np.gradient(spots, axis=0)
    length = np.cumsum(np.hypot(step[:, 0], step[:, 1]) / widths)
    if haustra:
        widths = widths * (1 - haustra * np.abs(np.cos(length * 1.35)) ** 5)
    return np.column_stack([spots, widths, length, step, view.nearness(line)])


def _box(points: NDArray[np.floating], reach: int, size: tuple[int, int]) -> Box | None:
    """Where points (n, 2), x first, have an influence within a picture (height, width)."""
    frame = np.array([size[1], size[0]])
    close = points[((points > -reach) & (points < frame + reach)).all(axis=1)]
    if len(close) == 0:
        return None
    low = np.clip(np.floor(close.min(axis=0)) - reach, 0, frame).astype(int)
    high = np.clip(np.ceil(close.max(axis=0)) + reach, 0, frame).astype(int)
    if (high - low < 2).any():
        return None
    return slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))


def _densify(table: NDArray[np.floating]) -> NDArray[np.floating]:
    """Repeat rows so that steps between them stay below a pixel.

    Jumps between paths are left open.
    """
    gaps = np.hypot(*np.diff(table[:, :2], axis=0).T)
    counts = np.where(np.diff(table[:, 3]) < 0, 1, np.clip(np.ceil(gaps * 1.5), 1, 60)).astype(int)
    start = np.repeat(np.arange(len(counts)), counts)
    part = (np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)) / np.repeat(
        counts, counts
    )
    return table[start] * (1 - part[:, None]) + table[start + 1] * part[:, None]


def blob(view: View, outline: Plane, bulge: float, near: float) -> Patch | None:
    """The area within an outline (n, 2) of pixels, rounded off over ``bulge`` pixels.

    None when it is out of view.
    """
    height, width = view.size
    # A quarter of the resolution and a margin: the picture's edge is no outline, and blurring is
    # cheap.
    margin = 24
    mask = np.zeros((height, width), np.uint8)
    coarse = np.zeros((height // 4 + 2 * margin, width // 4 + 2 * margin), np.uint8)
    cv2.fillPoly(mask, [(outline * 16).round().astype(np.int32)], 255, cv2.LINE_AA, 4)
    x, y, w, h = cv2.boundingRect(mask)
    if w < 2 or h < 2:
        return None
    cv2.fillPoly(
        coarse, [((outline / 4 + margin) * 16).round().astype(np.int32)], 255, cv2.LINE_AA, 4
    )
    soft = cv2.GaussianBlur(coarse.astype(np.float32), (0, 0), max(1.0, bulge / 8))[
        margin:-margin, margin:-margin
    ]
    box = slice(y, y + h), slice(x, x + w)
    # Interpolation leaves the coarse grid's ripple in the slopes, and light would show it.
    soft = cv2.GaussianBlur(cv2.resize(soft, (width, height))[box], (0, 0), 2.5) / np.float32(255)
    relief = np.float32(bulge) * cv2.sqrt(np.clip(1.9 * soft - 0.75, 0.01, 1))
    return Patch(
        box, mask[box].astype(np.float32) / np.float32(255) - np.float32(0.5), relief, near
    )


def slopes(height: Plane) -> tuple[Plane, Plane]:
    """The gradient of a relief along x and y."""
    along_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=0.125)
    along_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=0.125)
    return along_x, along_y


def soften(plane: Plane, reach: float) -> Plane:
    """A wide blur at a quarter of the resolution."""
    height, width = plane.shape
    small = cv2.resize(
        plane, (max(1, width // 4), max(1, height // 4)), interpolation=cv2.INTER_AREA
    )
    small = cv2.GaussianBlur(small, (0, 0), max(0.4, reach / 4))
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
