"""Studies: what their arms are, and that one which was stopped goes on."""

import pytest
import torch
import yaml
from conftest import mtkd

from pipeline.machine import Machine
from stages import study_parity
from stages.params import load_params
from stages.study import Case, _measure
from stages.study_gain import _closed


def test_live_teachers_and_replayed_views_teach_the_same(run):
    """With as many views as epochs and one seed, the stored answers are those that live teachers give."""
    params = load_params()
    assert params.cache.seed == params.student.seed
    study_parity._write_views(params.student.epochs, Machine("cpu"))
    arms = [
        Case("live", params.student, params.distill, "live"),
        Case("views", params.student, params.distill, folder=study_parity.VIEWS),
        Case("alone", params.student, None),
        Case("pseudo", params.student, params.distill, "pseudo_labels"),
    ]
    live, views, alone, pseudo = (_measure_here(case, run) for case in arms)
    assert views["val_dice"] == pytest.approx(live["val_dice"], abs=1)  # float16, and what two epochs make of it
    assert live["val_dice"] != alone["val_dice"] != pseudo["val_dice"] != live["val_dice"]
    assert live["peak_mib"] > 100


def _measure_here(case, folder):
    import os

    os.chdir(folder)
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
    (run / "params.yaml").write_text(yaml.safe_dump(params))
    assert "1 of 4 runs are there, 3 to go" in mtkd(*arguments)  # the one without teachers does not depend on it


def test_the_gap_is_closed_against_the_baseline_of_the_same_seed():
    base = [{"seed": s, "dice": {"a": 20.0 * s, "b": 50.0}} for s in (1, 2)]
    distilled = {"seed": 2, "dice": {"a": 60.0, "b": 0.0}}
    assert _closed(distilled, base, {"a": 80.0, "b": 51.0}, ["a"]) == 50
