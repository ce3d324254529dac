"""``mtkd convert`` on the command line."""

import re

import numpy as np
import public_layouts as layouts
import pytest
from helpers import mtkd, write_png

from pipeline.convert.formats import FORMATS
from pipeline.files import walk
from stages.convert import alone


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def one_line(text):
    return " ".join(text.replace("│", " ").split())


def test_the_formats_are_listed():
    text = one_line(mtkd("convert", "--help"))
    assert all(f" {name} " in text for name in FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_help_states_layout_source_licence_and_what_was_verified(name):
    text = one_line(mtkd("convert", name, "--help"))
    each = FORMATS[name]
    for part in (each.layout, each.surgery, each.documented, each.verified):
        assert re.sub(r"\W", "", part) in re.sub(r"\W", "", text), part


CONVERSIONS = {
    "cholecseg8k": (layouts.cholecseg8k, ["--masks", "colour"], "4 frames of 2 surgeries"),
    "dsad-multilabel": (layouts.dsad_multilabel, ["--as", "masks"], "4 frames of 2 surgeries"),
    "endoscapes": (layouts.endoscapes, [], "3 frames of 2 surgeries"),
    "coco": (layouts.coco, ["--surgery", "^([^/]+)/"], "3 frames of 2 surgeries"),
    "nnunet": (layouts.nnunet, ["--surgery", "^(.+?)__"], "3 frames of 2 surgeries"),
    "dsad-parquet": (
        lambda root: layouts.dsad_parquet(root, "multi_organ"), [], "4 frames of 2 surgeries"
    ),
    "video": (
        lambda root: layouts.video(root / "op1.avi", [layouts.frame(size=(48, 64))] * 3),
        ["--surgery", "(op1)", "--rate", "2.0"],
        "1 frame of 1 surgery",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_conversion_a_second_run_and_what_is_kept_beside(folder, name):
    make, options, says = CONVERSIONS[name]
    make(folder / "set")
    said = mtkd("convert", name, "set", "out", *options)
    assert f"-> out: {says}" in said
    again = mtkd("convert", name, "set", "out", *options)
    assert "-> out: 0 frames" in again and "were there already" in again
    text = (folder / "out" / "SOURCE.md").read_text()
    each = FORMATS[name]
    assert f"Licence: {each.licence or 'not stated'}" in text and each.verified in text
    assert f"mtkd convert {name}" in text
    for option, value in zip(options[::2], options[1::2], strict=True):
        key = {"as": "labels"}.get(option.removeprefix("--"), option.removeprefix("--"))
        assert re.search(rf"- {key}: {re.escape(value)}", text), key
    assert (folder / "out" / "sources.csv").read_text().startswith("file,original,digest\n")


def test_licence_and_source_of_the_data_itself(folder):
    layouts.coco(folder / "set")
    options = ["--surgery", "^([^/]+)/"]
    mtkd("convert", "coco", "set", "out", *options)
    assert "URL: https://x.org" in (folder / "out" / "SOURCE.md").read_text()
    mtkd("convert", "coco", "set", "own", *options, "--licence", "CC0", "--url", "ward 7")
    text = (folder / "own" / "SOURCE.md").read_text()
    assert "Licence: CC0" in text and "URL: ward 7" in text


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["coco", "nowhere", "out"], 1, "nowhere does not exist: name the data set"),
        (["coco", "set", "set/out"], 1, "set/out lies in set and would be read with it"),
        (["coco", "set", "out"], 1, "--surgery is missing"),
        (["cholecseg8k", "set", "out"], 1, "holds no frame_*_endo.png"),
        (
            ["cholecseg8k", "set", "out", "--as", "drawn"],
            2,
            "'drawn' is not one of 'maps', 'masks'",
        ),
        (["dsad-parquet", "set", "out", "--column", "mask"], 2, "'mask' is not ROLE=NAME"),
        (["voc", "set", "out"], 2, "No such command"),
    ],
)
def test_what_is_refused_writes_nothing(folder, arguments, code, says):
    layouts.coco(folder / "set")
    assert says in one_line(mtkd("convert", *arguments, code=code))
    assert not (folder / "out").exists()


def test_frames_that_are_left_out_are_named(folder):
    layouts.endoscapes(folder / "set", uncertain=True)
    values = np.zeros((*layouts.SIZE, 3), np.uint8)
    write_png(folder / "set" / "semseg" / "4_21725.png", values)
    said = mtkd("convert", "endoscapes", "set", "out", "--skip-unknown")
    assert said.count("left out, pixels without a label: ") == 2
    text = (folder / "out" / "SOURCE.md").read_text()
    assert "left out, since pixels have no known label: " in text and "4_22475.jpg" in text


def test_a_missing_library_is_named_with_its_extra(folder, monkeypatch):
    layouts.coco(folder / "set")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = mtkd("convert", "coco", "set", "out", "--surgery", "^([^/]+)/", code=1)
    assert said == "error: PIL, pycocotools is not installed: pip install -e '.[convert]'\n"


def test_one_conversion_at_a_time_writes_a_folder(folder):
    layouts.coco(folder / "set")
    arguments = ["coco", "set", "out", "--surgery", "^([^/]+)/"]
    (folder / "out").mkdir()
    with alone(folder / "out"):
        said = mtkd("convert", *arguments, code=1)
        assert "out: another conversion writes there: wait for its end" in said
        assert not any(walk(folder / "out"))
    assert "-> out: 3 frames" in mtkd("convert", *arguments)
