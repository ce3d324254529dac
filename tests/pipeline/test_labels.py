"""What is known of a pixel, against a rule that is written out pixel by pixel."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from helpers import write_png

from pipeline.label_maps import NO_LABEL
from pipeline.labels import (
    NO_ANATOMY,
    NOT_LABELLED,
    UNKNOWN,
    FrameLabels,
    absences,
    load_labels,
    targets,
)
from pipeline.prepared import Frame, load_label

ANATOMIES = ("colon", "liver", "spleen")
LEGEND = ("ureter", "liver", "colon")  # of a data set with another anatomy, and without the spleen


@pytest.fixture
def frame(tmp_path):
    """A frame of the liver that is 4x5 pixels large."""
    mask = np.random.default_rng(1).integers(0, 2, (4, 5)).astype(np.uint8)
    write_png(tmp_path / "image00.png", mask * 255)
    return Frame("liver/01/image00", "liver", "01", tmp_path / "any", tmp_path / "image00.png")


def with_map(frame, tmp_path):
    values = np.random.default_rng(2).integers(0, 4, (4, 5)).astype(np.uint8)
    values[0, 0] = NO_LABEL
    path = tmp_path / "image00.map.png"
    write_png(path, values)
    return Frame(frame.id, "liver", "01", frame.image, frame.label, frame.shows, path, LEGEND)


def with_weak_labels(frame):
    shows = {"spleen": False, "colon": True, "uterus": False}
    return Frame(frame.id, "liver", "01", frame.image, frame.label, shows)


def known(frame, anatomies):
    """1, 0 or UNKNOWN for each decoder and pixel, by the rules in their words."""
    import cv2

    mask = cv2.imread(str(frame.label), cv2.IMREAD_GRAYSCALE) > 0
    drawn = cv2.imread(str(frame.map), cv2.IMREAD_GRAYSCALE) if frame.map else None
    expected = np.full((len(anatomies), *mask.shape), UNKNOWN)
    for (i, anatomy), y, x in product(enumerate(anatomies), range(4), range(5)):
        if drawn is not None:
            if drawn[y, x] == NO_LABEL:
                continue
            shown = frame.legend[drawn[y, x] - 1] if drawn[y, x] else None
            if anatomy in frame.legend or shown is not None:
                expected[i, y, x] = anatomy == shown
        elif anatomy == frame.anatomy:
            expected[i, y, x] = mask[y, x]
        elif mask[y, x]:
            expected[i, y, x] = 0  # mutual exclusivity
        if frame.shows.get(anatomy) is False:
            expected[i, y, x] = 0
    return expected


def as_targets(labels: FrameLabels):
    organ = torch.from_numpy(labels.organ)[None]
    return targets(organ, torch.from_numpy(labels.background)[None])[0].numpy()


@pytest.mark.parametrize("anatomies", [ANATOMIES, ("spleen",), ("liver",), ("liver", "colon")])
@pytest.mark.parametrize("kind", ["mask", "weak labels", "map"])
def test_every_decoder_knows_what_the_rules_say(frame, tmp_path, kind, anatomies):
    if kind == "weak labels":
        frame = with_weak_labels(frame)
    if kind == "map":
        frame = with_map(frame, tmp_path)
    found = as_targets(load_labels(frame, anatomies, (4, 5)))
    np.testing.assert_array_equal(found, known(frame, anatomies))
    if kind != "map" and anatomies == ANATOMIES:
        assert {*np.unique(found)} == {0, 1, UNKNOWN}


def test_nothing_is_known_outside_the_frame_and_without_labels():
    organ = torch.tensor([[[NOT_LABELLED, NO_ANATOMY]], [[NO_ANATOMY, NO_ANATOMY]]])
    background = torch.tensor([[True, False], [False, False]])
    found = targets(organ, background)
    assert found[0, :, 0].tolist() == [[UNKNOWN, 0], [UNKNOWN, UNKNOWN]]
    assert (found[1] == UNKNOWN).all()


def test_several_labels_of_one_picture_are_known_together(frame, tmp_path):
    """Where masks overlap nothing is known; else a pixel is what one of them says, or none."""
    mask = np.random.default_rng(3).integers(0, 2, (4, 5)).astype(np.uint8)
    write_png(tmp_path / "colon.png", mask * 255)
    shows = {"spleen": False}
    colon = Frame("colon/01/image00", "colon", "01", frame.image, tmp_path / "colon.png", shows)
    both = replace(frame, copies=(colon,))
    labels = load_labels(both, ("colon", "liver", "spleen", "stomach"), (4, 5))
    assert labels.labelled.tolist() == [True, True, False, False]
    liver = load_label(frame.label)
    expected = np.full((4, 4, 5), UNKNOWN)
    for y, x in product(range(4), range(5)):
        if mask[y, x] and liver[y, x]:
            continue
        expected[:3, y, x] = mask[y, x], liver[y, x], 0
        if mask[y, x] or liver[y, x]:
            expected[3, y, x] = 0
    np.testing.assert_array_equal(as_targets(labels), expected)
    assert (expected == UNKNOWN)[:3].any() and (expected[3] == UNKNOWN).any()


def test_a_background_of_two_labels_is_no_known_absence(frame, tmp_path):
    """Only where an anatomy has no label does the weight of absences count."""
    write_png(tmp_path / "colon.png", np.zeros((4, 5), np.uint8))
    shows = {"spleen": False}
    colon = Frame("colon/01/image00", "colon", "01", frame.image, tmp_path / "colon.png", shows)
    labels = load_labels(replace(frame, copies=(colon,)), ANATOMIES, (4, 5))
    organ, background, labelled = (
        torch.from_numpy(each)[None] for each in (labels.organ, labels.background, labels.labelled)
    )
    absent = absences(organ, background, labelled)[0]
    assert not absent[:2].any()
    assert (absent[2] == (organ[0] == NO_ANATOMY)).all()
