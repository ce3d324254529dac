"""Dropout whose random numbers don't cost more than the layer behind it."""

import numpy as np
import torch
from torch import Tensor, nn

LEVELS = 2**16


class Dropout(nn.Dropout):
    """``nn.Dropout``; on the CPU, each draw of 64 bits decides over four values.

    There PyTorch's own dropout draws one number per value, one after another, which took a quarter
    of a training step.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same, in training with values dropped and the others scaled up."""
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        in_memory = x.permute(0, 2, 3, 1) if last else x
        dropped, scale = draw(in_memory.shape, self.p)
        if dropped is None:
            return x
        return x.masked_fill(dropped.permute(0, 3, 1, 2) if last else dropped, 0.0) * scale


def draw(shape: torch.Size, p: float) -> tuple[Tensor | None, float]:
    """Which values are dropped, and what the others are multiplied with.

    A fast generator of its own, that begins with a number from PyTorch's: the same seed drops the
    same.

    Args:
        shape: of the values.
        p: probability of dropping a value, rounded to a multiple of 2^-16.

    Returns:
        (*shape) bool, None if nothing is dropped; 1 / (1 - p).
    """
    level = min(round(p * LEVELS), LEVELS - 1)
    if not level:
        return None, 1.0
    generator = np.random.Generator(np.random.SFC64(int(torch.randint(2**62, ()))))
    draws = generator.integers(2**64, size=-(-shape.numel() // 4), dtype=np.uint64).view(np.int16)
    dropped = torch.from_numpy(draws)[: shape.numel()] < level - LEVELS // 2
    return dropped.view(shape), LEVELS / (LEVELS - level)
