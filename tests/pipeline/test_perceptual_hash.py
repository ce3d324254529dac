"""Fingerprints of frames: what keeps them, what changes them, and which pairs look alike."""

from itertools import combinations

import cv2
import numpy as np
import pytest
from helpers import REAL_DATA, disc

from pipeline.dsad import read_frame
from pipeline.perceptual_hash import ALIKE, BITS, SIDE, WAVES, Pair, alike, perceptual_hash


def scene(seed, size=(120, 160)):
    """A frame of smooth shapes: a few discs on a coloured slope."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    slope = rng.uniform(-0.6, 0.6, 2)
    frame = np.repeat((100 + slope[0] * y + slope[1] * x)[..., None], 3, axis=2)
    for _ in range(6):
        centre = rng.integers([0, 0], size)
        frame[disc(size, centre, rng.integers(10, 50))] = rng.integers(20, 230, 3)
    return cv2.GaussianBlur(frame.clip(0, 255).astype(np.uint8), (5, 5), 0)


def jpeg(frame):
    return cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], 1)


def noisy(frame):
    noise = np.random.default_rng(0).normal(0, 8, frame.shape)
    return (frame + noise).clip(0, 255).astype(np.uint8)


CHANGES = {
    "jpeg": jpeg,
    "half": lambda frame: cv2.resize(frame, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "aspect": lambda frame: cv2.resize(frame, (320, 256)),
    "bright": lambda frame: (frame * 1.25 + 10).clip(0, 255).astype(np.uint8),
    "dark": lambda frame: (frame * 0.7).astype(np.uint8),
    "noise": noisy,
}


def distance(first, second):
    return int((perceptual_hash(first) != perceptual_hash(second)).sum())


def test_the_bits_are_those_of_a_literal_cosine_transform():
    frame = scene(0)
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(float)
    n = np.arange(SIDE)
    waves = np.cos(np.pi * (2 * n[None] + 1) * n[:WAVES, None] / (2 * SIDE))
    waves[0] /= np.sqrt(2)
    coefficients = (waves @ small @ waves.T).ravel()[1:]
    bits = perceptual_hash(frame)
    assert bits.shape == (BITS,)
    assert (bits != (coefficients > np.median(coefficients))).sum() <= 1  # float32 at the median


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_looks_alike(change):
    for seed in range(10):
        assert distance(scene(seed), CHANGES[change](scene(seed))) <= ALIKE


@pytest.mark.parametrize("copy", [np.s_[:, ::-1], np.s_[6:-6, 8:-8]], ids=["mirrored", "cropped"])
def test_a_mirrored_or_cropped_copy_is_not_found(copy):
    for seed in range(10):
        assert distance(scene(seed), np.ascontiguousarray(scene(seed)[copy])) > ALIKE


def test_another_scene_does_not_look_alike():
    frames = [scene(seed) for seed in range(20)]
    assert min(distance(*pair) for pair in combinations(frames, 2)) > 2 * ALIKE


def test_a_frame_without_structure_has_no_fingerprint():
    for value in (0, 255):
        assert perceptual_hash(np.full((30, 40, 3), value, np.uint8)) is None


def test_pairs_are_those_of_a_loop(monkeypatch):
    monkeypatch.setattr("pipeline.perceptual_hash._ROWS", 7)
    rng = np.random.default_rng(3)
    originals = rng.random((6, BITS)) < 0.5
    hashes = [originals[i] ^ (rng.random(BITS) < 0.05) for i in rng.integers(0, 6, 40)]
    groups = [f"surgery {i}" for i in rng.integers(0, 5, 40)]
    expected = []
    for first, second in combinations(range(40), 2):
        bits = int((hashes[first] != hashes[second]).sum())
        if bits <= ALIKE and groups[first] != groups[second]:
            expected.append(Pair(first, second, bits))
    expected.sort(key=lambda pair: pair.distance)
    assert len(expected) > 20
    assert alike(hashes, groups, 1000) == (expected, len(expected))
    assert alike(hashes, groups, 4) == (expected[:4], len(expected))
    assert alike([], [], 4) == ([], 0)


@pytest.mark.skipif(not (REAL_DATA / "cholecseg8k").is_dir(), reason="the real frames are not here")
def test_the_threshold_lies_between_copies_and_other_surgeries():
    paths = sorted((REAL_DATA / "cholecseg8k/labelmap").glob("*/image*.png"))
    frames = [read_frame(path) for path in paths]
    copies = [distance(frame, change(frame)) for frame in frames for change in CHANGES.values()]
    assert max(copies) <= ALIKE
    hashes = [perceptual_hash(frame) for frame in frames]
    surgeries = [path.parent.name for path in paths]
    pairs, _ = alike(hashes, surgeries, 10, most=BITS)
    assert pairs[0].distance >= 50
