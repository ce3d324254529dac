"""The networks of the paper's Table 1: one encoder with one decoder (square) or with N (star).

Beyond the paper, one decoder may give the logits of all N anatomies.

One module per architecture name declares it; the families (``segformer``, ``deeplabv3``,
``mininetv2``) implement it. One of one's own is a module ``own_<name>`` here with a function
``build`` like theirs (docs/how-to/own-network.md). A family is imported only when one of its
architectures is built: their libraries take seconds to import.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import cast

from torch import Tensor

from pipeline.errors import MtkdError
from pipeline.models.card import Card, read_file
from pipeline.models.initial_weights import InitialWeights, copy_weights
from pipeline.models.network import Network
from pipeline.settings import is_own

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


def create_model(
    name: str, decoders: int, pretrained: str | None = None, *, shared: bool = False
) -> Network:
    """Build a network by its name.

    Args:
        name: one of ``ARCHITECTURES``, or ``own_<name>``.
        decoders: number of anatomies N >= 1, each with its own decoder on the shared encoder.
        shared: one decoder for all of them instead, whose classifier gives 2 N logits.
        pretrained: where the initial weights come from. ``None`` or ``"none"``: random.
            ``"imagenet"``: the encoder's. A hub id or a folder: a Transformers (SegFormer) or smp
            (DeepLabv3) checkpoint, whose decoder goes to each of the N. A ``.safetensors`` file: a
            checkpoint of this project, of the same architecture, with the same decoders or for one
            anatomy, whose decoder goes to each of the N with a new classifier.

    Returns:
        A module that maps normalised frames (B, 3, H, W) to logits (B, decoders, 2, h, w) at its
        native resolution. ``initial_weights`` says what was loaded; input statistics follow the
        weights.

    Raises:
        MtkdError: the name is unknown, an own module makes no network, or none with a shared
            decoder, ``decoders`` < 1, or the weights can't be had or don't fit.
    """
    build = _builder(name)
    if decoders < 1:
        raise MtkdError(f"a network needs at least one decoder, not {decoders}")
    from_checkpoint = pretrained is not None and pretrained.endswith(".safetensors")
    weights = None if from_checkpoint or pretrained in (None, "none") else pretrained
    if shared and "shared" not in signature(build).parameters:
        raise MtkdError(
            f"decoders: shared, but build of pipeline/models/{name}.py takes no argument shared: "
            "see docs/how-to/own-network.md"
        )
    network = build(decoders, weights, shared=True) if shared else build(decoders, weights)
    if not isinstance(network, Network):
        raise MtkdError(
            f"build of pipeline/models/{name}.py gives a {type(network).__name__}, which is not "
            "a Network"
        )
    network.architecture = name
    if from_checkpoint and pretrained is not None:
        _load_checkpoint(network, pretrained)
    return network


def _builder(name: str) -> Callable[..., object]:
    """The function that builds an architecture of ours, or one that a user has added.

    Raises:
        MtkdError: there is no such architecture, or its module lacks that function or is none.
    """
    module = f"{__name__}.{name}"
    if name not in ARCHITECTURES:
        if not is_own(name):
            raise MtkdError(
                f"unknown architecture '{name}': choose one of {', '.join(ARCHITECTURES)}, or add "
                "your own as own_<name>"
            )
        if find_spec(module) is None:
            raise MtkdError(
                f"there is no pipeline/models/{name}.py, whose function build would make this "
                "network"
            )
    try:
        return cast(Callable[..., object], import_module(module).build)
    except (ImportError, SyntaxError, AttributeError) as error:
        raise MtkdError(f"pipeline/models/{name}.py gives no function build: {error}") from error


def _load_checkpoint(network: Network, source: str) -> None:
    """Take the weights of a checkpoint of the same architecture, with equal decoders or with one.

    One decoder goes to each of the network's, whose classifiers stay new: it was trained for
    another anatomy.

    Raises:
        MtkdError: no such file, not a checkpoint, or one of another network.
    """
    what = f"pretrained: '{source}'"
    card, tensors = _read_checkpoint(network, Path(source), what)
    loaded = set(tensors)
    if len(card.anatomies) != network.decoders:
        state = network.state_dict()
        classifiers = {name: state[name] for name in state if ".classifier." in name}
        repeated = network.repeated(tensors)
        loaded = repeated.keys() - classifiers.keys()
        tensors = repeated | classifiers
    copy_weights(network, tensors, what)
    network.mean = card.mean
    network.std = card.std
    network.initial_weights = InitialWeights.of(network, source, loaded)


def _read_checkpoint(network: Network, path: Path, what: str) -> tuple[Card, dict[str, Tensor]]:
    """Metadata and weights of a checkpoint that fits a network."""
    shared = "shared " if network.shared else ""
    expected = f"{network.architecture} with {network.decoders} {shared}decoders or one"
    if not path.is_file():
        raise MtkdError(f"{what} is not a file: expected a checkpoint of {expected}")
    try:
        card, tensors = read_file(path)
    except MtkdError as error:
        raise MtkdError(
            f"{what} is not a checkpoint of this project ({error}): expected one of {expected}"
        ) from error
    decoders = len(card.anatomies)
    same = (decoders, card.shared) == (network.decoders, network.shared)
    if card.architecture != network.architecture or not (same or decoders == 1):
        shared = "shared " if card.shared else ""
        raise MtkdError(
            f"{what} holds {card.architecture} with {decoders} {shared}decoders, expected "
            f"{expected}"
        )
    return card, tensors


__all__ = ["ARCHITECTURES", "Network", "create_model"]
