"""Checkpoints: weights and metadata in one safetensors file, which runs no code when loaded."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import Any

from safetensors.torch import save
from torch import channels_last

from pipeline.errors import DamagedFileError, MissingFileError, MtkdError
from pipeline.files import write_atomically
from pipeline.models import Network, create_model
from pipeline.models.card import Card, digest_weights, read_file

SUFFIX = ".safetensors"


def save_checkpoint(
    path: Path,
    network: Network,
    image_size: tuple[int, int],
    trained_on: Mapping[str, Any] | None = None,
) -> None:
    """Write weights and metadata.

    Equal weights give equal bytes, and a crash leaves no half-written file.

    Args:
        path: the file.
        network: its decoders have names.
        image_size: (H, W) of the frames of its training.
        trained_on: what determined the weights, for the metadata.
    """
    card = Card(
        network.architecture,
        network.anatomies,
        image_size,
        network.mean,
        network.std,
        dict(trained_on or {}),
        network.shared,
    )
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    # One entry: safetensors writes several in any order.
    metadata = json.dumps({"sha256": digest_weights(tensors), **asdict(card)})
    write_atomically(path, save(tensors, metadata={"mtkd": metadata}))


def load_checkpoint(path: Path) -> tuple[Network, Card]:
    """The network in eval mode, and its metadata.

    Args:
        path: the file.

    Raises:
        MissingFileError: no such file.
        DamagedFileError: its content is not what this project wrote.
        MtkdError: its name does not end in ``.safetensors``.
    """
    with _named(path):
        card, tensors = read_file(path)
        network = create_model(card.architecture, len(card.anatomies), shared=card.shared)
        network.load_state_dict(tensors)
    network.anatomies = card.anatomies
    network.mean = card.mean
    network.std = card.std
    return network.eval().to(memory_format=channels_last), card


def load_card(path: Path) -> Card:
    """The metadata of a complete checkpoint, without building its network.

    Raises:
        MtkdError: as :func:`load_checkpoint`.
    """
    with _named(path):
        return read_file(path)[0]


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in what is wrong with it."""
    if path.is_dir():
        raise MtkdError(f"{path} is a folder, expected a checkpoint ({SUFFIX})")
    if not path.is_file():
        raise MissingFileError(path)
    if path.suffix != SUFFIX:
        raise MtkdError(
            f"{path} is not a {SUFFIX} file, and only checkpoints of this project are read. "
            "For weights of one of its networks (pipeline.models.ARCHITECTURES) write one with "
            "pipeline.checkpoint.save_checkpoint. Any other model can teach with its logits: see "
            "docs/how-to/any-teacher.md"
        )
    try:
        yield
    except (MtkdError, RuntimeError) as error:
        reason = shorten(str(error), 160, placeholder=" ...")
        raise DamagedFileError(path, reason) from error
