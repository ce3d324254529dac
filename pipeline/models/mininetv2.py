"""MiniNetv2 (Alonso et al. 2020; Tomasini et al. 2022) with N decoders, the paper's smallest student.

Blocks as in the authors' code (github.com/Shathe/MiniNet-v2). The N decoders run as one: their first upsamplings all
read the same features and form one wide convolution, everything after is a convolution in N groups.

The paper counts 1.1 M parameters for eleven decoders and published no code; this network has 1.45 M. The branch that
refines from the raw image belongs to the encoder here: one for all decoders.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import MtkdError
from pipeline.models.network import Network

# Dilations of the second branch of the 16 multi-dilation residuals (first TensorFlow code).
DILATIONS = (1, 2, 1, 4, 1, 8, 1, 16, 1, 1, 1, 2, 1, 8, 1, 16)
BN_EPS = 1e-3
WIDTH = 64


def build(decoders: int, pretrained: str | None) -> "MiniNetV2":
    """MiniNetv2.

    Raises:
        MtkdError: pretrained weights were asked for; none were ever published.
    """
    if pretrained:
        raise MtkdError(f"mininetv2 has no published weights: set pretrained: none, not '{pretrained}'")
    return MiniNetV2(decoders)


class MiniNetV2(Network):
    """Stride-8 encoder, a refinement branch at stride 4, and N decoders that end at stride 2."""

    stride, output_stride = 8, 2

    def __init__(self, decoders: int) -> None:
        super().__init__(decoders)
        self.encoder = nn.Sequential(
            Down(3, 16),
            Down(16, WIDTH),
            *(SeparableResidual(WIDTH) for _ in range(10)),
            Down(WIDTH, 128),
            *(MultiDilationResidual(128, dilation) for dilation in DILATIONS),
        )
        self.refinement = nn.Sequential(Down(3, 16), Down(16, WIDTH))
        wide = decoders * WIDTH
        self.upsample = nn.Sequential(_transposed(128, wide), nn.BatchNorm2d(wide, BN_EPS), nn.ReLU())
        self.refine = nn.Sequential(*(SeparableResidual(wide, groups=decoders) for _ in range(4)))
        self.classifier = _transposed(wide, decoders * 2, groups=decoders, bias=True)

    def native_logits(self, frames: Tensor) -> Tensor:
        """As :meth:`Network.native_logits`."""
        features = self.upsample(self.encoder(frames)).unflatten(1, (self.decoders, WIDTH))
        features = (features + self.refinement(frames)[:, None]).flatten(1, 2)
        return self.classifier(self.refine(features)).unflatten(1, (self.decoders, 2))


class Down(nn.Module):
    """Halve the resolution: a strided convolution beside a max-pool of the input."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out - channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out, BN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, out, H / 2, W / 2)."""
        return F.relu(self.norm(torch.cat([self.conv(x), F.max_pool2d(x, 2)], dim=1)))


class SeparableResidual(nn.Module):
    """Depthwise and pointwise convolution around a shortcut; in ``groups``, one per decoder."""

    def __init__(self, channels: int, groups: int = 1) -> None:
        super().__init__()
        self.depthwise = _depthwise(channels)
        self.pointwise = _pointwise(channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape."""
        return F.relu(x + self.pointwise(self.depthwise(x)))


class MultiDilationResidual(nn.Module):
    """Two parallel depthwise convolutions, plain and dilated, around a shortcut."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.plain, self.dilated = _depthwise(channels), _depthwise(channels, dilation)
        self.pointwise = _pointwise(channels)
        self.dropout = nn.Dropout(0.25)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape."""
        return F.relu(x + self.dropout(self.pointwise(self.plain(x) + self.dilated(x))))


def _depthwise(channels: int, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels, BN_EPS), nn.ReLU())


def _pointwise(channels: int, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, 1, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels, BN_EPS))


def _transposed(channels: int, out: int, *, groups: int = 1, bias: bool = False) -> nn.ConvTranspose2d:
    """Double the resolution."""
    return nn.ConvTranspose2d(channels, out, 3, stride=2, padding=1, output_padding=1, groups=groups, bias=bias)
