"""What evaluation computes, each against a slow version written from its definition."""

from dataclasses import astuple
from itertools import product
from math import hypot, isnan, nan, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.counts import Counts, count_masks
from pipeline.evaluation import dice
from pipeline.evaluation.analysis import (
    confusion,
    difference,
    false_alarms,
    intervals,
    overlaps,
    per_surgery,
)
from pipeline.evaluation.bootstrap import Value, estimates, paired, significance
from pipeline.evaluation.calibration import BINS, calibration, total
from pipeline.evaluation.per_frame import Result
from pipeline.evaluation.surface import Surface, compare_outlines
from pipeline.prepared import Frame

RNG = np.random.default_rng(0)


def test_counts_are_those_of_a_loop():
    mask, label = RNG.random((2, 9, 11)) > 0.5
    pairs = list(zip(mask.ravel(), label.ravel(), strict=True))
    expected = [sum(p == pair for p in pairs) for pair in ((1, 1), (1, 0), (0, 1), (0, 0))]
    c = count_masks(mask, label)
    assert [c.tp, c.fp, c.fn, c.tn] == expected
    assert c.precision == c.tp / (c.tp + c.fp)
    assert c.recall == c.tp / (c.tp + c.fn)
    assert c.specificity == c.tn / (c.tn + c.fp)


def test_counts_on_a_device_are_those_of_each_frame():
    masks = RNG.random((5, 9, 11)) > 0.5
    labels = RNG.integers(-1, 2, (5, 9, 11)).astype(np.int16)
    masks[0] = False
    labels[0] = 0
    masks[1] = True
    labels[2] = 1
    of_decoder = (torch.from_numpy(each)[:, None] for each in (masks, labels))
    counts = dice.known_counts(*of_decoder)[:, 0]
    assert counts.dtype == torch.int64
    expected = [
        astuple(count_masks(mask[label >= 0], label[label >= 0] == 1))
        for mask, label in zip(masks, labels, strict=True)
    ]
    assert [tuple(row) for row in counts.tolist()] == expected


def test_what_divides_by_nothing_is_nan():
    nothing = Counts(0, 0, 0, 9)
    assert all(isnan(value) for value in (nothing.dice, nothing.precision, nothing.recall))
    assert isnan(Counts(4, 0, 0, 0).specificity)
    assert Counts(0, 3, 0, 6).dice == 0


def outline(mask):
    """Pixels of a mask with a neighbour outside it (or outside the frame)."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.argwhere(mask & ~inner)


def slow_surface(mask, label, tolerance):
    a, b = outline(mask), outline(label)
    forth = [nearest(p, b) for p in a]
    back = [nearest(q, a) for q in b]
    within = sum(d <= tolerance for d in forth + back)
    return max(np.percentile(forth, 95), np.percentile(back, 95)), within / (len(a) + len(b))


def nearest(point, points):
    return min(sqrt(((point - other) ** 2).sum()) for other in points)


def blob(height, width):
    y, x = np.mgrid[:height, :width]
    cy, cx, r = RNG.integers(6, height - 6), RNG.integers(6, width - 6), RNG.integers(3, 6)
    return (y - cy) ** 2 + (x - cx) ** 2 < r**2


@pytest.mark.parametrize("tolerance", [1.0, 2.0])
def test_outlines_are_compared_as_by_brute_force(tolerance):
    for _ in range(5):
        mask, label = blob(24, 30), blob(24, 30)
        distance, share = slow_surface(mask, label, tolerance)
        surface = compare_outlines(mask, label, tolerance)
        assert surface.hd95 == pytest.approx(distance, abs=1e-4)
        assert surface.nsd == pytest.approx(share, abs=1e-4)


def test_outlines_that_are_not_there():
    nothing = np.zeros((6, 8), bool)
    something = np.ones((6, 8), bool)
    both = compare_outlines(nothing, nothing, 1)
    assert isnan(both.hd95)
    assert isnan(both.nsd)
    for pair in ((nothing, something), (something, nothing)):
        surface = compare_outlines(*pair, 1)
        assert (surface.hd95, surface.nsd) == (hypot(6, 8), 0)


def test_calibration_is_that_of_a_loop():
    frames = [(RNG.random((7, 5)).astype(np.float32), RNG.random((7, 5)) > 0.6) for _ in range(3)]
    frames[0][0][0, :2] = (0, 1)
    together = total([calibration(*frame) for frame in frames])
    pairs = []
    for probability, label in frames:
        pairs += zip(probability.ravel().tolist(), label.ravel().tolist(), strict=True)
    error = 0.0
    for i in range(BINS):
        in_bin = [(p, y) for p, y in pairs if min(int(p * BINS), BINS - 1) == i]
        if in_bin:
            p, y = np.mean(in_bin, axis=0)
            error += len(in_bin) / len(pairs) * abs(p - y)
    assert together.ece == pytest.approx(error)
    assert together.brier == pytest.approx(np.mean([(p - y) ** 2 for p, y in pairs]))


def values(surgeries, anatomies=("a", "b"), frames=3):
    groups = product(range(surgeries), anatomies, range(frames))
    return [Value(f"{s}", a, float(RNG.random()) + s * 0.1) for s, a, _ in groups]


def test_intervals_are_those_of_a_slow_bootstrap():
    frames = [*values(5), Value("1", "a", nan), Value("9", "b", 2.0)]
    by_name = estimates(frames, ["a", "b", "c"])
    measured = [v for v in frames if not isnan(v.value)]
    names = list(dict.fromkeys(v.surgery for v in measured))
    weights = np.random.default_rng(0).multinomial(
        len(names), np.full(len(names), 1 / len(names)), 2000
    )
    means = [mean_of_anatomies(resample(measured, names, row)) for row in weights]
    assert by_name["mean"].low == pytest.approx(np.percentile(means, 2.5))
    assert by_name["mean"].high == pytest.approx(np.percentile(means, 97.5))
    of_a = [v.value for v in measured if v.anatomy == "a"]
    assert by_name["a"].mean == pytest.approx(np.mean(of_a))
    assert isnan(by_name["c"].mean)
    assert isnan(by_name["c"].low)


def resample(frames, surgeries, times):
    """Every frame as often as its surgery was drawn."""
    drawn = []
    for surgery, count in zip(surgeries, times, strict=True):
        drawn += [v for v in frames if v.surgery == surgery] * count
    return drawn


def mean_of_anatomies(frames):
    anatomies = {v.anatomy for v in frames}
    return np.mean([np.mean([v.value for v in frames if v.anatomy == a]) for a in anatomies])


def test_significance_needs_six_surgeries():
    assert significance(values(5)) is None
    old = values(8)
    better = paired(
        [Value(v.surgery, v.anatomy, v.value + 0.1 + int(v.surgery) / 99) for v in old], old
    )
    assert significance(better) < 0.05
    assert significance(paired(old, old)) == 1


def test_one_surgery_has_no_interval():
    by_name = estimates([*values(1), Value("9", "b", 2.0)], ["a", "b"])
    assert [by_name[name].surgeries for name in ("mean", "a", "b")] == [2, 1, 2]
    assert [isnan(by_name[name].low) for name in ("mean", "a", "b")] == [False, True, False]
    alone = estimates(values(1), ["a", "b"])["mean"]
    assert [isnan(x) for x in astuple(alone)] == [False, True, True, False]


def test_a_surgery_is_one_however_its_folders_are_written():
    def result(anatomy, surgery):
        frame = Frame(f"{anatomy}/{surgery}/image00", anatomy, surgery, Path(), Path())
        empty = calibration(np.zeros((1, 1), np.float32), np.zeros((1, 1), bool))
        counts = Counts(1, 0, 0, 3)
        return Result(frame, counts, Surface(0, 1), empty, (1, 0), (1, 0), (3, 1, 0), None, "")

    results = [result("a", "03"), result("b", "3"), result("b", "x")]
    assert intervals(results, ["a", "b"])["dice"]["mean"]["surgeries"] == 2
    rows = [(row["surgery"], row["anatomy"]) for row in per_surgery(results)]
    assert rows == [(3, "a"), (3, "b"), ("x", "b")]


def drawn_results(rng, gain=0.0):
    """Results of a network with decoders a and b on frames of four surgeries, and their masks."""
    drawn = [
        drawn_frame(rng, gain, surgery, anatomy, i)
        for surgery, anatomy, i in product(range(4), "ab", range(2))
    ]
    return [result for result, _ in drawn], [masks for _, masks in drawn]


def drawn_frame(rng, gain, surgery, anatomy, i):
    """A result, and the masks of both decoders with the label that it comes from."""
    label = rng.random((6, 8)) < 0.4
    masks = rng.random((2, 6, 8)) < 0.4
    labelled = "ab".index(anatomy)
    masks[labelled] = np.where(rng.random((6, 8)) < 0.3 + gain, label, masks[labelled])
    if (surgery, i) == (0, 0):
        masks[1 - labelled] = False
    shows = {"b": False} if anatomy == "a" else {}
    result = Result(
        Frame(f"{anatomy}/{surgery}/image{i}", anatomy, str(surgery), Path(), Path(), shows),
        count_masks(masks[labelled], label),
        Surface(0, 1),
        calibration(np.zeros((1, 1), np.float32), label[:1, :1]),
        inside=tuple((masks & label).sum((1, 2))),
        predicted=tuple(masks.sum((1, 2))),
        overlaps=tuple(np.bincount(masks.sum(0).ravel(), minlength=3)),
        every_decoder=None,  # tests/pipeline/test_every_frame.py
        picture=f"{anatomy}/{surgery}/{i}",
    )
    return result, (masks, label)


def test_confusion_is_that_of_masks():
    results, masks = drawn_results(np.random.default_rng(3))
    table = confusion(results, ["a", "b"])
    for labelled, (i, decoder) in product("ab", enumerate("ab")):
        predicted = [
            mask[i][label]
            for r, (mask, label) in zip(results, masks, strict=True)
            if r.frame.anatomy == labelled
        ]
        share = np.concatenate(predicted).mean()
        assert table[labelled][decoder] == pytest.approx(100 * share, abs=0.006)


def test_false_alarms_and_overlaps_are_those_of_masks():
    results, masks = drawn_results(np.random.default_rng(3))
    absent = [
        mask[1] for r, (mask, _) in zip(results, masks, strict=True) if r.frame.anatomy == "a"
    ]
    alarms = [mask for mask in absent if mask.any()]
    figures = false_alarms(results, ["a", "b"])["b"]
    assert figures["frames"] == len(absent) > len(alarms) > 0
    assert figures["claimed"] == pytest.approx(100 * len(alarms) / len(absent), abs=0.006)
    size = np.mean([mask.mean() for mask in alarms])
    assert figures["pixels"] == pytest.approx(100 * size, abs=0.006)
    decoders = np.stack([mask.sum(0) for mask, _ in masks])
    shares = [100 * (decoders == n).mean() for n in range(3)]
    assert list(overlaps(results).values()) == pytest.approx(shares, abs=0.006)


def test_a_difference_is_the_new_minus_the_old():
    new, _ = drawn_results(np.random.default_rng(4), gain=0.5)
    old, _ = drawn_results(np.random.default_rng(5))
    by_name = difference(new, old, ["a", "b"])["dice"]["intervals"]
    gains = {"a": [], "b": []}
    for n, o in zip(new, old, strict=True):
        gains[n.frame.anatomy].append(n.counts.dice - o.counts.dice)
    for name in "ab":
        assert by_name[name]["mean"] == pytest.approx(100 * np.mean(gains[name]), abs=1e-3)
    overall = 50 * (np.mean(gains["a"]) + np.mean(gains["b"]))
    assert by_name["mean"]["mean"] == pytest.approx(overall, abs=1e-3)
    assert 0 < by_name["mean"]["low"] < by_name["mean"]["mean"] < by_name["mean"]["high"]


def test_nothing_to_estimate():
    assert isnan(estimates([], ["a"])["mean"].mean)
