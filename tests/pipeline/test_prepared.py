"""Checking a data set, all problems together, and writing it at one size."""

import cv2
import numpy as np
import pytest
from conftest import REAL_DATA, write_dataset, write_png
from pipeline.dsad import DataError, Splits, read_frame, read_mask, scan
from pipeline.errors import MtkdError
from pipeline.prepared import frames_digest, list_frames, load_frame, load_label, prepare

SPLITS = Splits(val=(2,), test=("03",))
ANATOMIES = ("liver", "colon")


def run(root, out, anatomies=ANATOMIES, splits=SPLITS, size=(32, 48), workers=2):
    return prepare(root, anatomies, splits, size, out / "frames", out / "labels", workers)


def problems_of(root, out, **options):
    with pytest.raises(DataError) as error:
        run(root, out, **options)
    assert not (out / "frames").exists()
    assert not (out / "labels").exists()
    assert [p for p in out.glob(".*")] == []
    return error.value.problems


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "dsad")


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_frames_and_labels_lie_apart_by_split_and_anatomy(root, out):
    summary = run(root, out)
    assert summary.counts == {split: {"liver": 3, "colon": 3} for split in ("train", "val", "test")}
    assert summary.warnings == []
    frames = list_frames(out / "frames", out / "labels", "val", ANATOMIES)
    assert [f.id for f in frames][:2] == ["liver/02/image00", "liver/02/image01"]
    assert {f.surgery for f in frames} == {"02"}
    assert load_frame(frames[0].image).shape == (32, 48, 3)
    label = load_label(frames[0].label)
    assert (label.shape, set(np.unique(label))) == ((32, 48), {0, 1})


def test_the_geometry_is_that_of_pixel_centres(tmp_path, out):
    """A frame of twice the size: bilinear is the mean of two by two; nearest-exact takes no corner."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    for surgery in ("01", "02", "03"):
        for number in range(2):
            shown = np.roll(pixels, number + 2 * int(surgery), 0)
            write_png(tmp_path / "d" / "liver" / surgery / f"image{number}.png", shown)
            write_png(tmp_path / "d" / "liver" / surgery / f"mask{number}.png", (shown[..., 0] > 127) * np.uint8(255))
    run(tmp_path / "d", out, ["liver"])
    frame = list_frames(out / "frames", out / "labels", "train", ["liver"])[0]
    shown = np.roll(pixels, 2, 0).astype(float)
    mean = (shown[::2, ::2] + shown[1::2, ::2] + shown[::2, 1::2] + shown[1::2, 1::2]) / 4
    assert np.abs(load_frame(frame.image) - mean).max() <= 1
    np.testing.assert_array_equal(load_label(frame.label), shown[1::2, 1::2, 0] > 127)


def test_the_same_data_gives_the_same_bytes(root, out, tmp_path):
    run(root, out, workers=1)
    run(root, tmp_path / "again", workers=4)
    ours = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    again = tmp_path / "again"
    assert ours == {p.relative_to(again): p.read_bytes() for p in again.rglob("*") if p.is_file()}
    digests = [frames_digest(list_frames(o / "frames", o / "labels", "train", ANATOMIES)) for o in (out, again)]
    assert digests[0] == digests[1]
    one = list_frames(out / "frames", out / "labels", "train", ANATOMIES)
    assert frames_digest(one[::-1]) != digests[0]


def test_every_split_has_an_index_even_without_frames(root, out):
    summary = run(root, out, splits=Splits(val=(), test=()))
    assert sum("no val frames" in w for w in summary.warnings) == 2
    assert sum("no test frames" in w for w in summary.warnings) == 2
    assert list_frames(out / "frames", out / "labels", "val", ANATOMIES) == []
    assert (out / "labels" / "test" / "colon" / "index.csv").read_text() == "frame,foreground\n"


def test_what_else_lies_there_does_not_disturb(root, out):
    (root / "liver" / "01" / "weak_labels.csv").write_text("images000.png,1,0\n")
    write_png(root / "liver" / "01" / "anno_1" / "mask00.png", np.zeros((9, 9), np.uint8))
    write_png(root / "multilabel" / "liver" / "01" / "image00.png", np.zeros((9, 9), np.uint8))
    (root / ".hidden").mkdir()
    assert run(root, out).warnings == []


def test_surgeries_are_ids_and_never_substrings(tmp_path, out):
    root = write_dataset(tmp_path / "d", ["liver"], ["2", "20", "120", "x2"], frames=2)
    counts = run(root, out, ["liver"], Splits(val=("02",), test=(120,))).counts
    assert {split: n["liver"] for split, n in counts.items()} == {"train": 4, "val": 2, "test": 2}


def test_all_problems_are_reported_together_each_with_its_file(root, out):
    liver = root / "liver" / "01"
    (liver / "mask00.png").unlink()
    (root / "liver" / "02" / "image01.png").unlink()
    content = (liver / "image01.png").read_bytes()
    (liver / "image01.png").write_bytes(content[: len(content) // 2])
    damaged = bytearray((liver / "image02.png").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (liver / "image02.png").write_bytes(damaged)
    colon = root / "colon" / "01"
    write_png(colon / "mask00.png", np.zeros((10, 10), np.uint8))
    (colon / "image01.png").write_bytes(b"\xff\xd8\xff not a png")
    (colon / "mask02.png").write_bytes(b"")
    problems = problems_of(root, out, anatomies=["liver", "colon", "livre"])
    found = "\n".join(problems)
    for expected in (
        f"{liver / 'image00.png'}: its mask mask00.png is missing",
        f"{root / 'liver' / '02' / 'mask01.png'}: its frame image01.png is missing",
        f"{liver / 'image01.png'}: is truncated",
        f"{liver / 'image02.png'}: is damaged",
        f"{colon / 'image00.png'}: frame and mask have different sizes, 64x48 and 10x10",
        f"{colon / 'image01.png'}: is no PNG",
        f"{colon / 'mask02.png'}: is empty",
        "livre has no folder",
        "did you mean liver?",
    ):
        assert expected in found
    assert len(problems) == 8


def test_a_sound_output_survives_a_failed_run(root, out):
    run(root, out)
    before = {p: p.read_bytes() for p in out.rglob("*.png")}
    (root / "liver" / "01" / "mask00.png").unlink()
    with pytest.raises(DataError):
        run(root, out)
    assert before == {p: p.read_bytes() for p in out.rglob("*.png")}


def test_the_same_frame_in_two_splits_is_an_error(root, out):
    one, other = root / "liver" / "01" / "image00.png", root / "colon" / "03" / "image01.png"
    other.write_bytes(one.read_bytes())
    (problem,) = problems_of(root, out)
    assert str(one) in problem
    assert str(other) in problem
    assert "in two splits" in problem


def test_a_frame_may_stand_in_several_sub_data_sets_of_one_split(root, out):
    (root / "colon" / "03" / "image01.png").write_bytes((root / "liver" / "03" / "image00.png").read_bytes())
    run(root, out)


@pytest.mark.parametrize("left", [0, 1])
def test_an_anatomy_that_cannot_be_trained_is_an_error(tmp_path, out, left):
    root = write_dataset(tmp_path / "d", frames=2)
    for number in range(left, 2):
        for kind in ("image", "mask"):
            (root / "colon" / "01" / f"{kind}{number:02d}.png").unlink()
    (problem,) = problems_of(root, out)
    assert problem.startswith(f"colon: {left or 'no'} training frame")


def test_splits_anatomies_and_folders_that_contradict_themselves(root, out):
    assert "val and in test" in problems_of(root, out, splits=Splits(val=(2, 3), test=("03",)))[0]
    assert "listed twice" in problems_of(root, out, anatomies=["liver", "colon", "liver"])[0]
    (root / "liver" / "1").mkdir()
    assert "01 and 1 are the same surgery 1" in problems_of(root, out)[0]


def test_a_root_that_is_not_there(tmp_path, out):
    assert "does not exist" in problems_of(tmp_path / "nowhere", out)[0]
    (tmp_path / "file").write_text("")
    assert "is no folder" in problems_of(tmp_path / "file", out)[0]
    (tmp_path / "empty").mkdir()
    assert "data.root" in problems_of(tmp_path / "empty", out)[0]


def test_suspicious_masks_are_warned_of(root, out):
    write_png(root / "liver" / "01" / "mask00.png", np.zeros((48, 64), np.uint8))
    write_png(root / "liver" / "01" / "mask01.png", np.full((48, 64), 7, np.uint8))
    summary = run(root, out, splits=Splits(val=(2, 77), test=("03",)))
    assert [w.split(": ")[1] for w in summary.warnings[:2]] == [
        "the mask is empty",
        "values other than 0 and 255 count as foreground",
    ]
    assert "no frames of surgery 77" in summary.warnings[2]


def test_frames_of_every_mode_become_rgb(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    path = tmp_path / "frame.png"
    cv2.imwrite(str(path), rgb[..., ::-1])
    np.testing.assert_array_equal(read_frame(path), rgb)
    cv2.imwrite(str(path), rgb[..., ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_frame(path), rgb)
    cv2.imwrite(str(path), np.dstack([rgb[..., ::-1], np.full((5, 6), 9, np.uint8)]))
    np.testing.assert_array_equal(read_frame(path), rgb)
    cv2.imwrite(str(path), rgb[..., 0])
    np.testing.assert_array_equal(read_frame(path), rgb[..., :1].repeat(3, 2))
    cv2.imwrite(str(path), rgb[..., 0].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_frame(path), rgb[..., :1].repeat(3, 2))


def test_masks_are_foreground_above_zero(tmp_path):
    path = tmp_path / "mask.png"
    cv2.imwrite(str(path), np.array([[0, 1, 255]], np.uint8))
    mask, odd = read_mask(path)
    assert (mask.tolist(), odd) == ([[False, True, True]], True)
    cv2.imwrite(str(path), np.dstack([np.array([[0, 255, 0]], np.uint8)] * 3 + [np.full((1, 3), 255, np.uint8)]))
    mask, odd = read_mask(path)
    assert (mask.tolist(), odd) == ([[False, True, False]], False)


def test_missing_outputs_name_the_stage(out):
    with pytest.raises(MtkdError, match="dvc repro prepare"):
        list_frames(out / "frames", out / "labels", "train", ["liver"])


@pytest.mark.skipif(not (REAL_DATA / "cholecseg8k").is_dir(), reason="the real frames are not here")
def test_real_laparoscopic_frames(out):
    root = REAL_DATA / "cholecseg8k" / "single"
    anatomies = sorted(p.name for p in root.iterdir())
    summary = run(root, out, anatomies, Splits(val=(37,), test=(35, 55)))
    assert {split: sum(n.values()) for split, n in summary.counts.items()} == {"train": 31, "val": 4, "test": 6}
    sources, problems = scan(root, anatomies)
    assert (len(sources), problems) == (41, [])
