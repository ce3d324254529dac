"""Interleaved measurement.

What does not fit into memory costs the others nothing, and devices finish what they were given.
"""

import os
import weakref
from dataclasses import dataclass
from time import sleep

import numpy as np
import pytest
import torch

from pipeline.deployment.runner import LaunchError
from pipeline.errors import MtkdError, TooLittleMemoryError
from pipeline.machine import Machine
from pipeline.timing import interleaved, latency
from pipeline.timing.interleaved import interleave, try_interleaved
from pipeline.timing.latency import Candidate

failed = []


@dataclass
class Subject:
    """Out of memory while it is built, or in a call (0, 1, ...); not to be launched; ended by the
    kernel; or none.
    """

    builds: bool = True
    fails_in: int = -1
    launches: bool = True
    killed: bool = False
    device = torch.device("cpu")

    def build(self):
        calls = []
        if not self.builds:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        if not self.launches:
            network = torch.nn.Identity()  # which a traceback would keep
            failed.append(weakref.ref(network))
            raise LaunchError("a network can't be launched as one graph here") from OSError()

        def call():
            calls.append(None)
            if self.killed:
                os._exit(9)
            if len(calls) - 1 == self.fails_in:
                raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")
            sleep(0.01)
            return np.full(1, len(calls), np.float32)

        return call


def test_what_fails_is_its_problem_and_the_others_are_measured():
    first, second, third, fourth, fifth = try_interleaved(
        [
            Subject(builds=False),
            Subject(),
            Subject(fails_in=1),
            Subject(killed=True),
            Subject(launches=False),
        ],
        1,
        2,
    )
    assert isinstance(first, TooLittleMemoryError)
    assert isinstance(third, TooLittleMemoryError)
    assert "a process of this work ended by itself" in str(fourth)
    assert isinstance(fifth, LaunchError)
    assert len(second.seconds) == 2
    assert second.output == 3
    assert second.median >= 0.01


def test_what_must_fit_is_refused_in_one_line():
    with pytest.raises(TooLittleMemoryError, match="too little memory"):
        interleave([Subject(), Subject(fails_in=0)], 1, 1)
    with pytest.raises(MtkdError, match="a process of this work ended by itself"):
        interleave([Subject(killed=True)], 1, 1)


def test_short_calls_are_repeated_for_some_time():
    steps = []
    (timing,) = interleave([Subject()], 1, 2, lambda *step: steps.append(step), seconds=0.1)
    assert sum(timing.seconds) >= 0.1
    assert 5 <= len(timing.seconds) <= 10
    assert steps[-1] == (len(steps), len(steps))
    (problem,) = try_interleaved([Subject(fails_in=1)], 1, 2, seconds=0.1)
    assert isinstance(problem, TooLittleMemoryError)


@pytest.mark.parametrize(("kind", "waits"), [("cpu", 0), ("cuda", 1), ("mps", 1)])
def test_a_call_lasts_until_the_device_is_done(monkeypatch, kind, waits):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    subject = interleaved._Subject(lambda: None, torch.device(kind), 0)
    monkeypatch.setattr(interleaved, "_subject", subject)
    interleaved._call()
    assert waited == [torch.device(kind)] * waits


@pytest.mark.parametrize("form", ["graph", "compiled"])
def test_the_first_call_makes_a_graph(monkeypatch, form):
    """So its time and its memory are seen, and no other call's is."""
    held = [0]

    class Captures:
        def __init__(self, module, frame, device, launch):
            assert launch == form
            sleep(0.05)
            held[0] = 300

        def __call__(self, frame):
            return np.zeros(1, np.float32)

    def peak_memory(device, *, reset=False):
        return held[0]

    monkeypatch.setattr(latency, "Runner", Captures)
    monkeypatch.setattr(Candidate, "module", lambda self: None)
    monkeypatch.setattr(Candidate, "device", torch.device("cuda"))
    monkeypatch.setattr(interleaved, "peak_memory", peak_memory)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
    monkeypatch.setattr(interleaved, "SECONDS_ON_CUDA", 0.0)
    candidate = Candidate("x", 1, (4, 4), Machine("cpu"), 2, "PyTorch", "float16", form)
    (timing,) = try_interleaved([candidate], 1, 3)
    assert timing.peak == 300
    assert timing.first >= 0.05 > timing.median


def test_on_cuda_subjects_come_one_after_another_in_this_process(monkeypatch):
    monkeypatch.setattr(Subject, "device", torch.device("cuda"))
    monkeypatch.setattr(
        interleaved, "peak_memory", lambda device, *, reset=False: 100 if reset else 300
    )
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
    monkeypatch.setattr(interleaved, "SECONDS_ON_CUDA", 0.1)
    first, second, third, fourth = try_interleaved(
        [Subject(launches=False), Subject(), Subject(fails_in=1), Subject(builds=False)], 1, 2
    )
    assert isinstance(first, LaunchError)
    assert failed.pop()() is None
    assert isinstance(third, TooLittleMemoryError)
    assert isinstance(fourth, TooLittleMemoryError)
    assert second.peak == 200
    assert sum(second.seconds) >= 0.1
    assert second.output == len(second.seconds) + 1
    assert interleaved._subject is None
