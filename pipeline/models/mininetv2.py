"""MiniNetv2 (Alonso et al. 2020; Tomasini et al. 2022) with N decoders.

The paper's smallest student. Blocks as in the authors' code (github.com/Shathe/MiniNet-v2).
Decoders run one after another, so that the maps of one stay in the processor's cache; as N groups
of wide convolutions they measured slower. Inference multiplies batch norm into the convolutions.

The paper counts 1.1 M parameters for eleven decoders and published no code; this network has 1.45
M. The branch that refines from the raw image belongs to the encoder here: one for all decoders.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import MtkdError
from pipeline.models.dropout import Dropout
from pipeline.models.network import Network, frame_by_frame

# Dilations of the second branch of the 16 multi-dilation residuals (first TensorFlow code).
DILATIONS = (1, 2, 1, 4, 1, 8, 1, 16, 1, 1, 1, 2, 1, 8, 1, 16)
BN_EPS = 1e-3
WIDTH = 64


def build(decoders: int, pretrained: str | None, *, shared: bool = False) -> "MiniNetV2":
    """MiniNetv2.

    Raises:
        MtkdError: pretrained weights were asked for; none were ever published.
    """
    if pretrained:
        raise MtkdError(
            "mininetv2 has no published weights: set pretrained: none, or a checkpoint of your "
            f"own, not '{pretrained}'"
        )
    return MiniNetV2(decoders, shared=shared)


class MiniNetV2(Network):
    """Stride-8 encoder, a refinement branch at stride 4, and N decoders that end at stride 2."""

    stride = 8
    output_stride = 2

    def __init__(self, decoders: int, *, shared: bool = False) -> None:
        super().__init__(decoders, shared=shared)
        self.encoder = nn.Sequential(
            Down(3, 16),
            Down(16, WIDTH),
            *(SeparableResidual(WIDTH) for _ in range(10)),
            Down(WIDTH, 128),
            *(MultiDilationResidual(128, dilation) for dilation in DILATIONS),
        )
        self.refinement = nn.Sequential(Down(3, 16), Down(16, WIDTH))
        self.heads = self.make_heads(Head)

    def features(self, frames: Tensor) -> Sequence[Tensor]:
        """The encoder's map (B, 128, H / 8, W / 8) and the refinement (B, 64, H / 4, W / 4)."""
        return self.encoder(frames), self.refinement(frames)

    def decode(self, features: Sequence[Tensor], selected: Sequence[int]) -> Tensor:
        """As :meth:`Network.decode`."""
        inference = (
            not (self.training or torch.is_grad_enabled()) and features[0].device.type == "cpu"
        )
        heads = cast(list[Head], self.heads_of(selected))
        maps = [(FrozenHead(head) if inference else head)(features) for head in heads]
        return self.per_anatomy(maps, selected)

    def frozen(self, *, wide: bool) -> nn.Module:
        """As :meth:`Network.frozen`."""
        from pipeline.models.frozen import fused

        heads = [FrozenHead(cast(Head, head), margin=True) for head in self.heads]
        together = wide and not self.shared
        return FrozenMiniNetV2(
            fused(self.encoder), fused(self.refinement), WideHead(heads) if together else heads
        )

    def reference_heads(self) -> list[Callable[[Sequence[Tensor]], Tensor]]:
        """As :meth:`Network.reference_heads`."""
        return [copy.deepcopy(cast(Head, head)) for head in self.heads]


class Head(nn.Module):
    """One decoder with ``logits`` logits: two per anatomy."""

    def __init__(self, logits: int) -> None:
        super().__init__()
        self.upsample = nn.Sequential(
            _transposed(128, WIDTH), nn.BatchNorm2d(WIDTH, BN_EPS), nn.ReLU(inplace=True)
        )
        self.refine = nn.Sequential(*(SeparableResidual(WIDTH) for _ in range(4)))
        self.classifier = _transposed(WIDTH, logits, bias=True)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(B, 128, h, w) and (B, 64, 2 h, 2 w) -> logits (B, logits, 4 h, 4 w)."""
        encoded, refinement = features
        return self.classifier(self.refine(self.upsample(encoded) + refinement))


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
        self.plain = _depthwise(channels)
        self.dilated = _depthwise(channels, dilation)
        self.pointwise = _pointwise(channels)
        self.dropout = Dropout(0.25)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape."""
        return F.relu_(x + self.dropout(self.pointwise(self.plain(x) + self.dilated(x))))


def _depthwise(channels: int, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(
        channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(channels, BN_EPS), nn.ReLU(inplace=True))


def _pointwise(channels: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels, BN_EPS))


class FrozenHead(nn.Module):
    """A decoder in inference, with batch norm multiplied into the convolutions.

    Args:
        head: its weights are read once, here.
        margin: give the difference of each anatomy's two logits in place of the logits, which are
            twice as many maps.
    """

    def __init__(self, head: Head, *, margin: bool = False) -> None:
        super().__init__()
        up = cast(nn.ConvTranspose2d, head.upsample[0])
        scale, shift = _scale_and_shift(cast(nn.BatchNorm2d, head.upsample[1]))
        self.upsample = _Weights(up.weight * scale[:, None, None], shift)
        blocks = cast(Sequence[SeparableResidual], head.refine)
        self.depthwise = _Several(_Weights(*_folded(block.depthwise)) for block in blocks)
        self.pointwise = _Several(_Weights(*_folded(block.pointwise)) for block in blocks)
        weight = head.classifier.weight
        bias = cast(Tensor, head.classifier.bias)
        if margin:
            weight = weight[:, 1::2] - weight[:, ::2]
            bias = bias[1::2] - bias[::2]
        self.classifier = _Weights(weight, bias)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(B, 128, h, w) and (B, 64, 2 h, 2 w) -> (B, logits or margins, 4 h, 4 w)."""
        encoded, refinement = features
        x = _double(encoded, *self.upsample()).relu_().add_(refinement)
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            inner = F.conv2d(x, *depthwise(), padding=1, groups=WIDTH).relu_()
            x = F.conv2d(inner, *pointwise()).add_(x).relu_()
        return _double(x, *self.classifier())


class WideHead(nn.Module):
    """All decoders of a network as groups of one: few large kernels, as suits a GPU.

    Its maps have the channels of all decoders, so that one frame is decoded at a time.

    Args:
        heads: with margins.
    """

    def __init__(self, heads: Sequence[FrozenHead]) -> None:
        super().__init__()
        self.decoders = len(heads)
        self.upsample = _batched([head.upsample for head in heads], dim=1)
        self.depthwise = _batched_blocks([head.depthwise for head in heads])
        self.pointwise = _batched_blocks([head.pointwise for head in heads])
        self.classifier = _batched([head.classifier for head in heads])

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(B, 128, h, w) and (B, 64, 2 h, 2 w) -> margins (B, N, 4 h, 4 w)."""
        return frame_by_frame(self._decode, features)

    def _decode(self, features: Sequence[Tensor]) -> Tensor:
        encoded, refinement = features
        x = F.relu(_double(encoded, *self.upsample())).unflatten(1, (self.decoders, WIDTH))
        x = (x + refinement[:, None]).flatten(1, 2)
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            inner = F.relu(F.conv2d(x, *depthwise(), padding=1, groups=x.shape[1]))
            weight, bias = pointwise()
            weight = weight.view(self.decoders, WIDTH, WIDTH)
            bias = bias.view(self.decoders, WIDTH, 1)
            mixed = weight @ inner.reshape(len(x), self.decoders, WIDTH, -1) + bias
            x = F.relu(mixed.view_as(x) + x)
        return self._classify(x)

    def _classify(self, x: Tensor) -> Tensor:
        """The transposed convolution of each decoder to its one map.

        As products and shifts of the nine taps.
        """
        weight, bias = self.classifier()
        b, _, h, w = x.shape
        taps = weight.view(self.decoders, WIDTH, 9).transpose(1, 2) @ x.reshape(
            b, self.decoders, WIDTH, h * w
        )
        taps = taps.view(b, self.decoders, 3, 3, h, w)
        rows = torch.stack([taps[:, :, 1], taps[:, :, 2] + _following(taps[:, :, 0], -2)], dim=-2)
        both = torch.stack([rows[:, :, 1], rows[:, :, 2] + _following(rows[:, :, 0], -1)], dim=-1)
        return both.view(b, self.decoders, 2 * h, 2 * w) + bias[:, None, None]


def _following(x: Tensor, dim: int) -> Tensor:
    """Each row (-2) or column (-1) replaced by the one behind it, the last by zeros."""
    behind = x.narrow(dim, 1, x.shape[dim] - 1)
    return F.pad(behind, (0, 0, 0, 1) if dim == -2 else (0, 1))


class FrozenMiniNetV2(nn.Module):
    """As :meth:`MiniNetV2.frozen` says."""

    def __init__(
        self, encoder: nn.Module, refinement: nn.Module, heads: WideHead | Sequence[FrozenHead]
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.refinement = refinement
        self.heads = heads if isinstance(heads, WideHead) else nn.ModuleList(heads)

    def forward(self, frames: Tensor) -> Tensor:
        """Normalised frames (B, 3, H, W) -> margins (B, N, H / 2, W / 2)."""
        features = self.encoder(frames), self.refinement(frames)
        if isinstance(self.heads, WideHead):
            return cast(Tensor, self.heads(features))
        return torch.cat([head(features) for head in cast(Any, self.heads)], dim=1)


class _Weights(nn.Module):
    """Weight and bias of a convolution, fixed."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach())
        self.register_buffer("bias", bias.detach())

    def forward(self) -> tuple[Tensor, Tensor]:
        return cast(Tensor, self.weight), cast(Tensor, self.bias)

    def __call__(self) -> tuple[Tensor, Tensor]:
        return self.forward()


class _Several(nn.ModuleList):
    def __iter__(self) -> Iterator[_Weights]:
        return cast(Iterator[_Weights], super().__iter__())

    def __getitem__(self, index: int) -> _Weights:  # type: ignore[override]
        return cast(_Weights, super().__getitem__(index))


def _batched(parts: Sequence[_Weights], dim: int = 0) -> _Weights:
    """Weights of the same layer of all decoders, one behind another along a dimension."""
    weights, biases = zip(*(part() for part in parts), strict=True)
    return _Weights(torch.cat(weights, dim), torch.cat(biases))


def _batched_blocks(decoders: Sequence[_Several]) -> _Several:
    """Layer by layer, the weights of all decoders."""
    return _Several(map(_batched, zip(*decoders, strict=True)))


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Batch norm in inference as x * scale + shift."""
    scale = norm.weight * torch.rsqrt(cast(Tensor, norm.running_var) + norm.eps)
    return scale, norm.bias - cast(Tensor, norm.running_mean) * scale


def _folded(part: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution and the batch norm behind it."""
    conv = cast(nn.Conv2d, part[0])
    scale, shift = _scale_and_shift(cast(nn.BatchNorm2d, part[1]))
    return conv.weight * scale[:, None, None, None], shift


def _double(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What :func:`_transposed` does."""
    return F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=1)


def _transposed(channels: int, out: int, *, bias: bool = False) -> nn.ConvTranspose2d:
    """Double the resolution."""
    return nn.ConvTranspose2d(channels, out, 3, stride=2, padding=1, output_padding=1, bias=bias)
