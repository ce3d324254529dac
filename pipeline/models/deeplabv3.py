"""DeepLabv3 with N decoders: the encoder and decoder of segmentation-models-pytorch at output stride 8."""

from typing import Any

import torch
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3Decoder
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn

from pipeline.errors import MtkdError
from pipeline.models.network import Network

WIDTH, ATROUS_RATES = 256, (12, 24, 36)


class DeepLabV3(Network):
    """Encoder at output stride 8; each decoder is an ASPP, a 3x3 convolution and a 1x1 classifier (Chen et al. 2017).

    The logits are smp's before its upsampling, which aligns corners and would not fit the other networks.
    """

    stride, output_stride = 8, 8

    def __init__(self, decoders: int, pretrained: str | None, *, encoder: str) -> None:
        super().__init__(decoders)
        self.encoder = _encoder(encoder, pretrained)
        features: int = self.encoder.out_channels[-1]
        self.heads = nn.ModuleList(_head(features) for _ in range(decoders))

    def native_logits(self, frames: Tensor) -> Tensor:
        """As :meth:`Network.native_logits`."""
        features = self.encoder(frames)
        return torch.stack([head(features) for head in self.heads], dim=1)


def _head(channels: int) -> nn.Sequential:
    decoder = DeepLabV3Decoder(channels, WIDTH, ATROUS_RATES, aspp_separable=False, aspp_dropout=0.5)
    return nn.Sequential(decoder, nn.Conv2d(WIDTH, 2, kernel_size=1))


def _encoder(name: str, pretrained: str | None) -> Any:
    if pretrained not in (None, "imagenet"):
        raise MtkdError(f"DeepLabv3 encoders take pretrained: none or imagenet, not '{pretrained}'")
    try:
        return get_encoder(name, in_channels=3, depth=5, weights=pretrained, output_stride=8)
    except Exception as error:  # the hub client raises what its transport raises
        if pretrained is None:
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MtkdError(
            f"no ImageNet weights for {name} ({reason}): go online once, or set pretrained: none"
        ) from error
