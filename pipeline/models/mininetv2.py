"""MiniNetv2 (Alonso et al. 2020; Tomasini et al. 2022) with N decoders, the paper's smallest student.

Blocks as in the authors' code (github.com/Shathe/MiniNet-v2). Decoders run one after another, so that the maps of one
stay in the processor's cache; as N groups of wide convolutions they measured slower. Inference multiplies batch norm
into the convolutions and passes all decoders through the memory of one.

The paper counts 1.1 M parameters for eleven decoders and published no code; this network has 1.45 M. The branch that
refines from the raw image belongs to the encoder here: one for all decoders.
"""

import copy
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import MtkdError
from pipeline.models.dropout import Dropout
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
        raise MtkdError(
            f"mininetv2 has no published weights: set pretrained: none, or an own checkpoint, not '{pretrained}'"
        )
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
        self.heads = nn.ModuleList(Head() for _ in range(decoders))

    def features(self, frames: Tensor) -> Sequence[Tensor]:
        """The encoder's map (B, 128, H / 8, W / 8) and the refinement (B, 64, H / 4, W / 4)."""
        return self.encoder(frames), self.refinement(frames)

    def decode(self, features: Sequence[Tensor], chosen: Sequence[int]) -> Tensor:
        """As :meth:`Network.decode`."""
        inference = not (self.training or torch.is_grad_enabled()) and features[0].device.type == "cpu"
        heads = [cast(Head, self.heads[decoder]) for decoder in chosen]
        return torch.stack([(head.answer if inference else head)(features) for head in heads], dim=1)

    def reference_heads(self) -> list[Callable[[Sequence[Tensor]], Tensor]]:
        """As :meth:`Network.reference_heads`."""
        return [copy.deepcopy(cast(Head, head)) for head in self.heads]


class Head(nn.Module):
    """One decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.upsample = nn.Sequential(_transposed(128, WIDTH), nn.BatchNorm2d(WIDTH, BN_EPS), nn.ReLU(inplace=True))
        self.refine = nn.Sequential(*(SeparableResidual(WIDTH) for _ in range(4)))
        self.classifier = _transposed(WIDTH, 2, bias=True)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(B, 128, h, w) and (B, 64, 2 h, 2 w) -> logits (B, 2, 4 h, 4 w)."""
        encoded, refinement = features
        return self.classifier(self.refine(self.upsample(encoded) + refinement))

    def answer(self, features: Sequence[Tensor]) -> Tensor:
        """The same in inference, with batch norm multiplied into the convolutions."""
        encoded, refinement = features
        up, up_norm = cast(nn.ConvTranspose2d, self.upsample[0]), cast(nn.BatchNorm2d, self.upsample[1])
        scale, shift = _scale_and_shift(up_norm)
        x = _double(encoded, up.weight * scale[:, None, None], shift).relu_().add_(refinement)
        for block in cast(Sequence[SeparableResidual], self.refine):
            inner = F.conv2d(x, *_folded(block.depthwise), padding=1, groups=WIDTH).relu_()
            x = F.conv2d(inner, *_folded(block.pointwise)).add_(x).relu_()
        return _double(x, self.classifier.weight, cast(Tensor, self.classifier.bias))


class Down(nn.Module):
    """Halve the resolution: a strided convolution beside a max-pool of the input."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out - channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out, BN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, out, H / 2, W / 2)."""
        return F.relu_(self.norm(torch.cat([self.conv(x), F.max_pool2d(x, 2)], dim=1)))


class SeparableResidual(nn.Module):
    """Depthwise and pointwise convolution around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = _depthwise(channels)
        self.pointwise = _pointwise(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape."""
        return F.relu_(self.pointwise(self.depthwise(x)).add_(x))


class MultiDilationResidual(nn.Module):
    """Two parallel depthwise convolutions, plain and dilated, around a shortcut."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.plain, self.dilated = _depthwise(channels), _depthwise(channels, dilation)
        self.pointwise = _pointwise(channels)
        self.dropout = Dropout(0.25)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape."""
        return F.relu_(x + self.dropout(self.pointwise(self.plain(x) + self.dilated(x))))


def _depthwise(channels: int, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels, BN_EPS), nn.ReLU(inplace=True))


def _pointwise(channels: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels, BN_EPS))


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Batch norm in inference as x * scale + shift."""
    scale = norm.weight * torch.rsqrt(cast(Tensor, norm.running_var) + norm.eps)
    return scale, norm.bias - cast(Tensor, norm.running_mean) * scale


def _folded(part: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution and the batch norm behind it."""
    conv, norm = cast(nn.Conv2d, part[0]), cast(nn.BatchNorm2d, part[1])
    scale, shift = _scale_and_shift(norm)
    return conv.weight * scale[:, None, None, None], shift


def _double(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What :func:`_transposed` does."""
    return F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=1)


def _transposed(channels: int, out: int, *, bias: bool = False) -> nn.ConvTranspose2d:
    """Double the resolution."""
    return nn.ConvTranspose2d(channels, out, 3, stride=2, padding=1, output_padding=1, bias=bias)
