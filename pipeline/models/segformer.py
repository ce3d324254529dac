"""SegFormer (Xie et al. 2021): N all-MLP decoders on one mix transformer of the Transformers library.

The reference decoder projects each of the four stages to the decoder's width, upsamples it to 1/4, concatenates and
fuses by a 1x1 convolution. Projection, bilinear upsampling and 1x1 convolution commute, so here each projection is
multiplied into its slice of the fusion and applied at the stage's own resolution: the same function, batch norm sees
the same values, and the gradients reach the same parameters.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, SegformerConfig, SegformerForSemanticSegmentation, SegformerModel
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead
from transformers.utils.hub import cached_file

from pipeline.errors import MtkdError
from pipeline.models.dropout import Dropout
from pipeline.models.network import Network
from pipeline.models.start import copy_weights, read_json, started, unavailable

# Rows of the finest stage that inference decodes at a time on the CPU: a strip stays in the processor's cache.
STRIP_ROWS = 16


class SegFormer(Network):
    """Mix transformer encoder; N decoders, each with its own projections, fusion and classifier."""

    stride, output_stride = 4, 4

    def __init__(
        self,
        decoders: int,
        pretrained: str | None,
        *,
        depths: tuple[int, ...],
        widths: tuple[int, ...],
        decoder_width: int,
        imagenet: str,
    ) -> None:
        super().__init__(decoders)
        self.config = SegformerConfig(
            depths=list(depths), hidden_sizes=list(widths), decoder_hidden_size=decoder_width, num_labels=2
        )
        self.encoder = SegformerModel(self.config)
        self.heads = nn.ModuleList(Head(widths, decoder_width) for _ in range(decoders))
        if pretrained is not None:
            _load(self, pretrained, imagenet if pretrained == "imagenet" else pretrained)

    def features(self, frames: Tensor) -> Sequence[Tensor]:
        """The four stages [(B, C_i, h_i, w_i)], finest first."""
        return cast(Sequence[Tensor], self.encoder(frames, output_hidden_states=True).hidden_states)

    def decode(self, features: Sequence[Tensor], chosen: Sequence[int]) -> Tensor:
        """As :meth:`Network.decode`."""
        heads = [cast(Head, self.heads[i]) for i in chosen]
        if self.training or torch.is_grad_enabled():
            features = [stage.contiguous(memory_format=torch.channels_last) for stage in features]
            return torch.stack([head(features) for head in heads], dim=1)
        return decode_in_strips(heads, features)

    def reference_heads(self) -> list[Callable[[Sequence[Tensor]], Tensor]]:
        """As :meth:`Network.reference_heads`: decoders of the Transformers library."""
        return [_reference_head(self.config, cast(Head, head)) for head in self.heads]


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
        """Stages [(B, C_i, h_i, w_i)], finest first -> logits (B, 2, h_0, w_0)."""
        fused, *coarser = (
            F.conv2d(stage, weight[:, :, None, None], bias)
            for stage, (weight, bias) in zip(stages, self.folded(), strict=True)
        )
        for stage in coarser:
            fused = fused + F.interpolate(stage, size=fused.shape[-2:], mode="bilinear", align_corners=False)
        return self.classifier(self.dropout(F.relu(self.norm(fused))))

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


def _load(network: SegFormer, source: str, checkpoint: str) -> None:
    """Start from a Transformers checkpoint: its encoder; its decoder, if it has one, in each of ours; new classifiers.

    Raises:
        MtkdError: there is no such checkpoint, or one of another size.
    """
    expected = f"a SegFormer with depths {network.config.depths} and widths {network.config.hidden_sizes}"
    try:
        config = AutoConfig.from_pretrained(checkpoint)
        if not isinstance(config, SegformerConfig):
            raise ValueError(f"it is a {config.model_type}")
        kind = "SegformerForSemanticSegmentation" in (config.architectures or [])
        model: Any = (SegformerForSemanticSegmentation if kind else SegformerModel).from_pretrained(checkpoint)
        statistics = cached_file(checkpoint, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise unavailable(source, expected, error) from error
    if list(config.depths) != list(network.config.depths):
        raise MtkdError(f"pretrained: '{source}' has depths {config.depths}, expected {expected}")
    copy_weights(network.encoder, (model.segformer if kind else model).state_dict(), f"pretrained: '{source}'")
    loaded = {f"encoder.{name}" for name in network.encoder.state_dict()}
    if kind:
        loaded |= _copy_decoder(network, model.decode_head, source)
    preprocessing = read_json(Path(statistics)) if statistics else {}
    network.mean = tuple(preprocessing.get("image_mean", network.mean))
    network.std = tuple(preprocessing.get("image_std", network.std))
    network.start = started(network, source, loaded)


def _copy_decoder(network: SegFormer, reference: nn.Module, source: str) -> set[str]:
    """Copy the reference's decoder, without its classifier, to each of ours; the names of what was loaded."""
    weights = {k: v for k, v in head_weights(reference).items() if not k.startswith("classifier.")}
    for head in network.heads:
        own = {k: v for k, v in head.state_dict().items() if k.startswith("classifier.")}
        copy_weights(head, weights | own, f"pretrained: '{source}', decoder")
    return {f"heads.{i}.{name}" for i in range(network.decoders) for name in weights}


def head_weights(reference: Any) -> dict[str, Tensor]:
    """The weights of a Transformers ``SegformerDecodeHead`` under the names of :class:`Head`."""
    linears = [m for m in reference.modules() if isinstance(m, nn.Linear)]
    parts = {
        **{f"projections.{i}": linear for i, linear in enumerate(linears)},
        "fuse": reference.linear_fuse,
        "norm": reference.batch_norm,
        "classifier": reference.classifier,
    }
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}


def to_transformers(network: SegFormer, decoder: int = 0) -> SegformerForSemanticSegmentation:
    """Encoder and one decoder as the Transformers library knows them, with equal logits (B, 2, h, w)."""
    model = SegformerForSemanticSegmentation(network.config)
    model.segformer.load_state_dict(network.encoder.state_dict())
    model.decode_head = _reference_head(network.config, cast(Head, network.heads[decoder]))
    return model.train(network.training)


def _reference_head(config: SegformerConfig, head: Head) -> Any:
    reference = SegformerDecodeHead(config)
    own = head.state_dict()
    for name, tensor in head_weights(reference).items():
        tensor.copy_(own[name])  # a state dict's tensors share the module's memory
    return reference
