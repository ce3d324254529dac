"""What all decoders say of all frames, against measures that are written out pixel by pixel."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.decision import one_organ
from pipeline.evaluation import every_frame
from pipeline.evaluation.calibration import calibration
from pipeline.evaluation.every_decoder import THRESHOLDS, tables, unpacked
from pipeline.evaluation.per_frame import Result
from pipeline.evaluation.surface import Surface
from pipeline.labels import NO_ANATOMY, NOT_LABELLED, UNKNOWN, targets
from pipeline.prepared import Frame

ANATOMIES = ["colon", "liver", "spleen"]
B, N, H, W = 5, 3, 4, 6


# The frames of which each decoder knows every pixel.
EVERY = [[3, 4], [2, 3, 4], [2, 3, 4]]


def drawn(seed):
    """Organs of which the last stands for one without a decoder, and backgrounds."""
    rng = np.random.default_rng(seed)
    organ = rng.integers(NOT_LABELLED, N + 1, (B, H, W)).astype(np.int16)
    return torch.from_numpy(organ), torch.from_numpy(rng.random((B, N)) < 0.5)


@pytest.fixture
def known():
    return drawn(0)


@pytest.fixture
def mapped():
    """With label maps: of the last two frames all is known, of the third two decoders' share."""
    organ, background = drawn(5)
    background[:3, 0] = False
    background[:2] = False
    background[2, 1:] = True
    background[-2:] = True
    return organ, background


@pytest.fixture
def margins():
    return torch.randn(B, N, H, W, generator=torch.Generator().manual_seed(1)) * 3


@pytest.fixture
def results(known, mapped, margins):
    """Frames of the liver, of which the first two are one picture."""
    rows = []
    for i, (integers, highest) in enumerate(
        zip(*(t.numpy() for t in tables(margins, known, mapped)), strict=True)
    ):
        shows = {"colon": i == 2, "spleen": i > 2}
        frame = Frame(f"liver/01/{i}", "liver", "01", Path(), Path(), shows, map=Path())
        masks = margins[i] > 0
        times = masks.sum(0)
        every = unpacked(integers, highest)
        rows.append(
            Result(
                frame,
                every.known[1],
                Surface(0, 0),
                calibration(np.zeros((1, 1)), np.zeros((1, 1), bool)),
                (0,) * N,
                tuple(masks.sum((1, 2)).tolist()),
                tuple(int(t.sum()) for t in (times == 0, times == 1, times > 1)),
                every,
                picture=str(max(1, i)),
            )
        )
    return rows


def winner(margins, b, y, x):
    best = max(range(N), key=lambda i: float(margins[b, i, y, x]))
    return best + 1 if margins[b, best, y, x] > 0 else 0


def literal_dice(target, masks, frames, measure="dice"):
    """Percent per decoder over the known pixels of some frames, or of each decoder's."""
    shares = []
    for i, of_decoder in enumerate(frames if isinstance(frames[0], list) else [frames] * N):
        tp = fp = fn = 0
        for b, y, x in product(of_decoder, range(H), range(W)):
            truth, said = int(target[b, i, y, x]), bool(masks[b, i, y, x])
            tp += truth == 1 and said
            fp += truth == 0 and said
            fn += truth == 1 and not said
        dice = 2 * tp / (2 * tp + fp + fn)
        shares.append(100 * (dice if measure == "dice" else tp / (tp + fp + fn)))
    return shares


def assert_row(row, shares):
    assert [row[a] for a in ANATOMIES] == pytest.approx(shares, abs=0.051)
    assert row["mean"] == pytest.approx(np.mean(shares), abs=0.051)


def test_dice_of_known_pixels_and_of_every_frame(known, mapped, margins, results):
    target = targets(*known)
    whole = targets(*mapped)
    summary = every_frame.summarise_all(results, ANATOMIES)
    assert_row(summary["known_dice"], literal_dice(target, margins > 0, range(B)))
    assert_row(summary["every_dice"], literal_dice(whole, margins > 0, EVERY))
    assert_row(summary["every_iou"], literal_dice(whole, margins > 0, EVERY, "iou"))
    single = torch.zeros_like(margins, dtype=torch.bool)
    for b, y, x in product(range(B), range(H), range(W)):
        if winner(margins, b, y, x):
            single[b, winner(margins, b, y, x) - 1, y, x] = True
    alone = every_frame.one_organ(results, ANATOMIES)
    assert_row(alone["known_dice"], literal_dice(target, single, range(B)))
    assert_row(alone["every_dice"], literal_dice(whole, single, EVERY))


def test_absent_area_overlap_and_presence(margins, results):
    summary = every_frame.summarise_all(results, ANATOMIES)
    # Frames 0 and 1 are one picture. No colon in 0, 3, 4; no spleen in 0, 2.
    area = (margins > 0).float().mean((2, 3)) * 100
    assert summary["absent_area"]["colon"] == pytest.approx(
        float(area[[0, 3, 4], 0].mean()), abs=0.051
    )
    assert summary["absent_area"]["spleen"] == pytest.approx(
        float(area[[0, 2], 2].mean()), abs=0.051
    )
    several = ((margins > 0).sum(1) > 1).float()[[0, 2, 3, 4]].mean() * 100
    assert summary["overlap"] == {"mean": pytest.approx(float(several), abs=0.051)}
    highest = margins.amax((2, 3))
    wins = [float(highest[2, 0] > highest[b, 0]) for b in (0, 3, 4)]
    assert summary["presence_auroc"]["colon"] == pytest.approx(100 * np.mean(wins), abs=0.051)


def test_alarms_against_dice_over_the_threshold(known, margins, results):
    target = targets(*known)
    for threshold, row in zip(THRESHOLDS, every_frame.curve(results, ANATOMIES), strict=True):
        masks = margins.sigmoid() > threshold
        assert row["threshold"] == threshold
        dice = np.mean(literal_dice(target, masks, range(B)))
        assert row["known_dice"] == pytest.approx(dice, abs=0.051)


def test_confusion_of_the_arg_max(mapped, margins, results):
    organ, background = mapped
    counts = np.zeros((N + 1, N + 1))
    for b, y, x in product((0, 2, 3, 4), range(H), range(W)):
        shown = int(organ[b, y, x])
        if 0 <= shown < N:
            counts[shown + 1, winner(margins, b, y, x)] += 1
        if shown == NO_ANATOMY and background[b].all():
            counts[0, winner(margins, b, y, x)] += 1
    table = every_frame.confusion_of_one_organ(results, ANATOMIES)
    found = [list(row.values()) for row in table.values()]
    np.testing.assert_allclose(found, 100 * counts / counts.sum(1, keepdims=True), atol=0.051)


def test_a_tie_and_a_margin_of_zero_are_decided_as_arg_max_does():
    margins = torch.tensor([[[[0.0, 2.0, -1.0]], [[0.0, 2.0, -2.0]]]])
    planes = torch.cat([torch.zeros(1, 1, 1, 3), margins], 1)
    assert one_organ(margins).tolist() == planes.argmax(1).tolist() == [[[0, 1, 0]]]


def test_nothing_is_counted_where_nothing_is_known(margins):
    nothing = torch.full((B, H, W), NOT_LABELLED), torch.ones(B, N, dtype=torch.bool)
    assert (targets(*nothing) == UNKNOWN).all()
    every = unpacked(*(t[0].numpy() for t in tables(margins, nothing, nothing)))
    assert sum(c.tp + c.fp + c.fn + c.tn for c in every.known) == 0
    assert every.confusion.sum() == 0
