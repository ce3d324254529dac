"""A checkpoint's network as ``mtkd predict`` and ``mtkd live`` compute it."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pipeline.deployment.segmenter import as_batch
from pipeline.models.frozen import Frozen, half_suffices
from pipeline.models.network import Network
from stages.shared.console import say


def frozen_network(
    network: Network, device: torch.device, frame: NDArray[np.uint8], size: tuple[int, int]
) -> Frozen:
    """The network for inference.

    On CUDA it is in half precision, unless that gives other masks on a frame.

    Args:
        network: on the device.
        device: where.
        frame: (H, W, 3) uint8, an example.
        size: (H, W) at which the network sees frames.
    """
    if device.type == "cuda":
        half = Frozen(network, device, torch.float16)
        pixels = torch.from_numpy(as_batch(frame)).to(device).float()
        if half_suffices(network, half, F.interpolate(pixels, size=size, mode="bilinear")):
            return half
        say("warning: in half precision this network decides otherwise: float32 is used")
    return Frozen(network, device, torch.float32)
