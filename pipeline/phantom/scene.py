"""One laparoscopic view of the phantom, painted back to front; light comes later.

A scene is one of three regions that a surgeon sees at once. Its organs, with outlines, relief and
texture, stand on a plane that the scope looks along: ``u`` runs across the view, ``v`` away from
the scope. A surgery moves, reshapes and recolours every organ, a frame moves the scope. Nothing
here is anatomy to learn medicine from. It poses the same problem: organs overlap in colour and are
told apart by texture, shape and neighbours.
"""

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.phantom.patient import ANATOMIES, Patient
from pipeline.phantom.shapes import Box, Patch, View, blob, slopes, soften, spline, tube, wander
from pipeline.phantom.textures import TILE, Plane, Rng, colour, over, tinted

# Albedo (linear RGB) and wetness.
TISSUE = {
    "abdominal_wall": ((0.58, 0.20, 0.15), 0.4),
    "colon": ((0.72, 0.34, 0.23), 0.6),
    "inferior_mesenteric_artery": ((0.62, 0.13, 0.09), 0.6),
    "intestinal_veins": ((0.30, 0.14, 0.22), 0.5),
    "liver": ((0.34, 0.085, 0.055), 0.9),
    "pancreas": ((0.74, 0.44, 0.25), 0.6),
    "small_intestine": ((0.74, 0.31, 0.23), 0.8),
    "spleen": ((0.27, 0.08, 0.10), 0.8),
    "stomach": ((0.72, 0.33, 0.25), 0.7),
    "ureter": ((0.82, 0.55, 0.42), 0.7),
    "vesicular_glands": ((0.68, 0.34, 0.20), 0.6),
}
FAT = (0.80, 0.45, 0.12)
SEROSA = (0.58, 0.21, 0.14)
BLOOD = (0.36, 0.02, 0.015)


class Canvas:
    """The picture so far.

    Attributes:
        albedo: (H, W, 3), colour under white light.
        slope: of the relief along x and y, each (H, W).
        gloss: (H, W).
        near: (H, W), 1 = next to the scope.
        shade: (H, W), 1 = lit.
        labels: (H, W) uint8, 0 = none, i = ANATOMIES[i - 1].
    """

    def __init__(self, albedo: Plane, height: Plane, gloss: float, near: Plane) -> None:
        self.albedo = albedo
        self.near = near
        self.slope = slopes(height)
        self.gloss = np.full(near.shape, gloss, np.float32)
        self.shade = np.ones(near.shape, np.float32)
        self.labels: NDArray[np.uint8] = np.zeros(near.shape, np.uint8)

    def lay(self, name: str, patch: Patch, albedo: Plane, gloss: float, lift: float) -> None:
        """Lay something on the picture: it hides what is below and throws a soft shadow.

        Args:
            name: an anatomy, or anything else for what has no label.
            patch: its shape.
            albedo: (h, w, 3) over the patch.
            gloss: 0..1.
            lift: reach of the shadow in pixels.
        """
        a = np.clip(patch.inside + np.float32(0.5), 0, 1)
        rows, columns = patch.box
        rim = int(2.5 * lift) + 2
        wide = (
            slice(max(0, rows.start - rim), rows.stop + rim),
            slice(max(0, columns.start - rim), columns.stop + rim),
        )
        inner = slice(rows.start - wide[0].start, None), slice(columns.start - wide[1].start, None)
        cover = np.zeros_like(self.shade[wide])
        cover[inner][: a.shape[0], : a.shape[1]] = a
        self.shade[wide] *= 1 - np.float32(0.62) * soften(cover, lift)
        box = patch.box
        self.shade[box] += (1 - self.shade[box]) * a
        self.gloss[box] += (np.float32(gloss) - self.gloss[box]) * a
        self.near[box] += (patch.near - self.near[box]) * a
        self.albedo[box] = over(albedo, self.albedo[box], a)
        for mine, below in zip(slopes(patch.height), self.slope, strict=True):
            below[box] += (mine - below[box]) * a
        self.labels[box][a > 0.5] = ANATOMIES.index(name) + 1 if name in ANATOMIES else 0


class Scene:
    """Paints one frame of one patient."""

    def __init__(
        self,
        rng: Rng,
        who: Patient,
        view: View,
        region: str,
        tiles: dict[str, Plane],
        difficulty: float,
    ) -> None:
        self.rng = rng
        self.who = who
        self.view = view
        self.region = region
        self.tiles = tiles
        self.difficulty = difficulty
        self.unit = view.size[0] / 256
        self.whole = slice(0, view.size[0]), slice(0, view.size[1])
        self.clouds = self._texture("clouds", 1.2)
        self.grain = self._texture("grain", 1.6)
        self.canvas = self._background()

    def paint(self) -> Canvas:
        """All organs of the region, back to front, and between them what nobody labels."""
        getattr(self, f"_paint_{self.region}")()
        return self.canvas

    def _paint_upper(self) -> None:
        self._wall()
        self._spleen()
        self._vessel_decoys()
        self._pancreas()
        if self.rng.random() < 0.5:
            self._stomach()
            self._liver()
        else:
            self._liver()
            self._stomach()
        self._fat_flap((0.3, 0.3), 0.45)
        self._colon(
            [
                (-1.5, 0.34),
                (-0.7, 0.13),
                (0.0, 0.06),
                (0.6, 0.12),
                (1.15, 0.34),
                (1.6, 0.62),
                (2.4, 0.9),
            ],
            0.17,
        )
        self._stains()

    def _paint_middle(self) -> None:
        self._wall()
        self._vessel_decoys()
        self._artery(
            [(0.16, 1.05), (0.33, 0.72), (0.46, 0.42), (0.52, 0.05)],
            [(1, 0.8, 0.85), (2, 0.75, 0.42)],
        )
        self._veins()
        self._colon(
            [(0.85, -0.2), (1.05, 0.3), (1.08, 0.8), (0.75, 1.25), (0.1, 1.35), (-0.8, 1.3)], 0.17
        )
        self._small_intestine((-0.82, 0.42), (0.52, 0.6))
        self._fat_flap((0.4, 0.1), 0.3)
        self._stains()

    def _paint_pelvis(self) -> None:
        self._wall()
        self._vessel_decoys()
        self._ureter()
        self._artery(
            [(0.12, -0.15), (-0.02, 0.3), (-0.16, 0.6), (-0.3, 0.85)],
            [(1, -0.5, 0.5), (2, -0.45, 0.75)],
        )
        self._colon(
            [(-1.4, 0.1), (-0.95, 0.45), (-0.75, 0.8), (-0.45, 0.7), (-0.25, 0.98), (-0.1, 1.5)],
            0.17,
        )
        self._bladder()
        self._glands()
        self._small_intestine((1.0, 0.12), (0.46, 0.46))
        self._fat_flap((-0.1, 0.1), 0.3)
        self._stains()

    # -- helpers --

    def _shape(self, name: str) -> Rng:
        """Shapes belong to the patient: the same organ in every frame."""
        return np.random.default_rng(self.who.shapes[name])

    def _path(self, name: str, path: Iterable[tuple[float, float]], bend: float) -> Plane:
        return wander(self._shape(name), path, bend) + self.who.moved[name]

    def _texture(self, kind: str, density: float, box: Box | None = None) -> Plane:
        """A window of a tile, at ``density`` tile pixels per pixel of a 256-line picture."""
        rows, columns = box or self.whole
        width = columns.stop - columns.start
        height = rows.stop - rows.start
        density = min(density / self.unit, TILE / max(width, height))
        w = max(1, int(width * density))
        h = max(1, int(height * density))
        x = self.rng.integers(0, TILE - w + 1)
        y = self.rng.integers(0, TILE - h + 1)
        window = cv2.resize(self.tiles[kind][y : y + h, x : x + w], (width, height))
        return cv2.flip(window, int(self.rng.integers(-1, 2)))

    def _fibres(self, box: Box, turn: float) -> Plane:
        """Muscle fibres in a direction."""
        rows, columns = box
        c = np.cos(turn) / self.unit
        s = np.sin(turn) / self.unit
        x, y = self.rng.uniform(0, TILE, 2)
        size = (columns.stop - columns.start, rows.stop - rows.start)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        matrix = np.array([[c, -s, x], [s, c, y]])
        return cv2.warpAffine(
            self.tiles["fibres"], matrix, size, flags=flags, borderMode=cv2.BORDER_REFLECT
        )

    def _lobules(self, cushion: float, box: Box | None = None) -> Plane:
        """Lobules of a size in units of u, foreshortened with the plane that they lie on."""
        rows, columns = box or self.whole
        width = columns.stop - columns.start
        height = rows.stop - rows.start
        density = 46 / cushion
        x, y = self.rng.uniform(0, TILE, 2)
        # Warped at half the resolution: they are smooth, and a warp is dear.
        window = np.array([[2, 0, columns.start], [0, 2, rows.start], [0, 0, 1]])
        matrix = (
            np.array([[density, 0, x], [0, density, y], [0, 0, 1]])
            @ np.linalg.inv(self.view.matrix)
            @ window
        )
        half = (width // 2 + 1, height // 2 + 1)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        small = cv2.warpPerspective(
            self.tiles["lobules"], matrix, half, flags=flags, borderMode=cv2.BORDER_REFLECT
        )
        return cv2.resize(small, (width, height))

    def _tissue(self, name: str, pattern: NDArray[np.floating]) -> Plane:
        """The patient's colour of an anatomy (h, w, 3), varied by a pattern around 0."""
        base = colour(*TISSUE[name][0]) * self.who.tints[name]
        return tinted(
            base, base * colour(0.6, 1.0, 1.1), np.clip(pattern, -0.6, 0.8).astype(np.float32)
        )

    def _fat(self, lobules: Plane) -> Plane:
        """Fat (h, w, 3): yellow cushions, redder in the furrows."""
        base = colour(*FAT) * self.who.tints["fat"]
        return tinted(base * colour(0.48, 0.32, 0.26), base * colour(0.52, 0.68, 0.74), lobules)

    def _veined(
        self, albedo: Plane, density: float, strength: float, box: Box | None = None
    ) -> Plane:
        """Fine vessels in a surface, denser here than there."""
        box = box or self.whole
        where = np.clip(
            np.float32(0.55 * strength) + np.float32(0.5 * strength) * self.clouds[box], 0, strength
        )
        vessels = np.clip(self._texture("vessels", density, box) * where, 0, 0.8)
        return over(albedo * colour(0.70, 0.20, 0.24), albedo, vessels)

    def _background(self) -> Canvas:
        """Peritoneum over fat, with fine vessels."""
        lobules = self._lobules(0.16)
        share = np.clip(1.6 * (self.who.fat - 0.5) + 0.5 + 0.7 * self.clouds, 0, 1).astype(
            np.float32
        )
        serosa = colour(*SEROSA) * self.who.tints["serosa"]
        albedo = self._veined(
            over(self._fat(lobules), tinted(serosa, 0.12 * serosa, self.clouds), share), 1.1, 0.9
        )
        height = (
            np.float32(4 * self.unit) * lobules * share + np.float32(5 * self.unit) * self.clouds
        )
        return Canvas(albedo, height, 0.55, self.view.ground())

    def _stand(
        self,
        name: str,
        anchor: tuple[float, float],
        outline: list[tuple[float, float]],
        bulge: float,
        near: float,
    ) -> Patch | None:
        """An upright organ.

        Args:
            name: whose shape and place.
            anchor: where it stands on the plane.
            outline: points around the anchor in units of u, x right and y up.
            bulge: over which length it rounds off.
            near: how much nearer than its foot.
        """
        shape = self._shape(name)
        foot = np.array([anchor]) + self.who.moved[name]
        scale = float(self.view.scale(foot)[0]) * self.who.sized[name]
        ring = spline(
            np.array(outline, np.float32) + shape.normal(0, 0.04, (len(outline), 2)), closed=True
        )
        turns = np.linspace(0, 2 * np.pi, len(ring), endpoint=False)[:, None]
        for k in (3, 5, 8, 13):
            ring += (
                shape.normal(0, 0.05 / k, 2) * np.cos(k * turns + shape.uniform(0, 6.3))
            ).astype(np.float32)
        angle = self.who.roll + 0.08 * shape.standard_normal()
        c = np.cos(angle) * scale
        s = np.sin(angle) * scale
        points = self.view.pixels(foot) + ring @ np.array([[c, s], [s, -c]])
        return blob(
            self.view,
            points.astype(np.float32),
            bulge * scale,
            near * float(self.view.nearness(foot)[0]),
        )

    # -- organs --

    def _wall(self) -> None:
        """The dome over everything: muscle fibres under a fascia, nearer again towards the top."""
        shape = self._shape("abdominal_wall")
        name = "abdominal_wall"
        us = np.linspace(-3.2, 3.2, 15)
        vs = 1.5 - 0.10 * us**2 + shape.normal(0, 0.045, 15) + 2 * self.who.moved[name][1]
        edge = self.view.pixels(
            spline(np.column_stack([us, np.clip(vs, 0.55, None)]).astype(np.float32))
        )
        height, width = self.view.size
        outline = np.concatenate(
            [edge, [[width * 3, -height * 3], [-width * 3, -height * 3]]]
        ).astype(np.float32)
        patch = blob(self.view, outline, 46 * self.unit, 0.0)
        if patch is None:
            return
        clouds = self.clouds[patch.box]
        fibres = self._fibres(patch.box, float(shape.normal(0.25, 0.5)))
        fascia = np.clip(
            np.float32(0.9) * clouds + np.float32(0.25) * fibres - np.float32(0.35), 0, 1
        )
        albedo = self._tissue(name, 0.16 * fibres + 0.08 * clouds)
        pale = colour(0.74, 0.44, 0.34) * self.who.tints[name]
        albedo = over(tinted(pale, 0 * pale, fascia), albedo, np.float32(0.35) * fascia)
        albedo = self._veined(albedo, 0.8, 0.8, patch.box)
        rise = (edge[:, 1].mean() - np.arange(height)[patch.box[0], None]) / height
        patch.near = np.clip(0.40 + 0.8 * rise, 0.3, 0.95).astype(np.float32) + np.zeros_like(
            clouds
        )
        patch.height += np.float32(1.3 * self.unit) * fibres + np.float32(3 * self.unit) * clouds
        self.canvas.lay(name, patch, albedo, TISSUE[name][1], 9 * self.unit)

    def _capsule(
        self, name: str, patch: Patch | None, mottle: float, bump: float, veins: float
    ) -> None:
        """An upright organ with a smooth capsule."""
        if patch is None:
            return
        clouds = self.clouds[patch.box]
        grain = self.grain[patch.box]
        albedo = self._tissue(name, np.float32(mottle) * clouds + np.float32(0.09) * grain)
        if veins:
            albedo = self._veined(albedo, 1.5, veins, patch.box)
        patch.height += np.float32(bump * self.unit) * grain + np.float32(2.5 * self.unit) * clouds
        self.canvas.lay(name, patch, albedo, TISSUE[name][1], 7 * self.unit)

    def _liver(self) -> None:
        """Smooth and glossy, with a sharp lower edge."""
        outline = [
            (-1.7, -0.62),
            (-0.8, -0.55),
            (-0.1, -0.36),
            (0.42, -0.1),
            (0.85, 0.2),
            (0.95, 0.42),
            (0.3, 0.7),
        ]
        outline += [(-0.6, 0.9), (-1.8, 0.95)]
        self._capsule(
            "liver", self._stand("liver", (-0.72, 0.95), outline, 0.22, 1.12), 0.10, 0.08, 0.0
        )

    def _spleen(self) -> None:
        outline = [
            (-0.3, -0.36),
            (0.08, -0.5),
            (0.46, -0.34),
            (0.6, 0.1),
            (0.36, 0.5),
            (-0.05, 0.46),
            (-0.28, 0.1),
        ]
        self._capsule(
            "spleen", self._stand("spleen", (1.14, 0.98), outline, 0.36, 1.12), 0.2, 0.15, 0.0
        )

    def _stomach(self) -> None:
        """Pale, with vessels along its curvature."""
        outline = [
            (-0.66, -0.08),
            (-0.32, -0.34),
            (0.15, -0.44),
            (0.58, -0.3),
            (0.76, 0.14),
            (0.66, 0.54),
            (0.3, 0.5),
        ]
        outline += [(0.08, 0.2), (-0.25, 0.14), (-0.6, 0.16)]
        self._capsule(
            "stomach", self._stand("stomach", (0.40, 0.85), outline, 0.42, 1.12), 0.10, 0.2, 1.1
        )

    def _bladder(self) -> None:
        """Behind the glands in the pelvis; no sub-data set labels it."""
        outline = [
            (-1.4, -0.06),
            (-0.7, -0.24),
            (0.0, -0.2),
            (0.5, -0.3),
            (1.4, -0.02),
            (1.3, 0.3),
            (0.6, 0.3),
        ]
        outline += [(0.1, 0.5), (-0.5, 0.34), (-1.3, 0.3)]
        patch = self._stand("other", (0.1, 1.28), outline, 0.3, 1.05)
        if patch is None:
            return
        clouds = self.clouds[patch.box]
        base = colour(*SEROSA) * self.who.tints["other"]
        albedo = tinted(base, 0.14 * base, clouds)
        patch.height += np.float32(2 * self.unit) * clouds
        self.canvas.lay(
            "bladder", patch, self._veined(albedo, 1.3, 1.0, patch.box), 0.6, 6 * self.unit
        )

    def _pancreas(self) -> None:
        """Lobulated and mottled, with a ragged outline."""
        name = "pancreas"
        path = self._path(name, [(-0.42, 0.40), (-0.1, 0.47), (0.3, 0.44), (0.75, 0.56)], 0.03)
        patch = tube(self.view, [(path, 0.135 * self.who.sized[name])])
        if patch is None:
            return
        lobules = self._lobules(0.10, patch.box)
        clouds = self.clouds[patch.box]
        patch.inside += np.float32(self.unit) * (
            9 * (lobules - np.float32(0.6)) + np.float32(1.5) * clouds
        )
        patch.height = 0.5 * patch.height + 4 * self.unit * lobules
        albedo = self._tissue(
            name, 0.9 * (lobules - 0.62) + 0.08 * clouds + 0.10 * self.grain[patch.box]
        )
        self.canvas.lay(name, patch, albedo, TISSUE[name][1], 4 * self.unit)

    def _colon(self, path: list[tuple[float, float]], radius: float) -> None:
        """A wide tube with haustra, a pale band, and fat where the mesentery holds it."""
        name = "colon"
        patch = tube(
            self.view, [(self._path(name, path, 0.04), radius * self.who.sized[name])], haustra=0.2
        )
        if patch is None:
            return
        clouds = self.clouds[patch.box]
        grain = self.grain[patch.box]
        lobules = self._lobules(0.13, patch.box)
        folds = cv2.pow(np.abs(np.cos(patch.along * np.float32(1.35))), 8)
        albedo = self._tissue(name, 0.10 * clouds + 0.06 * grain - 0.25 * folds)
        albedo = self._veined(albedo, 1.7, 1.0, patch.box)
        band = cv2.exp(-((patch.across * 10 - np.float32(2.2)) ** 2))
        pale = colour(0.80, 0.50, 0.38) * self.who.tints[name]
        albedo = over(tinted(pale, 0 * pale, band), albedo, np.float32(0.5) * band)
        greasy = np.clip(
            4 * (-0.70 - patch.across + 0.34 * clouds + 0.5 * (lobules - 0.5)), 0, 1
        ).astype(np.float32)
        albedo = over(self._fat(lobules), albedo, greasy)
        patch.height = patch.height * (1 - 0.12 * folds) + self.unit * (
            3.5 * greasy * lobules + 0.2 * grain
        )
        patch.inside += np.float32(2.5 * self.unit) * greasy * lobules
        self.canvas.lay(name, patch, albedo, TISSUE[name][1], 7 * self.unit)

    def _small_intestine(self, centre: tuple[float, float], radii: tuple[float, float]) -> None:
        """One long tube laid in loops that touch."""
        name = "small_intestine"
        shape = self._shape(name)
        radius = 0.105 * self.who.sized[name]
        rows = max(3, round(2 * radii[1] / (1.6 * radius)))
        turn = shape.normal(0.6, 0.8)
        points = []
        for i, y in enumerate(np.linspace(-radii[1], radii[1], rows)):
            reach = radii[0] * np.sqrt(1.1 - (y / radii[1]) ** 2 * 0.7) * shape.uniform(0.75, 1.1)
            points += [(x, y) for x in np.linspace(-reach, reach, 5) * (1 if i % 2 else -1)]
        c = np.cos(turn)
        s = np.sin(turn)
        path = np.array(points) @ np.array([[c, s], [-s, c]]) + shape.normal(
            0, 0.055, (len(points), 2)
        )
        # The plane is seen from its edge, yet the loops lie as close along v as along u.
        path = path * (1, 0.62) + centre
        patch = tube(
            self.view, [((path + self.who.moved[name]).astype(np.float32), radius)], haustra=0.06
        )
        if patch is None:
            return
        clouds = self.clouds[patch.box]
        rings = np.sin(patch.along * 9 + np.float32(1.5) * clouds)
        root = np.clip(np.abs(patch.across) - np.float32(0.55), 0, 1)
        albedo = self._tissue(name, 0.10 * clouds + 0.03 * rings - 0.5 * root)
        patch.height += self.unit * (0.2 * rings + 0.2 * self.grain[patch.box])
        self.canvas.lay(
            name, patch, self._veined(albedo, 2.0, 1.0, patch.box), TISSUE[name][1], 6 * self.unit
        )

    def _thin(self, name: str, paths: list[tuple[Plane, float]], sunk: float) -> None:
        """Vessels and the ureter: fine tubes, here and there covered by what they run through."""
        size = self.who.sized[name]
        patch = tube(
            self.view, [(path, radius * size) for path, radius in paths], least=1.6 * self.unit
        )
        if patch is None:
            return
        clouds = self.clouds[patch.box]
        shine = 0.3 * (1 - np.clip(np.abs(patch.across), 0, 1.5) ** 2)
        patch.inside -= np.float32(6 * self.unit * sunk) * np.clip(clouds - np.float32(1.1), 0, 1.5)
        patch.height *= np.float32(1.2)
        albedo = self._tissue(name, shine - 0.1 + 0.12 * clouds + 0.06 * self.grain[patch.box])
        # They shine through the peritoneum that covers them.
        albedo = cv2.addWeighted(self.canvas.albedo[patch.box], 0.22, albedo, 0.78, 0)
        self.canvas.lay(name, patch, albedo, TISSUE[name][1], 2.2 * self.unit)

    def _veins(self) -> None:
        """A trunk in the mesentery that divides towards the gut."""
        name = "intestinal_veins"
        shape = self._shape("intestinal_veins")
        trunk = self._path(
            name, [(0.22, 1.15), (0.08, 0.9), (-0.08, 0.64), (-0.12, 0.36), (-0.1, 0.0)], 0.03
        )
        paths = [(trunk, 0.026)]
        for i, side in ((1, -1), (1, 1), (2, -1), (2, 1), (3, -1), (3, 1)):
            far = shape.uniform(0.25, 0.5)
            bend = trunk[i] + (side * far * 0.45, -0.10) + shape.normal(0, 0.03, 2)
            end = trunk[i] + (side * far, -0.16) + shape.normal(0, 0.06, 2)
            paths.append((np.array([trunk[i], bend, end], np.float32), 0.018))
            twig = np.array([[0, 0], [side * 0.1, 0.10], [0, 0.22]]) + np.array([bend, bend, end])
            paths.append((twig.astype(np.float32), 0.013))
        self._thin(name, paths, 0.35)

    def _artery(
        self, path: list[tuple[float, float]], branches: list[tuple[int, float, float]]
    ) -> None:
        name = "inferior_mesenteric_artery"
        shape = self._shape("inferior_mesenteric_artery")
        trunk = self._path(name, path, 0.03)
        paths = [(trunk, 0.030)]
        for i, u, v in branches:
            end = np.array([u, v]) + self.who.moved[name]
            bend = (trunk[i] + end) / 2 + shape.normal(0, 0.04, 2)
            paths.append((np.array([trunk[i], bend, end], np.float32), 0.020))
        self._thin(name, paths, 0.5)

    def _ureter(self) -> None:
        path = self._path(
            "ureter", [(0.66, -0.2), (0.52, 0.2), (0.5, 0.55), (0.52, 0.85), (0.3, 1.2)], 0.035
        )
        self._thin("ureter", [(path, 0.022)], 0.35)

    def _glands(self) -> None:
        """A pair of small convoluted tubes."""
        name = "vesicular_glands"
        shape = self._shape("vesicular_glands")
        steps = np.arange(9)
        paths = []
        for side in (-1, 1):
            u = 0.1 + side * (0.055 + 0.052 * steps)
            v = (
                0.96
                + 0.022 * steps
                + 0.055 * np.where(steps % 2, 1, -1)
                + shape.normal(0, 0.018, 9)
            )
            line = np.column_stack([u, v]).astype(np.float32) + self.who.moved[name]
            paths.append((line, 0.068 * self.who.sized[name]))
        patch = tube(self.view, paths, haustra=0.16)
        if patch is None:
            return
        lobules = self._lobules(0.06, patch.box)
        pattern = (
            0.4 * (lobules - 0.6) + 0.12 * self.clouds[patch.box] - 0.25 * np.abs(patch.across)
        )
        patch.inside += np.float32(2.5 * self.unit) * (lobules - np.float32(0.5))
        patch.height += np.float32(1.5 * self.unit) * lobules
        albedo = self._veined(self._tissue(name, pattern), 2.0, 0.8, patch.box)
        self.canvas.lay(name, patch, albedo, TISSUE[name][1], 3 * self.unit)

    # -- what no sub-data set labels --

    def _vessel_decoys(self) -> None:
        """Other vessels and strands, as thin as the labelled ones."""
        paints = ((0.60, 0.13, 0.09), (0.32, 0.15, 0.22), (0.80, 0.52, 0.38), FAT)
        for _ in range(self.rng.poisson(1 + 4 * self.difficulty)):
            start = np.array([self.rng.uniform(-1, 1), self.rng.uniform(0.05, 1.2)])
            path = start + np.cumsum(self.rng.normal(0, 0.16, (4, 2)), axis=0)
            radius = float(self.rng.uniform(0.008, 0.026))
            paint = colour(*paints[self.rng.integers(4)]) * np.exp(
                self.rng.normal(0, 0.15, 3)
            ).astype(np.float32)
            patch = tube(self.view, [(path.astype(np.float32), radius)], least=1.2 * self.unit)
            if patch is not None:
                albedo = tinted(paint, 0.12 * paint, self.clouds[patch.box])
                albedo = cv2.addWeighted(self.canvas.albedo[patch.box], 0.25, albedo, 0.75, 0)
                self.canvas.lay("strand", patch, albedo, 0.5, 2 * self.unit)

    def _fat_flap(self, anchor: tuple[float, float], spread: float) -> None:
        """Omentum in front of organs."""
        if self.rng.random() > 0.25 + 0.5 * self.who.fat:
            return
        at = (anchor[0] + self.rng.normal(0, spread), anchor[1] + self.rng.normal(0, 0.12))
        turns = np.linspace(0, 2 * np.pi, 9)[:-1] + self.rng.normal(0, 0.15, 8)
        size = self.rng.uniform(0.7, 1.2)
        patch = self._stand(
            "fat",
            at,
            [(0.42 * size * np.cos(t), 0.22 * size * np.sin(t)) for t in turns],
            0.16,
            1.06,
        )
        if patch is None:
            return
        lobules = self._lobules(0.13, patch.box)
        patch.inside = (patch.inside * 6 + 8 * (lobules - np.float32(0.62))).astype(np.float32)
        patch.height += np.float32(5 * self.unit) * lobules
        self.canvas.lay(
            "fat", patch, self._veined(self._fat(lobules), 1.2, 0.9, patch.box), 0.6, 4 * self.unit
        )

    def _stains(self) -> None:
        """Blood that has run over an organ hides nothing: what is below keeps its label."""
        if self.rng.random() > 0.15 + 0.3 * self.difficulty:
            return
        height, width = self.view.size
        y, x = np.ogrid[:height, :width]
        cx = width * self.rng.uniform(0.2, 0.8)
        cy = height * self.rng.uniform(0.3, 0.9)
        reach = height * 0.3
        away = (np.hypot(x - cx, 1.5 * (y - cy)) / reach).astype(np.float32)
        pool = np.clip(
            1.6 * (self._texture("clouds", 0.9) + np.float32(0.9) - 2 * away), 0, 0.8
        ).astype(np.float32)
        blood = self.canvas.albedo * colour(0.62, 0.12, 0.12) + colour(*BLOOD) * np.float32(0.3)
        self.canvas.albedo = over(blood, self.canvas.albedo, pool)
        self.canvas.gloss += (np.float32(0.9) - self.canvas.gloss) * pool
