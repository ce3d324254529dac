"""``mtkd predict`` for an annotator who corrects it, and back with ``mtkd convert``."""

import json

import public_layouts as layouts
import pytest
import torch
from helpers import mtkd, write_png

from pipeline.checkpoint import save_checkpoint
from pipeline.convert.plans import read_json
from pipeline.dsad import read_frame
from pipeline.models import create_model

STUDENT = "student.safetensors"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder with a checkpoint that predicts something, and some pixels twice."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(2)
    network = create_model("mininetv2", 2)
    network.anatomies = ("liver", "colon")
    save_checkpoint(tmp_path / STUDENT, network, (32, 48))
    return tmp_path


def frames(folder, names):
    for seed, name in enumerate(names):
        write_png(folder / name, layouts.frame(seed, (48, 64)))


def label_maps(folder):
    return {
        path.relative_to(folder).as_posix(): layouts.label_map(path)
        for path in sorted(folder.rglob("*.png"))
    }


def predict(source, output, kind, *options):
    arguments = ["--model", STUDENT, "--output", output, "--as", kind, *options]
    return mtkd("predict", source, *arguments)


@pytest.mark.parametrize("kind", ["coco", "nnunet"])
def test_predictions_can_be_corrected_and_fed_back(run, kind):
    frames(run / "frames", ["03/a.png", "03/b.png", "12/a.png"])
    predict("frames", "labels", "labels")
    predict("frames", "out", kind, *(["--one-organ"] if kind == "coco" else []))
    regex = {"coco": "^([^/]+)/", "nnunet": "^(.+?)__"}[kind]
    mtkd("convert", kind, "out", "back", "--surgery", regex, "--as", "maps")
    assert (run / "back" / "anatomies.txt").read_text().split() == ["liver", "colon"]
    expected = label_maps(run / "labels")
    for name, place in {"03/a": "03/{}00", "03/b": "03/{}01", "12/a": "12/{}00"}.items():
        values = layouts.label_map(run / "back" / f"{place.format('label')}.png")
        assert (values == expected[f"{name}.png"]).all()
        image = read_frame(run / "back" / f"{place.format('image')}.png")
        assert (image == read_frame(run / "frames" / f"{name}.png")).all()


def test_masks_that_overlap_come_back_from_coco(run):
    frames(run / "frames", ["03/a.png"])
    predict("frames", "masks", "masks")
    predict("frames", "out", "coco")
    both = [layouts.label_map(path) > 0 for path in sorted((run / "masks").rglob("*.png"))]
    assert (both[0] & both[1]).any() and not all(mask.all() for mask in both)
    mtkd("convert", "coco", "out", "back", "--surgery", "^([^/]+)/", "--as", "masks")
    for anatomy in ("liver", "colon"):
        mask = layouts.label_map(run / "back" / anatomy / "03" / "mask00.png")
        assert (mask == layouts.label_map(run / "masks" / "03" / f"a_{anatomy}.png")).all()


def test_names_hold_the_surgery_of_a_flat_folder_and_of_a_video(run):
    frames(run / "case7", ["a.png"])
    predict("case7", "one", "nnunet", "--anatomy", "liver")
    assert (run / "one" / "labelsTr" / "case7__a.png").is_file()
    assert read_json(run / "one" / "dataset.json")["labels"] == {"background": 0, "liver": 1}
    layouts.video(run / "case8.avi", [layouts.frame(size=(48, 64))] * 2)
    predict("case8.avi", "two", "coco", "--anatomy", "liver")
    value = read_json(run / "two" / "annotations" / "instances_default.json")
    names = [image["file_name"] for image in value["images"]]
    assert names == ["case8/frame000000.png", "case8/frame000001.png"]
    assert all((run / "two" / "images" / "default" / name).is_file() for name in names)
    assert [category["name"] for category in value["categories"]] == ["liver"]


def test_a_stopped_prediction_leaves_a_folder_that_can_be_read(run, monkeypatch):
    frames(run / "frames", ["03/a.png", "03/b.png"])
    written = []

    def stop(path, pixels):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(path)
        write_png(path, pixels)

    monkeypatch.setattr("pipeline.convert.exports.write_png", stop)
    arguments = ["--model", STUDENT, "--output", "out", "--as", "coco"]
    mtkd("predict", "frames", *arguments, code=130)
    value = json.loads((run / "out" / "annotations" / "instances_default.json").read_text())
    assert "03/a.png" in [image["file_name"] for image in value["images"]]


def test_two_frames_of_one_case_are_refused(run):
    frames(run / "frames", ["a/b__c.png", "a__b/c.png"])
    arguments = ["--model", STUDENT, "--output", "out", "--as", "nnunet"]
    said = mtkd("predict", "frames", *arguments, code=1)
    assert "would both be written to out/imagesTr/a__b__c_0000.png" in said


@pytest.mark.parametrize("kind", ["coco", "nnunet"])
def test_what_an_annotator_may_have_corrected_is_not_replaced(run, kind):
    frames(run / "frames", ["03/a.png"])
    predict("frames", "out", kind)
    before = {path: path.read_bytes() for path in (run / "out").rglob("*.*")}
    arguments = ["--model", STUDENT, "--output", "out", "--as", kind, "--anatomy", "colon"]
    said = mtkd("predict", "frames", *arguments, code=1)
    assert "out: holds files, which an annotator may have corrected" in said
    assert {path: path.read_bytes() for path in (run / "out").rglob("*.*")} == before


def test_results_do_not_become_frames_of_the_next_run(run):
    frames(run / "frames", ["03/a.png"])
    arguments = ["--model", STUDENT, "--output", "frames/out"]
    said = mtkd("predict", "frames", *arguments, code=1)
    assert "frames/out: lies in frames, and the next run would read it" in said
    assert not (run / "frames" / "out").exists()
