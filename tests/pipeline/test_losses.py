"""The losses against slow, literal versions written from the equations."""

import math
from itertools import product

import pytest
import torch

from pipeline.distillation import DIVERGENCES, distilled, on_one_grid, reconciled
from pipeline.labels import NO_ANATOMY, NOT_LABELLED, own_decoder
from pipeline.losses import (
    IGNORE,
    balanced_class_wise_kl,
    channel_wise_kl,
    class_wise_kl,
    partial_label_cross_entropy,
    partial_targets,
)
from pipeline.settings import Distill
from pipeline.training import supervised

B, N, H, W = 3, 4, 5, 6


@pytest.fixture
def frames():
    g = torch.Generator().manual_seed(0)
    label = torch.randint(0, 2, (B, H, W), generator=g)
    label[:, 0] = IGNORE
    return label, torch.tensor([0, 2, 2])


def known(label, anatomy):
    """What a batch says of frames that are labelled for one anatomy each."""
    background = torch.where(label == 0, NO_ANATOMY, NOT_LABELLED)
    return {
        "organ": torch.where(label == 1, anatomy[:, None, None], background),
        "background": own_decoder(anatomy, N),
        "labelled": own_decoder(anatomy, N),
    }


def logits(seed, *shape, scale=3.0):
    return (
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        * scale
    )


def literal_cross_entropy(z, label, anatomy):
    """Paper, section 2: the own decoder on all pixels (Eq. 1), the others on the organ's pixels as
    background.
    """
    losses = [0.0] * N
    for b in range(B):
        for i in range(N):
            for y in range(H):
                for x in range(W):
                    truth = int(label[b, y, x])
                    if truth == IGNORE or (i != anatomy[b] and truth == 0):
                        continue
                    wanted = truth if i == anatomy[b] else 0
                    p = math.exp(z[b, i, wanted, y, x]) / sum(math.exp(v) for v in z[b, i, :, y, x])
                    losses[i] -= math.log(p) * N / (B * H * W)
    return torch.tensor(losses, dtype=torch.float64)


def test_cross_entropy_equals_the_literal_version(frames):
    label, anatomy = frames
    z = logits(1, B, N, 2, H, W)
    ours = partial_label_cross_entropy(z, partial_targets(label, anatomy, N))
    torch.testing.assert_close(
        ours.double(), literal_cross_entropy(z, label, anatomy), rtol=1e-5, atol=1e-5
    )


def test_cross_entropy_adds_up_over_micro_batches(frames):
    label, anatomy = frames
    z, target = logits(2, B, N, 2, H, W), partial_targets(label, anatomy, N)
    parts = sum(partial_label_cross_entropy(z[b : b + 1], target[b : b + 1]) for b in range(B)) / B
    torch.testing.assert_close(parts, partial_label_cross_entropy(z, target))


def test_ignored_pixels_have_no_gradient(frames):
    label, anatomy = frames
    z, target = logits(3, B, N, 2, H, W).requires_grad_(), partial_targets(label, anatomy, N)
    partial_label_cross_entropy(z, target).sum().backward()
    ignored = (target == IGNORE)[:, :, None].expand_as(z)
    assert (z.grad[ignored] == 0).all()
    assert (z.grad[~ignored] != 0).all()


def test_a_decoder_without_valid_pixels_gives_zero():
    target = torch.full((1, 2, 3, 3), IGNORE)
    assert partial_label_cross_entropy(torch.zeros(1, 2, 2, 3, 3), target).tolist() == [0, 0]


def test_class_weights_weigh_pixels():
    z, target = logits(4, 1, 1, 2, 2, 2), torch.tensor([[[[0, 1], [1, IGNORE]]]])
    weights = torch.tensor([[2.0, 5.0]])
    background = partial_label_cross_entropy(z, torch.where(target == 0, 0, IGNORE))
    anatomy = partial_label_cross_entropy(z, torch.where(target == 1, 1, IGNORE))
    torch.testing.assert_close(
        partial_label_cross_entropy(z, target, weights), 2 * background + 5 * anatomy
    )


def literal_pixels(s, t, temperature, valid):
    """Eq. 2 with the softmax over the valid pixels of a channel (Shu et al. 2021)."""
    per_frame = []
    for b in range(len(s)):
        if not valid[b].any():
            continue
        ps = torch.softmax(s[b][..., valid[b]] / temperature, -1)
        pt = torch.softmax(t[b][..., valid[b]] / temperature, -1)
        per_frame.append((pt * (pt / ps).log()).sum(-1).mean(-1) * temperature**2)
    return torch.stack(per_frame).mean(0) if per_frame else torch.zeros(s.shape[1], dtype=s.dtype)


def literal_classes(s, t, temperature, valid):
    """Eq. 2 with the softmax over the two classes of a pixel."""
    per_frame = []
    for b in range(len(s)):
        if not valid[b].any():
            continue
        ps, pt = torch.softmax(s[b] / temperature, 1), torch.softmax(t[b] / temperature, 1)
        per_frame.append((pt * (pt / ps).log()).sum(1)[..., valid[b]].mean(-1) * temperature**2)
    return torch.stack(per_frame).mean(0) if per_frame else torch.zeros(s.shape[1], dtype=s.dtype)


def literal_balanced(s, t, temperature, valid):
    """The same, the anatomy's pixels and the background's each weighing a half; below 1 % of the
    frame less.
    """
    per_frame = []
    for b in range(len(s)):
        if not valid[b].any():
            continue
        ps, pt = (torch.softmax(z[b] / temperature, 1)[..., valid[b]] for z in (s, t))
        kl = (pt * (pt / ps).log()).sum(1)
        halves = [
            (pt[:, c] * kl).sum(-1) / (pt[:, c].sum(-1) + 0.01 * valid[b].sum()) for c in (0, 1)
        ]
        per_frame.append((halves[0] + halves[1]) / 2 * temperature**2)
    return torch.stack(per_frame).mean(0) if per_frame else torch.zeros(s.shape[1], dtype=s.dtype)


READINGS = [
    (channel_wise_kl, literal_pixels),
    (class_wise_kl, literal_classes),
    (balanced_class_wise_kl, literal_balanced),
]


def test_every_divergence_has_a_literal_version():
    assert {ours for ours, _ in READINGS} == set(DIVERGENCES.values())


@pytest.mark.parametrize(("ours", "literal"), READINGS)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_equals_the_literal_version(ours, literal, temperature):
    s, t = logits(5, B, N, 2, H, W), logits(6, B, N, 2, H, W)
    valid = torch.rand(B, H, W, generator=torch.Generator().manual_seed(7)) > 0.3
    valid[1] = False
    expected = literal(s, t, temperature, valid)
    torch.testing.assert_close(
        ours(s, t, temperature, valid).double(), expected, rtol=1e-4, atol=1e-5
    )
    everywhere = torch.ones(B, H, W, dtype=torch.bool)
    torch.testing.assert_close(ours(s, t, temperature), ours(s, t, temperature, everywhere))


@pytest.mark.parametrize(("ours", "_"), READINGS)
def test_kl_of_equal_logits_is_zero_with_zero_gradient(ours, _):
    t = logits(8, B, N, 2, H, W).float()
    s = t.clone().requires_grad_()
    loss = ours(s, t, 4.0)
    loss.sum().backward()
    assert loss.abs().max() < 1e-5
    assert s.grad.abs().max() < 1e-6


@pytest.mark.parametrize(("ours", "_"), READINGS)
def test_no_valid_cell_gives_zero_and_finite_gradients(ours, _):
    s = logits(9, B, N, 2, H, W).requires_grad_()
    loss = ours(s, logits(10, B, N, 2, H, W), 4.0, torch.zeros(B, H, W, dtype=torch.bool))
    loss.sum().backward()
    assert loss.tolist() == [0] * N
    assert (s.grad == 0).all()


@pytest.mark.parametrize(("ours", "_"), READINGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kl_is_computed_in_float32_and_survives_large_logits(ours, _, dtype):
    s, t = (60 * torch.sign(logits(i, B, N, 2, H, W)) for i in (11, 12))
    loss = ours(s.to(dtype), t.to(dtype), 1.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, ours(s.float(), t.float(), 1.0))
    assert torch.isfinite(loss).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cross_entropy_is_computed_in_float32(dtype):
    z = (20 * logits(11, B, N, 2, H, W)).to(dtype)
    target = torch.randint(-1, 2, (B, N, H, W), generator=torch.Generator().manual_seed(1))
    loss = partial_label_cross_entropy(z, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, partial_label_cross_entropy(z.float(), target))


def test_gradients_of_cross_entropy_equal_finite_differences(frames):
    label, anatomy = frames
    target = partial_targets(label, anatomy, N)
    z, step = logits(19, B, N, 2, H, W, scale=1.0).requires_grad_(), 1e-2
    partial_label_cross_entropy(z, target).sum().backward()
    for index in [(0, 0, 0, 1, 0), (1, 2, 1, 2, 3), (2, 1, 0, 4, 5)]:
        bump = torch.zeros_like(z)
        bump[index] = step
        with torch.no_grad():
            above, below = (
                partial_label_cross_entropy(z + sign * bump, target).double().sum()
                for sign in (1, -1)
            )
        slope = (above - below) / (2 * step)
        assert abs(slope - z.grad[index]) < 1e-3 * max(1.0, abs(slope))


@pytest.mark.parametrize(("ours", "_"), READINGS)
def test_what_stands_in_an_invalid_cell_does_not_matter(ours, _):
    """Not to the value nor to the gradient, be it no number."""
    valid = torch.rand(B, H, W, generator=torch.Generator().manual_seed(30)) > 0.3
    found = []
    for other in (0.0, 60.0, math.inf, math.nan):
        s = logits(31, B, N, 2, H, W).float().requires_grad_()
        t = logits(32, B, N, 2, H, W).float().masked_fill(~valid[:, None, None], other)
        value = ours(s, t, 2.0, valid)
        value.sum().backward()
        assert (s.grad.movedim((1, 2), (-2, -1))[~valid] == 0).all()
        found.append((value.detach(), s.grad))
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_reach_the_losses(frames, dtype):
    """Logits of +-60 that a network gave in half precision: values and gradients as outside of
    autocast, and finite.
    """
    target = partial_targets(*frames, N)
    t = (60 * torch.sign(logits(20, B, N, 2, H, W))).to(dtype)
    losses = [lambda s: partial_label_cross_entropy(s, target)]
    losses += [lambda s, kl=kl: kl(s, t, 2.0) for kl, _ in READINGS]
    for loss in losses:
        found = []
        for enabled in (True, False):
            s = (60 * torch.sign(logits(21, B, N, 2, H, W))).to(dtype).requires_grad_()
            with torch.autocast("cpu", dtype, enabled=enabled):
                value = loss(s)
            value.sum().backward()
            assert value.dtype == torch.float32
            assert torch.isfinite(value).all()
            assert torch.isfinite(s.grad).all()
            found.append((value, s.grad))
        torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize(("ours", "literal"), READINGS)
def test_frames_without_a_valid_cell_are_left_out_one_by_one(ours, literal):
    """Whatever stands in them, also for the gradients; of a batch without any such cell nothing is
    left.
    """
    valid = torch.rand(4, H, W, generator=torch.Generator().manual_seed(30)) > 0.3
    valid[1] = valid[3] = False
    s, t = logits(31, 4, N, 2, H, W), logits(32, 4, N, 2, H, W)
    s[1], t[3] = math.inf, math.nan
    s.requires_grad_()
    kept = [b for b in range(4) if valid[b].any()]
    assert kept == [0, 2]
    expected = sum(literal(s[b : b + 1], t[b : b + 1], 2.0, valid[b : b + 1]) for b in kept) / len(
        kept
    )
    found = ours(s, t, 2.0, valid)
    torch.testing.assert_close(found.double().sum(), expected.sum(), rtol=1e-4, atol=1e-5)
    found.sum().backward()
    assert s.grad.isfinite().all()
    assert (s.grad[1] == 0).all()
    assert (s.grad[0] != 0).any()
    assert (ours(s.detach(), t, 2.0, torch.zeros_like(valid)) == 0).all()


def test_a_frame_without_a_valid_cell_does_not_count_in_the_mean_over_pieces():
    """The mean over frames that have a valid cell, of a batch and of its pieces by their numbers of
    such frames.
    """
    objective = distilled(
        supervised(),
        Distill(temperature=2.0, weight=1.0, softmax="classes", grid="stores", reconcile=False),
    )
    valid = torch.ones(4, H, W, dtype=torch.bool)
    valid[1:3] = False
    s = logits(22, 4, N, 2, H, W)
    batch = {
        **known(torch.zeros(4, H, W, dtype=torch.int16), torch.tensor([0, 1, 2, 3])),
        "teachers": logits(23, 4, N, 2, H, W),
        "valid": valid,
    }
    pieces = [
        ({key: value[part] for key, value in batch.items()}, s[part])
        for part in (slice(0, 2), slice(2, 3), slice(3, 4))
    ]
    counts = [int(objective.frames(piece)["kl_divergence"]) for piece, _ in pieces]
    assert counts == [1, 0, 1]
    parts = [objective.terms(own, piece) for piece, own in pieces]
    together = (
        sum(count * part["kl_divergence"] for count, part in zip(counts, parts, strict=True)) / 2
    )
    torch.testing.assert_close(objective.terms(s, batch)["kl_divergence"], together)


@pytest.mark.parametrize(
    ("softmax", "literal"),
    [
        ("pixels", literal_pixels),
        ("classes", literal_classes),
        ("classes_balanced", literal_balanced),
    ],
)
def test_the_objective_is_cross_entropy_plus_the_weighted_divergence(frames, softmax, literal):
    """Equation 3, with a temperature and a weight of which neither is one."""
    label, anatomy = frames
    s, t = logits(24, B, N, 2, H, W), logits(25, B, N, 2, H, W)
    valid = torch.rand(B, H, W, generator=torch.Generator().manual_seed(26)) > 0.3
    objective = distilled(
        supervised(),
        Distill(temperature=2.5, weight=7.0, softmax=softmax, grid="stores", reconcile=False),
    )
    terms = objective.terms(s, {**known(label, anatomy), "teachers": t, "valid": valid})
    total = sum(weight * terms[name].double() for name, weight in objective.weights.items())
    expected = literal_cross_entropy(s, label, anatomy) + 7.0 * literal(s, t, 2.5, valid)
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-5)


def test_known_absence_counts_with_its_own_weight(frames):
    """Frames 0 and 1 are said not to show what decoder 3 knows; the rest is as without it."""
    label, anatomy = frames
    z = logits(40, B, N, 2, H, W)
    batch = known(label, anatomy)
    batch["background"][:2, 3] = True
    found = supervised(absence_weight=0.25).terms(z, batch)["cross_entropy"]
    expected = literal_cross_entropy(z, label, anatomy)
    for b, y, x in product(range(2), range(H), range(W)):
        if label[b, y, x] == 0:
            p = math.exp(z[b, 3, 0, y, x]) / sum(math.exp(v) for v in z[b, 3, :, y, x])
            expected[3] -= 0.25 * math.log(p) * N / (B * H * W)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    unaware = supervised().terms(z, batch)["cross_entropy"].double()
    torch.testing.assert_close(
        unaware, literal_cross_entropy(z, label, anatomy), rtol=1e-5, atol=1e-5
    )


def test_reconciled_teachers_agree_with_what_is_known_and_with_each_other():
    teachers = logits(41, 2, N, 2, 3, 4)
    g = torch.Generator().manual_seed(42)
    target = torch.randint(-1, 1, (2, N, 3, 4), generator=g)
    target[0, 2, 1:] = 1
    found = reconciled(teachers, target).double()
    for b, y, x in product(range(2), range(3), range(4)):
        probabilities = []
        for i in range(N):
            margin = float(teachers[b, i, 1, y, x] - teachers[b, i, 0, y, x])
            if target[b, i, y, x] == 0:
                margin = min(margin, -6.0)
            if target[b, i, y, x] == 1:
                margin = max(margin, 6.0)
            probabilities.append(1 / (1 + math.exp(-margin)))
        surest = max(probabilities)
        for i in range(N):
            p = (
                probabilities[i]
                if probabilities[i] == surest
                else min(probabilities[i], 1 - surest)
            )
            margin = float(found[b, i, 1, y, x] - found[b, i, 0, y, x])
            assert 1 / (1 + math.exp(-margin)) == pytest.approx(p, abs=1e-6)
    torch.testing.assert_close(found[:, :, 0], teachers[:, :, 0], rtol=1e-6, atol=1e-6)
    assert found.softmax(2)[:, :, 1].topk(2, dim=1).values.sum(1).max() <= 1 + 1e-6


def test_only_a_cell_that_is_known_as_a_whole_overrules_its_teacher():
    teachers = torch.zeros(1, 1, 2, 1, 2)
    teachers[:, :, 1] = 2.0
    target = torch.tensor([[[[0, 0, 0, -1], [0, 0, 0, 0]]]])
    found = reconciled(teachers, target)
    margins = found[0, 0, 1, 0] - found[0, 0, 0, 0]
    assert margins.tolist() == pytest.approx([-6.0, 2.0], abs=1e-3)


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_pixels_is_blind_to_another_constant_on_every_channel(whose):
    z = {"student": logits(27, B, N, 2, H, W), "teacher": logits(28, B, N, 2, H, W)}
    shifted = {**z, whose: z[whose] + logits(29, B, N, 2, 1, 1, scale=20.0)}
    torch.testing.assert_close(
        channel_wise_kl(shifted["student"], shifted["teacher"], 4.0),
        channel_wise_kl(z["student"], z["teacher"], 4.0),
    )


def test_pixels_is_blind_to_a_constant_and_classes_is_not():
    s, t = logits(13, B, N, 2, H, W), logits(14, B, N, 2, H, W)
    shifted = s + torch.tensor([0.0, 5.0])[:, None, None]
    torch.testing.assert_close(channel_wise_kl(shifted, t, 4.0), channel_wise_kl(s, t, 4.0))
    assert (class_wise_kl(shifted, t, 4.0) - class_wise_kl(s, t, 4.0)).abs().min() > 0.1


@pytest.mark.parametrize(("ours", "_"), READINGS)
def test_gradients_equal_finite_differences(ours, _):
    s, t = logits(15, 2, 2, 2, 2, 3, scale=1.0), logits(16, 2, 2, 2, 2, 3, scale=1.0)
    s.requires_grad_()
    ours(s, t, 2.0).sum().backward()
    step = 1e-2
    for index in [(0, 0, 0, 0, 0), (1, 1, 1, 1, 2), (0, 1, 0, 1, 1)]:
        bump = torch.zeros_like(s)
        bump[index] = step
        with torch.no_grad():
            slope = (ours(s + bump, t, 2.0) - ours(s - bump, t, 2.0)).sum() / (2 * step)
        assert abs(slope - s.grad[index]) < 1e-3 * max(1.0, abs(slope))


def test_a_thin_structure_weighs_as_much_as_its_background():
    """The same error on an anatomy of 4 % of the frame: nearly half of the balanced loss, 4 % of
    the plain mean.
    """
    lead = torch.full((1, 1, 10, 10), -8.0)
    lead[..., :2, :2] = 8.0
    teacher = torch.stack([torch.zeros_like(lead), lead], 2)
    missed = torch.stack([torch.zeros_like(lead), torch.full_like(lead, -8.0)], 2)
    everywhere = torch.stack([torch.zeros_like(lead), torch.full_like(lead, 8.0)], 2)
    plain = class_wise_kl(missed, teacher, 1.0) / class_wise_kl(everywhere, teacher, 1.0)
    balanced = balanced_class_wise_kl(missed, teacher, 1.0) / balanced_class_wise_kl(
        everywhere, teacher, 1.0
    )
    assert float(plain) == pytest.approx(4 / 96, rel=0.01)
    assert 0.75 < float(balanced) < 1


@pytest.mark.parametrize(("ours", "_"), READINGS)
def test_the_kl_of_a_batch_is_the_mean_over_its_frames(ours, _):
    """So micro-batches add up to the large batch."""
    s, t = logits(17, 4, N, 2, H, W), logits(18, 4, N, 2, H, W)
    parts = torch.stack([ours(s[i : i + 1], t[i : i + 1], 2.0) for i in range(4)])
    torch.testing.assert_close(ours(s, t, 2.0), parts.mean(0))


def test_on_the_students_grid_a_cell_counts_between_valid_cells_alone():
    teachers = torch.arange(4.0).expand(1, 1, 2, 4, 4)
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    valid[0, :, 3] = False
    student = torch.randn(1, 1, 2, 8, 8)
    same, shown, counts = on_one_grid(student, teachers, valid, "student")
    assert same is student
    torch.testing.assert_close(shown[0, 0, 0, 0], (torch.arange(8) / 2 - 0.25).clamp(0, 3))
    assert counts[0, 0].tolist() == [True] * 5 + [False] * 3


@pytest.mark.parametrize(
    ("stored", "own"), [((12, 16), (45, 77)), ((6, 6), (23, 23)), ((9, 12), (34, 45))]
)
def test_where_all_stored_cells_are_valid_all_finer_ones_are(stored, own):
    valid = torch.ones(2, *stored, dtype=torch.bool)
    _, _, counts = on_one_grid(
        torch.zeros(2, 1, 2, *own), torch.zeros(2, 1, 2, *stored), valid, "student"
    )
    assert counts.all()


@pytest.mark.parametrize(
    ("size", "grid"), [((8, 8), "stores"), ((2, 2), "stores"), ((2, 2), "student")]
)
def test_otherwise_the_student_comes_to_the_stores_grid(size, grid):
    teachers, valid = torch.randn(1, 1, 2, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)
    student = torch.randn(1, 1, 2, *size)
    moved, same, counts = on_one_grid(student, teachers, valid, grid)
    assert same is teachers
    assert counts is valid
    mode = {"mode": "area"} if size == (8, 8) else {"mode": "bilinear", "align_corners": False}
    torch.testing.assert_close(
        moved[0], torch.nn.functional.interpolate(student[0], size=(4, 4), **mode)
    )
