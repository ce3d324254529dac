"""``mtkd selfcheck``: rehearsed on the CPU; what is wrong must fail."""

import pytest
import torch

from pipeline.deployment.runner import LaunchError
from pipeline.errors import MtkdError
from pipeline.machine import Machine
from stages import selfcheck
from stages.selfcheck import RUN_CHECKS, Trial, _device, _failing, _network_checks


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


@pytest.mark.parametrize(
    ("error", "measured", "remedy"),
    [
        (RuntimeError("no kernel image\nis available"), "RuntimeError: no kernel image", "update"),
        (torch.OutOfMemoryError("CUDA out of memory."), "too little memory", "end other programs"),
        (LaunchError("it can't be launched"), "it can't be launched", "update torch"),
    ],
)
def test_an_error_in_a_group_is_a_failed_check_and_the_others_go_on(
    monkeypatch, capsys, error, measured, remedy
):
    def fail(*_):
        raise error

    monkeypatch.setattr(selfcheck, "_pass", fail)
    monkeypatch.setattr(selfcheck, "RUN_CHECKS", (_failing(_device, "again", "device"),))
    with pytest.raises(MtkdError, match=f"1 of 3 checks failed; what to do:\n  {remedy}"):
        selfcheck.run(Machine("cpu"), ["mininetv2"])
    output = capsys.readouterr().out
    assert f"FAIL  mininetv2: {measured}\n" in output
    assert output.count("skip  device") == 2


def test_a_device_whose_memory_is_taken_fails_by_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    trial = Trial(None, Machine("auto"))
    device, memory = _device(trial)
    assert (device.passed, memory.passed) == (True, False)
    assert memory.measured == "1.0 GiB free"
    assert memory.advice == "memory"
    assert trial.device_name == "cuda"  # in rows, and for the verbs


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
