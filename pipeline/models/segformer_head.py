"""The all-MLP decoder of SegFormer (Xie et al. 2021), folded.

The reference projects each of the four stages to the decoder's width, upsamples it to 1/4,
concatenates and fuses by a 1x1 convolution. Projection, bilinear upsampling and 1x1 convolution
commute, so here each projection is multiplied into its slice of the fusion and applied at the
stage's own resolution: the same function, batch norm sees the same values, and the gradients reach
the same parameters.

The maps at 1/4, wide as the decoder, are what costs: a dozen passes over them, through memory.
Inference on the CPU decodes a strip of rows at a time, from the stages to the logits, in the
processor's cache. Training a frame at a time in the same way measured no faster; fewer passes over
the whole maps do.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.dropout import Dropout, draw
from pipeline.models.network import frame_by_frame

# Rows of the finest stage that fit the cache with their 256 channels.
STRIP_ROWS = 16


class Head(nn.Module):
    """The all-MLP decoder, folded."""

    def __init__(self, widths: tuple[int, ...], width: int, logits: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(channels, width) for channels in widths)
        self.fuse = nn.Conv2d(width * len(widths), width, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = Dropout(0.1)
        self.classifier = nn.Conv2d(width, logits, kernel_size=1)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Stages [(B, C_i, h_i, w_i)], finest first, channels last -> (B, logits, h_0, w_0)."""
        fused, *coarser = (
            F.conv2d(stage, weight[:, :, None, None], bias)
            for stage, (weight, bias) in zip(stages, self.folded(), strict=True)
        )
        for stage in coarser:
            fused.add_(
                F.interpolate(stage, size=fused.shape[-2:], mode="bilinear", align_corners=False)
            )
        normed = self.norm(fused)
        if normed.device.type != "cpu":
            return self.classifier(self.dropout(F.relu(normed)))
        rows = normed.permute(0, 2, 3, 1)
        dropped, scale = draw(rows.shape, self.dropout.p if self.training else 0.0)
        weight = self.classifier.weight.flatten(1)
        logits = _Classify.apply(rows, dropped, scale * weight, self.classifier.bias)
        return logits.permute(0, 3, 1, 2)

    def folded(self) -> list[tuple[Tensor, Tensor]]:
        """Projection and slice of the fusion in one.

        Returns:
            Per stage, finest first, weight (width, C_i) and bias (width,).
        """
        # The reference concatenates the coarsest stage first.
        slices = self.fuse.weight.flatten(1).chunk(len(self.projections), dim=1)[::-1]
        linears = [cast(nn.Linear, projection) for projection in self.projections]
        return [(fuse @ p.weight, fuse @ p.bias) for fuse, p in zip(slices, linears, strict=True)]

    def folded_with_norm(self) -> tuple[list[Tensor], Tensor]:
        """As :meth:`folded`, batch norm's statistics included.

        Returns:
            Weights per stage, finest first, (C_i, width), and one bias (width,).
        """
        norm = self.norm
        scale = norm.weight * torch.rsqrt(cast(Tensor, norm.running_var) + norm.eps)
        folded = self.folded()
        bias = torch.stack([b for _, b in folded]).sum(0) - cast(Tensor, norm.running_mean)
        return [(scale[:, None] * w).T.contiguous() for w, _ in folded], scale * bias + norm.bias


class _Classify(torch.autograd.Function):
    """ReLU, dropout and a 1x1 convolution in one.

    A value that is 0 behind the first two passes no gradient on. So their one result is all that
    the backward pass needs, instead of the masks and results of each.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, dropped: Tensor | None, weight: Tensor, bias: Tensor
    ) -> Tensor:
        """(..., C), (..., C) bool, (logits, C), (logits,) -> (..., logits)."""
        kept = values.relu().flatten(0, -2)
        if dropped is not None:
            kept.masked_fill_(dropped.flatten(0, -2), 0.0)
        ctx.save_for_backward(kept, weight)
        return torch.addmm(bias.to(kept), kept, weight.to(kept).T).view(*values.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Of the values, the weight and the bias."""
        kept, weight = ctx.saved_tensors
        gradient = gradients[0].flatten(0, -2)
        passed = torch.ops.aten.threshold_backward(gradient @ weight.to(gradient), kept, 0)
        return passed.view(*gradients[0].shape[:-1], -1), None, gradient.T @ kept, gradient.sum(0)


class FrozenHead(nn.Module):
    """A decoder in inference: per stage one weight, batch norm's statistics included.

    Args:
        head: its weights are read once, here.
        margin: give the difference of each anatomy's two logits, in place of the logits.
    """

    bias: Tensor
    classifier: Tensor
    classifier_bias: Tensor

    def __init__(self, head: Head, *, margin: bool = False) -> None:
        super().__init__()
        weights, bias = head.folded_with_norm()
        rows = head.classifier.weight.flatten(1)
        offsets = cast(Tensor, head.classifier.bias)
        if margin:
            rows = rows[1::2] - rows[::2]
            offsets = offsets[1::2] - offsets[::2]
        self.stages = len(weights)
        for number, weight in enumerate(weights):
            self.register_buffer(f"weight{number}", weight.detach())
        self.register_buffer("bias", bias.detach())
        self.register_buffer("classifier", rows.T.detach())
        self.register_buffer("classifier_bias", offsets.detach())

    @property
    def weights(self) -> list[Tensor]:
        """Per stage, finest first, (C_i, width)."""
        return [self.get_buffer(f"weight{number}") for number in range(self.stages)]

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """One frame's logits or margins, some rows at a time.

        Args:
            stages: [(h_i, w_i, C_i)], finest first.

        Returns:
            (h_0, w_0, logits or margins).
        """
        height, width, _ = stages[0].shape
        weights = [weight.to(stages[0]) for weight in self.weights]
        bias, classifier, classifier_bias = (
            tensor.to(stages[0]) for tensor in (self.bias, self.classifier, self.classifier_bias)
        )
        # Bilinear upsampling is a product with one small matrix along each axis: first the columns,
        # of whole stages ...
        wide = [
            _interpolation(s.shape[1], width, s) @ (s @ w)
            for s, w in zip(stages[1:], weights[1:], strict=True)
        ]
        down = [_interpolation(s.shape[0], height, s) for s in wide]
        output = stages[0].new_empty(height, width, classifier.shape[1])
        for start in range(0, height, STRIP_ROWS):
            part = slice(start, min(start + STRIP_ROWS, height))
            fused = torch.addmm(bias, stages[0][part].flatten(0, 1), weights[0])
            for stage, matrix in zip(wide, down, strict=True):
                # ... then the rows, of the few that this strip lies between.
                used = _used(part, stage.shape[0], height)
                fused.view(part.stop - start, -1).addmm_(matrix[part, used], stage[used].flatten(1))
            classified = torch.addmm(classifier_bias, fused.relu_(), classifier)
            output[part] = classified.unflatten(0, (-1, width))
        return output


class WideHead(nn.Module):
    """All decoders of a network as one with as many channels, as suits a GPU.

    Its maps are so wide that one frame is decoded at a time.

    Args:
        heads: with one margin each, or a single one with those of all anatomies.
    """

    bias: Tensor
    classifier: Tensor
    classifier_bias: Tensor

    def __init__(self, heads: Sequence[FrozenHead]) -> None:
        super().__init__()
        self.decoders = len(heads)
        self.stages = heads[0].stages
        for number in range(self.stages):
            weights = torch.cat([head.weights[number].T for head in heads])
            self.register_buffer(f"weight{number}", weights[:, :, None, None])
        self.register_buffer("bias", torch.cat([head.bias for head in heads]))
        rows = torch.cat([head.classifier.T for head in heads])  # (N, width)
        self.register_buffer("classifier", rows)
        self.register_buffer("classifier_bias", torch.cat([head.classifier_bias for head in heads]))

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Stages [(B, C_i, h_i, w_i)], finest first -> margins (B, N, h_0, w_0)."""
        return frame_by_frame(self._decode, stages)

    def _decode(self, stages: Sequence[Tensor]) -> Tensor:
        weights = [self.get_buffer(f"weight{number}") for number in range(self.stages)]
        x = F.conv2d(stages[0], weights[0], self.bias)
        coarser = [
            F.conv2d(stage, weight) for stage, weight in zip(stages[1:], weights[1:], strict=True)
        ]
        for stage in coarser:
            x = x + F.interpolate(stage, size=x.shape[-2:], mode="bilinear", align_corners=False)
        if self.decoders == 1:
            return F.conv2d(F.relu(x), self.classifier[:, :, None, None], self.classifier_bias)
        per_decoder = F.relu(x).unflatten(1, (self.decoders, -1))
        margins = torch.einsum("bnchw,nc->bnhw", per_decoder, self.classifier)
        return margins + self.classifier_bias[:, None, None]


def decode_in_strips(heads: Sequence[FrozenHead], stages: Sequence[Tensor]) -> list[Tensor]:
    """Logits or margins of each head, some rows at a time.

    Memory stays bounded, and in the processor's cache.

    Args:
        heads: with logits or margins.
        stages: [(B, C_i, h_i, w_i)], finest first.

    Returns:
        [(B, logits or margins, h_0, w_0)] in the dtype of autocast, or of the stages.
    """
    device = stages[0].device
    dtype = (
        torch.get_autocast_dtype(device.type)
        if torch.is_autocast_enabled(device.type)
        else stages[0].dtype
    )
    with torch.autocast(device.type, enabled=False):
        rows = [stage.permute(0, 2, 3, 1).to(dtype).contiguous() for stage in stages]
        frames = list(zip(*(stage.unbind(0) for stage in rows), strict=True))
        maps = [torch.stack(list(map(head, frames))) for head in heads]
    return [each.permute(0, 3, 1, 2) for each in maps]


def _interpolation(size: int, larger: int, like: Tensor) -> Tensor:
    """The matrix (larger, size) of linear interpolation, corners not aligned."""
    return _matrix(size, larger).to(like)


@cache
def _matrix(size: int, larger: int) -> Tensor:
    source = ((torch.arange(larger, dtype=torch.float64) + 0.5) * size / larger - 0.5).clamp(
        0, size - 1
    )
    distance = (source[:, None] - torch.arange(size)).abs()
    return (1 - distance).clamp(min=0)


def _used(part: slice, size: int, larger: int) -> slice:
    """Rows of a stage that the rows ``part`` of its upsampled form are interpolated from."""
    ends = (part.start, part.stop - 1)
    first, last = ((row + 0.5) * size / larger - 0.5 for row in ends)
    return slice(max(0, int(first)), min(size, int(max(0.0, last)) + 2))
