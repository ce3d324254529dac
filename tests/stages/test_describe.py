"""``mtkd describe``: the table, the JSON and the page, of sound data sets and of others."""

import json
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import REAL_DATA, mtkd, write_dataset, write_label_maps, write_png

from stages.reporting.description_page import SIDE, overlay, percent, spread


class Tags(HTMLParser):
    """Checks that tags are closed in order, and keeps all attributes."""

    VOID = ("meta", "img", "br")

    def __init__(self, page):
        super().__init__()
        self.open = []
        self.attributes = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, *each) for each in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def described(folder="results"):
    values = json.loads(Path(folder, "describe.json").read_text())
    return values, Path(folder, "describe.html").read_text()


def test_the_data_set_of_the_params_file(project):
    project()
    output = mtkd("describe")
    lines = [line for line in output.splitlines() if "dsad" not in line]
    assert max(map(len, lines)) <= 80
    of, page = described()
    assert of["val"] == [2] and of["problems"] == []
    assert of["splits"]["train"]["anatomies"]["liver"]["frames"] == 3
    assert "No problems" in page
    for line in ("train: 6 frames, 1 surgery", "val: 6 frames, 1 surgery"):
        assert line in output and line in page


def test_the_page_needs_no_other_file(project):
    project()
    mtkd("describe")
    _, page = described()
    attributes = Tags(page).attributes
    sources = [value for _, name, value in attributes if name in ("src", "href")]
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "<script" not in page and "://" not in page and "url(" not in page
    # The colour of each anatomy has a name beside it.
    assert "liver (orange)" in page and "colon (sky blue)" in page


def test_a_data_set_with_problems_is_described(project):
    root = project(data__unlabelled_root="nowhere") / "dsad"
    (root / "liver/01/mask00.png").write_bytes(b"")
    (root / "liver/01/image09.jpg").write_bytes(b"")
    name = "<b>&.txt"
    (root / "colon/01" / name).write_text("")
    mtkd("prepare", code=1)
    output = mtkd("describe")
    of, page = described()
    assert of["frames"] == 17 and len(of["problems"]) == 3
    assert "3 problems to solve before training:" in output
    assert "mask00.png: is empty" in output and "mask00.png: is empty" in page
    assert "&lt;b&gt;&amp;.txt" in page and name not in page


def test_a_name_may_be_any_bytes(tmp_path, project):
    root = project() / "dsad"
    (root / "colon/01/note\udce9.txt").write_text("")
    command = [sys.executable, "-m", "stages.cli", "describe"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    _, page = described()
    assert r"note\udce9.txt" in done.stdout and r"note\udce9.txt" in page


def test_a_folder_needs_no_params_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "frames", surgeries=("01", "02"))
    (tmp_path / "frames/notes").mkdir()
    output = mtkd("describe", "frames", "--output", "out")
    assert "all: 12 frames, 2 surgeries" in output
    of, _ = described("out")
    assert of["anatomies"] == ["colon", "liver"]
    assert not (tmp_path / "results").exists()


def test_a_folder_of_label_maps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = np.zeros((20, 30), np.uint8)
    values[5:9, 5:9] = 2
    for number in range(2):
        frame = np.random.default_rng(number).integers(0, 255, (20, 30, 3)).astype(np.uint8)
        write_png(tmp_path / f"maps/07/image{number}.png", frame)
        write_png(tmp_path / f"maps/07/label{number}.png", values)
    (tmp_path / "maps/anatomies.txt").write_text("liver\nleft ureter\n")
    mtkd("describe", "maps")
    of, page = described()
    assert of["splits"]["all"]["anatomies"]["liver"]["empty"] == 2
    ureter = of["splits"]["all"]["anatomies"]["left ureter"]
    assert ureter["area"]["median"] == round(16 / 600, 6)
    assert ureter["known"]["anatomy"] == pytest.approx(16 / 600, abs=0.002)
    assert ureter["known"]["unknown"] == 0
    assert (of["frames"], of["masks"]) == (2, 4)
    assert "left ureter (sky blue)" in page and "liver (orange)" not in page


def test_label_maps_of_the_params_file(project):
    """They have splits, and only the anatomies of the settings."""
    root = project() / "maps"
    write_label_maps(root, ("spleen", "liver", "colon"), ("01", "02", "03"))
    project(data__root=str(root))
    output = mtkd("describe")
    of, page = described()
    assert of["problems"] == [] and (of["frames"], of["masks"]) == (6, 12)
    assert list(of["splits"]) == ["train", "val", "test"]
    assert list(of["splits"]["val"]["anatomies"]) == of["anatomies"] == ["liver", "colon"]
    assert "6 frames of 3 surgeries, 12 masks" in output
    assert "6 frames of 3 surgeries, 12 masks of 2 anatomies" in page


def test_another_data_set_that_is_missing_is_a_problem_beside_what_is_there(project, tmp_path):
    project(data__others={"gone": {"root": str(tmp_path / "nowhere")}})
    output = " ".join(mtkd("describe").split())
    assert f"data.others.gone.root: {tmp_path}/nowhere is not a folder" in output
    assert json.loads((tmp_path / "results/describe.json").read_text())["frames"] == 18


def test_all_data_sets_of_the_params_file(project, tmp_path):
    write_label_maps(tmp_path / "maps", ("liver", "colon"), ("01", "02"), seed=7)
    project(data__others={"clinic": {"root": str(tmp_path / "maps")}})
    output = " ".join(mtkd("describe").split())
    of, page = described()
    assert of["problems"] == [] and (of["frames"], of["masks"]) == (18 + 4, 18 + 8)
    clinic = of["data_sets"]["clinic"]
    assert (clinic["frames"], clinic["surgery_count"]) == (4, 2)
    assert of["data_sets"]["data.root"]["frames"] == 18 and "<h2>Data sets</h2>" in page
    maps = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in tmp_path.glob("maps/*/label*")]
    drawn = {
        name: sum((each == i).any() for each in maps)
        for i, name in enumerate(("liver", "colon"), 1)
    }
    assert clinic["anatomies"] == drawn
    assert (
        f"clinic: 4 frames of 2 surgeries; shown: liver {clinic['anatomies']['liver']}, " in output
    )
    assert list(of["surgeries"])[-1] == "clinic.02"
    assert of["others"]["clinic"] in page and "clinic.01/image00" in page


def test_more_than_thirty_problems_are_folded(project):
    root = project() / "dsad"
    for number in range(10, 45):
        write_png(root / f"liver/01/mask{number}.png", np.zeros((48, 64), np.uint8))
    output = mtkd("describe")
    of, page = described()
    assert len(of["problems"]) == 35
    assert "35 problems to solve" in output and "  and 30 more" in output
    shown, _, folded = page.partition("<summary>and 5 more</summary>")
    missing = "its frame image{}.png is missing"
    assert missing.format(39) in shown and missing.format(40) not in shown
    assert missing.format(44) in folded.split("</details>")[0]
    Tags(page)


def test_duplicates_are_listed(project):
    root = project() / "dsad"
    frame = cv2.GaussianBlur(cv2.imread(str(root / "liver/01/image00.png")), (9, 9), 0)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 70]
    copy = cv2.imdecode(cv2.imencode(".jpg", frame, quality)[1], cv2.IMREAD_COLOR)
    for place, pixels in {"01/image00": frame, "02/image00": frame, "03/image00": copy}.items():
        write_png(root / f"liver/{place}.png", pixels[..., ::-1])
    output = mtkd("describe")
    of, page = described()
    (group,) = of["duplicates"]["exact"]
    expected = {"where": "two splits", "frames": ["liver/01/image00", "liver/02/image00"]}
    assert group == expected
    (pair,) = of["duplicates"]["near"]
    assert pair["frames"] == ["liver/01/image00", "liver/03/image00"]
    assert "in two splits: liver/01/image00, liver/02/image00" in output
    assert "1 pair of frames that look alike:" in output
    assert "in two splits: liver/01/image00, liver/02/image00" in page


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "nowhere does not exist: name a folder of frames"),
        (["params.yaml"], "params.yaml is not a folder: name a folder of frames"),
        (["maps"], "maps holds label maps and no anatomies.txt: write one whose i-th line names"),
        (["empty"], "empty holds neither <anatomy>/<surgery>/imageMM.png with maskMM.png nor"),
        (["dsad", "--output", "params.yaml"], "params.yaml is a file"),
    ],
)
def test_what_cannot_be_described(project, arguments, says):
    root = project()
    (root / "empty").mkdir()
    write_label_maps(root / "maps", ("liver",), ("01",))
    (root / "maps/anatomies.txt").unlink()
    assert f"error: {says}" in mtkd("describe", *arguments, code=1)


def test_a_missing_root_is_one_line(project):
    project(data__root="nowhere")
    assert "error: nowhere does not exist" in mtkd("describe", code=1)


def test_ctrl_c_is_clean(tmp_path):
    write_dataset(tmp_path / "frames", frames=30, size=(600, 800))
    command = [sys.executable, "-m", "stages.cli", "describe", "frames"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    if process.returncode:  # else it was done before
        assert process.returncode == 130
        assert said == "stopped: the same command begins anew\n"
        assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("size", [(300, 700), (40, 30), (1, 1)])
def test_a_small_mask_can_be_seen_in_a_thumbnail(size):
    mask = np.zeros(size, bool)
    mask[-1, -1] = True
    picture = overlay(np.zeros((*size, 3), np.uint8), mask, (230, 159, 0))
    assert max(picture.shape) == SIDE
    assert (picture == (230, 159, 0)).all(axis=2).any()


def test_shares_are_short():
    assert [percent(share) for share in (None, 0, 0.00021, 0.12345, 1)] == [
        "-", "0", "0.021", "12.3", "100",
    ]  # fmt: skip
    assert spread({"least": 0.1, "most": 0.5}, percent) == "10..50"
    assert spread({"least": None, "most": None}, percent) == "-"


@pytest.mark.skipif(
    not (REAL_DATA / "camvid_partial").is_dir(), reason="the real frames are not here"
)
def test_real_frames_of_eleven_anatomies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = mtkd("describe", str(REAL_DATA / "camvid_partial"))
    of, page = described()
    assert (of["frames"], of["masks"], of["problems"]) == (367, 1092, [])
    assert len(page) < 5e6
    table = output.split("area, known:")[0]
    assert max(map(len, table.splitlines())) <= 80
    # Blocks of one drive stand in for surgeries: where they meet, frames look alike.
    assert 0 < of["duplicates"]["near_pairs"] < 50
