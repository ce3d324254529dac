"""What the student gets: frame, label, stored logits and valid cells moved as one."""

import cv2
import numpy as np
import pytest
from helpers import write_png
from scipy.ndimage import map_coordinates

from pipeline import augmentation
from pipeline.augmentation import IDENTITY, sample, warp_logits
from pipeline.datasets import EpochBatches, FrameDataset
from pipeline.labels import NOT_LABELLED
from pipeline.prepared import Frame

SIZE, GRID = (96, 128), (24, 32)


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """A frame whose red is its teacher's logit of the anatomy.

    Its label is where that is above the middle.
    """
    monkeypatch.setattr(augmentation, "recolour", lambda frame, colour: frame)
    field = cv2.GaussianBlur(np.random.default_rng(0).random(SIZE).astype(np.float32), (0, 0), 16)
    field = (field - field.min()) / np.ptp(field)
    frame = Frame("liver/01/image00", "liver", "01", tmp_path / "image.png", tmp_path / "mask.png")
    write_png(frame.image, (255 * np.stack([field] * 3, axis=2)).astype(np.uint8))
    write_png(frame.label, (field > 0.5).astype(np.uint8) * 255)
    coarse = cv2.resize(field, GRID[::-1], interpolation=cv2.INTER_AREA)

    class Teachers:
        views, view_seed = 0, 0

        def read(self, frame, view, pixels):
            return np.stack([1 - coarse, coarse])[None].astype(np.float16)

    return frame, Teachers()


def original(affine, size):
    """Where in the original each augmented pixel was, in pixels: (2, H, W), y first."""
    height, width = size
    a, b, c, d, e, f = affine
    v, u = (np.mgrid[:height, :width] + 0.5) / np.array(size)[:, None, None]
    return np.stack([(d * u + e * v + f) * height - 0.5, (a * u + b * v + c) * width - 0.5])


def inside(places, size, reach):
    """Whether such a place lies in the frame, ``reach`` beyond its outermost pixel centres."""
    return np.all(
        [(-reach <= at) & (at <= n - 1 + reach) for at, n in zip(places, size, strict=True)], axis=0
    )


def test_one_transform_moves_frame_label_and_stored_logits(scene):
    frame, teachers = scene
    data = FrameDataset([frame], ["liver"], 1, teachers)
    moved = [epoch for epoch in range(40) if sample(1, epoch, frame.id, SIZE).affine != IDENTITY]
    assert len(moved) > 10
    outside = 0
    for epoch in moved:
        item = data[epoch, 0]
        affine = sample(1, epoch, frame.id, SIZE).affine
        pixels = item["frame"][0].numpy() / 255
        label = item["organ"].numpy() == 0

        labelled = item["organ"].numpy() != NOT_LABELLED
        places = original(affine, SIZE)
        assert not labelled[~inside(places, SIZE, 0.51)].any()
        assert labelled[inside(places, SIZE, 0.49)].all()
        assert (label == (pixels > 0.5))[labelled].mean() > 0.98

        valid = item["valid"].numpy()
        np.testing.assert_array_equal(valid, inside(original(affine, GRID), GRID, 1e-6))
        outside += (~valid).sum()
        full = cv2.resize(
            item["teachers"][0, 1].numpy(), SIZE[::-1], interpolation=cv2.INTER_LINEAR
        )
        interior = (
            cv2.resize(valid.astype(np.float32), SIZE[::-1], interpolation=cv2.INTER_LINEAR) == 1
        )
        # A cell is the mean of four by four pixels, and the frame has 8 bits.
        assert np.abs(full - pixels)[interior].max() < 0.05
    assert outside


def test_a_clean_frame_is_whole(scene):
    frame, teachers = scene
    item = FrameDataset([frame], ["liver"], None, teachers)[0, 0]
    assert item["valid"].all()
    assert (item["organ"] != NOT_LABELLED).all()
    np.testing.assert_array_equal(
        item["teachers"].numpy(), teachers.read("", 0, 0).astype(np.float32)
    )


def test_stored_logits_are_interpolated_where_the_frame_came_from():
    logits = np.random.default_rng(1).standard_normal((3, 2, *GRID)).astype(np.float16)
    for seed in range(20):
        affine = sample(seed, 0, "x", SIZE).affine
        places = original(affine, GRID)
        slow = [
            map_coordinates(one.astype(float), places, order=1, mode="nearest")
            for one in logits.reshape(-1, *GRID)
        ]
        warped = warp_logits(logits, affine).reshape(-1, *GRID)
        # OpenCV may round to 1/32 of a pixel.
        assert np.abs(warped - np.stack(slow)).max() < 0.05 * np.ptp(logits)


def test_an_epoch_has_all_own_frames_and_some_others():
    batches = EpochBatches(10, 4, seed=3, others=30, drawn=6)
    assert (len(batches), batches.sizes()) == (4, [[4]] * 4)
    drawn = []
    for epoch in range(3):
        batches.epoch = epoch
        positions = [position for batch in batches for _, position in batch]
        assert sorted(positions)[:10] == list(range(10))
        others = sorted(positions)[10:]
        assert len(set(others)) == 6
        assert all(10 <= position < 40 for position in others)
        assert positions != sorted(positions)
        drawn.append(others)
    assert drawn[0] != drawn[1] != drawn[2]
    batches.epoch = 0
    assert sorted(position for batch in batches for _, position in batch)[10:] == drawn[0]


def test_no_more_others_are_drawn_than_there_are():
    batches = EpochBatches(3, 5, seed=3, others=2, drawn=9)
    assert sorted(position for batch in batches for _, position in batch) == [0, 1, 2, 3, 4]


def test_epochs_without_others_are_those_of_before():
    plain, with_none = EpochBatches(9, 4, seed=5), EpochBatches(9, 4, seed=5, others=0, drawn=0)
    assert list(plain) == list(with_none)
    order = np.random.default_rng([5, 0]).permutation(9)
    assert [position for batch in plain for _, position in batch] == order[:8].tolist()
