"""Frames that are labelled for several anatomies, or completely, as training data."""

import shutil

import cv2
import numpy as np
import pytest
from helpers import write_dataset, write_label_maps, write_png

from pipeline.datasets import FrameDataset
from pipeline.dsad import DataError
from pipeline.labels import NO_ANATOMY, load_labels
from pipeline.prepared import PrepareSettings, labels_digest, list_frames, load_label, prepare
from pipeline.settings import Splits

ANATOMIES = ["liver", "colon"]
LEGEND = ["spleen", "colon", "liver"]
SIZE = (48, 64)
SURGERIES = ("01", "02", "03", "10")


@pytest.fixture
def maps(tmp_path):
    return write_label_maps(tmp_path / "maps", LEGEND, SURGERIES)


def prepared(root, anatomies=ANATOMIES):
    out = root.parent / "out"
    settings = PrepareSettings(root, anatomies, Splits(val=(2,), test=(3,)), SIZE)
    summary = prepare(settings, out / "frames", out / "labels", workers=2)
    return summary, lambda split, of=anatomies: list_frames(
        out / "frames", out / "labels", split, of
    )


def test_a_data_set_of_label_maps_labels_each_frame_for_all_anatomies(maps):
    summary, frames = prepared(maps)
    assert summary.counts == {
        "train": {"liver": 4, "colon": 4},
        "val": {"liver": 2, "colon": 2},
        "test": {"liver": 2, "colon": 2},
    }
    assert summary.warnings == []
    for frame in frames("test"):
        path = maps / frame.surgery / f"label{frame.id[-2:]}.png"
        values = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        value = LEGEND.index(frame.anatomy) + 1
        assert (load_label(frame.label) == (values == value)).all()
        assert frame.legend == tuple(LEGEND)
        assert frame.shows == {
            name: (values == value).any() for value, name in enumerate(LEGEND, start=1)
        }


def test_in_training_a_picture_comes_once_with_all_that_is_known(maps):
    _, frames = prepared(maps)
    train = frames("train")
    assert [f.id for f in train] == [
        f"liver/{surgery}/image{number:02d}" for surgery in ("01", "10") for number in range(2)
    ]
    assert {f.anatomies for f in train} == {("liver", "colon")}
    assert [f.id for f in frames("train", ["colon"])] == [f.copies[0].id for f in train]
    assert len(frames("test")) == 4  # of which each is measured by its anatomy
    for frame in train:
        labels = load_labels(frame, ["colon", "spleen", "stomach", "liver"], SIZE)
        assert labels.labelled.tolist() == labels.background.tolist() == [True, True, False, True]
        path = maps / frame.surgery / f"label{frame.id[-2:]}.png"
        values = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        expected = np.array([NO_ANATOMY, 1, 0, 3])[values]
        assert (labels.organ == expected).all()
    item = FrameDataset(train, ANATOMIES)[0, 1]
    assert item["labelled"].tolist() == [True, True]


def test_the_same_picture_in_two_sub_data_sets_is_one_frame_with_two_labels(tmp_path):
    root = write_dataset(tmp_path / "dsad")
    for surgery in ("01", "02"):
        shutil.copy(root / "liver" / surgery / "image01.png", root / "colon" / surgery)
    _, frames = prepared(root)
    train = frames("train")
    assert [f.anatomies for f in train if f.copies] == [("liver", "colon")]
    assert len(train) == 5
    assert len(frames("val")) == 6
    both = next(f for f in train if f.copies)
    assert both.copies[0].id == "colon/01/image01"
    before = labels_digest(train)
    write_png(root / "colon/01/mask01.png", np.zeros(SIZE, np.uint8))
    assert labels_digest(prepared(root)[1]("train")) != before


def test_a_picture_that_one_anatomy_has_twice_stays_two_frames(tmp_path):
    root = write_dataset(tmp_path / "dsad")
    shutil.copy(root / "liver/01/image01.png", root / "liver/01/image02.png")
    train = prepared(root)[1]("train")
    assert len(train) == 6
    assert not any(f.copies for f in train)


def test_what_is_wrong_with_a_data_set_of_maps_is_told_together(maps):
    (maps / "01/label00.png").unlink()
    (maps / "02/image00.png").unlink()
    write_png(maps / "10/label01.png", np.full(SIZE, 9, np.uint8))
    with pytest.raises(DataError) as error:
        prepared(maps, ["liver", "colon", "stomach"])
    problems = "\n".join(error.value.problems)
    assert "01/image00.png: its label label00.png is missing" in problems
    assert "02/label00.png: its frame image00.png is missing" in problems
    assert "10/label01.png: holds 9, and" in problems
    assert "anatomies.txt names only 1 to 3" in problems
    assert "data.anatomies: stomach is not named by" in problems
    assert len(error.value.problems) == 4


def test_surgeries_of_maps_are_split_by_their_folders(maps):
    settings = PrepareSettings(maps, ANATOMIES, Splits(val=(2,), test=(77,)), SIZE)
    with pytest.raises(DataError, match="no anatomy has a folder of surgery 77; there: 01, 02"):
        prepare(settings, maps.parent / "out/frames", maps.parent / "out/labels")
