"""Reading DSAD's layout: which files belong together, in which split, and what is in them."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from helpers import REAL_DATA, write_dataset, write_png

from pipeline.dsad import DataError, read_frame, read_mask, scan, surgery_names
from pipeline.settings import Splits
from pipeline.surgeries import surgery_id

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "dsad", frames=2)


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (5, 6, 3)).astype(np.uint8)


def write(path, pixels):
    """Channels as OpenCV has them: BGR(A)."""
    assert cv2.imwrite(str(path), pixels)
    return path


def chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(width, height, colour_type, rows, *chunks, bits=8):
    """A PNG of rows as they stand in the file: for modes that OpenCV can't write."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        PNG_SIGNATURE
        + chunk(b"IHDR", header)
        + b"".join(chunks)
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def problem_of(read, path):
    with pytest.raises(DataError) as error:
        read(path)
    (problem,) = error.value.problems
    assert str(error.value) == problem
    assert problem.startswith(f"{path}: ")
    return problem.removeprefix(f"{path}: ")


# --- which surgery is in which split


@pytest.mark.parametrize(
    ("surgery", "split"),
    [
        ("03", "val"),
        ("3", "val"),
        ("003", "val"),
        ("21", "test"),
        ("1", "train"),
        ("30", "train"),
        ("13", "train"),
    ],
)
def test_digits_compare_as_integers_and_never_as_substrings(surgery, split):
    assert Splits(val=(3,), test=("021",)).of(surgery) == split


def test_ids_that_are_no_numbers_compare_as_text():
    splits = Splits(val=("a3",), test=("3b",))
    assert [splits.of(s) for s in ("a3", "3b", "3", "a03", "A3")] == [
        "val",
        "test",
        "train",
        "train",
        "train",
    ]
    assert surgery_id("²") == "²"  # a digit to str.isdigit, no number to int


def test_the_surgeries_of_all_anatomies(root):
    for name in ("multilabel/17", "liver/x2", "colon/010"):
        (root / name).mkdir(parents=True)
    (root / "weak_labels.csv").write_text("")
    names = {1: "01", 2: "02", 3: "03", 10: "010", 17: "17", "x2": "x2"}
    assert list(surgery_names(root).items()) == list(names.items())


# --- which files belong together


def test_sources_are_in_order_of_anatomy_surgery_number_and_name(tmp_path):
    root = write_dataset(tmp_path / "d", ["left ureter", "colon"], ["2", "10", "b"], frames=1)
    write_png(root / "colon" / "2" / "image100.png", np.zeros((4, 4), np.uint8))
    write_png(root / "colon" / "2" / "mask100.png", np.zeros((4, 4), np.uint8))
    write_png(root / "colon" / "2" / "image99.png", np.zeros((4, 4), np.uint8))
    write_png(root / "colon" / "2" / "mask99.png", np.zeros((4, 4), np.uint8))
    sources, problems = scan(root, ["left ureter", "colon"])
    assert problems == []
    assert [s.id for s in sources] == [
        "left ureter/2/image00",
        "left ureter/10/image00",
        "left ureter/b/image00",
        "colon/2/image00",
        "colon/2/image99",
        "colon/2/image100",
        "colon/10/image00",
        "colon/b/image00",
    ]
    one = sources[4]
    assert (one.anatomy, one.surgery, one.name) == ("colon", "2", "image99")
    assert (one.image, one.mask) == (
        root / "colon" / "2" / "image99.png",
        root / "colon" / "2" / "mask99.png",
    )


def test_only_the_listed_anatomies_are_scanned(root):
    (root / "colon" / "01" / "mask00.png").unlink()
    sources, problems = scan(root, ["liver"])
    assert ({s.anatomy for s in sources}, problems) == ({"liver"}, [])


def test_what_else_lies_there_is_passed_over(root):
    expected = scan(root, ["liver", "colon"])
    surgery = root / "liver" / "01"
    for name in (
        "weak_labels.csv",
        ".DS_Store",
        "._image00.png",
        "image00.png.txt",
        "notes.txt",
        "image.png",
    ):
        (surgery / name).write_text("x")
    (root / "weak_labels.csv").write_text("x")
    (root / "liver" / "weak_labels.csv").write_text("x")
    for folder in (
        surgery / "anno_1",
        surgery / "anno_3",
        root / "multilabel" / "01",
        root / ".git" / "01",
    ):
        write_png(folder / "mask00.png", np.zeros((2, 2), np.uint8))
    (root / "liver" / ".ipynb_checkpoints").mkdir()
    (root / "liver" / "empty").mkdir()
    assert scan(root, ["liver", "colon"]) == expected


def test_a_missing_partner_is_named(root):
    liver = root / "liver" / "01"
    (liver / "mask00.png").unlink()
    (liver / "image01.png").unlink()
    sources, problems = scan(root, ["liver"])
    assert len(sources) == 4
    assert problems == [
        f"{liver / 'image00.png'}: its mask mask00.png is missing",
        f"{liver / 'mask01.png'}: its frame image01.png is missing",
    ]


def test_frame_and_mask_are_paired_by_the_whole_number(root):
    liver = root / "liver" / "01"
    (liver / "mask01.png").rename(liver / "mask1.png")
    _, problems = scan(root, ["liver"])
    assert problems == [
        f"{liver / 'image01.png'}: its mask mask01.png is missing",
        f"{liver / 'mask1.png'}: its frame image1.png is missing",
    ]


def test_names_may_be_in_capitals_but_not_in_both(root):
    liver = root / "liver" / "01"
    (liver / "image00.png").rename(liver / "Image00.PNG")
    sources, problems = scan(root, ["liver"])
    assert (sources[0].id, sources[0].image.name, problems) == (
        "liver/01/image00",
        "Image00.PNG",
        [],
    )
    (liver / "image00.png").write_bytes((liver / "Image00.PNG").read_bytes())
    if len(list(liver.glob("[iI]mage00.*"))) == 2:  # not on a file system that ignores case
        assert "has the same name but for its case" in scan(root, ["liver"])[1][0]


def test_two_folders_of_one_number_are_ambiguous(root):
    (root / "liver" / "3").mkdir()
    (root / "colon" / "4").mkdir()
    assert scan(root, ["liver", "colon"])[1] == [
        f"{root / 'liver'}: folders 03 and 3 are the same surgery 3: rename one"
    ]


def test_a_surgery_may_be_written_otherwise_in_another_anatomy(root):
    (root / "liver" / "03").rename(root / "liver" / "3")
    assert scan(root, ["liver", "colon"])[1] == []


def test_an_unknown_anatomy_lists_what_is_there_and_what_is_close(root):
    (root / ".hidden").mkdir()
    assert scan(root, ["livre", "xyz"])[1] == [
        f"data.anatomies: livre has no folder in {root}; did you mean liver? there: colon, liver",
        f"data.anatomies: xyz has no folder in {root}; there: colon, liver",
    ]


def test_a_list_of_anatomies_that_is_empty_or_holds_one_twice(root):
    assert scan(root, [])[1] == ["data.anatomies: names none; there: colon, liver"]
    sources, problems = scan(root, ["liver", "colon", "liver"])
    assert problems == ["data.anatomies: liver is listed twice"]
    assert len(sources) == 12


def test_a_root_that_cannot_be_scanned_says_to_set_it(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "weak_labels.csv").write_text("")
    for name, what in (
        ("nowhere", "does not exist"),
        ("file", "is not a folder"),
        ("empty", "holds no anatomy folders"),
    ):
        with pytest.raises(DataError, match=f"{name} {what}.*set data.root"):
            scan(tmp_path / name, ["liver"])


def test_several_problems_are_counted_in_the_first_line():
    error = DataError(["a: x", "b: y"])
    assert str(error).splitlines() == ["2 problems:", "  a: x", "  b: y"]
    assert error.problems == ("a: x", "b: y")
    assert str(DataError(["a: x"])) == "a: x"


# --- what is in a frame


def test_colour_is_rgb_and_alpha_is_dropped(tmp_path, rgb):
    bgr = rgb[..., ::-1]
    np.testing.assert_array_equal(read_frame(write(tmp_path / "a.png", bgr)), rgb)
    alpha = np.full((5, 6), 9, np.uint8)
    np.testing.assert_array_equal(
        read_frame(write(tmp_path / "b.png", np.dstack([bgr, alpha]))), rgb
    )


def test_grey_becomes_three_equal_channels(tmp_path, rgb):
    frame = read_frame(write(tmp_path / "a.png", rgb[..., 0]))
    np.testing.assert_array_equal(frame, rgb[..., :1].repeat(3, 2))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_rounded_to_eight(tmp_path, channels):
    values = np.array([0, 128, 129, 257, 385, 386, 65406, 65407, 65535], np.uint16)
    pixels = values[None, :, None].repeat(channels, 2).squeeze()
    frame = read_frame(
        write(tmp_path / "a.png", pixels.reshape(1, 9, channels) if channels > 1 else values[None])
    )
    assert frame.dtype == np.uint8
    assert frame[0, :, 1].tolist() == [0, 0, 1, 1, 1, 2, 254, 255, 255]


def test_a_palette_is_looked_up_whether_or_not_an_entry_is_transparent(tmp_path):
    palette = chunk(b"PLTE", bytes([10, 20, 30, 200, 100, 50]))
    for name, more in (("opaque", []), ("transparent", [chunk(b"tRNS", b"\x00")])):
        path = tmp_path / f"{name}.png"
        path.write_bytes(png(2, 1, 3, [bytes([1, 0])], palette, *more))
        assert read_frame(path).tolist() == [[[200, 100, 50], [10, 20, 30]]]


def test_one_bit_is_black_or_white(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(8, 1, 0, [bytes([0b10100000])], bits=1))
    assert read_frame(path)[0, :, 0].tolist() == [255, 0, 255, 0, 0, 0, 0, 0]
    mask, odd = read_mask(path)
    assert (mask[0].tolist(), odd) == ([True, False, True] + 5 * [False], False)


# --- what is in a mask


def test_above_zero_is_foreground_and_what_is_not_255_is_odd(tmp_path):
    for values, odd in (
        ([0, 255, 0], False),
        ([0, 1, 255], True),
        ([0, 0, 0], False),
        ([7, 0, 7], True),
    ):
        mask, found = read_mask(write(tmp_path / "m.png", np.array([values], np.uint8)))
        assert mask.dtype == np.bool_
        assert mask[0].tolist() == [v > 0 for v in values]
        assert found is odd


def test_full_of_a_mask_of_sixteen_bits_is_65535(tmp_path):
    for full, odd in ((65535, False), (255, True)):
        mask, found = read_mask(write(tmp_path / "m.png", np.array([[0, full]], np.uint16)))
        assert (mask[0].tolist(), found) == ([False, True], odd)


def test_any_colour_is_foreground(tmp_path):
    red_black = np.array([[[0, 0, 255], [0, 0, 0]]], np.uint8)
    mask, odd = read_mask(write(tmp_path / "m.png", red_black))
    assert (mask.tolist(), odd) == ([[True, False]], False)


def test_what_is_transparent_is_background(tmp_path):
    white = np.full((1, 3, 3), 255, np.uint8)
    mask, odd = read_mask(
        write(tmp_path / "m.png", np.dstack([white, np.array([[0, 255, 128]], np.uint8)]))
    )
    assert (mask.tolist(), odd) == ([[False, True, True]], False)
    black = np.zeros((1, 3, 4), np.uint8)
    black[..., 3] = 255
    assert not read_mask(write(tmp_path / "m.png", black))[0].any()


# --- files that are damaged


@pytest.mark.parametrize("read", [read_frame, read_mask])
class TestDamage:
    def test_no_length_of_a_truncated_file_passes(self, read, tmp_path, rgb):
        path = write(tmp_path / "a.png", rgb)
        whole = path.read_bytes()
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            expected = (
                "is empty"
                if not length
                else "not a PNG"
                if length < len(PNG_SIGNATURE)
                else "is truncated"
            )
            assert expected in problem_of(read, path)

    def test_no_flipped_bit_passes(self, read, tmp_path, rgb):
        path = write(tmp_path / "a.png", rgb)
        whole = path.read_bytes()
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << position % 8
            path.write_bytes(damaged)
            problem_of(read, path)

    def test_the_chunk_that_does_not_match_is_named(self, read, tmp_path, rgb):
        path = write(tmp_path / "a.png", rgb)
        damaged = bytearray(path.read_bytes())
        damaged[damaged.index(b"IDAT") + 10] ^= 1
        path.write_bytes(damaged)
        assert problem_of(read, path) == "is damaged (checksum of its IDAT chunk)"

    def test_another_format_under_the_name_of_a_png(self, read, tmp_path, rgb):
        path = tmp_path / "a.png"
        path.write_bytes(cv2.imencode(".jpg", rgb)[1].tobytes())
        assert problem_of(read, path) == "its content is not a PNG, whatever its name says"

    def test_whole_chunks_that_make_no_picture(self, read, tmp_path):
        path = tmp_path / "a.png"
        for content in (
            png(20, 20, 2, [bytes(60)] * 5),  # rows are missing
            png(200_000, 200_000, 2, []),  # refused by OpenCV with an exception
            PNG_SIGNATURE + chunk(b"IEND", b""),
        ):
            path.write_bytes(content)
            assert problem_of(read, path).startswith("cannot be decoded as PNG")

    def test_what_follows_the_end_does_not_matter(self, read, tmp_path, rgb):
        path = write(tmp_path / "a.png", rgb)
        before = read(path)
        path.write_bytes(path.read_bytes() + b"\0" * 20)
        np.testing.assert_equal(read(path), before)

    def test_a_file_that_is_not_there(self, read, tmp_path):
        assert "cannot be read" in problem_of(read, tmp_path / "a.png")


@pytest.mark.skipif(
    not (REAL_DATA / "camvid_partial").is_dir(), reason="the real frames are not here"
)
def test_a_slice_of_real_street_frames():
    root = REAL_DATA / "camvid_partial"
    anatomies = ["pole", "bicyclist"]
    sources, problems = scan(root, anatomies)
    assert problems == []
    assert [s.anatomy for s in sources] == ["pole"] * 101 + ["bicyclist"] * 61
    splits = Splits(val=("05", "09"), test=("02", "08", 12))
    assert [
        sum(splits.of(s.surgery) == split for s in sources) for split in ("train", "val", "test")
    ] == [34, 13, 115]
    for source in sources[::20]:
        mask, odd = read_mask(source.mask)
        assert read_frame(source.image).shape == (*mask.shape, 3) == (240, 320, 3)
        assert (mask.any(), odd) == (True, False)
