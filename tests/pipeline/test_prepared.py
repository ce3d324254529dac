"""Checking a data set, all problems together, and writing it at one size."""

import csv
from dataclasses import replace

import cv2
import numpy as np
import pytest
from helpers import REAL_DATA, write_dataset, write_png

from pipeline.dsad import DataError
from pipeline.errors import DamagedFileError, MissingFileError
from pipeline.preparation import pictures
from pipeline.preparation.prepare import prepare
from pipeline.preparation.settings import PrepareSettings
from pipeline.prepared import (
    frames_digest,
    labels_digest,
    list_frames,
    list_unlabelled,
    load_frame,
    load_label,
)
from pipeline.settings import Splits

SPLITS = Splits(val=(2,), test=("03",))
ANATOMIES = ("liver", "colon")


def run(root, out, anatomies=ANATOMIES, splits=SPLITS, size=(32, 48), workers=2, **options):
    settings = PrepareSettings(root, anatomies, splits, size, **options)
    return prepare(settings, out / "frames", out / "labels", workers)


def problems_of(root, out, **options):
    with pytest.raises(DataError) as error:
        run(root, out, **options)
    assert not (out / "frames").exists()
    assert not (out / "labels").exists()
    assert list(out.iterdir()) == []
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


def write_unlabelled(folder, *surgeries, size=(40, 40)):
    for surgery in surgeries:
        pixels = np.random.default_rng(int(surgery)).integers(0, 256, (*size, 3)).astype(np.uint8)
        write_png(folder / surgery / "frame7.png", pixels)
    return folder


def test_frames_without_masks_are_prepared_apart(root, out, tmp_path):
    folder = write_unlabelled(tmp_path / "video", "01", "44")
    summary = run(root, out, unlabelled_root=folder)
    assert summary.unlabelled == 2
    frames = list_unlabelled(out / "frames")
    assert [(f.id, f.surgery, f.labelled) for f in frames] == [
        ("unlabelled/01/frame7", "01", False),
        ("unlabelled/44/frame7", "44", False),
    ]
    assert load_frame(frames[0].image).shape == (32, 48, 3)
    assert all(f.labelled for f in list_frames(out / "frames", out / "labels", "train", ANATOMIES))


def test_masks_beside_them_are_passed_over(root, out, tmp_path):
    folder = write_unlabelled(tmp_path / "video", "01")
    for name in ("image03.png", "mask03.png"):
        write_png(folder / "01" / name, np.full((8, 8, 3), 9, np.uint8))
    run(root, out, unlabelled_root=folder)
    assert [f.id for f in list_unlabelled(out / "frames")] == [
        "unlabelled/01/frame7",
        "unlabelled/01/image03",
    ]


def test_without_such_a_folder_there_are_none(root, out):
    assert run(root, out).unlabelled == 0
    assert list_unlabelled(out / "frames") == []


def test_frames_without_masks_may_not_come_from_surgeries_that_measure(root, out, tmp_path):
    folder = write_unlabelled(tmp_path / "video", "01", "2", "03")
    write_png(
        folder / "01" / "twin.png",
        cv2.imread(str(root / "liver" / "02" / "image00.png"))[..., ::-1],
    )
    (folder / "01" / "frame8.jpg").write_bytes(b"x")
    (folder / "05").mkdir()
    write_png(folder / "stray.png", np.zeros((8, 8, 3), np.uint8))
    (folder / "01" / "broken.png").write_bytes(b"no png")
    with pytest.raises(DataError) as error:
        run(root, out, unlabelled_root=folder)
    said = "\n".join(error.value.problems)
    assert len(error.value.problems) == 7
    for part in (
        "2: surgery 2 is one of data.splits.val",
        "03: surgery 03 is one of data.splits.test",
        "holds frame8.jpg",
        "05: holds no frames",
        "video: stray.png: not in a surgery's folder",
        "broken.png: its content is not a PNG",
        "twin.png (train) are the same frame in two splits",
    ):
        assert part in said
    assert [problem.startswith("data.unlabelled_root: ") for problem in error.value.problems] == [
        True
    ] * 6 + [False]
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "what"), [("nowhere", "does not exist"), ("file", "is not a folder")]
)
def test_a_folder_of_frames_that_is_not_there(root, out, tmp_path, name, what):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=rf"{name} {what}: set data\.unlabelled_root"):
        run(root, out, unlabelled_root=tmp_path / name)


def test_the_geometry_is_that_of_pixel_centres(tmp_path, out):
    """A frame of four times the size.

    Bilinear is the mean of the middle two by two; nearest-exact takes no corner.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    for surgery in ("01", "02", "03"):
        for number in range(2):
            shown = np.roll(pixels, number + 2 * int(surgery), 0)
            write_png(tmp_path / "d" / "liver" / surgery / f"image{number}.png", shown)
            write_png(
                tmp_path / "d" / "liver" / surgery / f"mask{number}.png",
                (shown[..., 0] > 127) * np.uint8(255),
            )
    run(tmp_path / "d", out, ["liver"], size=(16, 24))
    frame = list_frames(out / "frames", out / "labels", "train", ["liver"])[0]
    shown = np.roll(pixels, 2, 0).astype(float)
    mean = (shown[1::4, 1::4] + shown[2::4, 1::4] + shown[1::4, 2::4] + shown[2::4, 2::4]) / 4
    assert np.abs(load_frame(frame.image) - mean).max() <= 1
    np.testing.assert_array_equal(load_label(frame.label), shown[2::4, 2::4, 0] > 127)


def test_the_same_data_gives_the_same_bytes(root, out, tmp_path):
    run(root, out, workers=1)
    run(root, tmp_path / "again", workers=4)
    ours = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    again = tmp_path / "again"
    assert ours == {p.relative_to(again): p.read_bytes() for p in again.rglob("*") if p.is_file()}
    digests = [
        frames_digest(list_frames(o / "frames", o / "labels", "train", ANATOMIES))
        for o in (out, again)
    ]
    assert digests[0] == digests[1]
    one = list_frames(out / "frames", out / "labels", "train", ANATOMIES)
    assert frames_digest(one[::-1]) != digests[0]


def test_every_split_has_an_index_even_without_frames(root, out):
    summary = run(root, out, splits=Splits(val=(), test=()))
    assert sum("no val frames" in w for w in summary.warnings) == 2
    assert sum("no test frames" in w for w in summary.warnings) == 2
    assert list_frames(out / "frames", out / "labels", "val", ANATOMIES) == []
    assert (out / "labels" / "test" / "colon" / "index.csv").read_text() == "frame,foreground\n"
    assert (out / "frames" / "val" / "liver" / "index.csv").read_text() == "frame,height,width\n"


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_the_indices_say_what_the_source_was_and_how_much_is_foreground(root, out):
    write_png(root / "liver" / "02" / "image01.png", np.zeros((20, 30, 3), np.uint8))
    write_png(root / "liver" / "02" / "mask01.png", np.full((20, 30), 255, np.uint8))
    run(root, out)
    assert rows(out / "frames" / "val" / "liver" / "index.csv") == [
        ["frame", "height", "width"],
        ["02/image00", "48", "64"],
        ["02/image01", "20", "30"],
        ["02/image02", "48", "64"],
    ]
    header, *foreground = rows(out / "labels" / "val" / "liver" / "index.csv")
    assert (header, foreground[1]) == (["frame", "foreground"], ["02/image01", str(32 * 48)])
    for frame, (name, pixels) in zip(
        list_frames(out / "frames", out / "labels", "val", ["liver"]), foreground, strict=True
    ):
        assert (frame.id, load_label(frame.label).sum()) == (f"liver/{name}", int(pixels))


def test_rows_and_frames_are_in_order_of_the_surgery_s_number(tmp_path, out):
    root = write_dataset(tmp_path / "d", ["liver", "left ureter"], ["10", "9", "2", "03"], frames=1)
    run(root, out, ["liver", "left ureter"])
    frames = list_frames(out / "frames", out / "labels", "train", ["left ureter", "liver"])
    assert [f.id for f in frames] == [
        "left ureter/9/image00",
        "left ureter/10/image00",
        "liver/9/image00",
        "liver/10/image00",
    ]
    frame = frames[0]
    assert (frame.anatomy, frame.surgery) == ("left ureter", "9")
    assert frame.image == out / "frames" / "train" / "left ureter" / "9" / "image00.png"
    assert frame.label == out / "labels" / "train" / "left ureter" / "9" / "image00.png"


def test_files_are_plain_rgb_and_plain_grey(root, out):
    run(root, out)
    frame = list_frames(out / "frames", out / "labels", "train", ["liver"])[0]
    stored, label = (cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in (frame.image, frame.label))
    assert (stored.dtype, stored.shape) == (np.uint8, (32, 48, 3))
    np.testing.assert_array_equal(stored[..., ::-1], load_frame(frame.image))
    assert (label.dtype, label.shape, set(np.unique(label))) == (np.uint8, (32, 48), {0, 255})
    assert load_label(frame.label).dtype == np.uint8


def test_at_its_own_size_nothing_changes(root, out):
    run(root, out, size=(48, 64))
    for frame in list_frames(out / "frames", out / "labels", "test", ANATOMIES):
        source = root / frame.id
        shown = cv2.imread(str(source.with_suffix(".png")))[..., ::-1]
        mask = cv2.imread(
            str(source.with_name(source.name.replace("image", "mask") + ".png")),
            cv2.IMREAD_UNCHANGED,
        )
        np.testing.assert_array_equal(load_frame(frame.image), shown)
        np.testing.assert_array_equal(load_label(frame.label), mask // 255)


def test_progress_counts_every_frame_once(root, out):
    steps = []
    settings = PrepareSettings(root, ANATOMIES, SPLITS, (8, 8))
    prepare(settings, out / "f", out / "l", workers=2, progress=lambda *step: steps.append(step))
    assert steps == [(n, 18) for n in range(1, 19)]


def test_what_else_lies_there_does_not_disturb(root, out):
    (root / "liver" / "01" / "weak_labels.csv").write_text("images000.png,0,1\n")
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
        f"{colon / 'image01.png'}: its content is not a PNG",
        f"{colon / 'mask02.png'}: is empty",
        "livre has no folder",
        "did you mean liver?",
    ):
        assert expected in found
    assert len(problems) == 8


def test_a_damaged_frame_hides_neither_its_mask_s_damage_nor_a_leak(root, out):
    liver = root / "liver" / "01"
    for name in ("image00.png", "mask00.png", "mask01.png"):
        (liver / name).write_bytes(b"")
    (root / "colon" / "03" / "image00.png").write_bytes((liver / "image01.png").read_bytes())
    first, second, third, leak = problems_of(root, out)
    assert [first, second, third] == [
        f"{liver / n}: is empty" for n in ("image00.png", "mask00.png", "mask01.png")
    ]
    assert str(liver / "image01.png") in leak


def test_a_crash_leaves_nothing_and_the_old_output(root, out, monkeypatch):
    run(root, out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    def full(path, pixels):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures, "_write_png", full)
    with pytest.raises(OSError, match="No space"):
        run(root, out)
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_what_a_killed_run_left_and_the_last_output_are_replaced(root, out):
    run(root, out)
    for left in (".frames.partial", "frames/.partial"):
        (out / left / "train").mkdir(parents=True)
        (out / left / "train" / "rest.png").write_bytes(b"x")
    run(root, out, anatomies=["colon"])
    assert sorted(p.name for p in out.iterdir()) == ["frames", "labels"]
    assert [p.name for p in (out / "frames" / "train").iterdir()] == ["colon"]
    assert not (out / "frames" / ".partial").exists()


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


def test_the_same_pixels_in_another_file_are_the_same_frame(root, out):
    one, other = root / "liver" / "01" / "image00.png", root / "liver" / "02" / "image01.png"
    content = cv2.imencode(".png", cv2.imread(str(one)), [cv2.IMWRITE_PNG_COMPRESSION, 0])[
        1
    ].tobytes()
    other.write_bytes(content)
    assert one.read_bytes() != content
    assert problems_of(root, out) == (
        f"{one} (train) and {other} (val) are the same frame in two splits",
    )


def test_a_frame_may_stand_in_several_sub_data_sets_of_one_split(root, out):
    (root / "colon" / "03" / "image01.png").write_bytes(
        (root / "liver" / "03" / "image00.png").read_bytes()
    )
    assert run(root, out).warnings == []


@pytest.mark.parametrize("left", [0, 1])
def test_an_anatomy_that_cannot_be_trained_is_an_error(tmp_path, out, left):
    root = write_dataset(tmp_path / "d", frames=2)
    for number in range(left, 2):
        for kind in ("image", "mask"):
            (root / "colon" / "01" / f"{kind}{number:02d}.png").unlink()
    (problem,) = problems_of(root, out)
    assert problem.startswith(f"colon: {left or 'no'} training frame")


def test_an_unknown_anatomy_hides_no_other_that_cannot_be_trained(root, out):
    for path in (root / "colon" / "01").iterdir():
        path.unlink()
    unknown, few = problems_of(root, out, anatomies=["colon", "liver", "colon ascendens"])
    assert unknown.startswith("data.anatomies: colon ascendens has no folder")
    assert few == "colon: no training frames, at least 2 are needed"


def test_no_anatomies(root, out):
    assert problems_of(root, out, anatomies=[]) == (
        "data.anatomies: names none; there: colon, liver",
    )


def test_splits_anatomies_and_folders_that_contradict_themselves(root, out):
    with pytest.raises(ValueError, match=r"in val and in test: \[3\]"):
        Splits(val=(2, 3), test=("03",))
    assert "listed twice" in problems_of(root, out, anatomies=["liver", "colon", "liver"])[0]
    (root / "liver" / "1").mkdir()
    assert "01 and 1 are the same surgery 1" in problems_of(root, out)[0]


def test_a_root_that_is_not_there(tmp_path, out):
    assert "does not exist" in problems_of(tmp_path / "nowhere", out)[0]
    (tmp_path / "file").write_text("")
    assert "is not a folder" in problems_of(tmp_path / "file", out)[0]
    (tmp_path / "empty").mkdir()
    assert "data.root" in problems_of(tmp_path / "empty", out)[0]


def test_suspicious_masks_are_counted_and_named(root, out):
    liver, colon = root / "liver" / "01", root / "colon" / "02"
    write_png(liver / "mask00.png", np.zeros((48, 64), np.uint8))
    write_png(colon / "mask02.png", np.zeros((48, 64), np.uint8))
    write_png(liver / "mask01.png", np.full((48, 64), 7, np.uint8))
    empty, odd, full = run(root, out).warnings
    assert empty.splitlines() == [
        "2 masks are empty, so that the frame teaches only background:",
        f"  {liver / 'mask00.png'}",
        f"  {colon / 'mask02.png'}",
    ]
    assert odd.splitlines() == [
        "1 mask is not only 0 and 255; all above 0 is foreground:",
        f"  {liver / 'mask01.png'}",
    ]
    assert full.splitlines()[0] == "1 mask is full: the anatomy covers the whole frame:"
    frame = list_frames(out / "frames", out / "labels", "train", ["liver"])[1]
    assert load_label(frame.label).all()


def test_masks_with_black_and_white_exchanged_and_dark_frames_are_warned_of(root, out):
    for path in (root / "liver").rglob("mask*.png"):
        write_png(path, 255 - cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    for path in (root / "colon").rglob("image*.png"):
        write_png(path, cv2.imread(str(path)).astype(np.uint16) * 16)  # 12 bits in 16
    turned, dark = run(root, out).warnings
    assert "liver: it covers 9" in turned
    assert "in each of 9 masks (suspicious above 50%)" in turned
    assert dark.startswith("9 frames are nearly black, without a pixel of 32 or more of 255")
    assert "12 bits" in dark


@pytest.mark.parametrize("count", [1, 4, 8])
def test_some_masks_with_black_and_white_exchanged_are_named(root, out, count):
    turned = sorted((root / "liver").rglob("mask*.png"))[:count]
    for path in turned:
        write_png(path, 255 - cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    (warning,) = run(root, out).warnings
    first, *named = warning.splitlines()
    assert first.startswith(
        f"{count} mask{'s are' if count > 1 else ' is'} more than 80% white, unlike other masks"
    )
    assert first.endswith("are black and white exchanged? The anatomy must be white:")
    assert named == [f"  {path}" for path in turned]


def test_an_anatomy_that_now_and_then_covers_nearly_all_is_not_suspicious(root, out):
    masks = sorted((root / "liver").rglob("mask*.png"))
    for path, share in zip(masks, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), strict=True):
        write_png(
            path, (np.arange(48 * 64).reshape(48, 64) < share * 48 * 64).astype(np.uint8) * 255
        )
    assert run(root, out).warnings == []


def test_masks_of_which_nothing_is_left_are_warned_of(root, out):
    mask = np.zeros((48, 64), np.uint8)
    mask[1, 1] = 255
    write_png(root / "liver" / "01" / "mask00.png", mask)
    (vanished,) = run(root, out, size=(12, 16)).warnings
    assert vanished.startswith("1 mask is too thin for data.image_size")


def test_a_name_in_other_unicode_characters_says_so(root, out):
    (root / "colon").rename(root / "Gefa\u0308ß")
    problem = problems_of(root, out, anatomies=["liver", "Gef\u00e4ß"])[0]
    assert "whose name has other Unicode characters" in problem


def test_a_long_list_of_masks_is_cut(root, out):
    for path in root.rglob("mask*.png"):
        write_png(path, np.full((48, 64), 255, np.uint8))
    write_dataset(root, ["colon"], ["10", "11"], seed=1)
    for path in root.rglob("1?/mask*.png"):
        write_png(path, np.full((48, 64), 255, np.uint8))
    (full,) = run(root, out).warnings
    assert full.splitlines()[0].startswith("24 masks are full")
    assert full.splitlines()[-1] == "  and 4 more"


def test_what_is_not_used_is_named_by_kind(root, out):
    liver, colon = root / "liver" / "01", root / "colon" / "03"
    (liver / "notes.txt").write_text("")
    (colon / "more.TXT").write_text("")
    (liver / "overview.jpg").write_bytes(b"")
    (liver / "image00.jpg").write_bytes(b"")  # its frame is there as PNG
    (liver / "frames").mkdir()
    for known in ("weak_labels.csv", "label00.png", ".DS_Store", "._image00.png", "Thumbs.db"):
        (colon / known).write_bytes(b"")
    (colon / "@eaDir").mkdir()
    (colon / "anno_1").mkdir()
    (unused,) = [warning for warning in run(root, out).warnings if "not used" in warning]
    assert unused == (
        f"not used: 2 .jpg ({liver / 'image00.jpg'}, {liver / 'overview.jpg'}), "
        f"1 folder ({liver / 'frames'}), 2 .txt ({liver / 'notes.txt'}, {colon / 'more.TXT'})"
    )


LIKE_FRAMES = (
    "image00 (1).png",
    "image-1.png",
    "frame_000.png",
    "label_000.png",
    "Mask 1 copy.png",
)


@pytest.mark.parametrize("name", LIKE_FRAMES)
def test_what_looks_like_a_frame_beside_frames_is_named_first(root, out, name):
    for number in range(9):
        (root / "liver" / "01" / f"chart{number}.png").write_bytes(b"")
    (root / "colon" / "03" / name).write_bytes(b"")
    (warning,) = run(root, out).warnings
    assert warning.startswith(f"not used: 10 .png ({root / 'colon' / '03' / name}, ")
    assert warning.endswith(" and 7 more)")


def test_what_lies_beside_surgeries_and_anatomies_is_named(root, out):
    write_dataset(root, ["spleen", "multilabel"], ["01"])
    for name in ("colon.zip", "colon/04.tar.gz", "colon/05.7z", "colon/01/more.tar"):
        (root / name).write_bytes(b"")
    for name in (
        "README.md",
        "anatomies.txt",
        "preview.png",
        "liver/notes.csv",
        "liver/weak_labels.csv",
    ):
        (root / name).write_bytes(b"")
    for name in ("04", "@eaDir", "__MACOSX", ".hidden"):
        (root / "liver" / name).mkdir()
    for name in ("Thumbs.db", ".DS_Store", "liver/Thumbs.db", "liver/.DS_Store"):
        (root / name).write_bytes(b"")
    assert run(root, out).warnings == [
        f"not used: 1 .png ({root / 'preview.png'}), 1 .csv ({root / 'liver' / 'notes.csv'})",
        "archives are not read, unpack them or move them elsewhere: "
        f"1 .zip ({root / 'colon.zip'}), 1 .gz ({root / 'colon' / '04.tar.gz'}), "
        f"1 .7z ({root / 'colon' / '05.7z'}), 1 .tar ({root / 'colon' / '01' / 'more.tar'})",
        f"folders of surgeries without a frame: {root / 'liver' / '04'}",
        f"folders of {root} that are not in data.anatomies are not used: spleen",
    ]


def test_archives_beside_frames_without_masks_are_named(root, out):
    folder = write_unlabelled(root / "video", "01")
    for name in ("README.md", "02.zip", "01/more.zip"):
        (folder / name).write_bytes(b"")
    summary = run(root, out, unlabelled_root=folder)
    (archives,) = summary.warnings
    assert f"2 .zip ({folder / '02.zip'}, {folder / '01' / 'more.zip'})" in archives


@pytest.mark.parametrize("name", ["image00.png", "000123.jpg"])
def test_frames_in_a_folder_of_a_surgery_are_an_error(root, out, name):
    surgery = root / "liver" / "01"
    for folder in ("part1", "part2/left"):
        write_png(surgery / folder / name, np.zeros((4, 4), np.uint8))
    assert problems_of(root, out) == (
        f"{surgery}: frames in its folders part1, part2 are not read: move them up into it, or "
        "elsewhere",
    )


def test_nothing_that_looks_like_a_frame_is_passed_over(root, out):
    liver, colon = root / "liver", root / "colon"
    for kind in ("image", "mask"):
        (liver / "01" / f"{kind}00.png").rename(liver / "01" / f"{kind}00.jpg")
        (liver / "02" / f"{kind}00.png").rename(liver / "02" / f"{kind}_00.png")
        (liver / "03" / f"{kind}02.png").unlink()
        (liver / "03" / f"{kind}02.png").symlink_to("../../.git/annex/objects/x")
        write_png(colon / f"{kind}77.png", np.zeros((4, 4), np.uint8))
    (colon / "04").mkdir()
    write_png(colon / "04" / "000123.png", np.zeros((4, 4), np.uint8))
    (colon / "05").symlink_to("nowhere")
    look = (
        "look like frames or masks; name them imageMM.png and maskMM.png, as PNG files, or move "
        "them elsewhere"
    )
    links = (
        "links to nothing; get their content (datalad get, git annex get, dvc pull), or remove them"
    )
    assert problems_of(root, out) == (
        f"{liver / '01'}: image00.jpg, mask00.jpg: {look}",
        f"{liver / '02'}: image_00.png, mask_00.png: {look}",
        f"{liver / '03'}: image02.png -> ../../.git/annex/objects/x and 1 more: {links}",
        f"{colon}: 05 -> nowhere: {links}",
        f"{colon}: image77.png, mask77.png: not in a surgery's folder; move into one",
        f"{colon / '04'}: holds 000123.png and no imageMM.png with maskMM.png: rename these, or "
        "move them elsewhere",
    )


def test_linked_folders_are_refused_where_changes_behind_them_would_not_be_seen(
    root, out, tmp_path
):
    (root / "liver").rename(tmp_path / "liver")
    (root / "liver").symlink_to(tmp_path / "liver")
    (root / "colon" / "02").rename(tmp_path / "surgery")
    (root / "colon" / "02").symlink_to(tmp_path / "surgery")
    with pytest.raises(DataError) as error:
        run(root, out, linked=False)
    first, second = error.value.problems
    assert first.startswith(f"{root / 'colon' / '02'} is a link to a folder")
    assert f"cp -rs {tmp_path / 'liver'} FOLDER" in second
    assert run(root, out).counts["train"] == {"liver": 3, "colon": 3}


def test_links_to_files_are_frames(root, out, tmp_path):
    (root / "liver").rename(tmp_path / "liver")
    for file in sorted((tmp_path / "liver").rglob("*.png")):
        link = root / file.relative_to(tmp_path)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    summary = run(root, out, linked=False)
    assert summary.counts["train"] == {"liver": 3, "colon": 3}


def test_frames_without_masks_may_lie_beside_what_systems_leave(root, out, tmp_path):
    folder = write_unlabelled(tmp_path / "more", "07")
    (folder / "07" / "._frame7.png").write_bytes(b"\0\5\26\7")
    for left in (".Spotlight-V100", "@eaDir", "$RECYCLE.BIN", "System Volume Information"):
        (folder / left).mkdir()
    for left in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (folder / left).write_bytes(b"x")
        (folder / "07" / left).write_bytes(b"x")
    summary = run(root, out, unlabelled_root=folder, linked=False)
    assert summary.unlabelled == 1
    assert summary.warnings == []


def test_frames_without_masks_in_nested_folders_are_named(root, out, tmp_path):
    folder = write_unlabelled(tmp_path / "more", "07")
    (folder / "07" / "part2").mkdir()
    (folder / "07" / "frame7.png").rename(folder / "07" / "part2" / "frame7.png")
    with pytest.raises(
        DataError, match=r"07: frames in its folder part2 are not read: move them up"
    ):
        run(root, out, unlabelled_root=folder)


def test_a_surgery_whose_name_is_not_utf8_is_named(root, out):
    (root / "liver" / "01").rename(root / "liver" / "s\udce9")
    assert "its name is not UTF-8" in problems_of(root, out)[0]


def test_a_split_s_surgery_that_no_anatomy_has_is_refused(root, out):
    write_dataset(root, ["spleen"], ["77"])
    assert problems_of(root, out, splits=Splits(val=(2, 77, 78), test=("03", "x"))) == (
        "data.splits.val: no anatomy has a folder of surgery 78; there: 01, 02, 03, 77",
        "data.splits.test: no anatomy has a folder of surgery x; there: 01, 02, 03, 77",
    )


def test_missing_outputs_are_named(root, out):
    with pytest.raises(MissingFileError, match=r"index\.csv is missing$"):
        list_frames(out / "frames", out / "labels", "train", ["liver"])
    run(root, out)
    frame = list_frames(out / "frames", out / "labels", "train", ["liver"])[1]
    frame.image.unlink()
    with pytest.raises(MissingFileError, match=r"image01\.png is missing$") as error:
        list_frames(out / "frames", out / "labels", "train", ["liver"])
    assert error.value.path == frame.image
    for read in (frames_digest, labels_digest):
        frame.label.unlink(missing_ok=True)
        with pytest.raises(MissingFileError, match=r"image01\.png is missing$"):
            read([frame])


def test_frames_are_listed_without_their_labels(root, out):
    run(root, out)
    frames = list_frames(out / "frames", out / "nowhere", "train", ANATOMIES)
    assert len(frames) == 6
    with pytest.raises(MissingFileError, match=r"image00\.png is missing$"):
        load_label(frames[0].label)


def test_a_damaged_frame_is_named(root, out):
    run(root, out)
    (frame, *_) = list_frames(out / "frames", out / "labels", "train", ANATOMIES)
    for path, load in ((frame.image, load_frame), (frame.label, load_label)):
        path.write_bytes(b"x")
        with pytest.raises(DamagedFileError, match="is damaged: it cannot be decoded as PNG") as e:
            load(path)
        assert e.value.path == path


def test_the_digest_knows_ids_order_and_pixels_and_not_the_folder(root, out):
    run(root, out)
    frames = list_frames(out / "frames", out / "labels", "train", ANATOMIES)
    digest = frames_digest(frames)
    (out / "frames").rename(out / "moved")
    moved = list_frames(out / "moved", out / "nowhere", "train", ANATOMIES)
    assert frames_digest(moved) == digest
    assert frames_digest(moved[:-1]) != digest
    assert frames_digest(moved[::-1]) != digest
    assert frames_digest([replace(moved[0], id="liver/09/image00"), *moved[1:]]) != digest
    a, b = moved[0].image, moved[1].image
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    assert frames_digest(moved) != digest


@pytest.mark.skipif(not (REAL_DATA / "cholecseg8k").is_dir(), reason="the real frames are not here")
def test_real_laparoscopic_frames(out):
    root = REAL_DATA / "cholecseg8k" / "single"
    anatomies = sorted(p.name for p in root.iterdir())
    summary = run(root, out, anatomies, Splits(val=(37,), test=(35, 55)))
    assert {split: sum(n.values()) for split, n in summary.counts.items()} == {
        "train": 31,
        "val": 4,
        "test": 6,
    }
    assert summary.warnings == [
        *(
            f"{a}: no val frames, its last epoch is kept"
            for a in ("connective_tissue", "fat", "liver")
        ),
        *(
            f"{a}: no test frames, it has no result and is left out of the mean"
            for a in ("connective_tissue", "gastrointestinal_tract")
        ),
    ]
    for split in ("train", "val", "test"):
        for frame in list_frames(out / "frames", out / "labels", split, anatomies):
            assert load_frame(frame.image).std() > 10
            assert load_label(frame.label).any()


@pytest.mark.skipif(
    not (REAL_DATA / "camvid_partial").is_dir(), reason="the real frames are not here"
)
def test_a_slice_of_real_street_frames(out):
    splits = Splits(val=(5, 9), test=(2, 8, 12))
    summary = run(REAL_DATA / "camvid_partial", out, ["bicyclist"], splits, size=(128, 160))
    assert {split: n["bicyclist"] for split, n in summary.counts.items()} == {
        "train": 14,
        "val": 8,
        "test": 39,
    }
    assert summary.files == []
    (others,) = summary.warnings
    assert others.endswith("are not used: building, car, fence and 7 more")
