"""From logit margins to masks: each anatomy alone, or one anatomy per pixel.

Each decoder alone may claim a pixel, as in the paper. By arg max over [0, margins] a pixel belongs
to the anatomy with the largest margin, or to none.
"""

import torch
from torch import Tensor


def one_organ(margins: Tensor) -> Tensor:
    """The anatomy of each pixel.

    Args:
        margins: (B, N, H, W) float, by how much each anatomy's logit exceeds the background's.

    Returns:
        (B, H, W) int64, 0 = none, i = the i-th decoder; of equal margins the first.
    """
    largest, winner = margins.max(1)
    return torch.where(largest > 0, winner + 1, 0)


def masks_of_one_organ(margins: Tensor) -> Tensor:
    """The same as (B, N, H, W) bool, of which at most one is true in each pixel."""
    decoders = torch.arange(1, margins.shape[1] + 1, device=margins.device)[:, None, None]
    return one_organ(margins)[:, None] == decoders
