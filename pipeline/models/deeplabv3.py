"""DeepLabv3 with N decoders: parts of segmentation-models-pytorch at output stride 8."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import segmentation_models_pytorch as smp
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3Decoder
from segmentation_models_pytorch.encoders import get_encoder, get_preprocessing_params
from torch import Tensor, nn

from pipeline.errors import MtkdError
from pipeline.models.initial_weights import (
    InitialWeights,
    copy_weights,
    require_architecture,
    unavailable,
)
from pipeline.models.network import Network, decoder_weights

WIDTH = 256
ATROUS_RATES = (12, 24, 36)
# What the shapes of smp's weights do not show.
ARCHITECTURE = {"encoder_output_stride": 8, "decoder_atrous_rates": ATROUS_RATES}


class DeepLabV3(Network):
    """Encoder at output stride 8, and N decoders (Chen et al. 2017).

    Each decoder is an ASPP, a 3x3 convolution and a 1x1 classifier. The logits are smp's before its
    upsampling, which aligns corners and would not fit the other networks.
    """

    stride = 8
    output_stride = 8

    def __init__(
        self, decoders: int, pretrained: str | None, *, encoder: str, shared: bool = False
    ) -> None:
        super().__init__(decoders, shared=shared)
        self.encoder_name = encoder
        self.encoder = _encoder(encoder, "imagenet" if pretrained == "imagenet" else None)
        features: int = self.encoder.out_channels[-1]
        self.heads = self.make_heads(partial(_head, features))
        if pretrained == "imagenet":
            statistics = get_preprocessing_params(encoder, "imagenet")
            self.mean = tuple(statistics["mean"])
            self.std = tuple(statistics["std"])
            self.initial_weights = InitialWeights.of(
                self, "imagenet", {f"encoder.{name}" for name in self.encoder.state_dict()}
            )
        elif pretrained is not None:
            _load(self, pretrained)

    def features(self, frames: Tensor) -> Sequence[Tensor]:
        """The encoder's feature maps, finest first; the decoders read the last one."""
        return cast(Sequence[Tensor], self.encoder(frames))

    def decode(self, features: Sequence[Tensor], selected: Sequence[int]) -> Tensor:
        """As :meth:`Network.decode`."""
        maps = [head(features) for head in self.heads_of(selected)]
        return self.per_anatomy(maps, selected)

    def reference_heads(self) -> list[Callable[[Sequence[Tensor]], Tensor]]:
        """As :meth:`Network.reference_heads`: decoders of smp."""
        channels: int = self.encoder.out_channels[-1]
        return [_reference_head(channels, head.state_dict()) for head in self.heads]


class AtrousConv2d(nn.Conv2d):
    """A dilated 3x3 convolution that leaves out the taps which meet nothing but padding.

    With rates 12, 24 and 36 that is eight of nine taps on the small maps of training: the same
    function and gradients, with a third of the multiplications.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h, w)."""
        dilation = int(self.dilation[0])
        reaches = [dilation < size for size in x.shape[-2:]]
        rows, columns = (slice(None) if reach else slice(1, 2) for reach in reaches)
        padding = [dilation if reach else 0 for reach in reaches]
        return F.conv2d(
            x, self.weight[:, :, rows, columns], self.bias, padding=padding, dilation=dilation
        )


def _smp_head(channels: int, logits: int) -> nn.Sequential:
    decoder = DeepLabV3Decoder(
        channels, WIDTH, ATROUS_RATES, aspp_separable=False, aspp_dropout=0.5
    )
    classifier = nn.Conv2d(WIDTH, logits, kernel_size=1)
    return nn.Sequential(OrderedDict(decoder=decoder, classifier=classifier))


def _head(channels: int, logits: int) -> nn.Sequential:
    head = _smp_head(channels, logits)
    branches = cast(nn.ModuleList, head.get_submodule("decoder.aspp.convs"))
    for branch, rate in zip(branches[1:4], ATROUS_RATES, strict=True):
        cast(nn.Sequential, branch)[0] = AtrousConv2d(
            channels, WIDTH, 3, padding=rate, dilation=rate, bias=False
        )
    return head


def _reference_head(channels: int, weights: dict[str, Tensor]) -> nn.Sequential:
    reference = _smp_head(channels, len(weights["classifier.bias"]))
    reference.load_state_dict(weights)
    return reference


def _encoder(name: str, weights: str | None) -> Any:
    try:
        encoder = get_encoder(name, in_channels=3, depth=5, weights=weights, output_stride=8)
    except Exception as error:  # the hub client raises what its transport raises
        if weights is None:
            raise
        raise unavailable(weights, f"an ImageNet encoder {name}", error) from error
    # Of smp's EfficientNet; DDP would wait for their gradients.
    for unused in ("_conv_head", "_bn1"):
        if hasattr(encoder, unused):
            getattr(encoder, unused).requires_grad_(False)
    return encoder


def _load(network: DeepLabV3, source: str) -> None:
    """Take encoder and decoder of an ``smp.DeepLabV3`` on the hub or in a folder.

    Classifiers stay new.

    Raises:
        MtkdError: there is no such checkpoint, or one of another network.
    """
    expected = f"an smp.DeepLabV3 on {network.encoder_name}"
    try:
        model: Any = smp.from_pretrained(source)
    except Exception as error:  # the hub client raises what its transport raises
        raise unavailable(source, expected, error) from error
    if not isinstance(model, smp.DeepLabV3):
        raise MtkdError(f"pretrained: '{source}' is a {type(model).__name__}, expected {expected}")
    require_architecture(model.config, ARCHITECTURE, f"pretrained: '{source}'")
    copy_weights(network.encoder, model.encoder.state_dict(), f"pretrained: '{source}', encoder")
    for head in network.heads:
        copy_weights(
            head.get_submodule("decoder"),
            model.decoder.state_dict(),
            f"pretrained: '{source}', decoder",
        )
    loaded = {name for name in network.state_dict() if ".classifier." not in name}
    network.initial_weights = InitialWeights.of(network, source, loaded)


def to_smp(network: DeepLabV3, decoder: int = 0) -> Any:
    """Encoder and one decoder as smp knows them.

    Its logits (B, 2, h, w) before upsampling are equal to ours.
    """
    model = smp.DeepLabV3(
        network.encoder_name,
        encoder_weights=None,
        encoder_output_stride=8,
        decoder_atrous_rates=ATROUS_RATES,
        classes=2,
    )
    channels: int = network.encoder.out_channels[-1]
    head = _reference_head(channels, decoder_weights(network, decoder))
    model.encoder.load_state_dict(network.encoder.state_dict())
    model.decoder.load_state_dict(head.get_submodule("decoder").state_dict())
    model.segmentation_head[0].load_state_dict(head.get_submodule("classifier").state_dict())
    return model.train(network.training)
