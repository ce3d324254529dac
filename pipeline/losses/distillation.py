"""The KL divergence between a teacher's and the student's logits (paper, Equation 2).

The equation can be read in two ways. ``pixels`` is channel-wise distillation (Shu et al. 2021,
reference run "channel kl 3 4"): each channel is a distribution over the frame's pixels. ``classes``
is the other reading of "C being either the anatomy or background": each pixel is a distribution
over the two classes. The first is blind to a constant added to a channel, so it can't teach that an
organ is absent; the second can. ``classes_balanced`` is ours: the second, with weights that keep a
large background from drowning a thin structure.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Share of a frame below which an anatomy no longer counts as much as its background.
RARE = 0.01


def channel_wise_kl(
    student: Tensor, teacher: Tensor, temperature: float, valid: Tensor | None = None
) -> Tensor:
    """Softmax over all valid pixels of a channel, then KL(teacher || student).

    The KL divergence is summed over pixels and multiplied with T^2.

    Args:
        student: (B, N, 2, h, w) float logits; computed in float32 whatever the dtype.
        teacher: (B, N, 2, h, w) float logits on the same grid.
        temperature: T > 0, divides the logits.
        valid: (B, h, w) bool, cells to compare; None = all. A frame without a valid cell is not
            counted.

    Returns:
        (N,) float32, the mean over counted frames and the two channels; 0 where no frame counts.
    """
    s = student.float().flatten(3) / temperature
    t = teacher.float().flatten(3) / temperature
    if valid is None:
        valid = student.new_ones((student.shape[0], *student.shape[3:]), dtype=torch.bool)
    cells = valid.flatten(1)[:, None, None]
    # A large negative number instead of -inf: a frame without valid cells must not become NaN, not
    # even in backward.
    log_s = s.masked_fill(~cells, -1e9).log_softmax(-1)
    log_t = t.masked_fill(~cells, -1e9).log_softmax(-1)
    kl = torch.where(cells, log_t.exp() * (log_t - log_s), 0.0).sum(-1).mean(2)
    return _mean_over_frames(kl, valid) * temperature**2


def class_wise_kl(
    student: Tensor, teacher: Tensor, temperature: float, valid: Tensor | None = None
) -> Tensor:
    """Softmax over the two classes of a pixel, then KL(teacher || student).

    The KL divergence is averaged over valid pixels and multiplied with T^2.

    Arguments and result as for :func:`channel_wise_kl`.
    """
    kl, _, valid = _kl_per_cell(student, teacher, temperature, valid)
    per_frame = kl.sum(dim=(2, 3)) / valid.sum(dim=(1, 2)).clamp(min=1)[:, None]
    return _mean_over_frames(per_frame, valid) * temperature**2


def balanced_class_wise_kl(
    student: Tensor, teacher: Tensor, temperature: float, valid: Tensor | None = None
) -> Tensor:
    """The class-wise KL, where the anatomy and its background count the same.

    They do so however small the anatomy is.

    With p the teacher's probability of the anatomy in a cell, a frame's loss is half the mean of
    the KL weighted with p plus half the mean weighted with 1 - p. Each cell still has its minimum
    where the student equals the teacher; only its weight differs, so thin structures are learnt as
    early as large organs. What covers less than about ``RARE`` of the frame counts in proportion,
    so that faint doubts on a frame without the anatomy stay faint.

    Arguments and result as for :func:`channel_wise_kl`.
    """
    kl, p, valid = _kl_per_cell(student, teacher, temperature, valid)
    cells = valid.flatten(1).sum(1)[:, None]
    halves = []
    for share in (p, 1 - p):
        weight = torch.where(valid[:, None], share, 0.0)
        halves.append(
            (weight * kl).sum(dim=(2, 3)) / (weight.sum(dim=(2, 3)) + RARE * cells).clamp(min=RARE)
        )
    return _mean_over_frames((halves[0] + halves[1]) / 2, valid) * temperature**2


def _kl_per_cell(
    student: Tensor, teacher: Tensor, temperature: float, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """KL divergence of each cell, 0 where invalid.

    What stands in an invalid cell counts neither here nor in backward, even if it is NaN.

    Returns:
        KL (B, N, h, w); the teacher's probability of the anatomy (B, N, h, w); the valid cells
        (B, h, w).
    """
    if valid is None:
        valid = student.new_ones((student.shape[0], *student.shape[3:]), dtype=torch.bool)
    # Two classes: the softmax is the sigmoid of the logit margin of anatomy over background.
    s, t = ((z[:, :, 1].float() - z[:, :, 0].float()) / temperature for z in (student, teacher))
    s, t = (margin.masked_fill(~valid[:, None], 0.0) for margin in (s, t))
    p = t.sigmoid()
    kl = p * (F.logsigmoid(t) - F.logsigmoid(s)) + (1 - p) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return kl, p, valid


def _mean_over_frames(per_frame: Tensor, valid: Tensor) -> Tensor:
    """(B, N) -> (N,): the mean over the frames that have at least one valid cell."""
    counted = valid.flatten(1).any(1)
    return per_frame.masked_fill(~counted[:, None], 0.0).sum(0) / counted.sum().clamp(min=1)
