"""Pictures of masks on frames."""

import cv2
import numpy as np
import pytest

from pipeline.deployment.overlay import draw


def plainly_drawn(frame, masks, colours, opacity, outline):
    """The same on whole frames."""
    picture = frame.copy()
    for mask, colour in zip(masks, colours, strict=True):
        inside = mask.astype(np.uint8)
        tint = np.full_like(frame, colour)
        cv2.copyTo(cv2.addWeighted(picture, 1 - opacity, tint, opacity, 0), inside, picture)
        outlines, _ = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, outline or colour, 1)
    return picture


@pytest.mark.parametrize("outline", [None, (255, 255, 255)])
@pytest.mark.parametrize("seed", range(6))
def test_masks_are_drawn_where_they_are_as_on_the_whole_frame(seed, outline):
    rng = np.random.default_rng(seed)
    frame = rng.integers(0, 256, (50, 70, 3)).astype(np.uint8)
    masks = np.zeros((6, 50, 70), bool)  # the last one stays empty
    masks[0] = rng.random((50, 70)) > 0.5
    for mask in masks[1:5]:
        top, left = rng.integers(-10, 45), rng.integers(-10, 65)
        mask[max(0, top) : top + 20, max(0, left) : left + 30] = True
        mask &= rng.random((50, 70)) > 0.1
    colours = [tuple(map(int, rng.integers(0, 256, 3))) for _ in masks]
    expected = plainly_drawn(frame, masks, colours, 0.45, outline)
    assert (draw(frame, masks, colours, 0.45, outline) == expected).all()
