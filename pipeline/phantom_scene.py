"""One laparoscopic view, painted: organs in a plane that a camera looks at, back to front, each a mask with a relief.

Positions are in abdomen units: x to the patient's left, y towards the feet, the navel at the origin; a surgery moves,
scales and recolours every organ, a frame places the camera. Nothing here is anatomy that one could learn medicine
from: it is meant to pose the same problem, organs that overlap in colour and are told apart by texture, shape and
neighbours.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator
Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]

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

# Where each organ is looked for, and how far around it the camera may point.
PLACES = {
    "abdominal_wall": (0.0, -1.45, 0.5),
    "colon": (0.5, -0.05, 0.45),
    "inferior_mesenteric_artery": (0.12, 0.5, 0.25),
    "intestinal_veins": (-0.35, 0.35, 0.25),
    "liver": (-0.75, -0.95, 0.35),
    "pancreas": (0.1, -0.45, 0.25),
    "small_intestine": (-0.35, 0.7, 0.35),
    "spleen": (1.15, -0.85, 0.25),
    "stomach": (0.45, -0.85, 0.3),
    "ureter": (0.75, 0.85, 0.25),
    "vesicular_glands": (0.1, 1.35, 0.25),
}

# Albedo (RGB in 0..1) and gloss.
COLOURS = {
    "abdominal_wall": ((0.70, 0.42, 0.36), 0.25),
    "colon": ((0.80, 0.56, 0.46), 0.5),
    "inferior_mesenteric_artery": ((0.72, 0.25, 0.20), 0.6),
    "intestinal_veins": ((0.40, 0.26, 0.42), 0.5),
    "liver": ((0.47, 0.19, 0.15), 0.8),
    "pancreas": ((0.82, 0.60, 0.42), 0.4),
    "small_intestine": ((0.82, 0.52, 0.45), 0.7),
    "spleen": ((0.42, 0.20, 0.25), 0.7),
    "stomach": ((0.78, 0.50, 0.46), 0.6),
    "ureter": ((0.84, 0.66, 0.56), 0.6),
    "vesicular_glands": ((0.80, 0.62, 0.50), 0.5),
}
FAT = (0.88, 0.62, 0.36)


def _vector(*values: float) -> Plane:
    return np.array(values, np.float32)


@dataclass
class Canvas:
    """The picture so far.

    Attributes:
        albedo: (H, W, 3) float32, colour under white light.
        relief: (H, W) float32, towards the camera.
        gloss: (H, W) float32.
        shadow: (H, W) float32, 1 = lit.
        labels: (H, W) uint8, 0 = none, i = ANATOMIES[i - 1].
    """

    albedo: Plane
    relief: Plane
    gloss: Plane
    shadow: Plane
    labels: NDArray[np.uint8]


@dataclass(frozen=True)
class Camera:
    """Where the scope looks: centre and half height of the view in abdomen units, rotation in radians."""

    x: float
    y: float
    zoom: float
    angle: float
    size: tuple[int, int]

    def pixels(self, points: Plane) -> Plane:
        """Abdomen points (n, 2) -> pixel positions (n, 2), x first."""
        height, width = self.size
        c, s = np.cos(self.angle), np.sin(self.angle)
        moved = (points - [self.x, self.y]) @ np.array([[c, s], [-s, c]])
        return np.asarray(moved * (height / 2 / self.zoom) + [width / 2, height / 2], np.float32)

    @property
    def scale(self) -> float:
        """Pixels per abdomen unit."""
        return self.size[0] / 2 / self.zoom


@dataclass(frozen=True)
class Patient:
    """What stays the same in one surgery."""

    moved: dict[str, Plane]
    sized: dict[str, float]
    tint: dict[str, Plane]
    light: Plane
    exposure: float
    round_view: float
    fat: Plane
    shapes: dict[str, int] = field(default_factory=dict)


def noise(rng: Rng, size: tuple[int, int], cell: float, octaves: int = 3, stretch: float = 1.0) -> Plane:
    """Fractal noise (H, W) in about -1..1: random grids, enlarged smoothly, of ever finer cells."""
    height, width = size
    total = np.zeros(size, np.float32)
    for octave in range(octaves):
        step = max(1.0, cell / 2**octave)
        grid = rng.standard_normal((int(height / step) + 3, int(width / step / stretch) + 3)).astype(np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * 0.5**octave
    return total * 0.6


def patient(rng: Rng, difficulty: float) -> Patient:
    """Draw a surgery: its anatomy, its tissue colours and its scope."""
    shift, hue = 0.10, 0.04 + 0.06 * difficulty
    common = rng.normal(0, hue / 2, 3)
    return Patient(
        moved={a: rng.normal(0, shift, 2).astype(np.float32) for a in ANATOMIES},
        sized={a: float(np.exp(rng.normal(0, 0.13))) for a in ANATOMIES},
        tint={a: np.exp(common + rng.normal(0, hue, 3)).astype(np.float32) for a in ANATOMIES},
        light=np.exp(rng.normal([0.05, -0.02, -0.05], 0.03 + 0.04 * difficulty)).astype(np.float32),
        exposure=float(np.exp(rng.normal(0, 0.10 + 0.12 * difficulty))),
        round_view=float(rng.choice([1.0, 1.1, 1.6], p=[0.45, 0.3, 0.25])),
        fat=(np.array(FAT) * np.exp(common + rng.normal(0, hue, 3))).astype(np.float32),
        shapes={a: int(rng.integers(2**31)) for a in ANATOMIES},
    )


def blob(
    rng: Rng, camera: Camera, centre: Plane, radii: tuple[float, float], angle: float, rough: float = 0.18
) -> Mask:
    """A rounded organ: an ellipse whose outline wanders."""
    turns = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    wander = sum(rng.normal(0, rough / k) * np.cos(k * turns + rng.uniform(0, 6.3)) for k in range(2, 7))
    x, y = radii[0] * (1 + wander) * np.cos(turns), radii[1] * (1 + wander) * np.sin(turns)
    c, s = np.cos(angle), np.sin(angle)
    outline = np.stack([x * c - y * s, x * s + y * c], axis=1) + centre
    mask = np.zeros(camera.size, np.uint8)
    cv2.fillPoly(mask, [camera.pixels(outline).round().astype(np.int32)], 1)
    return mask.astype(bool)


def tube(camera: Camera, path: Plane, width: float, least: int = 3) -> Mask:
    """A tube along points (n, 2) of the abdomen; never thinner than ``least`` pixels."""
    mask = np.zeros(camera.size, np.uint8)
    thick = max(least, round(2 * width * camera.scale))
    points = (camera.pixels(smooth(path)) * 8).round().astype(np.int32)
    cv2.polylines(mask, [points.reshape(-1, 1, 2)], False, 1, thick, cv2.LINE_8, shift=3)
    return mask.astype(bool)


def smooth(path: Plane, steps: int = 8) -> Plane:
    """Points on a Catmull-Rom spline through a path (n, 2)."""
    p = np.concatenate([2 * path[:1] - path[1:2], path, 2 * path[-1:] - path[-2:-1]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    return np.concatenate([*pieces, path[-1:]]).astype(np.float32)


def walk(rng: Rng, start: Plane, end: Plane, bend: float, points: int = 6) -> Plane:
    """A winding path from start to end."""
    t = np.linspace(0, 1, points)[:, None]
    path = start + (end - start) * t
    path[1:-1] += rng.normal(0, bend, (points - 2, 2))
    return np.asarray(path, np.float32)


def put(canvas: Canvas, name: str, mask: Mask, colour: Plane, gloss: float, bulge: float, lift: float) -> None:
    """Lay something on the picture: it hides what is below and throws a soft shadow beside itself.

    Args:
        canvas: is changed.
        name: an anatomy, or anything else for what has no label.
        mask: (H, W) where it is.
        colour: (3,) or (n, 3) albedo of its n pixels.
        gloss: 0..1.
        bulge: pixels over which its surface rounds off.
        lift: height above what is below, in pixels.
    """
    if not mask.any():
        return
    inside = mask.astype(np.uint8)
    x, y, w, h = cv2.boundingRect(inside)
    rim = 3 * (2 + int(lift / 3))
    box = (slice(max(0, y - rim), y + h + rim), slice(max(0, x - rim), x + w + rim))
    canvas.shadow[box] *= 1 - 0.55 * cv2.GaussianBlur(inside[box].astype(np.float32), (0, 0), 1.5 + lift / 3)
    canvas.shadow[mask] = 1.0
    # What the picture's edge cuts off goes on beyond it: only a true outline rounds off.
    depth = np.minimum(cv2.distanceTransform(inside, cv2.DIST_L2, 3)[mask] / bulge, 1)
    canvas.relief[mask] = lift + np.sqrt(1 - (1 - depth) ** 2) * bulge
    canvas.albedo[mask] = colour
    canvas.gloss[mask] = gloss
    canvas.labels[mask] = ANATOMIES.index(name) + 1 if name in ANATOMIES else 0


class Scene:
    """Paints one frame of one patient."""

    def __init__(self, rng: Rng, who: Patient, camera: Camera, difficulty: float) -> None:
        self.rng, self.who, self.camera, self.difficulty = rng, who, camera, difficulty
        self.size = camera.size
        self._fields: dict[tuple[float, int, float], Plane] = {}
        self.canvas = self._background()

    def paint(self) -> Canvas:
        """All organs, back to front; what lies in front of what varies a little."""
        order: list[Callable[[], None]] = [
            self._pancreas, self._ureter, self._artery, self._veins, self._glands, self._decoys,
            self._spleen, self._stomach, self._liver,
        ]  # fmt: skip
        front: list[Callable[[], None]] = [self._small_intestine, self._colon]
        if self.rng.random() < 0.3:
            order[-1], order[-2] = order[-2], order[-1]
        if self.rng.random() < 0.5:
            front.reverse()
        for paint in (self._wall, *order, *front):
            paint()
        return self.canvas

    def _shape(self, name: str) -> Rng:
        """Shapes belong to the patient: the same organ in every frame."""
        return np.random.default_rng(self.who.shapes[name])

    def _at(self, name: str, x: float, y: float) -> Plane:
        return np.array([x, y], np.float32) + self.who.moved[name]

    def _put(self, name: str, mask: Mask, texture: Plane, strength: float, bulge: float, lift: float) -> None:
        """Lay an anatomy on the picture in its patient's colour, modulated by a texture (H, W)."""
        base, gloss = COLOURS[name]
        colour = np.array(base, np.float32) * self.who.tint[name]
        put(self.canvas, name, mask, colour * (1 + strength * texture[mask, None]), gloss, bulge, lift)

    def _noise(self, cell: float, octaves: int = 3, stretch: float = 1.0) -> Plane:
        """A random window of this frame's field of that kind; a field is drawn once."""
        key, (height, width) = (cell, octaves, stretch), self.size
        if key not in self._fields:
            step = max(2.0, cell * self.camera.scale)
            self._fields[key] = noise(self.rng, (height + 48, width + 48), step, octaves, stretch)
        y, x = self.rng.integers(0, 49, 2)
        return self._fields[key][y : y + height, x : x + width]

    def _background(self) -> Canvas:
        lobules = np.abs(self._noise(0.10, 3))
        albedo = self.who.fat * (0.66 + 0.35 * lobules[..., None])
        pink = np.clip(0.35 + 0.8 * self._noise(0.5, 2), 0, 0.85)[..., None]
        albedo = albedo * (1 - pink) + np.array([0.74, 0.40, 0.34], np.float32) * pink
        relief = 5 * lobules + 6 * self._noise(0.4, 2)
        ones = np.ones(self.size, np.float32)
        return Canvas(
            np.asarray(albedo, np.float32),
            relief.astype(np.float32),
            0.35 * ones,
            ones,
            np.zeros(self.size, np.uint8),
        )

    def _wall(self) -> None:
        """The dome above everything, with muscle fibres."""
        shape = self._shape("abdominal_wall")
        edge = self._at("abdominal_wall", 0, -1.12)
        xs = np.linspace(-3, 3, 13)
        line = np.stack([xs, edge[1] - 0.12 * xs**2 + shape.normal(0, 0.07, 13)], axis=1)
        outline = np.concatenate([smooth(line.astype(np.float32)), [[3, -4], [-3, -4]]])
        mask = np.zeros(self.size, np.uint8)
        cv2.fillPoly(mask, [self.camera.pixels(outline).round().astype(np.int32)], 1)
        fibres = self._noise(0.05, 2, stretch=7.0) + 0.6 * self._noise(0.5, 2)
        self._put("abdominal_wall", mask.astype(bool), fibres, 0.16, 30, 0)
        self.canvas.relief[mask > 0] += 2.5 * fibres[mask > 0]

    def _solid(self, name: str, x: float, y: float, radii: tuple[float, float], angle: float, grain: float) -> Mask:
        """A parenchymal organ: smooth, with a fine grain."""
        shape, size = self._shape(name), self.who.sized[name]
        mask = blob(shape, self.camera, self._at(name, x, y), (radii[0] * size, radii[1] * size), angle)
        texture = 0.5 * self._noise(grain, 2) + 0.5 * self._noise(0.4, 2)
        self._put(name, mask, texture, 0.14, 0.22 * self.camera.scale, 9)
        return mask

    def _liver(self) -> None:
        self._solid("liver", -0.85, -0.95, (0.85, 0.45), 0.25, 0.03)

    def _spleen(self) -> None:
        self._solid("spleen", 1.2, -0.85, (0.30, 0.42), -0.4, 0.025)

    def _stomach(self) -> None:
        mask = self._solid("stomach", 0.42, -0.85, (0.58, 0.30), -0.45, 0.12)
        self._vessels_on(mask, 5, (0.62, 0.25, 0.24))

    def _vessels_on(self, mask: Mask, number: int, colour: tuple[float, float, float]) -> None:
        """Fine vessels painted into a surface; they have no label of their own."""
        ys, xs = np.nonzero(mask)
        if len(ys) == 0:
            return
        lines = np.zeros(self.size, np.uint8)
        for start in self.rng.integers(0, len(ys), number):
            angle, steps = self.rng.uniform(0, 6.3), 14
            turns = np.cumsum(self.rng.normal(0, 0.35, steps)) + angle
            path = np.cumsum(np.stack([np.cos(turns), np.sin(turns)], 1) * 4, 0) + [xs[start], ys[start]]
            cv2.polylines(lines, [path.round().astype(np.int32)], False, 255, 1, cv2.LINE_AA)
        strength = 0.55 * (lines / 255.0 * mask).astype(np.float32)[..., None]
        self.canvas.albedo = self.canvas.albedo * (1 - strength) + np.array(colour, np.float32) * strength

    def _pancreas(self) -> None:
        """Lobulated and mottled, half buried."""
        shape, size = self._shape("pancreas"), self.who.sized["pancreas"]
        path = walk(shape, self._at("pancreas", -0.35, -0.35), self._at("pancreas", 0.6, -0.55), 0.06)
        mask = tube(self.camera, path, 0.13 * size)
        lobules = np.abs(self._noise(0.055, 2))
        ragged = mask & (cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 4) + 0.35 * self._noise(0.08, 2) > 0.45)
        self._put("pancreas", ragged, 1 - 2 * lobules, 0.13, 0.10 * self.camera.scale, 4)
        self.canvas.relief[ragged] += 5 * lobules[ragged]

    def _colon(self) -> None:
        """A wide tube with haustra, a longitudinal band and fat along it."""
        shape, size = self._shape("colon"), self.who.sized["colon"]
        corners = [(-1.3, 0.05), (-0.5, -0.12), (0.3, 0.0), (0.9, -0.15), (1.2, 0.3), (1.15, 0.9), (0.7, 1.2)]
        path = np.stack([self._at("colon", x, y) for x, y in corners]) + shape.normal(0, 0.05, (7, 2))
        line = smooth(path.astype(np.float32), 14)
        along = np.arange(len(line))
        canvas_mask = np.zeros(self.size, np.uint8)
        pixels = self.camera.pixels(line)
        for (x, y), i in zip(pixels, along, strict=True):
            radius = 0.15 * size * self.camera.scale * (1 + 0.14 * np.sin(i * 0.9))
            cv2.circle(canvas_mask, (round(float(x)), round(float(y))), max(2, round(radius)), 1, -1)
        mask = canvas_mask.astype(bool)
        texture = 0.6 * self._noise(0.06, 2) + 0.6 * self._noise(0.3, 2)
        self._put("colon", mask, texture, 0.13, 0.13 * self.camera.scale, 10)
        band = tube(self.camera, line[::4] + _vector(0.0, 0.03), 0.012, 2) & mask
        self.canvas.albedo[band] *= _vector(1.1, 1.12, 1.12)
        fat = mask & (self._noise(0.12, 2) > 0.75)
        self.canvas.albedo[fat] = self.who.fat * 1.05

    def _small_intestine(self) -> None:
        """Loops that lie on one another."""
        shape, size = self._shape("small_intestine"), self.who.sized["small_intestine"]
        centre = self._at("small_intestine", -0.45, 0.75)
        for _ in range(7):
            start = centre + shape.normal(0, 0.30, 2).astype(np.float32)
            path = start + np.cumsum(shape.normal(0, 0.2, (5, 2)), 0).astype(np.float32)
            mask = tube(self.camera, path, 0.095 * size)
            folds = 0.5 * self._noise(0.03, 2, stretch=0.5) + 0.5 * self._noise(0.25, 2)
            self._put("small_intestine", mask, folds, 0.11, 0.09 * self.camera.scale, 7)
            self._vessels_on(mask, 2, (0.70, 0.28, 0.26))

    def _line(self, name: str, path: Plane, width: float) -> None:
        mask = tube(self.camera, path, width * self.who.sized[name])
        self._put(name, mask, self._noise(0.06, 2), 0.10, max(2.0, width * self.camera.scale), 3)

    def _veins(self) -> None:
        """A trunk on the mesentery with branches towards the gut."""
        shape, name = self._shape("intestinal_veins"), "intestinal_veins"
        trunk = walk(shape, self._at(name, -0.1, -0.15), self._at(name, -0.55, 0.75), 0.05)
        for point, side in zip(trunk[1:5], (1, -1, 1, -1), strict=True):
            end = point + _vector(side * shape.uniform(0.25, 0.45), shape.uniform(0.1, 0.35))
            self._line(name, walk(shape, point, end, 0.03, 5), 0.026)
        self._line(name, trunk, 0.042)

    def _artery(self) -> None:
        shape, name = self._shape("inferior_mesenteric_artery"), "inferior_mesenteric_artery"
        fork = self._at(name, 0.22, 0.62)
        self._line(name, walk(shape, self._at(name, 0.02, 0.1), fork, 0.03), 0.028)
        for end in ((0.45, 1.0), (0.15, 1.1)):
            self._line(name, walk(shape, fork, self._at(name, *end), 0.03, 5), 0.02)

    def _ureter(self) -> None:
        shape, name = self._shape("ureter"), "ureter"
        self._line(name, walk(shape, self._at(name, 0.72, 0.2), self._at(name, 0.5, 1.5), 0.05), 0.026)

    def _glands(self) -> None:
        """A pair of small, convoluted bodies."""
        shape, name = self._shape("vesicular_glands"), "vesicular_glands"
        size = self.who.sized[name]
        for side in (-1, 1):
            for i in range(5):
                centre = self._at(
                    name, 0.1 + side * (0.09 + 0.085 * i), 1.32 - 0.025 * i + float(shape.normal(0, 0.03))
                )
                mask = blob(shape, self.camera, centre, (0.11 * size, 0.09 * size), float(shape.uniform(0, 3)), 0.12)
                self._put(name, mask, self._noise(0.04, 2), 0.16, 0.05 * self.camera.scale, 3)

    def _decoys(self) -> None:
        """Vessels, adhesions and fat that no sub-data set labels."""
        colours = ((0.70, 0.26, 0.22), (0.45, 0.28, 0.38), (0.86, 0.70, 0.60), FAT)
        for _ in range(self.rng.poisson(1 + 3 * self.difficulty)):
            start = _vector(self.camera.x, self.camera.y) + self.rng.normal(0, 0.6, 2).astype(np.float32)
            end = start + self.rng.normal(0, 0.4, 2).astype(np.float32)
            mask = tube(self.camera, walk(self.rng, start, end, 0.05, 5), float(self.rng.uniform(0.008, 0.03)), 2)
            colour = _vector(*colours[self.rng.integers(len(colours))]) * np.exp(self.rng.normal(0, 0.12, 3))
            put(self.canvas, "decoy", mask, colour.astype(np.float32), 0.5, 4, 2)


def light(canvas: Canvas, who: Patient, rng: Rng, difficulty: float) -> Plane:
    """Light from the scope itself: relief, falloff to the rim, and wet highlights. (H, W, 3) in 0..1."""
    height, width = canvas.labels.shape
    relief = cv2.GaussianBlur(canvas.relief, (0, 0), 1.2)
    dx, dy = (
        cv2.Sobel(relief, cv2.CV_32F, 1, 0, scale=1 / 8),
        cv2.Sobel(relief, cv2.CV_32F, 0, 1, scale=1 / 8),
    )
    y, x = np.mgrid[:height, :width].astype(np.float32)
    cx, cy = width * rng.uniform(0.42, 0.58), height * rng.uniform(0.42, 0.58)
    lx, ly, lz = (cx - x) / height, (cy - y) / height, np.float32(0.75)
    length = np.sqrt(1 + dx**2 + dy**2)
    towards = np.sqrt(lx**2 + ly**2 + lz**2)
    cosine = np.clip((-dx * lx - dy * ly + lz) / (length * towards), 0, 1)
    falloff = 1 / (1 + 0.9 * (lx**2 + ly**2))
    wet = np.clip(cosine, 0, 1) ** 60 * (noise(rng, (height, width), 6, 2) > 0.35 - 0.2 * canvas.gloss)
    shine = canvas.gloss * cv2.GaussianBlur(wet.astype(np.float32), (0, 0), 0.8)
    diffuse = canvas.albedo * (0.18 + 0.90 * cosine * falloff * canvas.shadow)[..., None]
    return np.asarray((diffuse * who.light + 0.75 * shine[..., None]) * who.exposure, np.float32)


def instrument(rng: Rng, picture: Plane, labels: NDArray[np.uint8]) -> None:
    """A metal shaft from the rim with two jaws; whatever it hides has no label."""
    height, width = labels.shape
    angle = rng.uniform(0, 2 * np.pi)
    rim = np.array([width / 2 + width * np.cos(angle), height / 2 + width * np.sin(angle)])
    tip = np.array([width, height]) * rng.uniform(0.25, 0.75, 2)
    axis = (tip - rim) / np.linalg.norm(tip - rim)
    across = np.array([-axis[1], axis[0]])
    radius = height * rng.uniform(0.025, 0.045)
    grey = np.float32(rng.uniform(0.35, 0.75)) * _vector(0.95, 0.98, 1.0)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    side = ((x - tip[0]) * across[0] + (y - tip[1]) * across[1]) / radius
    along = (x - tip[0]) * axis[0] + (y - tip[1]) * axis[1]
    shaft = (np.abs(side) < 1) & (along < 0)
    opening = rng.uniform(0.15, 0.5)
    jaws = (np.abs(np.abs(side) - opening * along / radius) < 0.42) & (along >= 0) & (along < 3.2 * radius)
    shading = np.clip(1 - side**2, 0, 1) ** 0.5
    picture[shaft] = (grey * (0.25 + 0.75 * shading + 0.4 * (np.abs(side - 0.3) < 0.12))[..., None])[shaft]
    picture[jaws] = grey * 0.85
    labels[shaft | jaws] = 0


def scope(rng: Rng, picture: Plane, labels: NDArray[np.uint8], who: Patient, difficulty: float) -> NDArray[np.uint8]:
    """Smoke, round field of view, defocus and noise: (H, W, 3) uint8; labels outside the view are cleared."""
    height, width = labels.shape
    if rng.random() < 0.15 + 0.25 * difficulty:
        haze = np.clip(0.35 + 0.5 * noise(rng, (height, width), height / 2, 3), 0, 1) * rng.uniform(
            0.2, 0.3 + 0.4 * difficulty
        )
        picture = picture * (1 - haze[..., None]) + _vector(0.75, 0.75, 0.78) * haze[..., None]
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 0.6 + 0.7 * difficulty))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    radius = np.hypot(x - width / 2, y - height / 2) / (height / 2 * who.round_view)
    picture *= np.clip((1.0 - radius) * 25, 0, 1)[..., None]
    labels[radius >= 0.98] = 0
    grain = rng.standard_normal((height, width, 3), dtype=np.float32)
    picture = np.clip(picture, 0, 1) ** (1 / 1.15) + (0.008 + 0.02 * difficulty) * grain * (radius < 1)[..., None]
    return np.asarray(np.clip(picture * 255, 0, 255), np.uint8)
