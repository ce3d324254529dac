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
        keep, raised = keep_mask(in_memory.shape, self.p)
        if keep is None:
            return x
        return torch.where(keep.permute(0, 3, 1, 2) if last else keep, x * raised, 0)


def keep_mask(shape: torch.Size, p: float) -> tuple[Tensor | None, float]:
    """Which values dropout keeps, and the factor that it raises them by.

    Args:
        shape: of the values.
        p: probability of dropping a value, rounded to a multiple of 2^-16.

    Returns:
        A mask (*shape) bool, or None if all are kept; and 1 / (1 - p).
    """
    dropped = min(round(p * LEVELS), LEVELS - 1)
    if not dropped:
        return None, 1.0
    count = shape.numel()
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return (draws[:count] >= dropped - LEVELS // 2).view(shape), LEVELS / (LEVELS - dropped)
