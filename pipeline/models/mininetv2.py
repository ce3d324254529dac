"""MiniNetv2 (Alonso et al. 2020; Tomasini et al. 2022) with N decoders, the paper's smallest student.

Blocks as in the authors' code (github.com/Shathe/MiniNet-v2). In training the N decoders run as one: their first
upsamplings all read the same features and form one wide convolution, everything after is a convolution in N groups. In
inference they run one after another, folded, which is faster and needs the memory of one.

The paper counts 1.1 M parameters for eleven decoders and published no code; this network has 1.45 M. The branch that
refines from the raw image belongs to the encoder here: one for all decoders.
"""

from collections.abc import Callable, Mapping, Sequence
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
        self.heads = Heads(decoders)

    def features(self, frames: Tensor) -> Sequence[Tensor]:
        """The encoder's map (B, 128, H / 8, W / 8) and the refinement (B, 64, H / 4, W / 4)."""
        return self.encoder(frames), self.refinement(frames)

    def decode(self, features: Sequence[Tensor], chosen: Sequence[int]) -> Tensor:
        """As :meth:`Network.decode`."""
        if not (self.training or torch.is_grad_enabled()):
            return torch.stack([self.heads.answer(decoder, *features) for decoder in chosen], dim=1)
        if list(chosen) == list(range(self.decoders)):
            return self.heads(*features)
        some = {k: _take(k, v, chosen, self.decoders) for k, v in self.heads.state_dict(keep_vars=True).items()}
        with torch.device("meta"):
            heads = Heads(len(chosen)).train(self.training)
        return torch.func.functional_call(heads, some, tuple(features))

    def reference_heads(self) -> list[Callable[[Sequence[Tensor]], Tensor]]:
        """As :meth:`Network.reference_heads`: decoders of one anatomy each."""
        return [self._alone(decoder) for decoder in range(self.decoders)]

    def _alone(self, decoder: int) -> "AloneHead":
        alone = AloneHead(1)
        state = self.heads.state_dict()
        alone.load_state_dict({k: _take(k, v, [decoder], self.decoders) for k, v in state.items()})
        return alone

    def repeated(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As :meth:`Network.repeated`."""
        every = [0] * self.decoders
        return {
            name: _take(name.removeprefix("heads."), tensor, every, 1) if name.startswith("heads.") else tensor
            for name, tensor in weights.items()
        }


class Heads(nn.Module):
    """N decoders as one: the first upsampling is one wide convolution, everything after it runs in N groups."""

    def __init__(self, decoders: int) -> None:
        super().__init__()
        self.decoders = decoders
        wide = decoders * WIDTH
        self.upsample = nn.Sequential(_transposed(128, wide), nn.BatchNorm2d(wide, BN_EPS), nn.ReLU())
        self.refine = nn.Sequential(*(SeparableResidual(wide, groups=decoders) for _ in range(4)))
        self.classifier = _transposed(wide, decoders * 2, groups=decoders, bias=True)

    def forward(self, encoded: Tensor, refinement: Tensor) -> Tensor:
        """(B, 128, h, w) and (B, 64, 2 h, 2 w) -> logits (B, N, 2, 4 h, 4 w)."""
        features = self.upsample(encoded).unflatten(1, (self.decoders, WIDTH))
        features = (features + refinement[:, None]).flatten(1, 2)
        return self.classifier(self.refine(features)).unflatten(1, (self.decoders, 2))

    def answer(self, decoder: int, encoded: Tensor, refinement: Tensor) -> Tensor:
        """What one decoder answers in inference: (B, 2, 4 h, 4 w).

        Batch norm is multiplied into the convolutions, and all decoders pass through the memory of one.
        """
        own = slice(decoder * WIDTH, (decoder + 1) * WIDTH)
        up, up_norm = cast(nn.ConvTranspose2d, self.upsample[0]), cast(nn.BatchNorm2d, self.upsample[1])
        scale, shift = _scale_and_shift(up_norm, own)
        x = _double(encoded, up.weight[:, own] * scale[:, None, None], shift).relu_().add_(refinement)
        for block in cast(Sequence[SeparableResidual], self.refine):
            depthwise, pointwise = _folded(block.depthwise, own), _folded(block.pointwise, own)
            inner = F.conv2d(x, *depthwise, padding=1, groups=WIDTH).relu_()
            x = F.conv2d(inner, *pointwise).add_(x).relu_()
        bias = cast(Tensor, self.classifier.bias)[2 * decoder : 2 * decoder + 2]
        return _double(x, self.classifier.weight[own], bias)


class AloneHead(Heads):
    """One decoder by itself."""

    def forward(self, features: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """The features of :class:`MiniNetV2` -> logits (B, 2, h, w)."""
        return super().forward(*features)[:, 0]


def _take(name: str, tensor: Tensor, chosen: Sequence[int], decoders: int) -> Tensor:
    """The share of some of the N decoders in a tensor of :class:`Heads`."""
    if tensor.dim() == 0:  # batch norm's counter
        return tensor
    # A transposed convolution keeps its output channels, here the decoders', in the second dimension.
    dim = 1 if name == "upsample.0.weight" else 0
    index = torch.tensor(chosen, device=tensor.device)
    return tensor.unflatten(dim, (decoders, -1)).index_select(dim, index).flatten(dim, dim + 1)


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
        self.dropout = Dropout(0.25)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape."""
        return F.relu(x + self.dropout(self.pointwise(self.plain(x) + self.dilated(x))))


def _depthwise(channels: int, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels, BN_EPS), nn.ReLU())


def _pointwise(channels: int, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, 1, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels, BN_EPS))


def _scale_and_shift(norm: nn.BatchNorm2d, own: slice) -> tuple[Tensor, Tensor]:
    """Batch norm in inference as x * scale + shift, for some of its channels."""
    scale = norm.weight[own] * torch.rsqrt(cast(Tensor, norm.running_var)[own] + norm.eps)
    return scale, norm.bias[own] - cast(Tensor, norm.running_mean)[own] * scale


def _folded(part: nn.Sequential, own: slice) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution and the batch norm behind it, for some of the output channels."""
    conv, norm = cast(nn.Conv2d, part[0]), cast(nn.BatchNorm2d, part[1])
    scale, shift = _scale_and_shift(norm, own)
    return conv.weight[own] * scale[:, None, None, None], shift


def _double(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What :func:`_transposed` does."""
    return F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=1)


def _transposed(channels: int, out: int, *, groups: int = 1, bias: bool = False) -> nn.ConvTranspose2d:
    """Double the resolution."""
    return nn.ConvTranspose2d(channels, out, 3, stride=2, padding=1, output_padding=1, groups=groups, bias=bias)
