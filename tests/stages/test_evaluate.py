"""What evaluate leaves: every aggregate can be computed again from the frames; and any checkpoint
on any folder.
"""

import csv
import json
import math
import shutil
from math import sqrt

import cv2
import numpy as np
import pytest
import yaml
from helpers import ROOT, disc, mtkd, write_dataset, write_png
from safetensors import safe_open
from safetensors.torch import save_file

from stages.reporting import results_table
from stages.shared.project import load_project
from stages.stores.imported import write_stand_in

METRICS = ("dice", "iou", "precision", "recall", "specificity", "nsd", "hd95")


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def number(cell):
    return float(cell) if cell else None


def mean(cells):
    known = [c for c in cells if c is not None]
    return sum(known) / len(known) if known else None


def test_every_aggregate_comes_from_the_frames(run):
    rows = table(run / "results/per_frame.csv")
    evaluation = json.loads((run / "metrics/evaluate.json").read_text())
    findings = json.loads((run / "results/evaluation.json").read_text())
    for name in ("teachers", "baseline", "mtkd"):
        per_anatomy = {}
        for anatomy in ("liver", "colon"):
            own = [r for r in rows if (r["network"], r["anatomy"]) == (name, anatomy)]
            dice = []
            for r in own:
                tp, fp, fn, tn = (int(r[c]) for c in ("tp", "fp", "fn", "tn"))
                assert tp + fp + fn + tn == 32 * 48
                dice.append(2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None)
                assert number(r["dice"]) == pytest.approx(dice[-1], abs=1e-5)
                assert number(r["recall"]) == pytest.approx(tp / (tp + fn), abs=1e-5)
            per_anatomy[anatomy] = mean(dice)
            assert evaluation[name]["dice"][anatomy] == round(100 * per_anatomy[anatomy], 1)
            for metric in METRICS:
                unit = 1 if metric == "hd95" else 100
                expected = mean([number(r[metric]) for r in own])
                found = findings["intervals"][name][metric][anatomy]["mean"]
                assert (
                    found is None
                    if expected is None
                    else found == pytest.approx(unit * expected, abs=0.006)
                )
        overall = mean(list(per_anatomy.values()))
        assert evaluation[name]["dice"]["mean"] == round(100 * overall, 1)
    for r in table(run / "results/per_surgery.csv"):
        own = [x for x in rows if all(x[k] == r[k] for k in ("network", "surgery", "anatomy"))]
        assert int(r["frames"]) == len(own)
        expected = mean([number(x["nsd"]) for x in own])
        assert number(r["nsd"]) == pytest.approx(expected, abs=1e-5)
    assert findings["difference"]["dice"]["p"] == "too few"
    one = findings["intervals"]["mtkd"]["dice"]["mean"]
    assert (one["low"], one["high"], one["surgeries"]) == (None, None, 1)
    assert sqrt(32**2 + 48**2) + 1e-3 > max(number(r["hd95"]) or 0 for r in rows)


def test_claims_agree_with_each_other(run):
    """A decoder's recall over all pixels is the diagonal of the confusion; shares of claimants sum
    to 100.
    """
    findings = json.loads((run / "results/evaluation.json").read_text())
    rows = table(run / "results/per_frame.csv")
    for name in ("baseline", "mtkd"):
        for anatomy in ("liver", "colon"):
            own = [r for r in rows if (r["network"], r["anatomy"]) == (name, anatomy)]
            tp, fn = (sum(int(r[c]) for r in own) for c in ("tp", "fn"))
            assert findings["confusion"][name][anatomy][anatomy] == pytest.approx(
                100 * tp / (tp + fn), abs=0.006
            )
        assert sum(findings["claimants"][name].values()) == pytest.approx(100, abs=0.02)
    assert findings["false_alarms"]["mtkd"]["liver"] == {
        "frames": 0,
        "claimed": None,
        "pixels": None,
    }
    assert (run / "results/plots/confusion_mtkd.csv").is_file()
    assert len(list((run / "results/qualitative").glob("*.png"))) == 6


def test_false_alarms_are_counted_where_somebody_said_that_nothing_is_there(run):
    for anatomy in ("liver", "colon"):
        lines = [
            "image,liver,colon",
            *(f"image{i:02d}.png,{int(anatomy == 'liver')},1" for i in range(3)),
        ]
        (run / "weak").mkdir(exist_ok=True)
        root = yaml.safe_load((run / "params.yaml").read_text())["data"]["root"]
        if not (run / "dsad2").exists():
            shutil.copytree(root, run / "dsad2")
        (run / "dsad2" / anatomy / "03" / "weak_labels.csv").write_text("\n".join(lines))
    params = yaml.safe_load((run / "params.yaml").read_text())
    params["data"]["root"] = "dsad2"
    (run / "params.yaml").write_text(yaml.safe_dump(params))
    mtkd("prepare")
    mtkd("evaluate")
    found = json.loads((run / "results/evaluation.json").read_text())["false_alarms"]["mtkd"]
    assert found["liver"]["frames"] == 3  # the three test frames of the colon
    assert found["colon"]["frames"] == 0
    assert 0 <= found["liver"]["claimed"] <= 100


def test_any_checkpoint_on_any_folder(run, tmp_path, monkeypatch):
    root = yaml.safe_load((run / "params.yaml").read_text())["data"]["root"]
    checkpoint = run / "checkpoints/students/mtkd.safetensors"
    expected = json.loads((run / "results/evaluation.json").read_text())["intervals"]["mtkd"][
        "dice"
    ]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    only_test = tmp_path / "only_test"
    for anatomy in ("liver", "colon"):
        shutil.copytree(f"{root}/{anatomy}/03", only_test / anatomy / "03")
    output = mtkd(
        "evaluate", "--checkpoint", str(checkpoint), "--data", str(only_test), "--output", "out"
    )
    assert "liver" in output
    assert "too few surgeries" in output
    found = json.loads((tmp_path / "elsewhere/out/evaluation.json").read_text())
    assert found["intervals"]["dice"] == expected
    every_decoder = found["every_decoder"]
    assert f"pixels of several organs: {every_decoder['overlap']['mean']:.1f} %" in output
    assert f"{every_decoder['known_dice']['liver']:.1f}" in output.split("every decoder")[1]
    assert len(table(tmp_path / "elsewhere/out/per_frame.csv")) == 6


def test_a_checkpoint_on_complete_label_maps(run, tmp_path):
    maps = write_maps(tmp_path / "labelmap")
    for path in maps.glob("*/label03.png"):
        path.with_name("label_03.png").write_bytes(
            path.read_bytes()
        )  # another file, that nobody asks for
        path.with_name("label03_x.png").write_bytes(path.read_bytes())
    (tmp_path / "anatomies.txt").write_text("the colon\nLiver\n")
    measured(maps, tmp_path / "out")
    rows = table(tmp_path / "out/per_frame.csv")
    assert [r["frame"] for r in rows] == ["liver/04/image03", "liver/05/image03"]
    assert all(int(r["tp"]) + int(r["fn"]) for r in rows)


def test_complete_label_maps_know_what_is_absent(run, tmp_path):
    maps = write_maps(tmp_path / "labelmap")
    (tmp_path / "anatomies.txt").write_text("colon\nliver\n")
    measured(maps, tmp_path / "out")
    there = {
        r["anatomy"]: int(r["tp"]) + int(r["fn"]) for r in table(tmp_path / "out/per_frame.csv")
    }
    assert there["colon"] == 0 < there["liver"]
    alarms = json.loads((tmp_path / "out/evaluation.json").read_text())["false_alarms"]
    assert {anatomy: alarm["frames"] for anatomy, alarm in alarms.items()} == {
        "colon": 2,
        "liver": 0,
    }


def write_maps(maps, dtype=np.uint8):
    for surgery in ("04", "05"):
        frame = np.full((40, 60, 3), 30, np.uint8)
        frame[disc((40, 60), (20, 20), 8)] = (220, 90, 30)
        write_png(maps / surgery / "image03.png", frame)
        write_png(maps / surgery / "label03.png", disc((40, 60), (20, 20), 8).astype(dtype) * 2)
    return maps


def measured(data, output, code=0):
    checkpoint = "checkpoints/students/mtkd.safetensors"
    return mtkd(
        "evaluate",
        "--checkpoint",
        checkpoint,
        "--data",
        str(data),
        "--output",
        str(output),
        code=code,
    )


def test_sixteen_bits_are_the_same_values(run, tmp_path):
    for dtype in (np.uint8, np.uint16):
        measured(write_maps(tmp_path / dtype.__name__, dtype), tmp_path / f"out_{dtype.__name__}")
    assert table(tmp_path / "out_uint8/per_frame.csv") == table(
        tmp_path / "out_uint16/per_frame.csv"
    )


def test_label_maps_that_would_be_misread_are_refused_together(run, tmp_path):
    maps = write_maps(tmp_path / "maps")
    write_png(maps / "04/label03.png", np.full((40, 60), 7, np.uint16))
    write_png(maps / "05/label03.png", np.zeros((40, 60, 3), np.uint8))
    write_png(maps / "05/image04.png", np.zeros((40, 60, 3), np.uint8))
    write_png(maps / "05/label04.png", np.zeros((40, 61), np.uint8))
    write_png(maps / "05/label05.png", np.zeros((40, 60), np.uint8))
    write_png(maps / "04/image06.png", np.zeros((40, 60, 3), np.uint8))
    output = measured(maps, tmp_path / "out", code=1)
    assert (
        f"{maps}/04/label03.png: holds 7, and the checkpoint (there is no anatomies.txt) names "
        "only 1 to 2" in output
    )
    assert f"{maps}/05/label03.png: is a colour" in output
    assert output.count("label04.png: frame and label have different sizes, 60x40 and 61x40") == 1
    assert f"{maps}/05/label05.png: its frame image05.png is missing" in output
    assert f"{maps}/04/image06.png: its label label06.png is missing" in output
    assert "5 problems" in output
    (maps / "anatomies.txt").write_bytes("Gekröse\n".encode("latin1"))
    assert "anatomies.txt: is not a UTF-8 text" in measured(maps, tmp_path / "out", code=1)
    (maps / "anatomies.txt").write_text("")
    assert "anatomies.txt names nothing" in measured(maps, tmp_path / "out", code=1)


def test_annotators_stand_beside_the_checkpoint(run, tmp_path):
    root = write_dataset(tmp_path / "annotated", surgeries=("03",), frames=1)
    mask = root / "liver/03/mask00.png"
    write_png(mask.parent / "anno_1/mask00.png", cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE))
    odd = mask.parents[2] / "colon/03/mask00.png"
    write_png(odd, np.minimum(cv2.imread(str(odd), cv2.IMREAD_GRAYSCALE), 137))
    (mask.parent / "weak_labels.csv").mkdir()
    output = measured(root, tmp_path / "out")
    assert "anno_1" in output
    assert f"warning: 1 mask is not only 0 and 255; all above 0 is foreground:\n  {odd}" in output
    assert f"warning: {mask.parent / 'weak_labels.csv'}: cannot be read (Is a directory)" in output
    found = json.loads((tmp_path / "out/evaluation.json").read_text())["annotators"]
    assert found == {"liver": {"anno_1": {"dice": 100, "frames": 1}}, "colon": {}}


@pytest.mark.parametrize("recorded", [True, False])
def test_the_report_shows_the_dice_of_the_metrics(run, recorded):
    folder = ROOT if recorded else run
    if not (folder / "metrics/evaluate.json").is_file():
        pytest.skip("nothing is recorded here")
    intervals = json.loads((folder / "results/evaluation.json").read_text())["intervals"]
    metrics = json.loads((folder / "metrics/evaluate.json").read_text())
    for network in ("teachers", "baseline", "mtkd"):
        for anatomy, dice in metrics[network]["dice"].items():
            shown = results_table.number(intervals[network]["dice"][anatomy]["mean"])
            assert shown == results_table.number(dice)


def test_what_evaluate_refuses(run, tmp_path):
    checkpoint = "checkpoints/students/mtkd.safetensors"
    assert "go together" in mtkd("evaluate", "--checkpoint", checkpoint, code=2)
    assert "holds none of the checkpoint's anatomies" in measured(tmp_path, "out", code=1)
    assert "nosuch does not exist" in measured("nosuch", "out", code=1)
    assert "params.yaml is not a folder" in measured("params.yaml", "out", code=1)
    assert "--output params.yaml: params.yaml is a file" in measured(
        tmp_path, "params.yaml", code=1
    )
    (run / "dvc.yaml").touch()
    assert "--output results holds the tables of the evaluate stage" in measured(
        tmp_path, "results", code=1
    )
    (tmp_path / "hollow/liver/03").mkdir(parents=True)
    assert "hollow holds no frames" in measured(tmp_path / "hollow", "out", code=1)
    for name, what in (("nowhere.st", "is missing"), ("params.yaml", "is not a .safetensors file")):
        output = mtkd("evaluate", "--checkpoint", name, "--data", str(tmp_path), code=1)
        assert f"{name} {what}" in output
        assert "dvc" not in output


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (
            {"image_size": [0, 0]},
            "its metadata's image_size.0: Input should be greater than 0, found 0",
        ),
        ({"image_size": [64.5, True]}, "its metadata's image_size.0"),
        ({"image_size": "small"}, "its metadata's image_size"),
        ({"std": [0.2, 0, 0.2]}, "its metadata's std.1: Input should be greater than 0, found 0"),
        ({"mean": [math.nan] * 3}, "its metadata's mean.0: Input should be a finite number"),
        ({"anatomies": []}, "its metadata's anatomies"),
        ({"anatomies": "liver"}, "its metadata's anatomies"),
        ({"colour": "red"}, "its metadata's colour"),
        (None, "its metadata is not a mapping"),
    ],
)
def test_a_card_that_no_network_can_have_is_refused(run, changes, what):
    with safe_open("checkpoints/students/mtkd.safetensors", framework="pt") as file:
        fields = json.loads(file.metadata()["mtkd"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    save_file(
        tensors,
        "made.safetensors",
        metadata={"mtkd": json.dumps(fields | changes if changes else None)},
    )
    output = mtkd("evaluate", "--checkpoint", "made.safetensors", "--data", str(run), code=1)
    assert "made.safetensors is damaged" in output
    assert what in output


def test_checkpoints_of_other_settings_are_refused(run):
    params = yaml.safe_load((run / "params.yaml").read_text())

    def refused(**changes):
        (run / "params.yaml").write_text(
            yaml.safe_dump(params | {"data": params["data"] | changes})
        )
        return mtkd("evaluate", code=1)

    students, teachers = run / "checkpoints/students", run / "checkpoints/teachers"
    output = refused(anatomies=["colon", "liver"])
    asked = "was trained for anatomies [liver, colon], params.yaml asks for [colon, liver]"
    for name in ("baseline", "mtkd"):
        assert f"{name}.safetensors {asked}: run `dvc repro train_student@{name}`" in output
    output = refused(image_size=[64, 48])
    assert output.count("was trained for image_size [32, 48], params.yaml asks for [64, 48]") == 4
    shutil.copy(teachers / "colon.safetensors", teachers / "liver.safetensors")
    shutil.copy(teachers / "colon.safetensors", students / "baseline.safetensors")
    output = refused()
    assert (
        "liver.safetensors was trained for anatomies [colon], params.yaml asks for [liver]"
        in output
    )
    assert (
        "baseline.safetensors was trained for anatomies [colon], params.yaml asks for [liver, "
        "colon]" in output
    )


def test_a_mean_says_over_how_many_anatomies_it_is(run):
    write_stand_in(load_project().teacher_checkpoint("liver"), "a store")
    output = mtkd("evaluate")
    assert "over 1 of 2 anatomies" in output
    assert output.count("over 2 of 2 anatomies") == 2
    assert "anatomies in the mean" in mtkd("report")
    page = (run / "report/index.html").read_text()
    assert page.count("over 1 of 2") == 1
    assert "cannot be compared" in page


def test_folders_that_are_spelt_otherwise_are_told(run, tmp_path):
    root = write_dataset(tmp_path / "dsad", ("liver", "Colon"))
    output = mtkd(
        "evaluate", "--checkpoint", "checkpoints/students/mtkd.safetensors", "--data", str(root)
    )
    assert f"{root / 'Colon'} is left out: the checkpoint spells it colon" in " ".join(
        output.split()
    )
