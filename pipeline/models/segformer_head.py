"""The all-MLP decoder of SegFormer (Xie et al. 2021), folded.

The reference projects each of the four stages to the decoder's width, upsamples it to 1/4, concatenates and fuses by a
1x1 convolution. Projection, bilinear upsampling and 1x1 convolution commute, so here each projection is multiplied into
its slice of the fusion and applied at the stage's own resolution: the same function, batch norm sees the same values,
and the gradients reach the same parameters.

The maps at 1/4, wide as the decoder, are what costs: a dozen passes over them, through memory. On the CPU inference
decodes a strip of rows at a time and training a frame at a time, from the stages to the logits, in the processor's
cache.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.dropout import Dropout, keep_mask

# Rows of the finest stage that fit the cache with their 256 channels.
STRIP_ROWS = 16


class Head(nn.Module):
    """The all-MLP decoder, folded."""

    def __init__(self, widths: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(channels, width) for channels in widths)
        self.fuse = nn.Conv2d(width * len(widths), width, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = Dropout(0.1)
        self.classifier = nn.Conv2d(width, 2, kernel_size=1)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Stages [(B, C_i, h_i, w_i)], finest first, channels last -> logits (B, 2, h_0, w_0)."""
        if self._frame_by_frame(stages[0]):
            return self._train_by_frames(stages)
        fused, *coarser = (
            F.conv2d(stage, weight[:, :, None, None], bias)
            for stage, (weight, bias) in zip(stages, self.folded(), strict=True)
        )
        for stage in coarser:
            fused = fused + F.interpolate(stage, size=fused.shape[-2:], mode="bilinear", align_corners=False)
        return self.classifier(self.dropout(F.relu(self.norm(fused))))

    def _frame_by_frame(self, stage: Tensor) -> bool:
        if not self.training or stage.device.type != "cpu":
            return False
        return type(self.norm) is nn.BatchNorm2d and not torch.is_autocast_enabled("cpu")

    def _train_by_frames(self, stages: Sequence[Tensor]) -> Tensor:
        folded = self.folded()
        bias = torch.stack([bias for _, bias in folded]).sum(0)
        logits, mean, variance = _TrainByFrames.apply(
            [weight.shape[1] for weight, _ in folded],
            self.norm.eps,
            self.dropout.p,
            bias,
            self.norm.weight,
            self.norm.bias,
            self.classifier.weight.flatten(1),
            self.classifier.bias,
            *(weight for weight, _ in folded),
            *(stage.permute(0, 2, 3, 1) for stage in stages),
        )
        with torch.no_grad():
            count = logits.shape[0] * logits.shape[1] * logits.shape[2]
            momentum = cast(float, self.norm.momentum)
            cast(Tensor, self.norm.running_mean).lerp_(mean, momentum)
            cast(Tensor, self.norm.running_var).lerp_(variance * count / (count - 1), momentum)
            cast(Tensor, self.norm.num_batches_tracked).add_(1)
        return cast(Tensor, logits.permute(0, 3, 1, 2))

    def folded(self) -> list[tuple[Tensor, Tensor]]:
        """Per stage, finest first: (width, C_i) and (width,), projection and slice of the fusion in one."""
        # The reference concatenates the coarsest stage first.
        slices = self.fuse.weight.flatten(1).chunk(len(self.projections), dim=1)[::-1]
        linears = [cast(nn.Linear, projection) for projection in self.projections]
        return [(fuse @ p.weight, fuse @ p.bias) for fuse, p in zip(slices, linears, strict=True)]

    def folded_with_norm(self) -> tuple[list[Tensor], Tensor]:
        """Weights per stage, finest first, (C_i, width), and one bias (width,), batch norm's statistics included."""
        norm = self.norm
        scale = norm.weight * torch.rsqrt(cast(Tensor, norm.running_var) + norm.eps)
        folded = self.folded()
        bias = torch.stack([b for _, b in folded]).sum(0) - cast(Tensor, norm.running_mean)
        return [(scale[:, None] * w).T.contiguous() for w, _ in folded], scale * bias + norm.bias


def decode_in_strips(heads: Sequence[Head], stages: Sequence[Tensor]) -> Tensor:
    """What the heads answer in inference, some rows at a time: memory stays bounded, and in the processor's cache.

    Args:
        heads: in eval mode.
        stages: [(B, C_i, h_i, w_i)], finest first.

    Returns:
        (B, len(heads), 2, h_0, w_0) in the dtype of autocast, or of the stages.
    """
    device = stages[0].device
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else stages[0].dtype
    with torch.autocast(device.type, enabled=False):
        rows = [stage.permute(0, 2, 3, 1).to(dtype).contiguous() for stage in stages]
        logits = [
            torch.stack([_decode_frame(head, [r[b] for r in rows]) for head in heads]) for b in range(len(rows[0]))
        ]
    return torch.stack(logits).permute(0, 1, 4, 2, 3)


def _decode_frame(head: Head, stages: Sequence[Tensor]) -> Tensor:
    """One head on one frame: stages [(h_i, w_i, C_i)], finest first -> (h_0, w_0, 2)."""
    height, width, _ = stages[0].shape
    weights, bias = head.folded_with_norm()
    weights, bias = [w.to(stages[0]) for w in weights], bias.to(stages[0])
    to_logits, logits_bias = (
        head.classifier.weight.flatten(1).T.to(stages[0]),
        cast(Tensor, head.classifier.bias).to(stages[0]),
    )
    # Bilinear upsampling is a product with one small matrix along each axis: first the columns, of whole stages ...
    wide = [_interpolation(s.shape[1], width, s) @ (s @ w) for s, w in zip(stages[1:], weights[1:], strict=True)]
    down = [_interpolation(s.shape[0], height, s) for s in wide]
    strip = STRIP_ROWS if stages[0].device.type == "cpu" else height
    logits = stages[0].new_empty(height, width, 2)
    for start in range(0, height, strip):
        part = slice(start, min(start + strip, height))
        fused = torch.addmm(bias, stages[0][part].flatten(0, 1), weights[0])
        for stage, matrix in zip(wide, down, strict=True):
            # ... then the rows, of the few that this strip lies between.
            used = _used(part, stage.shape[0], height)
            fused.view(part.stop - start, -1).addmm_(matrix[part, used], stage[used].flatten(1))
        logits[part] = torch.addmm(logits_bias, fused.relu_(), to_logits).unflatten(0, (-1, width))
    return logits


def _interpolation(size: int, larger: int, like: Tensor) -> Tensor:
    """The matrix (larger, size) of linear interpolation, corners not aligned."""
    source = ((torch.arange(larger, dtype=torch.float64) + 0.5) * size / larger - 0.5).clamp(0, size - 1)
    distance = (source[:, None] - torch.arange(size)).abs()
    return (1 - distance).clamp(min=0).to(like)


def _used(part: slice, size: int, larger: int) -> slice:
    """Rows of a stage that the rows ``part`` of its upsampled form are interpolated from."""
    first, last = ((row + 0.5) * size / larger - 0.5 for row in (part.start, part.stop - 1))
    return slice(max(0, int(first)), min(size, int(max(0.0, last)) + 2))


class _TrainByFrames(torch.autograd.Function):
    """A head in training: fuse, normalise over the batch, ReLU, dropout, classify; and the gradients of all that.

    Kept for backward: the fused map and which of its values stayed.
    """

    @staticmethod
    def forward(
        ctx: Any,
        channels: list[int],
        eps: float,
        dropout: float,
        bias: Tensor,
        gamma: Tensor,
        beta: Tensor,
        to_logits: Tensor,
        logits_bias: Tensor,
        *weights_and_stages: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (width, C_i) and stages (B, h_i, w_i, C_i), finest first.

        Returns:
            Logits (B, h_0, w_0, 2), the mean (width,) and the biased variance (width,) of the fused map.
        """
        weights, stages = weights_and_stages[: len(channels)], weights_and_stages[len(channels) :]
        frames, height, width, _ = stages[0].shape
        fuse = _Fusion(stages)
        fused = stages[0].new_empty(frames, height * width, len(bias))
        moments = []
        for frame in range(frames):
            fuse.forward([s[frame] for s in stages], weights, bias, out=fused[frame])
            moments.append(torch.var_mean(fused[frame], dim=0, correction=0))
        means = torch.stack([mean for _, mean in moments])
        mean = means.mean(0)
        variance = torch.stack([v for v, _ in moments]).mean(0) + (means - mean).square().mean(0)
        keep, raised = keep_mask(fused.shape, dropout)
        scale = gamma * torch.rsqrt(variance + eps)
        shift = beta - mean * scale
        logits = stages[0].new_empty(frames, height * width, 2)
        for frame in range(frames):
            active = torch.addcmul(shift, fused[frame], scale).relu_()
            if keep is not None:
                active.mul_(keep[frame])
            torch.addmm(logits_bias, active, to_logits.T, alpha=raised, out=logits[frame])
        ctx.save_for_backward(fused, mean, variance, gamma, beta, to_logits, *weights_and_stages)
        ctx.keep, ctx.raised, ctx.eps = keep, raised, eps
        ctx.mark_non_differentiable(mean, variance)
        return logits.view(frames, height, width, 2), mean, variance

    @staticmethod
    def backward(ctx: Any, logits_gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of what :meth:`forward` was given; two passes, since batch norm couples all pixels."""
        fused, mean, variance, gamma, beta, to_logits, *weights_and_stages = ctx.saved_tensors
        half = len(weights_and_stages) // 2
        weights, stages = weights_and_stages[:half], weights_and_stages[half:]
        frames, height, width, _ = stages[0].shape
        inverse = torch.rsqrt(variance + ctx.eps)
        scale = gamma * inverse
        shift = beta - mean * scale
        upstream = logits_gradient.reshape(frames, height * width, 2)

        to_logits_gradient = torch.zeros_like(to_logits)
        normed_gradient = torch.empty_like(fused)
        sums, products = torch.zeros_like(mean), torch.zeros_like(mean)
        for frame in range(frames):
            active = torch.addcmul(shift, fused[frame], scale).relu_()
            if ctx.keep is not None:
                active.mul_(ctx.keep[frame])
            to_logits_gradient.addmm_(upstream[frame].T, active, alpha=ctx.raised)
            gradient = torch.mm(upstream[frame], to_logits, out=normed_gradient[frame])
            gradient.mul_(active > 0)  # past dropout and ReLU at once
            sums += gradient.sum(0)
            products += (gradient * fused[frame]).sum(0)
        beta_gradient = sums * ctx.raised
        gamma_gradient = (products - mean * sums) * inverse * ctx.raised

        # d fused = scale * (d normed - mean(d normed) - normed * mean(d normed * normed)), linear in both.
        pixels = frames * height * width
        of_fused = -scale * inverse * gamma_gradient / pixels
        constant = -scale * beta_gradient / pixels - of_fused * mean
        fuse = _Fusion(stages)
        stage_gradients = [torch.empty_like(stage) for stage in stages]
        weight_gradients = [torch.zeros_like(weight) for weight in weights]
        bias_gradient = torch.zeros_like(mean)
        for frame in range(frames):
            gradient = normed_gradient[frame].mul_(scale * ctx.raised)
            gradient.addcmul_(fused[frame], of_fused).add_(constant)
            bias_gradient += gradient.sum(0)
            fuse.backward(
                gradient, [s[frame] for s in stages], weights, [g[frame] for g in stage_gradients], weight_gradients
            )
        logits_bias_gradient = upstream.sum((0, 1))
        own = (bias_gradient, gamma_gradient, beta_gradient, to_logits_gradient, logits_bias_gradient)
        return None, None, None, *own, *weight_gradients, *stage_gradients


class _Fusion:
    """The sum over stages of project and upsample, for one frame; upsampling is a small matrix along each axis."""

    def __init__(self, stages: Sequence[Tensor]) -> None:
        self.height, self.width = stages[0].shape[1:3]
        self.columns = [_interpolation(s.shape[2], self.width, s) for s in stages[1:]]
        self.rows = [_interpolation(s.shape[1], self.height, s) for s in stages[1:]]

    def forward(self, stages: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor, out: Tensor) -> None:
        """Stages [(h_i, w_i, C_i)], weights [(width, C_i)] -> out (h_0 * w_0, width)."""
        torch.addmm(bias, stages[0].flatten(0, 1), weights[0].T, out=out)
        by_row = out.view(self.height, -1)
        for stage, weight, columns, rows in zip(stages[1:], weights[1:], self.columns, self.rows, strict=True):
            by_row.addmm_(rows, (columns @ (stage @ weight.T)).flatten(1))

    def backward(
        self,
        gradient: Tensor,
        stages: Sequence[Tensor],
        weights: Sequence[Tensor],
        stage_gradients: Sequence[Tensor],
        weight_gradients: Sequence[Tensor],
    ) -> None:
        """From the gradient (h_0 * w_0, width): set those of the stages, add to those of the weights."""
        torch.mm(gradient, weights[0], out=stage_gradients[0].flatten(0, 1))
        weight_gradients[0].addmm_(gradient.T, stages[0].flatten(0, 1))
        by_row = gradient.view(self.height, -1)
        for i, (columns, rows) in enumerate(zip(self.columns, self.rows, strict=True), start=1):
            narrow = columns.T @ (rows.T @ by_row).unflatten(1, (self.width, -1))
            torch.mm(narrow.flatten(0, 1), weights[i], out=stage_gradients[i].flatten(0, 1))
            weight_gradients[i].addmm_(narrow.flatten(0, 1).T, stages[i].flatten(0, 1))
