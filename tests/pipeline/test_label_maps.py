"""Complete label maps beside masks: kept where sound, and held against what else is known."""

import cv2
import numpy as np
import pytest
from helpers import write_dataset, write_png

from pipeline.dsad import DataError
from pipeline.evaluation.runtime_dice import runtime_dice
from pipeline.label_maps import NO_LABEL
from pipeline.labels import load_labels
from pipeline.preparation.prepare import prepare
from pipeline.preparation.settings import PrepareSettings
from pipeline.prepared import labels_digest, list_frames, load_label, load_map
from pipeline.settings import Splits

ANATOMIES = ["liver", "colon"]
SIZE = (48, 64)


@pytest.fixture
def root(tmp_path):
    """A data set whose test frames have maps, with an anatomy that is no decoder's."""
    root = write_dataset(tmp_path / "dsad")
    (root / "multilabel").mkdir()
    (root / "multilabel" / "anatomies.txt").write_text("spleen\ncolon\nliver\n")
    for anatomy in ANATOMIES:
        for number in range(3):
            write_map(root, anatomy, number)
    return root


def place(root, anatomy, number):
    return root / "multilabel" / anatomy / "03" / f"label{number:02d}.png"


def write_map(root, anatomy, number, shift=0):
    """The anatomy's mask, moved, and a spleen in the corner."""
    mask = cv2.imread(str(root / anatomy / "03" / f"mask{number:02d}.png"), cv2.IMREAD_GRAYSCALE)
    values = np.where(np.roll(mask, shift, 1) > 0, 2 + (anatomy == "liver"), 0).astype(np.uint8)
    values[:4, :4] = 1
    write_png(place(root, anatomy, number), values)
    return values


def prepared(root, size=SIZE):
    out = root.parent / "out"
    settings = PrepareSettings(root, ANATOMIES, Splits(val=(2,), test=(3,)), size)
    summary = prepare(settings, out / "frames", out / "labels")
    return summary, lambda split: list_frames(out / "frames", out / "labels", split, ANATOMIES)


def test_maps_are_kept_with_what_they_show(root):
    summary, frames = prepared(root)
    assert summary.warnings == []
    assert [frame.map for frame in frames("train") + frames("val")] == [None] * 12
    for frame in frames("test"):
        assert frame.legend == ("spleen", "colon", "liver")
        number = int(frame.id[-2:])
        np.testing.assert_array_equal(load_map(frame.map), write_map(root, frame.anatomy, number))
        others = {"liver": frame.anatomy == "liver", "colon": frame.anatomy == "colon"}
        assert frame.shows == {"spleen": True, **others}


def test_a_smaller_map_has_no_values_between(root):
    _, frames = prepared(root, (24, 40))
    for frame in frames("test"):
        assert set(np.unique(load_map(frame.map))) <= {0, 1, 2, 3}


def test_nothing_is_known_where_map_and_mask_contradict_each_other(root):
    values = write_map(root, "liver", 1, shift=2)
    summary, frames = prepared(root)
    (warning,) = summary.warnings
    assert warning.startswith("1 label map is not as the mask; where they differ nothing is known:")
    assert f"{place(root, 'liver', 1)}: differs from" in warning
    (frame,) = [frame for frame in frames("test") if frame.id == "liver/03/image01"]
    kept = load_map(frame.map)
    mask = cv2.imread(str(frame.label), cv2.IMREAD_GRAYSCALE) > 0
    np.testing.assert_array_equal(kept == NO_LABEL, mask != (values == 3))


def test_pixels_without_a_label_are_what_the_mask_says_they_show(root):
    """Elsewhere nothing is known of them."""
    with (root / "multilabel" / "anatomies.txt").open("a") as file:
        file.write("255 = not labelled\n")
    values = write_map(root, "liver", 1)
    drawn = values == 3
    hidden = np.zeros(SIZE, bool)
    hidden[:, : np.argwhere(drawn)[:, 1].min() + 2] = True
    write_png(place(root, "liver", 1), np.where(hidden, 255, values).astype(np.uint8))
    summary, frames = prepared(root)
    assert summary.warnings == [] and (hidden & drawn).any()
    (frame,) = [frame for frame in frames("test") if frame.id == "liver/03/image01"]
    expected = np.where(hidden & ~drawn, NO_LABEL, values)
    np.testing.assert_array_equal(load_map(frame.map), expected)
    assert frame.shows == {"liver": True}  # the spleen's corner is hidden


def test_a_map_that_does_not_name_the_frames_anatomy_is_joined_with_its_mask(root):
    """The mask would be background otherwise."""
    (root / "multilabel" / "anatomies.txt").write_text("spleen\ncolon\n")
    for number in range(3):
        values = write_map(root, "liver", number)
        write_png(place(root, "liver", number), np.where(values == 3, 0, values).astype(np.uint8))
    _, frames = prepared(root)
    for frame in frames("test"):
        labels = load_labels(frame, ANATOMIES, SIZE)
        assert ((labels.organ == labels.own) == (load_label(frame.label) == 1)).all()
        assert labels.background.tolist() == [frame.anatomy == "liver", True]


def test_a_weak_label_is_believed_less_than_a_map(root):
    file = root / "liver" / "03" / "weak_labels.csv"
    file.write_text("image,liver,colon,spleen,uterus\nimage00.png,1,1,0,0\n")
    summary, frames = prepared(root)
    (warning,) = summary.warnings
    assert warning.startswith("2 weak labels are contradicted by what is drawn, which is believed:")
    assert f"{file}: says that image00 shows colon, and its map does not" in warning
    assert f"{file}: says that image00 shows no spleen, and its map does" in warning
    shows = {"liver": True, "colon": False, "spleen": True, "uterus": False}
    assert frames("test")[0].shows == shows


def test_maps_whose_values_mean_something_else_are_refused(root):
    (root / "multilabel" / "anatomies.txt").write_text("spleen\nliver\ncolon\n")
    with pytest.raises(DataError, match=r"are the lines of anatomies\.txt in the order"):
        prepared(root)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full(SIZE, 4, np.uint8), "holds 4, and .* names only 1 to 3$"),
        (np.full(SIZE, 255, np.uint8), "names only 1 to 3; if nothing is known there, end it with"),
        (np.zeros((48, 63), np.uint8), "frame and label have different sizes, 64x48 and 63x48"),
        (np.zeros((*SIZE, 3), np.uint8), "expected a grey one"),
    ],
)
def test_maps_that_cannot_be_used_are_named_together(root, values, message):
    for number in (0, 2):
        write_png(place(root, "colon", number), values)
    with pytest.raises(DataError, match=message) as error:
        prepared(root)
    assert len(error.value.problems) == 2


def test_a_corrected_map_or_weak_label_is_another_label(root):
    def digest():
        _, frames = prepared(root)
        return labels_digest(frames("test"))

    digests = [digest()]
    values = write_map(root, "liver", 0)
    values[-4:, -4:] = 1
    write_png(place(root, "liver", 0), values)
    digests.append(digest())
    (root / "liver" / "03" / "weak_labels.csv").write_text("image,uterus,liver\nimage00.png,1,1\n")
    digests.append(digest())
    assert len(set(digests)) == 3


def test_another_runtimes_dice_is_of_own_frames_and_of_every_decoder_on_mapped_frames(root):
    """Of a runtime that always finds the colon on the left and the liver below."""
    masks = np.zeros((2, *SIZE), bool)
    masks[0, 24:] = True
    masks[1, :, :32] = True
    _, frames = prepared(root)
    test = frames("test")
    measured = runtime_dice(lambda pixels: masks, test, ANATOMIES, SIZE)
    own = {anatomy: [] for anatomy in ANATOMIES}
    every = {anatomy: [0, 0] for anatomy in ANATOMIES}
    for frame in test:
        drawn = load_map(frame.map)
        for mask, anatomy in zip(masks, ANATOMIES, strict=True):
            truth = drawn == 1 + frame.legend.index(anatomy)
            both, sizes = int((mask & truth).sum()), int(mask.sum() + truth.sum())
            every[anatomy][0] += 2 * both
            every[anatomy][1] += sizes
            if frame.anatomy == anatomy:
                own[anatomy].append(2 * both / sizes)
    assert measured.own == pytest.approx(100 * np.mean([*map(np.mean, own.values())]), abs=0.01)
    expected = [part / whole for part, whole in every.values()]
    assert measured.every == pytest.approx(100 * np.mean(expected), abs=0.01)
    assert runtime_dice(lambda pixels: masks, frames("val"), ANATOMIES, SIZE).every is None
