"""The networks of the paper's Table 1: one encoder with one decoder (its square) or with N decoders (its star).

One module per architecture name declares it; the families (``segformer``, ``deeplabv3``, ``mininetv2``) implement it.
A family is imported only when one of its architectures is built: their libraries take seconds to import.
"""

from importlib import import_module

from pipeline.errors import MtkdError
from pipeline.models.network import Network

ARCHITECTURES = (
    "deeplabv3_efficientnet_b0",
    "deeplabv3_efficientnet_b3",
    "deeplabv3_efficientnet_lite0",
    "deeplabv3_resnet18",
    "deeplabv3_resnet50",
    "mininetv2",
    "segformer_b0",
    "segformer_b3",
)


def create_model(name: str, decoders: int, pretrained: str | None = None) -> Network:
    """Build a network by its name.

    Args:
        name: one of ``ARCHITECTURES``.
        decoders: number of anatomies N >= 1, each with its own decoder on the shared encoder.
        pretrained: ``None`` or ``"none"`` for random weights, ``"imagenet"``, or what else the family takes
            (SegFormer: a hub id or the path of a Transformers checkpoint).

    Returns:
        A module that maps normalised frames (B, 3, H, W) to logits (B, decoders, 2, h, w) at its native resolution.

    Raises:
        MtkdError: the name is unknown, ``decoders`` < 1, or the weights can't be had.
    """
    if name not in ARCHITECTURES:
        raise MtkdError(f"unknown architecture '{name}': choose one of {', '.join(ARCHITECTURES)}")
    if decoders < 1:
        raise MtkdError(f"a network needs at least one decoder, not {decoders}")
    weights = None if pretrained in (None, "none") else pretrained
    network: Network = import_module(f"pipeline.models.{name}").build(decoders, weights)
    network.architecture = name
    return network


__all__ = ["ARCHITECTURES", "Network", "create_model"]
