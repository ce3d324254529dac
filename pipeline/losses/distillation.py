"""The KL divergence between a teacher's and the student's normalised logits (paper, Equation 2), in both readings.

``pixels`` is channel-wise distillation (Shu et al. 2021, reference run "channel kl 3 4"): each channel is a
distribution over the frame's pixels. ``classes`` is the other reading of "C being either the anatomy or
background": each pixel is a distribution over the two classes. The first is blind to a constant added to a channel,
so it can't teach that an organ is absent; the second can.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def channel_wise_kl(student: Tensor, teacher: Tensor, temperature: float, valid: Tensor | None = None) -> Tensor:
    """Softmax over all valid pixels of a channel, KL(teacher || student) summed over pixels, times T^2.

    Args:
        student: (B, N, 2, h, w) float logits; computed in float32 whatever the dtype.
        teacher: (B, N, 2, h, w) float logits on the same grid.
        temperature: T > 0, divides the logits.
        valid: (B, h, w) bool, cells to compare; None = all. A frame without a valid cell is not counted.

    Returns:
        (N,) float32, the mean over counted frames and the two channels; 0 where no frame counts.
    """
    s, t = student.float().flatten(3) / temperature, teacher.float().flatten(3) / temperature
    if valid is None:
        valid = student.new_ones((student.shape[0], *student.shape[3:]), dtype=torch.bool)
    cells = valid.flatten(1)[:, None, None]
    # A large negative number instead of -inf: a frame without valid cells must not become NaN, not even in backward.
    s, t = s.masked_fill(~cells, -1e9), t.masked_fill(~cells, -1e9)
    log_s, log_t = s.log_softmax(-1), t.log_softmax(-1)
    kl = torch.where(cells, log_t.exp() * (log_t - log_s), 0.0).sum(-1).mean(2)
    return _mean_over_frames(kl, valid) * temperature**2


def class_wise_kl(student: Tensor, teacher: Tensor, temperature: float, valid: Tensor | None = None) -> Tensor:
    """Softmax over the two classes of a pixel, KL(teacher || student), mean over valid pixels, times T^2.

    Arguments and result as for :func:`channel_wise_kl`.
    """
    if valid is None:
        valid = student.new_ones((student.shape[0], *student.shape[3:]), dtype=torch.bool)
    # Two classes: the softmax is the sigmoid of the anatomy's lead over background.
    s = (student[:, :, 1].float() - student[:, :, 0].float()) / temperature
    t = (teacher[:, :, 1].float() - teacher[:, :, 0].float()) / temperature
    p = t.sigmoid()
    kl = p * (F.logsigmoid(t) - F.logsigmoid(s)) + (1 - p) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    kl = torch.where(valid[:, None], kl, 0.0).sum(dim=(2, 3))
    return _mean_over_frames(kl / valid.sum(dim=(1, 2)).clamp(min=1)[:, None], valid) * temperature**2


def _mean_over_frames(per_frame: Tensor, valid: Tensor) -> Tensor:
    """(B, N) -> (N,): the mean over the frames that have at least one valid cell."""
    counted = valid.flatten(1).any(1)
    return per_frame[counted].sum(0) / counted.sum().clamp(min=1)
