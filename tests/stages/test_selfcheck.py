"""``mtkd selfcheck``: rehearsed on the CPU; what is wrong must fail."""

from dataclasses import replace

import pytest
import torch

from pipeline.deployment.runner import LaunchError
from pipeline.errors import MtkdError
from pipeline.machine import Machine
from stages import selfcheck
from stages.selfcheck import RUN_CHECKS, Trial, _device, _failing, _lively, _network_checks


def test_a_whole_check_passes_on_the_cpu(capsys, monkeypatch):
    # bfloat16 is slow on processors without it.
    monkeypatch.setattr(Trial, "precisions", ("32-true",))
    whole = Trial.write_params

    def half(trial, **changes):
        phantom = {
            "seed": 1,
            "surgeries": 8,
            "frames": 2,
            "image_size": [96, 120],
            "difficulty": 0.3,
        }
        data = {"phantom": phantom, "splits": {"val": [3], "test": [2, 7]}}
        whole(trial, data=data, **changes)

    monkeypatch.setattr(Trial, "write_params", half)
    selfcheck.run(Machine("cpu"), ["mininetv2"])
    told = capsys.readouterr().out
    assert "FAIL" not in told
    for name in (
        "mininetv2 frozen",
        "mininetv2 with one decoder frozen",
        "training learns, 32-true",
        "kill and resume",
        "stores verify on cpu",
    ):
        assert f"pass  {name}" in told
    assert "skip  device" in told


def test_a_network_that_answers_otherwise_fails(monkeypatch, capsys):
    exact = selfcheck._pass

    def off(network, device, precision):
        computed = exact(network, device, precision)
        return replace(computed, logits=computed.logits * (1.01 if off.calls else 1))

    off.calls = 0

    def counted(*arguments):
        found = off(*arguments)
        off.calls += 1
        return found

    monkeypatch.setattr(selfcheck, "_pass", counted)
    monkeypatch.setattr(selfcheck, "RUN_CHECKS", ())
    with pytest.raises(MtkdError, match="1 of 5 checks failed; what to do:\n  update torch"):
        selfcheck.run(Machine("cpu"), ["mininetv2"])
    assert "FAIL  mininetv2 32-true: off by 1e-02 (logits)" in capsys.readouterr().out


def test_nan_fails(monkeypatch):
    nan = torch.tensor([float("nan")])
    monkeypatch.setattr(selfcheck, "_pass", lambda *_: selfcheck._Pass(nan, nan, nan, nan))
    assert {
        check.passed for check in _network_checks("mininetv2")(Trial(None, Machine("cpu")))
    } == {True, False}


@pytest.mark.parametrize("precision", ["32-true", "tf32", "bf16-mixed", "16-mixed"])
def test_wrong_gradients_fail_in_every_precision(precision):
    network = _lively("mininetv2")
    expected = selfcheck._pass(network, torch.device("cpu"), "32-true")

    def passes(decoders=1.0, encoder=1.0, logits=1.0):
        computed = selfcheck._Pass(
            logits * expected.logits,
            expected.loss,
            decoders * expected.decoders,
            encoder * expected.encoder,
        )
        return selfcheck._pass_check("", computed, expected, precision).passed

    assert passes()
    for factor in (-1.0, 0.0, 0.5, 2.0, float("nan")):
        assert not passes(factor, factor)
    assert not passes(encoder=0.0)
    assert not passes(logits=0.0)
    noise = torch.randn(expected.decoders.shape, generator=torch.Generator().manual_seed(0))
    scrambled = noise * expected.decoders.norm() / noise.norm()
    wrong = replace(expected, decoders=scrambled)
    assert not selfcheck._pass_check("", wrong, expected, precision).passed


def test_rounding_alone_passes():
    """Of factors to bfloat16's seven bits, as autocast does it."""
    network = _lively("mininetv2")
    expected = selfcheck._pass(network, torch.device("cpu"), "32-true")
    computed = selfcheck._pass(network, torch.device("cpu"), "bf16-mixed")
    assert selfcheck._pass_check("", computed, expected, "bf16-mixed").passed
    assert not selfcheck._pass_check("", computed, expected, "32-true").passed


@pytest.mark.parametrize(("capability", "known"), [((7, 5), False), ((9, 0), True)])
def test_tf32_is_checked_where_the_device_has_it(monkeypatch, capability, known):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    precisions = Trial(None, Machine("cuda")).precisions
    assert ("tf32" in precisions) == known
    assert precisions[0] == "32-true"  # trained last: what comes later uses its teachers


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
