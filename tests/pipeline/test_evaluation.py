"""Results of frames, against a slow version; the same whoever measures them."""

from dataclasses import astuple

import numpy as np
import pytest
import torch
from helpers import disc, write_png

from pipeline.counts import count_masks
from pipeline.evaluation import per_frame
from pipeline.evaluation.calibration import calibration
from pipeline.evaluation.per_frame import evaluate, outline_processes, predicted_masks
from pipeline.evaluation.surface import compare_outlines
from pipeline.machine import Machine
from pipeline.models import create_model
from pipeline.models.frozen import Frozen
from pipeline.models.network import resize
from pipeline.prepared import Frame, load_frame, load_label

ANATOMIES = ("a", "b", "c")
TOLERANCE = 2.0
CPU = Machine("cpu")


@pytest.fixture
def network():
    """Random weights, whose decoders each predict a part of a frame."""
    torch.manual_seed(3)
    return create_model("mininetv2", 3).eval()


@pytest.fixture
def frames(tmp_path):
    rng = np.random.default_rng(0)
    made = []
    for number in range(5):
        paths = [tmp_path / kind / f"{number}.png" for kind in ("image", "label")]
        write_png(paths[0], rng.integers(0, 255, (32, 48, 3)).astype(np.uint8))
        label = disc((32, 48), rng.integers(8, 24, 2), 3 * (number % 4))
        write_png(paths[1], label.astype(np.uint8))
        made.append(Frame(f"x/{number}", ANATOMIES[number % 3], "01", *paths))
    return made


@torch.inference_mode()
def slowly(network, frames):
    """Frame by frame, in NumPy, by the definitions."""
    frozen = Frozen(network, torch.device("cpu"), torch.float32)
    pixels = torch.from_numpy(
        np.stack([load_frame(frame.image).transpose(2, 0, 1) for frame in frames])
    )
    natives = torch.cat([frozen.margins(part) for part in pixels.split(2)])
    results = []
    for frame, native in zip(frames, natives, strict=True):
        label = load_label(frame.label).astype(bool)
        margin = resize(native[None, :, None], label.shape)[0, :, 0].numpy()
        anatomy = ANATOMIES.index(frame.anatomy)
        masks = margin > 0
        decoders = masks.sum(0)
        results.append(
            (
                count_masks(masks[anatomy], label),
                compare_outlines(masks[anatomy], label, TOLERANCE),
                calibration(1 / (1 + np.exp(-margin[anatomy].clip(-60, 60))), label),
                tuple(int((mask & label).sum()) for mask in masks),
                tuple(int(mask.sum()) for mask in masks),
                tuple(int(np.isin(decoders, some).sum()) for some in ([0], [1], [2, 3])),
            )
        )
    return results


def require_same(results, expected, frames):
    assert [result.frame for result in results] == frames
    for result, values in zip(results, expected, strict=True):
        counts, surface, calibrated, inside, predicted, overlaps = values
        assert (result.counts, result.inside, result.predicted) == (counts, inside, predicted)
        assert result.overlaps == overlaps
        assert all(isinstance(pixels, int) for pixels in (*result.inside, *result.overlaps))
        np.testing.assert_array_equal(astuple(result.surface), astuple(surface))
        for sums, expected_sums in zip(
            astuple(result.calibration), astuple(calibrated), strict=True
        ):
            np.testing.assert_array_equal(sums, expected_sums)


def test_results_are_those_of_a_loop_over_frames(network, frames, monkeypatch):
    expected = slowly(network, frames)
    assert min(sum(values[4]) for values in expected) > 0
    require_same(list(evaluate(network, frames, ANATOMIES, 2, TOLERANCE, CPU)), expected, frames)
    monkeypatch.setattr(per_frame, "in_flight", lambda device: 1)
    require_same(list(evaluate(network, frames, ANATOMIES, 2, TOLERANCE, CPU)), expected, frames)


def test_processes_measure_the_same_in_order(network, frames):
    expected = slowly(network, frames)
    with outline_processes(CPU) as none, outline_processes(Machine("cpu", 2)) as processes:
        assert none is None
        assert processes is not None
        results = list(
            evaluate(network, frames, ANATOMIES, 2, TOLERANCE, Machine("cpu", 2), processes)
        )
    require_same(results, expected, frames)


def test_a_batch_is_on_its_way_while_the_one_before_is_measured(network, frames, monkeypatch):
    begun = []
    real = per_frame.to_host
    monkeypatch.setattr(
        per_frame, "to_host", lambda tensor: begun.append(len(tensor)) or real(tensor)
    )
    monkeypatch.setattr(per_frame, "in_flight", lambda device: 1)
    next(evaluate(network, frames, ANATOMIES, 2, None, CPU))
    assert begun == [2] * 8  # margins, pixels, tables and largest margins of two batches


def test_predicted_masks_are_those_that_are_counted(network, frames):
    masks = predicted_masks(network, frames, ANATOMIES, CPU)
    for result in evaluate(network, frames, ANATOMIES, 1, None, CPU):
        label = load_label(result.frame.label).astype(bool)
        assert count_masks(masks[result.frame.id], label) == result.counts
