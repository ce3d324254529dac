"""Dropout whose random numbers don't cost more than the layer behind it."""

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """``nn.Dropout``; on the CPU, each draw of 64 bits decides over four values.

    There PyTorch's own dropout draws one number per value, one after another, which took a quarter of a training step.
    The probability is rounded to a multiple of 2^-16, and what stays is scaled accordingly.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same, in training with values dropped and the others scaled up."""
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        levels = 2**16
        dropped = min(round(self.p * levels), levels - 1)
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        keep = draws[: x.numel()] >= dropped - levels // 2
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):  # in the order of its memory
            mask = keep.view(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        else:
            mask = keep.view(x.shape)
        return torch.where(mask, x * (levels / (levels - dropped)), 0)
