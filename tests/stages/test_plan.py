"""What a run will take is computed from what its stages do: their batches, precisions and
frames.
"""

import json

import pytest
from helpers import mtkd

from stages import plan


@pytest.fixture
def measured(monkeypatch):
    """The cases that are measured: a call takes 2 ms and 1 ms for each of its frames."""
    cases = []

    def measure(some, warmup, repeats, seconds):
        assert (warmup, repeats, seconds) == (1, 2, 1.0)
        cases.extend(some)
        return [{"milliseconds": 2 + case.batch, "peak_mib": 3.0} for case in some]

    loading = {"milliseconds": {"all with logits": 5.0}, "bytes_per_frame": 100}
    monkeypatch.setattr(plan, "measure", measure)
    monkeypatch.setattr(plan.loading, "measure", lambda *_: loading)
    return cases


def test_every_stage_is_measured_in_its_own_batches(run, measured):
    from stages.shared.project import load_project

    params = load_project().params
    sizes = (params.teacher.batch_size, params.cache.batch_size, params.student.batch_size)
    assert sizes == (4, 3, 4)
    output = mtkd("plan", "here", "--output", "plan.json", "--device", "cpu")
    found = [(case.task, case.decoders, case.batch, case.precision) for case in measured]
    assert found == [
        ("train", 1, 4, params.teacher.precision),
        ("infer", 1, 3, params.cache.precision),
        ("train", 2, 4, params.student.precision),
        ("infer", 2, 4, params.student.precision),
    ]
    rates = json.loads((run / "plan.json").read_text())["measured"]
    assert rates["teacher_step"] == 0.006
    assert rates["teacher_frame"] == pytest.approx(0.005 / 3, abs=1e-6)
    assert rates["student_frame"] == 0.0015
    assert "mininetv2, 1 decoder, infer, 3 frames: 5 ms" in output


def test_hours_are_steps_and_frames_times_what_they_take(run):
    from stages.shared.project import load_project

    rates = plan.Rates(36.0, 72.0, 3.6, 7.2, 0.0, 0, 0)
    labelled = {
        "train": {"liver": 8, "colon": 5},
        "val": {"liver": 2, "colon": 0},
        "test": {"liver": 1, "colon": 1},
    }
    # One of the 13 pictures is labelled for both, and two have no label.
    counts = plan.FrameCounts(labelled, training=12, stored=14)
    found = plan.hours(load_project().params, counts, rates, 1)
    # Two epochs each; batches of four, a last one of one frame is left out.
    assert found["teachers"] == pytest.approx((2 * (2 * 36 + 2 * 3.6) + 2 * 36) / 3600, abs=0.006)
    assert found["cache_logits"] == pytest.approx(2 * 14 * 3.6 / 3600, abs=0.006)
    assert found["student, distilled"] == pytest.approx(2 * (3 * 72 + 2 * 7.2) / 3600, abs=0.006)
    assert plan.makespan([3, 1, 2], 2) == 3
