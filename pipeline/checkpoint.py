"""Checkpoints: weights and what they are, in one safetensors file that runs no code when it is loaded."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pipeline.errors import MtkdError
from pipeline.files import write_atomically
from pipeline.models import Network, create_model


@dataclass(frozen=True)
class Card:
    """What a checkpoint holds: its architecture, one decoder per anatomy, and the frame size (H, W) of its training."""

    architecture: str
    anatomies: tuple[str, ...]
    image_size: tuple[int, int]


def save_checkpoint(path: Path, network: Network, anatomies: Sequence[str], image_size: tuple[int, int]) -> None:
    """Write weights and card; equal weights give equal bytes, and a crash leaves no half-written file."""
    card = Card(network.architecture, tuple(anatomies), image_size)
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    write_atomically(path, save(tensors, metadata={"mtkd": json.dumps(asdict(card))}))


def load_checkpoint(path: Path, made_by: str) -> tuple[Network, Card]:
    """The network in eval mode, and its card.

    Args:
        path: the file.
        made_by: the stage that makes it, named when it is missing or broken.

    Raises:
        MtkdError: no such file, or not a whole checkpoint of this project.
    """
    if not path.is_file():
        raise MtkdError(f"{path} is missing: run `dvc repro {made_by}`")
    try:
        with safe_open(path, framework="pt") as file:
            fields = json.loads((file.metadata() or {})["mtkd"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        card = Card(fields["architecture"], tuple(fields["anatomies"]), tuple(fields["image_size"]))
        network = create_model(card.architecture, len(card.anatomies))
        network.load_state_dict(tensors)
    except (SafetensorError, KeyError, ValueError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise MtkdError(f"{path} is no whole checkpoint ({reason}): run `dvc repro -f {made_by}`") from error
    return network.eval().to(memory_format=torch.channels_last), card
