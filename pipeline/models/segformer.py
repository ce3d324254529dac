"""SegFormer (Xie et al. 2021) with N all-MLP decoders on one mix transformer of the Transformers library."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerModel

from pipeline.errors import MtkdError
from pipeline.models.network import Network


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
        config = SegformerConfig(depths=list(depths), hidden_sizes=list(widths), decoder_hidden_size=decoder_width)
        self.encoder = _encoder(config, imagenet if pretrained == "imagenet" else pretrained)
        self.heads = nn.ModuleList(Head(widths, decoder_width) for _ in range(decoders))

    def native_logits(self, frames: Tensor) -> Tensor:
        """As :meth:`Network.native_logits`."""
        stages = self.encoder(frames, output_hidden_states=True).hidden_states
        return torch.stack([head(stages) for head in self.heads], dim=1)


class Head(nn.Module):
    """The all-MLP decoder, folded.

    The reference projects each stage to the decoder's width, upsamples it to 1/4, concatenates and fuses by a 1x1
    convolution. Projection, bilinear upsampling and 1x1 convolution commute, so each projection is multiplied into
    its slice of the fusion and applied at the stage's own resolution: the same function, batch norm sees the same
    values, and the gradients reach the same parameters.
    """

    def __init__(self, widths: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(channels, width) for channels in widths)
        self.fuse = nn.Conv2d(width * len(widths), width, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Conv2d(width, 2, kernel_size=1)

    def forward(self, stages: tuple[Tensor, ...]) -> Tensor:
        """Stages [(B, C_i, h_i, w_i)], finest first -> logits (B, 2, h_0, w_0)."""
        size = stages[0].shape[-2:]
        # The reference concatenates the coarsest stage first.
        slices = self.fuse.weight.flatten(1).chunk(len(stages), dim=1)[::-1]
        fused = torch.zeros((), device=stages[0].device)
        for stage, linear, fuse in zip(stages, self.projections, slices, strict=True):
            projection = cast(nn.Linear, linear)
            folded = F.conv2d(stage, (fuse @ projection.weight)[:, :, None, None], fuse @ projection.bias)
            fused = fused + F.interpolate(folded, size=size, mode="bilinear", align_corners=False)
        return self.classifier(self.dropout(F.relu(self.norm(fused))))


def _encoder(config: SegformerConfig, pretrained: str | None) -> SegformerModel:
    """The mix transformer, random or from a hub id or path; a checkpoint of another size is refused."""
    if pretrained is None:
        return SegformerModel(config)
    try:
        encoder = SegformerModel.from_pretrained(pretrained)
    except (OSError, ValueError) as error:
        raise MtkdError(
            f"pretrained: '{pretrained}' is no SegFormer checkpoint that can be loaded "
            f"({str(error).splitlines()[0]}): go online once, give a local folder, or set pretrained: none"
        ) from error
    found = (list(encoder.config.depths), list(encoder.config.hidden_sizes))
    expected = (list(config.depths), list(config.hidden_sizes))
    if found != expected:
        raise MtkdError(f"pretrained: '{pretrained}' has depths and widths {found}, expected {expected}")
    return encoder
