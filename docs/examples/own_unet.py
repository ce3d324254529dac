"""A U-Net (Ronneberger et al. 2015) on EfficientNet-lite0: a network of one's own.

    cp docs/examples/own_unet.py pipeline/models/        # then, in params.yaml, teacher.arch:
    own_unet

Its output is four times as fine as DeepLabv3's, and its encoder knows ImageNet: with some twenty
frames of an anatomy both are worth a lot.
"""

from collections.abc import Sequence
from functools import partial
from typing import cast

from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn

from pipeline.errors import MtkdError
from pipeline.models.deeplabv3_efficientnet_lite0 import MEAN, STD, load_imagenet
from pipeline.models.network import Network


class UNet(Network):
    """smp's encoder, and for each anatomy smp's decoder with a classifier at half the size."""

    stride, output_stride = 32, 2
    mean, std = MEAN, STD

    def __init__(self, decoders: int, *, shared: bool) -> None:
        super().__init__(decoders, shared=shared)
        self.encoder = get_encoder("tu-tf_efficientnet_lite0", in_channels=3, depth=5, weights=None)
        self.heads = self.make_heads(partial(_Head, self.encoder.out_channels))

    def features(self, frames: Tensor) -> Sequence[Tensor]:
        """The encoder's feature maps, finest first."""
        return cast(Sequence[Tensor], self.encoder(frames))

    def decode(self, features: Sequence[Tensor], selected: Sequence[int]) -> Tensor:
        """As :meth:`Network.decode`."""
        maps = [head(features) for head in self.heads_of(selected)]
        return self.per_anatomy(maps, selected)


class _Head(nn.Module):
    def __init__(self, channels: Sequence[int], logits: int) -> None:
        super().__init__()
        widths = (256, 128, 64, 32)
        self.decoder = UnetDecoder(channels, widths, n_blocks=len(widths))
        self.classifier = nn.Conv2d(widths[-1], logits, kernel_size=1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return cast(Tensor, self.classifier(self.decoder(features)))


def build(decoders: int, pretrained: str | None, *, shared: bool = False) -> UNet:
    """A U-Net on EfficientNet-lite0.

    Args:
        decoders: number of anatomies.
        shared: one decoder for all of them.
        pretrained: "imagenet" for the encoder's weights, None for random ones.

    Raises:
        MtkdError: other weights were asked for.
    """
    if pretrained not in (None, "imagenet"):
        raise MtkdError(
            f"own_unet starts from 'none', 'imagenet' or an own checkpoint, not '{pretrained}'"
        )
    network = UNet(decoders, shared=shared)
    if pretrained == "imagenet":
        load_imagenet(network)
    return network
