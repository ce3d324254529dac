"""The scripts of docs/scripts/: frames without masks, of training surgeries alone; label maps."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import ROOT, write_png

from pipeline.phantom import ANATOMIES, render


def start(script, *arguments, **how):
    command = [sys.executable, str(ROOT / "docs/scripts" / script), *arguments]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, **how)


def frames_of(script, folder, number, *options):
    start(script, folder, str(number), *options, check=True)
    return {
        file.relative_to(folder).as_posix(): cv2.imread(str(file))
        for file in Path(folder).rglob("*.*")
    }


def test_a_film_goes_on_where_the_phantom_ends(project):
    project(
        data__phantom={
            "seed": 1,
            "surgeries": 3,
            "frames": 2,
            "image_size": [64, 80],
            "difficulty": 0.3,
        }
    )
    film = frames_of("film_phantom.py", "film", 1)
    assert sorted(film) == [f"01/{anatomy}_02.png" for anatomy in ANATOMIES]
    pixels, _ = render("colon", 1, 2, seed=1, size=(64, 80), difficulty=0.3)
    np.testing.assert_array_equal(film["01/colon_02.png"][..., ::-1], pixels)


def test_crops_show_parts_of_training_frames(project):
    project()
    crops = frames_of("crop_frames.py", "crops", 2)
    names = [
        f"01/{a}_image{i:02d}_{crop:02d}.png"
        for a in ("colon", "liver")
        for i in range(3)
        for crop in range(2)
    ]
    assert sorted(crops) == names
    assert len({pixels.tobytes() for pixels in crops.values()}) == len(crops)
    frame = cv2.imread("dsad/colon/01/image00.png")
    assert all(pixels.shape == frame.shape for pixels in crops.values())
    mirrored = frames_of("crop_frames.py", "mirrored", 2, "--mirror")
    kept = [(crops[name] == mirrored[name]).all() for name in names]
    assert any(kept)
    assert not all(kept)
    assert all(
        (mirrored[name][:, :: 1 if same else -1] == crops[name]).all()
        for name, same in zip(names, kept, strict=True)
    )


def test_crops_keep_their_masks_where_labels_are_to_learn_from_them(project):
    """The discs of a data set of two anatomies are brighter than all else, also in a crop."""
    project()
    frames = frames_of("crop_frames.py", "labelled", 2, "--mirror", "--masks")
    assert len(frames) == 2 * (
        2 * 9 + 2 * 3 * 2
    )  # of two anatomies: all frames, and two crops of three, with masks
    assert (frames["colon/02/image00.png"] == cv2.imread("dsad/colon/02/image00.png")).all()
    crops = [name for name in frames if len(Path(name).stem) > len("image00") and "image" in name]
    assert len(crops) == 12
    for name in crops:
        mask = frames[name.replace("image", "mask")]
        assert set(np.unique(mask)) <= {0, 255}
        assert frames[name][mask > 0].mean() > 2 * frames[name][mask == 0].mean()


def test_label_maps_find_their_frames_by_the_picture(project):
    folder = project()
    maps = Path("maps/07")
    maps.mkdir(parents=True)
    (maps.parent / "anatomies.txt").write_text("colon\nliver\n")
    shutil.copy("dsad/colon/03/image02.png", maps / "image00.png")
    shutil.copy("dsad/liver/03/image01.png", maps / "image01.png")
    for number in range(2):
        write_png(maps / f"label{number:02d}.png", np.full((48, 64), number, np.uint8))
    (folder / "dsad/colon/03/weak_labels.csv").write_text("image,liver\nimage02.png,0\n")
    start("add_label_maps.py", "dsad", "maps", "both", check=True)
    found = {p.relative_to("both/multilabel").as_posix() for p in Path("both").rglob("label*.png")}
    assert found == {"colon/03/label02.png", "liver/03/label01.png"}
    assert cv2.imread("both/multilabel/liver/03/label01.png", cv2.IMREAD_GRAYSCALE).min() == 1
    links = [p for p in Path("both").glob("*/*/*") if p.is_symlink()]
    assert len(links) == 2 * 2 * 9 + 1
    assert (Path("both/colon/03/weak_labels.csv")).is_file()


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        (
            "hide_masks.py",
            ["nowhere", "labelled", "unlabelled", "3"],
            "error: nowhere is not a folder",
        ),
        (
            "hide_masks.py",
            ["dsad/colon", "labelled", "unlabelled", "3"],
            "error: dsad/colon holds no <anatomy>",
        ),
        ("hide_masks.py", ["dsad", "labelled", "unlabelled"], "Usage: "),
        (
            "add_label_maps.py",
            ["dsad/colon", "dsad", "both"],
            "error: dsad/colon holds no <anatomy>",
        ),
        ("add_label_maps.py", ["dsad", "maps", "dsad"], "error: dsad already exists"),
        ("add_label_maps.py", ["dsad", "maps"], "Usage: "),
        ("crop_frames.py", ["crops", "0"], "Usage: "),
        ("crop_frames.py", ["dsad", "1"], "error: dsad already exists"),
        ("crop_frames.py", ["crops", "1"], "image01.png: is truncated"),
        ("film_phantom.py", ["dsad", "1"], "error: dsad already exists"),
        ("film_phantom.py", [], "Usage: "),
    ],
)
def test_what_a_script_cannot_do_is_said_in_short(project, script, arguments, said):
    project()
    damaged = Path("dsad/liver/01/image01.png")
    damaged.write_bytes(damaged.read_bytes()[:-20])
    ended = start(script, *arguments, capture_output=True)
    assert ended.returncode
    assert said in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr
