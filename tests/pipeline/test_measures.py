"""What evaluation computes, each against a slow version written from its definition."""

from dataclasses import astuple
from math import hypot, isnan, nan, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.counts import Counts, count_masks
from pipeline.evaluation import dice
from pipeline.evaluation.analysis import (
    claimants,
    confusion,
    difference,
    false_alarms,
    intervals,
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
    masks, labels = RNG.random((5, 9, 11)) > 0.5, RNG.integers(-1, 2, (5, 9, 11)).astype(np.int16)
    masks[0], labels[0], masks[1], labels[2] = False, 0, True, 1
    found = dice.count(torch.from_numpy(masks), torch.from_numpy(labels))
    assert found.dtype == torch.int64
    expected = [
        astuple(count_masks(mask, label == 1)) for mask, label in zip(masks, labels, strict=True)
    ]
    assert [tuple(row) for row in found.tolist()] == expected


def test_what_divides_by_nothing_is_nan():
    assert all(
        isnan(x)
        for x in (Counts(0, 0, 0, 9).dice, Counts(0, 0, 0, 9).precision, Counts(0, 0, 0, 9).recall)
    )
    assert isnan(Counts(4, 0, 0, 0).specificity)
    assert Counts(0, 3, 0, 6).dice == 0


def outline(mask):
    """Pixels of a mask with a neighbour outside it (or outside the frame)."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.argwhere(mask & ~inner)


def slow_surface(mask, label, tolerance):
    a, b = outline(mask), outline(label)
    there = [min(sqrt(((p - q) ** 2).sum()) for q in b) for p in a]
    back = [min(sqrt(((p - q) ** 2).sum()) for q in a) for p in b]
    within = sum(d <= tolerance for d in there) + sum(d <= tolerance for d in back)
    return max(np.percentile(there, 95), np.percentile(back, 95)), within / (len(a) + len(b))


def blob(height, width):
    y, x = np.mgrid[:height, :width]
    cy, cx, r = RNG.integers(6, height - 6), RNG.integers(6, width - 6), RNG.integers(3, 6)
    return (y - cy) ** 2 + (x - cx) ** 2 < r**2


@pytest.mark.parametrize("tolerance", [1.0, 2.0])
def test_outlines_are_compared_as_by_brute_force(tolerance):
    for _ in range(5):
        mask, label = blob(24, 30), blob(24, 30)
        distance, share = slow_surface(mask, label, tolerance)
        found = compare_outlines(mask, label, tolerance)
        assert found.hd95 == pytest.approx(distance, abs=1e-4)
        assert found.nsd == pytest.approx(share, abs=1e-4)


def test_outlines_that_are_not_there():
    nothing, something = np.zeros((6, 8), bool), blob(24, 30)[:6, :8] | True
    both = compare_outlines(nothing, nothing, 1)
    assert isnan(both.hd95)
    assert isnan(both.nsd)
    for pair in ((nothing, something), (something, nothing)):
        one = compare_outlines(*pair, 1)
        assert (one.hd95, one.nsd) == (hypot(6, 8), 0)


def test_calibration_is_that_of_a_loop():
    frames = [(RNG.random((7, 5)).astype(np.float32), RNG.random((7, 5)) > 0.6) for _ in range(3)]
    frames[0][0][0, 0], frames[0][0][0, 1] = 0, 1
    together = total([calibration(*one) for one in frames])
    pairs = [
        (float(p), bool(y))
        for prob, label in frames
        for p, y in zip(prob.ravel(), label.ravel(), strict=True)
    ]
    error = 0.0
    for i in range(BINS):
        own = [(p, y) for p, y in pairs if min(int(p * BINS), BINS - 1) == i]
        if own:
            error += (
                len(own)
                / len(pairs)
                * abs(np.mean([p for p, _ in own]) - np.mean([y for _, y in own]))
            )
    assert together.ece == pytest.approx(error)
    assert together.brier == pytest.approx(np.mean([(p - y) ** 2 for p, y in pairs]))


def values(surgeries, anatomies=("a", "b"), frames=3):
    return [
        Value(f"{s}", a, float(RNG.random()) + s * 0.1)
        for s in range(surgeries)
        for a in anatomies
        for _ in range(frames)
    ]


def test_intervals_are_those_of_a_slow_bootstrap():
    some = [*values(5), Value("1", "a", nan), Value("9", "b", 2.0)]
    found = estimates(some, ["a", "b", "c"])
    known = [v for v in some if not isnan(v.value)]
    names = list(dict.fromkeys(v.surgery for v in known))
    weights = np.random.default_rng(0).multinomial(
        len(names), np.full(len(names), 1 / len(names)), 2000
    )
    means = []
    for row in weights:
        drawn = [
            v
            for name, times in zip(names, row, strict=True)
            for v in known
            if v.surgery == name
            for _ in range(times)
        ]
        per = [
            np.mean([v.value for v in drawn if v.anatomy == a])
            for a in "ab"
            if any(v.anatomy == a for v in drawn)
        ]
        means.append(np.mean(per))
    assert found["mean"].low == pytest.approx(np.percentile(means, 2.5))
    assert found["mean"].high == pytest.approx(np.percentile(means, 97.5))
    assert found["a"].mean == pytest.approx(np.mean([v.value for v in known if v.anatomy == "a"]))
    assert isnan(found["c"].mean)
    assert isnan(found["c"].low)


def test_significance_needs_six_surgeries():
    assert significance(values(5)) is None
    old = values(8)
    better = paired(
        [Value(v.surgery, v.anatomy, v.value + 0.1 + int(v.surgery) / 99) for v in old], old
    )
    assert significance(better) < 0.05
    assert significance(paired(old, old)) == 1


def test_one_surgery_has_no_interval():
    found = estimates([*values(1), Value("9", "b", 2.0)], ["a", "b"])
    assert [found[name].surgeries for name in ("mean", "a", "b")] == [2, 1, 2]
    assert [isnan(found[name].low) for name in ("mean", "a", "b")] == [False, True, False]
    alone = estimates(values(1), ["a", "b"])["mean"]
    assert [isnan(x) for x in astuple(alone)] == [False, True, True, False]


def test_a_surgery_is_one_however_its_folders_are_written():
    def result(anatomy, surgery):
        frame = Frame(f"{anatomy}/{surgery}/image00", anatomy, surgery, Path(), Path())
        empty = calibration(np.zeros((1, 1), np.float32), np.zeros((1, 1), bool))
        return Result(frame, Counts(1, 0, 0, 3), Surface(0, 1), empty, (1, 0), (1, 0), (3, 1, 0))

    results = [result("a", "03"), result("b", "3"), result("b", "x")]
    assert intervals(results, ["a", "b"])["dice"]["mean"]["surgeries"] == 2
    rows = [(row["surgery"], row["anatomy"]) for row in per_surgery(results)]
    assert rows == [(3, "a"), (3, "b"), ("x", "b")]


def drawn_results(rng, gain=0.0):
    """Results of a network with decoders a and b on frames of four surgeries, and the masks that they come from."""
    results, masks = [], []
    for surgery in range(4):
        for anatomy in "ab":
            for i in range(2):
                label = rng.random((6, 8)) < 0.4
                claims = rng.random((2, 6, 8)) < 0.4
                own = "ab".index(anatomy)
                claims[own] = np.where(rng.random((6, 8)) < 0.3 + gain, label, claims[own])
                if (surgery, i) == (0, 0):
                    claims[1 - own] = False
                frame = Frame(
                    f"{anatomy}/{surgery}/image{i}", anatomy, str(surgery), Path(), Path()
                )
                inside, claimed = (claims & label).sum((1, 2)), claims.sum((1, 2))
                several = np.bincount(claims.sum(0).ravel(), minlength=3)
                counts = count_masks(claims[own], label)
                nothing = calibration(np.zeros((1, 1), np.float32), label[:1, :1])
                results.append(
                    Result(
                        frame,
                        counts,
                        Surface(0, 1),
                        nothing,
                        tuple(inside),
                        tuple(claimed),
                        tuple(several),
                    )
                )
                masks.append((claims, label))
    return results, masks


def test_confusion_and_false_alarms_are_those_of_masks():
    results, masks = drawn_results(np.random.default_rng(3))
    table = confusion(results, ["a", "b"])
    for labelled in "ab":
        own = [m for r, m in zip(results, masks, strict=True) if r.frame.anatomy == labelled]
        for i, decoder in enumerate("ab"):
            there = [
                bool(claim)
                for c, y in own
                for claim, is_it in zip(c[i].ravel(), y.ravel(), strict=True)
                if is_it
            ]
            assert table[labelled][decoder] == pytest.approx(100 * np.mean(there), abs=0.006)
    shows = {r.frame.id: {"b": False} for r in results if r.frame.anatomy == "a"}
    absent = [
        claims[1] for r, (claims, _) in zip(results, masks, strict=True) if r.frame.anatomy == "a"
    ]
    said = [claim for claim in absent if claim.any()]
    alarm = false_alarms(results, ["a", "b"], shows)["b"]
    assert alarm["frames"] == len(absent) > len(said) > 0
    assert alarm["claimed"] == pytest.approx(100 * len(said) / len(absent), abs=0.006)
    assert alarm["pixels"] == pytest.approx(
        100 * np.mean([claim.mean() for claim in said]), abs=0.006
    )
    shares = [np.mean([(claims.sum(0) == n).mean() for claims, _ in masks]) for n in range(3)]
    assert list(claimants(results).values()) == pytest.approx(
        [100 * share for share in shares], abs=0.006
    )


def test_a_difference_is_the_new_minus_the_old():
    (new, _), (old, _) = (
        drawn_results(np.random.default_rng(4), gain=0.5),
        drawn_results(np.random.default_rng(5)),
    )
    found = difference(new, old, ["a", "b"])["dice"]["intervals"]
    gains = {
        name: [
            n.counts.dice - o.counts.dice
            for n, o in zip(new, old, strict=True)
            if n.frame.anatomy == name
        ]
        for name in "ab"
    }
    for name in "ab":
        assert found[name]["mean"] == pytest.approx(100 * np.mean(gains[name]), abs=1e-3)
    assert found["mean"]["mean"] == pytest.approx(
        50 * (np.mean(gains["a"]) + np.mean(gains["b"])), abs=1e-3
    )
    assert 0 < found["mean"]["low"] < found["mean"]["mean"] < found["mean"]["high"]


def test_nothing_to_estimate():
    assert isnan(estimates([], ["a"])["mean"].mean)
