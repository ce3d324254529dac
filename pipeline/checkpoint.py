"""Checkpoints: weights and what they are, in one safetensors file that runs no code when it is loaded."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, field
from hashlib import sha256
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, channels_last

from pipeline.errors import MtkdError
from pipeline.files import write_atomically
from pipeline.models import Network, create_model
from pipeline.models.start import copy_weights, started

Side = Annotated[int, Field(strict=True, gt=0)]
Mean = Annotated[float, Field(allow_inf_nan=False)]
Std = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Card:
    """What a checkpoint holds.

    Attributes:
        architecture: the network's name.
        anatomies: one decoder each.
        image_size: (H, W) of the frames of its training.
        mean, std: input statistics, RGB in 0..1.
        trained_on: settings and sha256 of the frames and labels of its training; empty if it came from elsewhere.
    """

    architecture: str
    anatomies: Annotated[tuple[str, ...], Field(min_length=1)]
    image_size: tuple[Side, Side]
    mean: tuple[Mean, Mean, Mean]
    std: tuple[Std, Std, Std]
    trained_on: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    path: Path, network: Network, image_size: tuple[int, int], trained_on: Mapping[str, Any] | None = None
) -> None:
    """Write weights and card; equal weights give equal bytes, and a crash leaves no half-written file.

    Args:
        path: the file.
        network: its decoders have names.
        image_size: (H, W) of the frames of its training.
        trained_on: what determined the weights, for the card.
    """
    known = dict(trained_on or {})
    card = Card(network.architecture, network.anatomies, image_size, network.mean, network.std, known)
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    # One entry: safetensors writes several in any order.
    metadata = json.dumps({"sha256": _digest(tensors), **asdict(card)})
    write_atomically(path, save(tensors, metadata={"mtkd": metadata}))


def load_checkpoint(path: Path, made_by: str) -> tuple[Network, Card]:
    """The network in eval mode, and its card.

    Args:
        path: the file.
        made_by: the stage that makes it, named when it is missing or broken.

    Raises:
        MtkdError: no such file, or not a whole checkpoint of this project.
    """
    with _named(path, made_by):
        card, tensors = _read(path)
        network = create_model(card.architecture, len(card.anatomies))
        network.load_state_dict(tensors)
    network.anatomies, network.mean, network.std = card.anatomies, card.mean, card.std
    return network.eval().to(memory_format=channels_last), card


def load_card(path: Path, made_by: str) -> Card:
    """The card of a whole checkpoint, without building its network.

    Raises:
        MtkdError: as :func:`load_checkpoint`.
    """
    with _named(path, made_by):
        return _read(path)[0]


def start_from(network: Network, source: str) -> None:
    """Start a network from a checkpoint of the same architecture, with as many decoders or with one.

    One decoder goes to each of the network's, whose classifiers stay new: it was trained for another anatomy.

    Raises:
        MtkdError: no such file, not a checkpoint, or one of another network.
    """
    path, what = Path(source), f"pretrained: '{source}'"
    expected = f"{network.architecture} with {network.decoders} decoders or one"
    if not path.is_file():
        raise MtkdError(f"{what} is no file: expected a checkpoint of {expected}")
    try:
        card, tensors = _read(path)
    except MtkdError as error:
        raise MtkdError(f"{what} is no checkpoint of this project ({error}): expected one of {expected}") from error
    if card.architecture != network.architecture or len(card.anatomies) not in (1, network.decoders):
        raise MtkdError(f"{what} holds {card.architecture} with {len(card.anatomies)} decoders, expected {expected}")
    loaded = set(tensors)
    if len(card.anatomies) != network.decoders:
        own = {k: v for k, v in network.state_dict().items() if ".classifier." in k}
        repeated = network.repeated(tensors)
        loaded = repeated.keys() - own.keys()
        tensors = repeated | own
    copy_weights(network, tensors, what)
    network.mean, network.std = card.mean, card.std
    network.start = started(network, source, loaded)


@contextmanager
def _named(path: Path, made_by: str) -> Iterator[None]:
    """What is wrong with a checkpoint, with its name and the stage that makes it."""
    if not path.is_file():
        raise MtkdError(f"{path} is missing: run `dvc repro {made_by}`")
    try:
        yield
    except (MtkdError, RuntimeError) as error:
        reason = shorten(str(error), 160, placeholder=" ...")
        raise MtkdError(f"{path} is no whole checkpoint ({reason}): run `dvc repro -s -f {made_by}`") from error


def _read(path: Path) -> tuple[Card, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "mtkd" not in metadata:
                raise ValueError("it was not written by this project")
            fields = json.loads(metadata["mtkd"])
            if not isinstance(fields, dict):
                raise ValueError("its card is no mapping")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        if _digest(tensors) != fields.pop("sha256"):
            raise ValueError("its weights are damaged: their checksum does not match")
        return TypeAdapter(Card).validate_python(fields), tensors
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise MtkdError(f"its card's {key}: {problem['msg']}, found {problem['input']!r}") from error
    except (RecursionError, SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise MtkdError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names and values, whatever their order: a flipped bit leaves a file that can still be read."""
    digest = sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + b"\0" + tensor.numpy().tobytes())
    return digest.hexdigest()
