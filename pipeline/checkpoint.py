"""Checkpoints: weights and what they are, in one safetensors file that runs no code when it is loaded."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import Any

from safetensors.torch import save
from torch import channels_last

from pipeline.errors import MtkdError
from pipeline.files import write_atomically
from pipeline.models import Network, create_model
from pipeline.models.card import Card, digest_weights, read_file


def save_checkpoint(
    path: Path,
    network: Network,
    image_size: tuple[int, int],
    trained_on: Mapping[str, Any] | None = None,
) -> None:
    """Write weights and card; equal weights give equal bytes, and a crash leaves no half-written file.

    Args:
        path: the file.
        network: its decoders have names.
        image_size: (H, W) of the frames of its training.
        trained_on: what determined the weights, for the card.
    """
    known = dict(trained_on or {})
    card = Card(
        network.architecture, network.anatomies, image_size, network.mean, network.std, known
    )
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    # One entry: safetensors writes several in any order.
    metadata = json.dumps({"sha256": digest_weights(tensors), **asdict(card)})
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
        card, tensors = read_file(path)
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
        return read_file(path)[0]


@contextmanager
def _named(path: Path, made_by: str) -> Iterator[None]:
    """What is wrong with a checkpoint, with its name and the stage that makes it."""
    if not path.is_file():
        raise MtkdError(f"{path} is missing: run `dvc repro {made_by}`")
    try:
        yield
    except (MtkdError, RuntimeError) as error:
        reason = shorten(str(error), 160, placeholder=" ...")
        raise MtkdError(
            f"{path} is no whole checkpoint ({reason}): run `dvc repro -s -f {made_by}`"
        ) from error
