"""One transform moves frame, label and logits together: a function of (seed, epoch, frame id)."""

import cv2
import numpy as np
import pytest

from pipeline.augmentation import (
    IDENTITY,
    SHIFT,
    Augmentation,
    augment_frame,
    grid_matrix,
    recolour,
    sample,
    valid_cells,
    warp,
    warp_label,
)
from pipeline.losses import IGNORE

SIZE, GRID = (96, 128), (24, 32)


def moving(number=20):
    found = [sample(seed, 0, "colon/04/image03", SIZE).affine for seed in range(80)]
    return [affine for affine in found if affine != IDENTITY][:number]


def scene(rng, channels=3):
    return cv2.GaussianBlur(rng.random((*SIZE, channels)).astype(np.float32) * 255, (0, 0), 8)


def test_sample_is_a_function_of_seed_epoch_and_frame():
    assert sample(1, 2, "a", SIZE) == sample(1, 2, "a", SIZE)
    assert len({sample(s, t, f, SIZE) for s in (1, 2) for t in (0, 1) for f in ("a", "b")}) == 8


def test_half_of_the_frames_move_within_the_limits():
    affines = [sample(s, 0, "x", SIZE).affine for s in range(400)]
    moved = np.array([a for a in affines if a != IDENTITY])
    assert 160 < len(moved) < 240
    scale = np.sqrt(moved[:, 0] * moved[:, 4] - moved[:, 1] * moved[:, 3])
    assert ((scale + 1e-9 >= 1 / 1.1) & (scale <= 1 / 0.9 + 1e-9)).all()
    centre = moved[:, [2, 5]] + 0.5 * (moved[:, [0, 3]] + moved[:, [1, 4]])
    assert np.abs(centre - 0.5).max() < SHIFT * 1.3


def test_a_rotation_preserves_angles_in_pixels():
    for affine in moving():
        linear = grid_matrix(affine, SIZE)[:, :2]
        assert abs(linear[0] @ linear[1]) < 1e-9
        assert np.linalg.norm(linear[0]) == pytest.approx(np.linalg.norm(linear[1]))


def test_every_grid_moves_alike():
    """Warping logits on their grid equals warping their upsampled version, away from the border."""
    rng = np.random.default_rng(0)
    coarse = cv2.GaussianBlur(rng.standard_normal((*GRID, 2)).astype(np.float32), (0, 0), 3)
    for affine in moving():
        small = cv2.resize(warp(coarse, affine), SIZE[::-1], interpolation=cv2.INTER_LINEAR)
        large = warp(cv2.resize(coarse, SIZE[::-1], interpolation=cv2.INTER_LINEAR), affine)
        inside = cv2.resize(valid_cells(affine, GRID).astype(np.float32), SIZE[::-1]) == 1
        assert np.abs(small - large)[inside].max() < 0.06 * np.ptp(coarse)


def test_label_follows_the_frame():
    frame = scene(np.random.default_rng(1))
    label = (frame[..., 0] > frame[..., 0].mean()).astype(np.uint8)
    for affine in moving():
        moved = warp_label(label, affine, IGNORE)
        expected = warp(frame, affine)[..., 0] > frame[..., 0].mean()
        known = moved != IGNORE
        assert (moved[known] == expected[known]).mean() > 0.98


def test_outside_the_frame_labels_are_ignored_and_cells_invalid():
    outward = (1.0, 0.0, 0.25, 0.0, 1.0, 0.0)  # the right quarter of the picture lies outside
    label = warp_label(np.zeros(SIZE, np.uint8), outward, IGNORE)
    assert (label[:, -31:] == IGNORE).all()
    assert (label[:, :96] == 0).all()
    cells = valid_cells(outward, GRID)
    assert not cells[:, 24:].any()
    assert cells[:, :24].all()
    frame = warp(
        np.arange(128, dtype=np.uint8)[None].repeat(96, 0)[..., None].repeat(3, 2), outward
    )
    assert (frame[0, 96:, 0] == 126 - np.arange(32)).all()  # reflect-101


def test_valid_cells_were_interpolated_from_the_inside_only():
    for affine in moving():
        cells = valid_cells(affine, GRID)
        ones = warp(np.ones(GRID, np.float32), affine, border=cv2.BORDER_CONSTANT, fill=0)
        assert (ones[cells] > 1 - 1e-4).all()
        assert 0.5 < cells.mean() <= 1


def test_more_than_four_channels_warp_like_single_ones():
    planes = np.random.default_rng(2).standard_normal((*GRID, 22)).astype(np.float32)
    affine = moving(1)[0]
    for i in (0, 5, 21):
        np.testing.assert_array_equal(warp(planes, affine)[..., i], warp(planes[..., i], affine))


def test_colours_change_by_seed_and_not_by_history():
    frame = scene(np.random.default_rng(3)).astype(np.uint8)
    first = recolour(frame, 5)
    recolour(frame, 6)
    np.testing.assert_array_equal(recolour(frame, 5), first)
    assert len({recolour(frame, seed).tobytes() for seed in range(20)}) > 8
    assert recolour(frame, None) is frame


def test_no_augmentation_leaves_the_frame_alone():
    frame = scene(np.random.default_rng(4)).astype(np.uint8)
    np.testing.assert_array_equal(augment_frame(frame, Augmentation()), frame)
