"""The whole run through the command line, on a data set that trains in seconds; and what it
refuses.
"""

import json
import shutil

import numpy as np
import pytest
import zarr
from helpers import change, mtkd, write_label_maps

from pipeline.checkpoint import load_card


def test_every_stage_leaves_what_the_next_one_needs(run, finished):
    evaluation = json.loads((run / "metrics/evaluate.json").read_text())
    assert set(evaluation) == {"teachers", "baseline", "mtkd", "gain"}
    for table in evaluation.values():
        assert {"dice", "iou", "known_dice", "every_dice", "absent_area", "overlap"} <= set(table)
        assert list(table["dice"]) == ["mean", "liver", "colon"]
    assert evaluation["gain"]["dice"]["mean"] == pytest.approx(
        evaluation["mtkd"]["dice"]["mean"] - evaluation["baseline"]["dice"]["mean"], abs=0.051
    )
    counts = json.loads((run / "metrics/benchmark.json").read_text())
    assert counts["teachers"]["parameters"] > counts["student"]["parameters"] > 0
    assert (run / "report/index.html").stat().st_size > 10_000
    assert "report/index.html" in finished[1][-1]
    assert not (run / "scratch/stores").exists() or not list((run / "scratch/stores").iterdir())


def test_the_summary_that_dvc_compares_has_the_means_of_both_splits(run):
    summary = json.loads((run / "metrics/summary.json").read_text())
    evaluation = json.loads((run / "metrics/evaluate.json").read_text())
    assert summary["test_dice"] == {
        name: table["dice"]["mean"] for name, table in evaluation.items()
    }
    for name in ("baseline", "mtkd"):
        student = json.loads((run / f"metrics/students/{name}.json").read_text())
        assert summary["val_dice"][name] == student["val_dice"]["mean"] is not None
    assert set(summary["val_dice"]) == {"baseline", "mtkd"}


def test_the_table_of_frames_gives_the_metrics(run):
    rows = [line.split(",") for line in (run / "results/per_frame.csv").read_text().splitlines()]
    header, rows = rows[0], rows[1:]
    evaluation = json.loads((run / "metrics/evaluate.json").read_text())
    for name in ("teachers", "baseline", "mtkd"):
        means = []
        for anatomy in ("liver", "colon"):
            dice = []
            for row in (dict(zip(header, r, strict=True)) for r in rows):
                if row["network"] == name and row["anatomy"] == anatomy:
                    tp, fp, fn = (int(row[k]) for k in ("tp", "fp", "fn"))
                    if tp + fp + fn:
                        dice.append(200 * tp / (2 * tp + fp + fn))
            means.append(np.mean(dice))
            assert evaluation[name]["dice"][anatomy] == pytest.approx(means[-1], abs=0.051)
        assert evaluation[name]["dice"]["mean"] == pytest.approx(np.mean(means), abs=0.051)


def test_stores_hold_every_training_frame_and_no_other(run):
    group = zarr.open_group(run / "stores" / "liver.zarr", mode="r")
    assert group["logits"].shape == (1, 6, 2, 16, 24)
    assert group.attrs["frames"] == [
        f"{a}/01/image{i:02d}" for a in ("liver", "colon") for i in range(3)
    ]
    assert np.isfinite(group["logits"][:]).all()
    assert sorted(p.name for p in (run / "stores").iterdir()) == ["colon.zarr", "liver.zarr"]


def test_the_same_seed_gives_the_same_weights_whatever_the_workers(run):
    path = run / "checkpoints/students/mtkd.safetensors"
    before = path.read_bytes()
    path.unlink()
    mtkd("train-student", "mtkd", "--workers", "2")
    assert path.read_bytes() == before


def test_a_student_with_one_decoder_learns_from_the_same_stores(run):
    separate = json.loads((run / "metrics/benchmark.json").read_text())["student"]["parameters"]
    change(run, student__decoders="shared")
    for name in ("baseline", "mtkd"):
        mtkd("train-student", name)
        assert load_card(run / f"checkpoints/students/{name}.safetensors").shared
    for verb in ("evaluate", "benchmark", "report"):
        mtkd(verb)
    evaluation = json.loads((run / "metrics/evaluate.json").read_text())
    assert 0 <= evaluation["mtkd"]["dice"]["colon"] <= 100
    counts = json.loads((run / "metrics/benchmark.json").read_text())
    assert counts["student"]["parameters"] < separate
    assert json.loads((run / "results/benchmark.json").read_text())["student"]["decoders"] == (
        "shared"
    )


def test_another_teacher_makes_its_store_refused(run):
    shutil.copy("checkpoints/teachers/colon.safetensors", "checkpoints/teachers/liver.safetensors")
    output = mtkd("train-student", "mtkd", code=1)
    assert "stores/liver.zarr does not fit: its teacher is" in output
    assert "dvc repro cache_logits@liver" in output


def test_other_frames_or_settings_make_the_stores_refused(run):
    frame = run / "data/prepared/frames/train/liver/01/image00.png"
    shutil.copy(frame.with_name("image01.png"), frame)
    assert "does not fit: its frames is" in mtkd("train-student", "mtkd", code=1)


def test_frames_that_the_stores_lack_or_have_too_many_are_named(run):
    folder = run / "data/prepared/frames/train/liver"
    (folder / "01/image00.png").rename(folder / "01/image77.png")
    index = folder / "index.csv"
    index.write_text(index.read_text().replace("01/image00", "01/image77"))
    output = mtkd("train-student", "mtkd", code=1)
    assert (
        "stores/liver.zarr lacks frames, liver/01/image77 first of 1, like 1 other stores" in output
    )
    assert (
        "stores/liver.zarr has other frames, liver/01/image00 first of 1, like 1 other stores"
        in output
    )


def test_a_damaged_store_stops_the_student(run):
    shard = run / "stores/liver.zarr/logits/c/0/0/0/0/0"
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    output = mtkd("train-student", "mtkd", code=1)
    assert "is damaged" in output
    assert "dvc repro -s -f cache_logits@liver" in output


def test_views_are_replayed_to_the_student(run, monkeypatch):
    import yaml

    params = yaml.safe_load((run / "params.yaml").read_text())
    params["cache"]["views"] = 2
    (run / "params.yaml").write_text(yaml.safe_dump(params))
    assert "its views is 0, expected 2" in mtkd("train-student", "mtkd", code=1)
    mtkd("cache-logits")
    group = zarr.open_group(run / "stores" / "liver.zarr", mode="r")
    assert group["logits"].shape[0] == 2
    assert not np.array_equal(group["logits"][0], group["logits"][1])
    mtkd("train-student", "mtkd")
    # Another version of the augmentation would show the student what no teacher has seen.
    monkeypatch.setattr("pipeline.augmentation.SCALE", 0.2)
    assert "was written for other pixels of" in mtkd("train-student", "mtkd", code=1)


def test_a_students_mistakes_are_one_line(run):
    assert "not in data.anatomies: spleen; expected: liver, colon" in mtkd(
        "train-teacher", "spleen", code=1
    )
    assert "not in data.anatomies: spleen" in mtkd("cache-logits", "spleen", code=1)
    assert "'other' is not one of" in mtkd("train-student", "other", code=2)
    assert "'tpu' is" in mtkd("evaluate", "--device", "tpu", code=2)
    (run / "checkpoints/students/mtkd.safetensors").write_bytes(b"x" * 100)
    assert "is damaged" in mtkd("evaluate", code=1)
    (run / "checkpoints/students/mtkd.safetensors").unlink()
    assert "run `dvc repro train_student@mtkd`" in mtkd("evaluate", code=1)
    (run / "params.yaml").unlink()
    assert "mtkd init" in mtkd("prepare", code=1)


def test_no_training_frames_of_a_surgery_are_left_in_a_store_or_test(run):
    frames = {
        row.split(",")[3] for row in (run / "results/per_frame.csv").read_text().splitlines()[1:]
    }
    assert {frame.split("/")[1] for frame in frames} == {"03"}


def test_init_puts_a_preset_in_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    mtkd("init", "--preset", "paper", "--data-root", "data")
    text = (tmp_path / "params.yaml").read_text()
    assert f"root: {tmp_path / 'data'}" in text
    assert "# " in text
    assert "--force" in mtkd("init", "--preset", "demo", code=1)
    mtkd("init", "--preset", "demo", "--force")
    assert (tmp_path / "params.yaml.bak").read_text() == text
    assert "demo, paper" in mtkd("init", "--preset", "none", "--force", code=1)
    assert "is not a folder" in mtkd(
        "init", "--preset", "paper", "--data-root", "nowhere", "--force", code=1
    )


def test_curves_tell_the_terms_apart(run):
    """Each term per anatomy, what it was summed over, and how hard it pulls: a term that does
    nothing shows.
    """
    curves = run / "results/curves/students/mtkd/plots/metrics"
    for name in ("cross_entropy", "kl_divergence", "valid_pixels", "valid_cells"):
        assert {p.stem for p in (curves / name).iterdir()} == {"sum", "liver", "colon"}
    for name in ("cross_entropy", "kl_divergence"):
        rows = (curves / "gradient_norm" / f"{name}.tsv").read_text().splitlines()[1:]
        assert all(float(row.split("\t")[1]) > 0 for row in rows)
    assert not (
        run / "results/curves/students/baseline/plots/metrics/gradient_norm/kl_divergence.tsv"
    ).exists()


def test_the_augmentation_gap_stands_in_the_stores_metrics(run):
    stats = json.loads((run / "metrics/cache/liver.json").read_text())
    gap = stats["augmentation_gap"]
    assert stats["augmentation_gap_frames"] == 6  # all there are
    assert gap["geometry"]["kl"] > 10 * gap["views"]["kl"] >= 0
    assert gap["full"]["kl"] > 10 * gap["views"]["kl"]
    assert 0 <= gap["views"]["disagreement"] <= gap["full"]["disagreement"] <= 100


def test_a_data_set_of_label_maps_goes_through_every_stage(project, tmp_path):
    root = tmp_path / "maps"
    write_label_maps(root, ("spleen", "liver", "colon"), ("01", "02", "03", "10"))
    project(data__root=str(root), teacher__negatives=0.5, student__absence_weight=0.2)
    mtkd("prepare")
    for anatomy in ("liver", "colon"):
        mtkd("train-teacher", anatomy)
        mtkd("cache-logits", anatomy)
    for student in ("baseline", "mtkd"):
        mtkd("train-student", student)
    mtkd("evaluate")
    store = zarr.open_group("stores/colon.zarr", mode="r")
    assert store.attrs["frames"] == [f"liver/{s}/image0{n}" for s in ("01", "10") for n in (0, 1)]
    evaluation = json.loads((tmp_path / "metrics/evaluate.json").read_text())
    assert all(evaluation["mtkd"][key]["mean"] is not None for key in ("dice", "every_dice"))
