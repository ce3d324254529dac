"""``mtkd selfcheck``: rehearsed on the CPU; what is wrong must fail."""

import pytest
import torch

from pipeline.errors import MtkdError
from pipeline.machine import Machine
from stages import selfcheck
from stages.selfcheck import RUN_CHECKS, Trial, _device, _network_checks


def test_a_whole_check_passes_on_the_cpu(capsys, monkeypatch):
    monkeypatch.setattr(
        Trial, "precisions", ("32-true",)
    )  # bfloat16 is slow on processors without it
    selfcheck.run(Machine("cpu"), ["mininetv2"])
    told = capsys.readouterr().out
    assert "FAIL" not in told
    for name in (
        "mininetv2 frozen",
        "training learns, 32-true",
        "kill and resume",
        "stores verify on cpu",
    ):
        assert f"pass  {name}" in told
    assert "skip  device" in told


def test_a_network_that_answers_otherwise_fails(monkeypatch, capsys):
    exact = selfcheck._pass

    def off(network, device, precision):
        logits, loss, gradients = exact(network, device, precision)
        return (logits * 1.01 if off.calls else logits), loss, gradients

    off.calls = 0

    def counted(*arguments):
        found = off(*arguments)
        off.calls += 1
        return found

    monkeypatch.setattr(selfcheck, "_pass", counted)
    monkeypatch.setattr(selfcheck, "RUN_CHECKS", ())
    with pytest.raises(MtkdError, match="1 of 4 checks failed; what to do:\n  update torch"):
        selfcheck.run(Machine("cpu"), ["mininetv2"])
    assert "FAIL  mininetv2 32-true: off by 1e-02 (logits)" in capsys.readouterr().out


def test_nan_fails(monkeypatch):
    monkeypatch.setattr(selfcheck, "_pass", lambda *_: (torch.tensor([float("nan")]),) * 3)
    assert {
        check.passed for check in _network_checks("mininetv2")(Trial(None, Machine("cpu")))
    } == {True, False}


def test_a_verb_that_fails_is_a_failed_check(tmp_path, monkeypatch):
    trial = Trial(tmp_path, Machine("cpu"))
    monkeypatch.setattr(
        Trial, "write_params", lambda self, **_: (tmp_path / "params.yaml").write_text("data: 1\n")
    )
    for group, verb in ((RUN_CHECKS[0], "phantom"), (RUN_CHECKS[2], "cache-logits")):
        (check,) = group(trial)
        assert check.passed is False
        assert check.measured.startswith(f"mtkd {verb}: ")
        assert "is missing" in check.measured


def test_a_cpu_alone_is_no_failure():
    (check,) = _device(Trial(None, Machine("cpu")))
    assert check.passed is None
