"""What could only be seen after days of training is tried before the first of them."""

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import ModuleType

import pytest
from helpers import mtkd

from stages.shared import preflight
from stages.shared.project import load_project


@pytest.fixture
def prepared(project):
    folder = project()
    mtkd("prepare")
    return folder


def train(code=0):
    return mtkd("train-teacher", "liver", "--device", "cpu", code=code)


def test_a_sound_machine_is_tried_once(prepared, monkeypatch):
    tried = []
    monkeypatch.setattr(preflight, "_imports", lambda: tried.append(1) or [])
    output = train() + train()
    assert "exported" not in output
    assert "compression" not in output
    assert tried == [1]


def test_teachers_side_by_side_try_it_at_the_same_time(prepared, monkeypatch):
    all_there = Barrier(8, timeout=60)

    def room(project):
        all_there.wait()
        return []

    monkeypatch.setattr(preflight, "_imports", lambda: [])
    monkeypatch.setattr(preflight, "_student", lambda *_: None)
    monkeypatch.setattr(preflight, "_room", room)
    project = load_project()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(preflight.preflight, [project] * 8)) == [None] * 8
    assert len(list((prepared / "scratch").glob("preflight-*"))) == 1


def test_what_evaluate_and_report_need_is_imported_before_training(prepared, monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.metrics", None)  # importing it fails
    monkeypatch.setitem(sys.modules, "stages.report", None)
    output = train(code=1)
    assert "stages.report cannot be imported" in output
    assert "monai.metrics cannot be imported" in output
    assert not (prepared / "checkpoints").exists()


def test_a_student_that_cannot_be_built_is_refused_before_its_teachers(project, prepared):
    project(student__arch="deeplabv3_efficientnet_lite0", student__pretrained="nowhere/at-all")
    output = train(code=1)
    assert "student: pretrained: 'nowhere/at-all'" in output
    assert not (prepared / "checkpoints").exists()


def test_a_student_that_starts_from_a_teacher_to_be_trained_is_not_missed(project, prepared):
    project(student__pretrained="checkpoints/teachers/liver.safetensors")
    assert "best epoch" in train()


def test_an_export_that_would_fail_is_warned_of(prepared, monkeypatch):
    monkeypatch.setattr("pipeline.deployment.export.disagreement", lambda *_: 7)
    assert (
        "warning: the student cannot be exported: its ONNX file differs from it in 7 pixels"
        in train()
    )


def test_a_runtime_that_cannot_be_loaded_is_no_reason_not_to_train(prepared, monkeypatch):
    broken = ModuleType("onnxruntime")
    broken.__spec__ = sys.modules["sys"].__spec__
    monkeypatch.setitem(sys.modules, "onnxruntime", broken)
    assert "warning: the student cannot be exported as ONNX (AttributeError" in train()


def test_a_disk_that_is_too_small_for_the_stores_is_warned_of(project, prepared, monkeypatch):
    monkeypatch.setattr("stages.stores.plan.free_space", lambda *_: 10)
    assert "warning: stores needs" in train()
