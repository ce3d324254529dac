"""Asking networks: the same logits whoever loads the frames and however many batches are on their
way.
"""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import write_png

from pipeline import inference
from pipeline.inference import clean_inputs, predictions, to_host
from pipeline.machine import Machine
from pipeline.models import create_model
from pipeline.prefetch import by_threads, delayed
from pipeline.prepared import Frame

BATCHES = [range(3), range(3, 5), range(5, 8)]


@pytest.fixture
def asked(tmp_path):
    """A network and questions about eight frames."""
    rng = np.random.default_rng(0)
    frames = []
    for number in range(8):
        path = tmp_path / f"{number}.png"
        write_png(path, rng.integers(0, 255, (32, 48, 3)).astype(np.uint8))
        frames.append(Frame(f"a/{number}", "a", "01", path, path))
    torch.manual_seed(0)
    return create_model("mininetv2", 2).eval(), clean_inputs(frames)


def answered(asked, machine):
    return list(predictions(*asked, BATCHES, "32-true", machine))


def require_same(found, expected):
    assert len(found) == len(expected)
    for (logits, prints), (others, other_prints) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(logits, others)
        assert prints == other_prints


def test_a_batch_that_is_on_its_way_changes_no_answer(asked, monkeypatch):
    expected = answered(asked, Machine("cpu"))
    assert [len(logits) for logits, _ in expected] == [3, 2, 3]
    monkeypatch.setattr(inference, "in_flight", lambda device: 1)
    require_same(answered(asked, Machine("cpu")), expected)


def test_the_next_batch_is_begun_before_one_is_given(asked, monkeypatch):
    begun = []
    monkeypatch.setattr(
        inference, "to_host", lambda logits: begun.append(len(logits)) or logits.numpy
    )
    monkeypatch.setattr(inference, "in_flight", lambda device: 1)
    next(predictions(*asked, BATCHES, "32-true", Machine("cpu")))
    assert begun == [3, 2]


def test_threads_load_where_processes_may_have_no_children(asked, monkeypatch):
    """As in the workers of dask, which are daemons."""
    expected = answered(asked, Machine("cpu"))
    monkeypatch.setattr(inference, "current_process", lambda: SimpleNamespace(daemon=True))
    monkeypatch.setattr(inference, "make_loader", None)
    require_same(answered(asked, Machine("cpu", 2)), expected)


def test_a_run_on_the_cpu_leaves_a_gpu_alone(asked, monkeypatch):
    """It may be full, broken, or another's: nothing is pinned, and no context is made."""

    def fail(*_):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")

    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "_lazy_init": fail,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.Tensor, "pin_memory", fail)
    for workers in (0, 1):
        assert len(answered(asked, Machine("cpu", workers))) == 3


def test_a_copy_from_a_gpu_is_waited_for_when_it_is_wanted(monkeypatch):
    done = []
    event = SimpleNamespace(synchronize=lambda: done.append("copied"))
    stream = SimpleNamespace(record_event=lambda: done.append("begun") or event)
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: {torch.device("cuda:1"): stream}[device]
    )
    there = SimpleNamespace(
        device=torch.device("cuda:1"), to=lambda place, non_blocking: torch.ones(2)
    )
    arrived = to_host(there)
    assert done == ["begun"]
    assert arrived().tolist() == [1, 1]
    assert done == ["begun", "copied"]


@pytest.mark.parametrize(("name", "chosen"), [("cuda:1", ["cuda:1"]), ("cuda", []), ("cpu", [])])
def test_memory_is_pinned_by_the_gpu_that_takes_it(monkeypatch, name, chosen):
    devices = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: devices.append(str(device)))
    assert list(inference._on(torch.device(name), [1, 2])) == [1, 2]
    assert devices == chosen


def test_delayed_items_are_all_there_in_order():
    begun = []
    items = delayed((begun.append(i) or i for i in range(4)), 2)
    assert next(items) == 0
    assert begun == [0, 1, 2]
    assert list(items) == [1, 2, 3]
    assert list(delayed(range(2), 5)) == [0, 1]


def test_threads_work_side_by_side_and_hand_over_in_order():
    both = threading.Barrier(2, timeout=10)

    def work(number):
        if number < 2:
            both.wait()  # one thread alone would wait forever
        return number * number

    assert list(by_threads(work, range(5), 2)) == [0, 1, 4, 9, 16]
    with pytest.raises(ZeroDivisionError):
        list(by_threads(lambda number: 1 / number, [1, 0], 2))
