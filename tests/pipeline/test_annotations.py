"""Weak labels and single annotators: read where they are sound, else left out with a warning."""

import cv2
import numpy as np
import pytest
from helpers import REAL_DATA, write_dataset, write_png

from pipeline.annotations import DSAD_COLUMNS, read_annotations, read_presence, read_weak_labels
from pipeline.dsad import DataError
from pipeline.preparation.prepare import prepare
from pipeline.preparation.settings import PrepareSettings
from pipeline.prepared import load_label
from pipeline.settings import Splits

DSAD_ROW = dict.fromkeys(DSAD_COLUMNS, False) | {"colon": True, "vesicular_glands": True}
SPLITS = Splits(val=(2,), test=("03",))


def prepared(root, out):
    settings = PrepareSettings(root, ["liver", "colon"], SPLITS, (32, 48))
    return prepare(settings, out / "frames", out / "labels")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image,liver,gall\nimage00.png,1,0\n", {0: {"liver": True, "gall": False}}),
        ("image07.png,0,1\n", {7: {"colon": False, "liver": True}}),
        (f"images012.png,{','.join('010000000001')}\n", {12: DSAD_ROW}),
        (
            "\ufeffimage, Colon ,SMALL bowel\nimage00.png,1,0\n",
            {0: {"colon": True, "SMALL bowel": False}},
        ),
    ],
)
def test_columns_are_named_by_the_header_the_folders_or_dsad(tmp_path, text, expected):
    (tmp_path / "weak_labels.csv").write_text(text)
    assert read_weak_labels(tmp_path / "weak_labels.csv", ["liver", "colon"]).shows == expected


def test_columns_without_a_header_are_those_of_the_data_sets_list(tmp_path):
    """Not the alphabet's: CholecSeg8k comes with such a list."""
    root = write_dataset(tmp_path / "dsad", ("liver", "colon"))
    (tmp_path / "anatomies.txt").write_text("liver\nthe gut\nColon\n")
    (root / "liver" / "03" / "weak_labels.csv").write_text("image00.png,1,0,0\nimage01.png,1,1,1\n")
    assert prepared(root, tmp_path).warnings == []
    assert read_presence(tmp_path / "labels" / "test" / "liver") == {
        "liver/03/image00": {"liver": True, "the gut": False, "colon": False},
        "liver/03/image01": {"liver": True, "the gut": True, "colon": True},
    }


def test_implied_columns_that_deny_most_masks_are_left_out(tmp_path):
    root = write_dataset(tmp_path / "dsad")
    file = root / "liver" / "03" / "weak_labels.csv"
    rows = "image00.png,1,0\nimage01.png,1,0\nimage02.png,0,1\n"
    file.write_text(rows)
    (warning,) = prepared(root, tmp_path).warnings
    assert (
        "denies 2 of 3 frames the liver that their masks show, so its columns are in another order"
        in warning
    )
    assert read_presence(tmp_path / "labels" / "test" / "liver") == {}
    file.write_text("image,colon,liver\n" + rows)  # who names the columns knows them
    (warning,) = prepared(root, tmp_path / "again").warnings
    assert warning.startswith("2 weak labels are contradicted by what is drawn")


def test_spaces_in_the_header_are_underscores(tmp_path):
    (tmp_path / "weak_labels.csv").write_text("image,Abdominal wall\nimage00.png,1\n")
    assert read_weak_labels(tmp_path / "weak_labels.csv", ["abdominal_wall"]).shows == {
        0: {"abdominal_wall": True}
    }


def test_twelve_columns_are_the_data_sets_if_it_has_twelve_of_its_own(tmp_path):
    folders = [f"organ{i:02d}" for i in range(12)]
    (tmp_path / "weak_labels.csv").write_text(f"image00.png,{','.join('010000000001')}\n")
    (shows,) = read_weak_labels(tmp_path / "weak_labels.csv", folders).shows.values()
    assert [name for name, there in shows.items() if there] == ["organ01", "organ11"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image00.png,x,0\nimage01.png,1,0\n", "row 1 is not a file name and 2 times 0 or 1"),
        (
            "image,Kolon,Leber\nimage00.png,1,0\n",
            r"its columns \(Kolon, Leber\) name none of colon, liver",
        ),
        ("image00.png,1,0\nimage0.png,1,1\n", "row 2 is another one of frame 0"),
        ("image,colon,Colon\nimage00.png,1,0\n", "names a column twice"),
        ("\n", "is empty"),
    ],
)
def test_what_would_be_misread_is_refused(tmp_path, text, message):
    (tmp_path / "weak_labels.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_weak_labels(tmp_path / "weak_labels.csv", ["liver", "colon"])


@pytest.mark.parametrize(
    "text", ["image00.png,1\n", "image00.png,1,2\n", "image.png,1,0\nimage00.png,1,0\n"]
)
def test_odd_rows_are_refused(tmp_path, text):
    (tmp_path / "weak_labels.csv").write_text("image00.png,1,0\n" + text)
    with pytest.raises(DataError, match=r"weak_labels\.csv: row 2 "):
        read_weak_labels(tmp_path / "weak_labels.csv", ["liver", "colon"])


def test_frames_of_all_splits_keep_what_is_known_of_them(tmp_path):
    root = write_dataset(tmp_path / "dsad")
    for surgery in ("01", "03"):
        (root / "liver" / surgery / "weak_labels.csv").write_text(
            "image00.png,0,1\nimage01.png,1,1\n"
        )
    (root / ".cache").mkdir()  # no anatomy
    summary = prepared(root, tmp_path)
    assert summary.warnings == []
    assert read_presence(tmp_path / "labels" / "test" / "liver") == {
        "liver/03/image00": {"colon": False, "liver": True},
        "liver/03/image01": {"colon": True, "liver": True},
    }
    assert read_presence(tmp_path / "labels" / "train" / "liver") == {
        "liver/01/image00": {"colon": False, "liver": True},
        "liver/01/image01": {"colon": True, "liver": True},
    }
    assert read_presence(tmp_path / "labels" / "test" / "colon") == {}


def test_a_mask_is_believed_above_its_weak_label(tmp_path):
    root = write_dataset(tmp_path / "dsad")
    (root / "liver" / "03" / "weak_labels.csv").write_text("image00.png,0,0\nimage01.png,0,1\n")
    (warning,) = prepared(root, tmp_path).warnings
    assert "weak_labels.csv: says that image00 shows no liver, and" in warning
    assert read_presence(tmp_path / "labels" / "test" / "liver") == {
        "liver/03/image00": {"colon": False},
        "liver/03/image01": {"colon": False, "liver": True},
    }


@pytest.mark.parametrize("content", ["", "image77.png,0,1\n", None])
def test_weak_labels_that_say_nothing_are_a_warning(tmp_path, content):
    root = write_dataset(tmp_path / "dsad")
    file = root / "liver" / "03" / "weak_labels.csv"
    if content is None:
        file.mkdir()
    else:
        file.write_text(content)
    (warning,) = prepared(root, tmp_path).warnings
    assert str(file) in warning


def test_an_annotators_mask_of_another_size_is_a_warning(tmp_path):
    root = write_dataset(tmp_path / "dsad")
    write_png(root / "colon" / "03" / "anno_1" / "mask00.png", np.zeros((50, 64), np.uint8))
    (warning,) = prepared(root, tmp_path).warnings
    assert "different sizes, 64x50 and 64x48" in warning
    assert read_annotations(tmp_path / "labels" / "test" / "colon") == []


def test_annotators_are_compared_with_the_consensus(tmp_path):
    root = write_dataset(tmp_path / "dsad")
    folder = root / "colon" / "03" / "anno_2"
    folder.mkdir()
    consensus = cv2.imread(str(root / "colon" / "03" / "mask01.png"), 0)
    drawn = np.roll(consensus, 3, axis=1)
    cv2.imwrite(str(folder / "mask01.png"), drawn)
    (folder / "mask02.png").write_bytes(b"broken")
    summary = prepared(root, tmp_path)
    assert ["mask02.png" in w for w in summary.warnings] == [True]
    (found,) = read_annotations(tmp_path / "labels" / "test" / "colon")
    assert (found.frame, found.annotator) == ("colon/03/image01", "anno_2")
    label = load_label(tmp_path / "labels/test/colon/03/image01.png").astype(bool)
    assert found.counts.tp + found.counts.fn == label.sum()
    assert 0 < found.counts.dice < 1


def test_broken_weak_labels_are_a_warning(tmp_path):
    root = write_dataset(tmp_path / "dsad")
    (root / "liver" / "03" / "weak_labels.csv").write_bytes(b"\xff\xfe\x00")
    (warning,) = prepared(root, tmp_path).warnings
    assert "weak_labels.csv" in warning
    assert "left out" in warning


@pytest.mark.skipif(not REAL_DATA.exists(), reason="no real data here")
def test_real_weak_labels(tmp_path):
    root = REAL_DATA / "cholecseg8k" / "single"
    folders = [p.name for p in root.iterdir() if p.is_dir()]
    for file in root.glob("*/*/weak_labels.csv"):
        for shows in read_weak_labels(file, folders).shows.values():
            assert set(shows) == set(folders)
            assert shows[file.parts[-3]] or not all(shows.values())
