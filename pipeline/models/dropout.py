"""Dropout whose random numbers don't cost more than the layer behind it."""

import torch
from torch import Tensor, nn

LEVELS = 2**16


class Dropout(nn.Dropout):
    """``nn.Dropout``; on the CPU, each draw of 64 bits decides over four values.

    There PyTorch's own dropout draws one number per value, one after another, which took a quarter of a training step.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same, in training with values dropped and the others scaled up."""
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        in_memory = x.permute(0, 2, 3, 1) if last else x
        factors = keep_factors(in_memory.shape, self.p)
        if factors is None:
            return x
        return x * (factors.permute(0, 3, 1, 2) if last else factors)


def keep_factors(shape: torch.Size, p: float) -> Tensor | None:
    """What dropout multiplies its values with.

    Args:
        shape: of the values.
        p: probability of dropping a value, rounded to a multiple of 2^-16.

    Returns:
        (*shape) float32: 0 for what is dropped, 1 / (1 - p) for what is kept; None if nothing is dropped.
    """
    dropped = min(round(p * LEVELS), LEVELS - 1)
    if not dropped:
        return None
    draws = torch.empty(-(-shape.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = draws[: shape.numel()] >= dropped - LEVELS // 2
    return kept.view(shape).float().mul_(LEVELS / (LEVELS - dropped))
