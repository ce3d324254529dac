"""What evaluate leaves: every aggregate can be computed again from the frames; and any checkpoint on any folder."""

import csv
import json
import shutil
from math import sqrt

import cv2
import numpy as np
import pytest
import yaml
from conftest import disc, mtkd, write_png

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
                assert found is None if expected is None else found == pytest.approx(unit * expected, abs=0.006)
        overall = mean(list(per_anatomy.values()))
        assert evaluation[name]["dice"]["mean"] == round(100 * overall, 1)
    for r in table(run / "results/per_surgery.csv"):
        own = [x for x in rows if all(x[k] == r[k] for k in ("network", "surgery", "anatomy"))]
        assert int(r["frames"]) == len(own)
        expected = mean([number(x["nsd"]) for x in own])
        assert number(r["nsd"]) == pytest.approx(expected, abs=1e-5)
    assert findings["difference"]["dice"]["p"] == "too few"
    assert sqrt(32**2 + 48**2) + 1e-3 > max(number(r["hd95"]) or 0 for r in rows)


def test_claims_agree_with_each_other(run):
    """A decoder's recall over all pixels is the diagonal of the confusion; shares of claimants sum to 100."""
    findings = json.loads((run / "results/evaluation.json").read_text())
    rows = table(run / "results/per_frame.csv")
    for name in ("baseline", "mtkd"):
        for anatomy in ("liver", "colon"):
            own = [r for r in rows if (r["network"], r["anatomy"]) == (name, anatomy)]
            tp, fn = (sum(int(r[c]) for r in own) for c in ("tp", "fn"))
            assert findings["confusion"][name][anatomy][anatomy] == pytest.approx(100 * tp / (tp + fn), abs=0.006)
        assert sum(findings["claimants"][name].values()) == pytest.approx(100, abs=0.02)
    assert findings["false_alarms"]["mtkd"]["liver"] == {"frames": 0, "claimed": None, "pixels": None}
    assert (run / "results/plots/confusion_mtkd.csv").is_file()
    assert len(list((run / "results/qualitative").glob("*.png"))) == 6


def test_false_alarms_are_counted_where_somebody_said_that_nothing_is_there(run):
    for anatomy in ("liver", "colon"):
        lines = ["image,liver,colon", *(f"image{i:02d}.png,{int(anatomy == 'liver')},1" for i in range(3))]
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
    expected = json.loads((run / "results/evaluation.json").read_text())["intervals"]["mtkd"]["dice"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    only_test = tmp_path / "only_test"
    for anatomy in ("liver", "colon"):
        shutil.copytree(f"{root}/{anatomy}/03", only_test / anatomy / "03")
    output = mtkd("evaluate", "--checkpoint", str(checkpoint), "--data", str(only_test), "--output", "out")
    assert "liver" in output
    found = json.loads((tmp_path / "elsewhere/out/evaluation.json").read_text())
    assert found["intervals"]["dice"] == expected
    assert len(table(tmp_path / "elsewhere/out/per_frame.csv")) == 6


def test_a_checkpoint_on_complete_label_maps(run, tmp_path):
    maps = tmp_path / "labelmap"
    for surgery in ("04", "05"):
        frame = np.full((40, 60, 3), 30, np.uint8)
        frame[disc((40, 60), (20, 20), 8)] = (220, 90, 30)
        write_png(maps / surgery / "image03.png", frame)
        values = np.zeros((40, 60), np.uint8)
        values[disc((40, 60), (20, 20), 8)] = 2
        cv2.imwrite(str(maps / surgery / "label03.png"), values)
    (tmp_path / "anatomies.txt").write_text("colon\nliver\n")
    checkpoint = run / "checkpoints/students/mtkd.safetensors"
    mtkd("evaluate", "--checkpoint", str(checkpoint), "--data", str(maps), "--output", str(tmp_path / "out"))
    rows = table(tmp_path / "out/per_frame.csv")
    there = {r["anatomy"]: int(r["tp"]) + int(r["fn"]) for r in rows}
    assert len(rows) == 4
    assert there["colon"] == 0 < there["liver"]


def test_what_evaluate_refuses(run, tmp_path):
    checkpoint = "checkpoints/students/mtkd.safetensors"
    assert "go together" in mtkd("evaluate", "--checkpoint", checkpoint, code=2)
    assert "holds none of the checkpoint's anatomies" in mtkd(
        "evaluate", "--checkpoint", checkpoint, "--data", str(tmp_path), code=1
    )
    assert "nowhere.safetensors is missing" in mtkd(
        "evaluate", "--checkpoint", "nowhere.safetensors", "--data", str(tmp_path), code=1
    )
