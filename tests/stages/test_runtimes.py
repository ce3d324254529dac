"""Every way of getting from a frame to masks, measured beside one another."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import mtkd

from pipeline.errors import MtkdError
from pipeline.machine import Machine
from pipeline.timing import latency
from pipeline.timing.interleaved import Timing
from pipeline.timing.latency import FORMS, Candidate, available
from stages.benchmarks import runtimes
from stages.shared.project import Places
from stages.shared.results import read


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """Tracing takes a fraction of the time."""
    monkeypatch.setattr("pipeline.deployment.onnx_graph.find_spec", lambda name: None)


def test_every_runtime_in_both_forms_and_they_agree(run, monkeypatch):
    variants = runtimes.Settings.variants

    def one_int8(settings, form):  # which takes ten seconds
        found = variants(settings, form)
        return [each for each in found if each[1] != "int8" or form.name == "shared"]

    monkeypatch.setattr(runtimes.Settings, "variants", one_int8)
    kinds = ["PyTorch", "ONNX Runtime", "OpenVINO"]
    settings = runtimes.Settings(kinds, FORMS, 2, (64, 96), 2, Machine("cpu"))
    runtimes.run(Places(Path()), ["mininetv2"], settings, Path("all.json"))
    rows = json.loads(Path("all.json").read_text())["rows"]
    ways = {(row["form"], row["runtime"], row["precision"], row["decoding"]) for row in rows}
    assert len(ways) == len(rows)
    for runtime in ("PyTorch", "ONNX Runtime", "OpenVINO"):
        assert {
            ("shared", runtime, "float32", "looped"),
            ("shared", runtime, "float32", "joined"),
        } <= ways
        assert ("separate", runtime, "float32", "joined") in ways
    assert (("shared", "OpenVINO", "int8", "joined") in ways) == available("OpenVINO", "int8")
    for row in rows:
        assert 0 < row["milliseconds"] <= row["p95_milliseconds"]
        assert row["first_milliseconds"] > 0
        assert row["network_milliseconds"] > 0
        assert row["multiply_adds"] > 0
        assert row["paper_ms_rtx3090"] is None  # published for eleven anatomies
    expected = read(Path("metrics/evaluate.json"))["mtkd"]
    for row in rows:
        if row["precision"] == "float32":
            assert row["logit_difference"] < 1e-3
        if row["form"] == "shared":
            assert row["weights"] == "trained"
            near = 1.0 if row["precision"] == "float32" else 30.0
            assert row["dice"] == pytest.approx(expected["dice"]["mean"], abs=near)
            assert row["every_dice"] == pytest.approx(expected["every_dice"]["mean"], abs=near)
        else:
            assert row["dice"] is row["every_dice"] is None


def test_label_maps_of_a_network_that_sees_less(run, capsys, monkeypatch):
    kinds = [(runtime, "float32", "joined") for runtime in ("PyTorch", "OpenVINO")]
    monkeypatch.setattr(runtimes, "variants", lambda *_: kinds)
    settings = runtimes.Settings(
        ["PyTorch", "OpenVINO"], ["joined"], 2, (64, 96), 1, Machine("cpu"), (32, 48), "labels"
    )
    runtimes.run(Places(Path()), ["mininetv2"], settings, Path("labels.json"))
    found = read(Path("labels.json"))
    assert (found["network_size"], found["gives"]) == ([32, 48], "labels")
    rows = {(row["form"], row["runtime"], row["precision"]): row for row in found["rows"]}
    assert ("shared_decoder", "OpenVINO", "float32") in rows
    assert all(row["problem"] is None for row in rows.values())
    one, several = (
        rows[form, "PyTorch", "float32"]["multiply_adds"] for form in ("shared_decoder", "shared")
    )
    assert one < several
    assert "to its label map, batch 1, network at 48x32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MtkdError("a process ended"), "a process"),
        (torch.OutOfMemoryError("CUDA out of memory."), "too little memory"),
    ],
)
def test_what_cannot_be_measured_is_told_and_the_rest_is_kept(run, monkeypatch, error, line):
    real = runtimes._measured

    def measured(arch, form, *rest):
        if form.name == "separate":
            raise error
        return real(arch, form, *rest)

    monkeypatch.setattr(runtimes, "_measured", measured)
    with pytest.raises(MtkdError, match=f"1 could not be measured:\n  mininetv2 separate: {line}"):
        runtimes.run(
            Places(Path()),
            ["mininetv2"],
            runtimes.Settings(["PyTorch"], FORMS, 2, (64, 96), 1, Machine("cpu")),
            Path("all.json"),
        )
    rows = json.loads(Path("all.json").read_text())["rows"]
    assert {row["form"] for row in rows} == {"shared", "shared_decoder"}


def test_a_problem_of_one_variant_is_in_its_row(run, monkeypatch):
    """One can't be exported, another can't compute its Dice."""
    export, dice = runtimes.export_graph, runtimes.runtime_dice
    dices = []

    def export_graph(candidate, path):
        if candidate.form == "joined":
            raise MtkdError("the disk is full")
        return export(candidate, path)

    def runtime_dice(*arguments):
        dices.append(arguments)
        if len(dices) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return dice(*arguments)

    monkeypatch.setattr(runtimes, "export_graph", export_graph)
    monkeypatch.setattr(runtimes, "runtime_dice", runtime_dice)
    settings = runtimes.Settings(
        ["PyTorch", "ONNX Runtime"], ["joined", "looped"], 2, (64, 96), 1, Machine("cpu")
    )
    problem = "mininetv2 shared ONNX Runtime float32 joined: the disk is full"
    with pytest.raises(MtkdError, match=problem):
        runtimes.run(Places(Path()), ["mininetv2"], settings, Path("all.json"))
    rows = {
        (row["runtime"], row["precision"], row["decoding"]): row
        for row in json.loads(Path("all.json").read_text())["rows"]
        if row["form"] == "shared"
    }
    first = rows.pop(("PyTorch", "float32", "joined"))
    assert first["problem"] == "too little memory"
    assert first["milliseconds"] > 0
    assert first["dice"] is first["every_dice"] is None
    second = rows.pop(("ONNX Runtime", "float32", "joined"))
    assert second["problem"] == "the disk is full"
    assert second["milliseconds"] is second["network_milliseconds"] is None
    assert rows
    for row in rows.values():
        assert row["problem"] is None
        assert row["milliseconds"] > 0


@pytest.mark.parametrize(
    ("forms", "compared"),
    [
        (["joined", "graph"], [0.0, 8.0]),
        (["graph", "frozen"], [8.0, 0.0]),
        (["graph", "compiled"], [None, None]),
    ],
)
def test_logits_are_compared_with_float32_or_not_at_all(forms, compared):
    """Joined ones with frozen margins, too."""
    logits = np.zeros((1, 1, 2, 4, 4), np.float32)
    outputs = {"joined": logits, "frozen": logits[:, :, 0]}
    candidates = []
    timings = []
    for form in forms:
        precision = "float32" if form in outputs else "float16"
        output = outputs.get(form, logits[:, :, 0] + 8)
        candidates.append(Candidate("x", 1, (4, 4), Machine("cpu"), 1, "PyTorch", precision, form))
        timings.append(Timing(1.0, [1.0], 0, output))
    reference = runtimes._reference(candidates, timings)
    assert [runtimes._difference(timing, reference) for timing in timings] == compared
    joined = Timing(1.0, [1.0], 0, logits + np.array([0, 3], np.float32)[:, None, None])
    assert runtimes._difference(joined, outputs["frozen"]) == 3.0


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--form", "graph"], "--form graph: not known on cpu to PyTorch, ONNX Runtime, OpenVINO;"),
        (["--runtime", "OpenVINO", "--form", "frozen"], "to OpenVINO; choose joined, looped"),
    ],
)
def test_a_form_that_the_device_does_not_know_is_refused(options, line):
    output = mtkd("benchmark", "runtimes", "--device", "cpu", *options, code=1)
    assert line in output


def test_a_runtime_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(latency, "find_spec", lambda package: None)
    output = mtkd("benchmark", "runtimes", "--device", "cpu", "--runtime", "OpenVINO", code=1)
    assert "--runtime OpenVINO: not installed here" in output


@pytest.mark.parametrize(
    ("option", "value"), [("--arch", "segformer_b0"), ("--runtime", "OpenVINO")]
)
def test_options_of_all_are_refused_without_it(run, option, value):
    assert "it is an option of mtkd benchmark" in mtkd("benchmark", option, value, code=2)
