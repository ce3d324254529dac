"""What a network costs whatever the machine: parameters and multiply-adds."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models import create_model
from pipeline.models.network import Network


def parameters(network: Network) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in network.parameters())


def multiply_adds(
    architecture: str, decoders: int, size: tuple[int, int], *, shared: bool = False
) -> int:
    """Multiply-adds for one frame (H, W), counted without computing anything.

    Upsampling and norms are left out.
    """
    # With gradients networks take their plain form: strips would count their overlap.
    with torch.enable_grad(), torch.device("meta"):
        network = create_model(architecture, decoders, shared=shared).eval()
        frame = torch.empty(1, 3, *size)
        with FlopCounterMode(display=False) as counter:
            network(frame)
    return counter.get_total_flops() // 2
