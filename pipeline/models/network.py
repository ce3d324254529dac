"""What all networks have in common: input statistics, sizes that don't divide, and the shape of their logits."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Network(nn.Module):
    """One encoder and ``decoders`` binary decoders.

    A family implements :meth:`native_logits`; everybody calls the module itself.

    Attributes:
        architecture: the name that ``create_model`` was asked for.
        decoders: number of decoders N.
        stride: frames are padded (bottom and right, edge repeated) to a multiple of this.
        output_stride: pixels of the frame per cell of the logits.
        mean, std: statistics of the frames that the weights expect, RGB in 0..1.
    """

    architecture: str
    stride: int
    output_stride: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __init__(self, decoders: int) -> None:
        super().__init__()
        self.decoders = decoders

    def native_logits(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W), H and W multiples of ``stride`` -> (B, N, 2, H / output_stride, W / output_stride)."""
        raise NotImplementedError

    def forward(self, frames: Tensor) -> Tensor:
        """Normalised frames (B, 3, H, W) -> logits (B, N, 2, ceil(H / output_stride), ceil(W / output_stride))."""
        height, width = frames.shape[-2:]
        bottom, right = -height % self.stride, -width % self.stride
        if bottom or right:
            frames = F.pad(frames, (0, right, 0, bottom), mode="replicate")
        h, w = (-(-n // self.output_stride) for n in (height, width))
        return self.native_logits(frames)[..., :h, :w]


def normalise(frames: Tensor, network: Network) -> Tensor:
    """Frames (B, 3, H, W) uint8 -> float32 with the statistics that the network's weights expect."""
    mean, std = (torch.tensor(x, device=frames.device)[:, None, None] for x in (network.mean, network.std))
    return ((frames.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (B, N, 2, h, w) on another grid: area averaging when shrinking, bilinear (corners apart) when growing.

    Returns:
        (B, N, 2, *size) in the dtype of ``logits``.
    """
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    flat = logits.flatten(1, 2)
    if size[0] <= flat.shape[-2] and size[1] <= flat.shape[-1]:
        flat = F.interpolate(flat, size=size, mode="area")
    else:
        flat = F.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return flat.unflatten(1, logits.shape[1:3])
