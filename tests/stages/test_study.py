"""Studies: what their conditions are, and that one which was stopped goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict

import numpy as np
import psutil
import pytest
import torch
import yaml
from helpers import ROOT, change, mtkd, write_png
from torch.utils.data import default_collate

from pipeline.files import write_json
from pipeline.machine import Machine
from stages.shared.project import load_project
from stages.shared.results import read
from stages.study import parity
from stages.study import runs as study_runs
from stages.study.gain import (
    Condition,
    Design,
    _case,
    _closed,
    _table,
    build_cases,
    choose_conditions,
)
from stages.study.runs import RunResult, _data_identity, _measure, case_file_name
from stages.study.targets import Case, _coarsened, training_material


def test_live_teachers_and_replayed_views_teach_the_same(run):
    """With as many views as epochs and one seed, the stores hold what live teachers predict."""
    project = load_project()
    params = project.params
    assert params.cache.seed == params.student.seed
    parity._write_views(project, params.student.epochs, Machine("cpu"))
    cases = [
        Case("live", params.student, params.distill, "live"),
        Case("views", params.student, params.distill, folder=parity.VIEWS),
        Case("alone", params.student, None),
        Case("pseudo", params.student, params.distill, "pseudo_labels"),
    ]
    live, views, alone, pseudo = (_measure_here(case) for case in cases)
    # float16, and what two epochs make of it
    assert views.val_dice == pytest.approx(live.val_dice, abs=1)
    assert live.val_dice != alone.val_dice != pseudo.val_dice != live.val_dice
    assert live.peak_mib > 100


def _measure_here(case):
    return _measure(case, torch.get_num_threads(), Machine("cpu"))


def test_a_study_keeps_its_runs(run):
    arguments = ["study", "parity", "--seeds", "1", "--views", "2", "--jobs", "2"]
    assert "0 of 4 runs are there, 4 to go" in mtkd(*arguments)
    page = (run / "results/study_parity.md").read_text()
    for name in ("no teachers", "live teachers", "stores, warped", "stores, views (K = 2)"):
        assert f"| {name} |" in page
    (next((run / "results/study").glob("live*"))).unlink()
    assert "3 of 4 runs are there, 1 to go" in mtkd(*arguments)
    params = yaml.safe_load((run / "params.yaml").read_text())
    params["distill"]["weight"] = 7
    alone, warped = _kept_runs(run)
    (run / "params.yaml").write_text(yaml.safe_dump(params))
    # The one without teachers does not depend on it.
    assert _kept_runs(run) == (alone, not warped) == (True, False)


def _kept_runs(run):
    """Whether the runs without and with teachers that the settings of now ask for are kept."""
    project = load_project()
    student = project.params.student
    cases = (
        Case("no teachers", student, None),
        Case("stores, warped", student, project.params.distill),
    )
    kept = {path.name for path in (run / "results/study").iterdir()}
    files = [case_file_name(case, project, _data_identity(project)) for case in cases]
    return tuple(file in kept for file in files)


def test_a_run_that_was_measured_on_other_labels_is_another(run):
    project = load_project()
    case = Case("alone", project.params.student, None)
    before = case_file_name(case, project, _data_identity(project))
    assert case_file_name(case, project, _data_identity(project)) == before
    label = next((run / "data/prepared/labels/test").rglob("*.png"))
    label.write_bytes(label.read_bytes() + b"0")
    assert case_file_name(case, project, _data_identity(project)) != before


def result(seed=1, *, dice=None, validation=None):
    """What a run leaves, as far as a table asks for it."""
    return RunResult(
        name="any",
        arch="mininetv2",
        seed=seed,
        epochs=1,
        dice=dice or {"mean": 0.0},
        validation=validation or {"mean": 0.0},
        val_dice=[1.0],
        seconds_per_epoch=1.0,
        peak_mib=1,
        threads=1,
    )


def test_the_gap_is_closed_against_the_baseline_of_the_same_seed():
    base = [result(seed, dice={"a": 20.0 * seed, "b": 50.0}) for seed in (1, 2)]
    distilled = result(2, dice={"a": 60.0, "b": 0.0})
    assert _closed("test", distilled, base, {"a": 80.0, "b": 51.0}, ["a"]) == 50


def test_a_run_of_before_is_read_and_a_file_has_the_keys_of_before(tmp_path):
    """Runs that were recorded before a key came are found, and read without it."""
    file = tmp_path / "run.json"
    write_json(file, asdict(result(3)))
    content = json.loads(file.read_text())
    assert list(content) == [
        "name",
        "arch",
        "seed",
        "epochs",
        "class_weights",
        "dice",
        "validation",
        "val_dice",
        "seconds_per_epoch",
        "peak_mib",
        "threads",
        "every_decoder",
    ]
    del content["class_weights"]
    write_json(file, content | {"of another version": 1})
    assert RunResult.read(file) == result(3)


def test_targets_that_the_paper_does_not_know(run):
    change(run, distill__reconcile=False)
    project = load_project()
    params = project.params
    machine = Machine("cpu")
    losses = {}
    for targets in ("no teachers", "stores", "trusted", "with_pixels", "apart", "coarse"):
        distill = None if targets == "no teachers" else params.distill
        case = Case(targets, params.student, distill, targets)
        objective, data = training_material(case, project, machine)
        batch = default_collate([data[0, position] for position in (0, 1, len(data) - 1)])
        logits = torch.randn(
            3, 2, 2, 16, 24, generator=torch.Generator().manual_seed(1), requires_grad=True
        )
        terms = objective.terms(logits, batch)
        loss = sum(weight * terms[name].sum() for name, weight in objective.weights.items())
        losses[targets] = loss.item(), torch.autograd.grad(loss, logits)[0], terms, batch
    stores, trusted, added, apart, coarse = (losses[targets][2] for targets in list(losses)[1:])
    trust = [read(project.teacher_metrics(a))["val_dice"]["mean"] for a in project.anatomies]
    share = torch.tensor(trust) / np.mean(trust)
    torch.testing.assert_close(trusted["kl_divergence"], stores["kl_divergence"] * share)
    assert losses["with_pixels"][0] == pytest.approx(
        losses["stores"][0] + 3 * added["kl_pixels"].sum().item()
    )
    assert (coarse["kl_divergence"] != stores["kl_divergence"]).all()
    # The teacher of the one organ is silent where the other one is labelled, and speaks everywhere
    # else.
    assert (apart["kl_divergence"] < stores["kl_divergence"]).all()
    batch = losses["apart"][3]
    label = torch.nn.functional.adaptive_avg_pool2d((batch["organ"] >= 0).float(), (16, 24)) == 1
    other = label[0] & batch["valid"][0]
    assert other.any()
    of_other = 1 - int(batch["labelled"][0].int().argmax())
    kl_alone = losses["apart"][1][0, of_other] - losses["no teachers"][1][0, of_other]
    assert kl_alone[:, other].abs().max() < 1e-7


def test_students_of_a_study_learn_from_known_absence_as_the_stage_does(run):
    project = load_project()
    logits = torch.randn(2, 2, 2, 32, 48, generator=torch.Generator().manual_seed(1))
    losses = []
    for weight in (0.0, 0.2, 0.4):
        student = project.params.student.model_copy(update={"absence_weight": weight})
        objective, data = training_material(Case("", student, None), project, Machine("cpu"))
        batch = default_collate([data[0, position] for position in (0, len(data) - 1)])
        batch["background"][:] = True
        losses.append(objective.terms(logits, batch)["cross_entropy"])
    assert (losses[1] > losses[0]).all()
    torch.testing.assert_close(losses[2] - losses[0], 2 * (losses[1] - losses[0]))


def test_students_of_a_study_have_the_decoders_that_it_compares(run):
    design = Design("decoders", ["mininetv2"], [], 1, 1)
    project = load_project()
    cases = build_cases(project, design, choose_conditions(project, design, 1.0))
    assert [(case.student.decoders, case.distill is None) for case in cases] == [
        ("separate", True), ("shared", True), ("separate", False), ("shared", False),
    ]  # fmt: skip
    assert len({case_file_name(case, project, "data") for case in cases}) == 4


def test_half_the_grid_keeps_the_mean_of_two_by_two_cells():
    """What is smooth survives, what alternates from cell to cell does not."""
    rows = torch.arange(8.0)[:, None].expand(8, 6)
    alternating = 1 - 2 * ((torch.arange(8)[:, None] + torch.arange(6)) % 2).float()
    teachers = torch.stack([rows, alternating]).expand(1, 1, 2, 8, 6)
    coarse = _coarsened(teachers, {"teachers": teachers})["teachers"]
    torch.testing.assert_close(coarse[0, 0, 0, 1:-1], rows[1:-1])
    assert coarse[0, 0, 1].abs().max() < 1e-6


def test_gain_and_beyond_share_their_runs(run):
    arguments = ["--student", "mininetv2", "--seeds", "1", "--epochs", "1"]
    said = mtkd("study", "gain", *arguments, "--way", "classes_balanced")
    assert "0 of 2 runs are there, 2 to go" in said
    page = (run / "results/study_gain.md").read_text()
    assert "| Dice (%), test | teachers | baseline | classes_balanced |" in page
    assert "| Dice (%), validation | teachers | baseline | classes_balanced |" in page
    assert "](study_gain.svg)" in page
    assert "<svg" in (run / "results/study_gain.svg").read_text()
    assert "2 of 3 runs are there, 1 to go" in mtkd(
        "study", "beyond", *arguments, "--way", "classes_balanced", "--way", "trusted teachers"
    )
    assert "--way nothing: one of baseline" in mtkd(
        "study", "gain", *arguments, "--way", "nothing", code=1
    )
    assert "expected a Markdown file" in mtkd(
        "study", "gain", *arguments, "--output", "results/x.svg", code=1
    )
    # Other teachers than the ones that taught these students are no column of their table.
    shutil.copy("checkpoints/teachers/colon.safetensors", "checkpoints/teachers/liver.safetensors")
    assert "does not fit" in mtkd("study", "gain", *arguments, "--way", "classes_balanced", code=1)


def test_frames_without_labels_cost_the_baseline_nothing_and_the_student_no_more_steps(run):
    """Baselines of before still count.

    As many steps are half the epochs where an epoch has twice the frames.
    """
    arguments = ["study", "gain", "--student", "mininetv2", "--seeds", "1", "--epochs", "2"]
    mtkd(*arguments, "--way", "baseline")
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3)).astype(np.uint8)
        write_png(run / "video" / "07" / f"{number}.png", pixels)
    params = yaml.safe_load((run / "params.yaml").read_text())
    params["data"]["unlabelled_root"] = str(run / "video")
    (run / "params.yaml").write_text(yaml.safe_dump(params))
    mtkd("prepare")
    mtkd("cache-logits")
    said = mtkd(
        *arguments,
        "--way",
        "classes_balanced, as many steps",
        "--way",
        "classes_balanced, labelled frames",
    )
    assert "1 of 3 runs are there, 2 to go" in said
    runs = [read(file) for file in (run / "results/study").glob("*.json")]
    assert {r["name"]: r["epochs"] for r in runs} == {
        "baseline": 2,
        "classes_balanced, as many steps": 1,
        "classes_balanced, labelled frames": 2,
    }


def test_a_study_without_validation_frames_has_dashes(run):
    params = yaml.safe_load((run / "params.yaml").read_text())
    params["data"]["splits"]["val"] = []
    (run / "params.yaml").write_text(yaml.safe_dump(params))
    mtkd("prepare")
    student = ["--student", "mininetv2"]
    mtkd("study", "gain", *student, *student, "--seeds", "1", "--epochs", "2", "--way", "baseline")
    page = (run / "results/study_gain.md").read_text()
    assert page.count("### mininetv2") == 1
    assert "| last quarter of the epochs minus the one before | | - |" in page


@pytest.mark.parametrize(("weighted", "expected"), [(False, [False, True]), (True, [True, True])])
def test_class_weights_of_the_student_are_those_of_every_condition(run, weighted, expected):
    params = yaml.safe_load((run / "params.yaml").read_text())
    params["student"]["class_weights"] = weighted
    (run / "params.yaml").write_text(yaml.safe_dump(params))
    project = load_project()
    conditions = [Condition(), Condition(class_weights=True)]
    cases = [_case(project, "any", condition, "mininetv2", 1, 1) for condition in conditions]
    assert [case.student.class_weights for case in cases] == expected


def test_a_table_without_a_gap_says_so():
    """Teachers that are nowhere clearly above the baseline leave no gap to close a share of."""
    run = result(dice={"liver": 80.0, "mean": 80.0})
    lines = _table("test", {"baseline": [run], "other": [run]}, {"liver": 82.0, "mean": 82.0})
    assert "| gap closed (%), mean (per seed), over 0 anatomies * | 100 | - | - |" in lines


def test_the_gap_is_given_against_every_baseline():
    """One that was trained for longer leaves a smaller gap, and other anatomies to count."""
    dice = {
        "baseline": {"colon": 60.0, "liver": 40.0},
        "baseline, twice as long": {"colon": 76.0, "liver": 60.0},
        "classes": {"colon": 80.0, "liver": 70.0},
    }
    runs = {
        name: [result(validation={"mean": 0.0, **of_anatomies})]
        for name, of_anatomies in dice.items()
    }
    lines = _table("validation", runs, {"mean": 80.0, "colon": 80.0, "liver": 80.0})
    assert (
        "| gap closed (%), mean (per seed), over 2 anatomies * | 100 | **0** (0) | **60** (60) | "
        "**83** (83) |" in lines
    )
    longer = "gap closed against baseline, twice as long (%), mean (per seed), over 1 anatomies"
    assert f"| {longer} | 100 | **-100** (-100) | **0** (0) | **50** (50) |" in lines


def test_pairs_have_the_interval_of_students_t():
    """The 97.5 % quantiles of four and of eleven degrees of freedom are 2.776 and 2.201."""
    assert parity._interval([1.0, 2.0, 3.0, 4.0, 5.0]) == "+3.0 (+1.0 .. +5.0)"
    assert parity._interval([0.0, 2.0] * 6) == "+1.0 (+0.3 .. +1.7)"
    assert parity._interval([1.0]) == "+1.0"


def test_what_a_study_cannot_do_is_said_before_its_runs(run):
    assert "expected a Markdown file" in mtkd("study", "parity", "--output", "results", code=1)
    assert not parity.VIEWS.exists()
    if not torch.cuda.is_available():
        arguments = ["--student", "mininetv2", "--way", "classes", "--device", "cuda"]
        output = mtkd("study", "gain", *arguments, code=1)
        assert output.splitlines()[-1].startswith("error: --device cuda: torch")
        assert "runs are there" not in output


def test_a_run_that_fails_costs_no_other(run, monkeypatch):
    """Nor does one whose process is killed; the bar ends where it should."""
    steps = []
    monkeypatch.setattr(
        study_runs, "progress", lambda _: nullcontext(lambda *step: steps.append(step))
    )
    (run / "metrics/teachers/liver.json").unlink()
    whose = ["--student", "mininetv2", "--seeds", "1", "--epochs", "1", "--jobs", "1"]
    chosen = ["--way", "trusted teachers", "--way", "other organs apart"]
    output = mtkd("study", "beyond", *whose, *chosen, code=1)
    assert "1 of 3 runs failed, the others are kept" in output
    assert "trusted teachers mininetv2 seed 1: metrics/teachers/liver.json is missing" in output
    assert steps[-1] == (2, 3)
    monkeypatch.setattr(study_runs, "_keep", _killed)
    assert "1 of 2 runs are there, 1 to go" in mtkd(
        "study", "gain", *whose, "--way", "classes", code=1
    )
    output = mtkd("study", "beyond", *whose, *chosen, code=1)
    assert "2 of 3 runs are there, 1 to go" in output
    assert "its process ended by itself" in output


def _killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_study_leaves_no_training_behind(run):
    student = ["--student", "mininetv2", "--seeds", "1", "--epochs", "10000"]
    arguments = ["study", "gain", *student, "--way", "baseline"]
    command = [sys.executable, "-m", "stages.cli", *arguments]
    parent = subprocess.Popen(
        command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    while not any(
        "spawn_main" in " ".join(p.cmdline()) for p in psutil.Process(parent.pid).children()
    ):
        time.sleep(0.1)
    parent.kill()
    parent.communicate(timeout=60)  # a worker holds the other end of the pipe as long as it lives


def test_conditions_that_only_add_class_weights_are_left_out_where_all_have_them(run):
    params = yaml.safe_load((run / "params.yaml").read_text())
    params["student"]["class_weights"] = True
    (run / "params.yaml").write_text(yaml.safe_dump(params))
    arguments = ["--student", "mininetv2", "--seeds", "1", "--way", "baseline, class weights"]
    assert (
        "--way baseline, class weights: one of baseline; baseline, twice as long; pixels"
        in mtkd("study", "gain", *arguments, code=1)
    )
