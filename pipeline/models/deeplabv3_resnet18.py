"""DeepLabv3 (Chen et al. 2017) on ResNet18."""

from functools import partial

from pipeline.models.deeplabv3 import DeepLabV3

build = partial(DeepLabV3, encoder="resnet18")
