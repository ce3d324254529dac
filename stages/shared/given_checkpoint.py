"""A checkpoint that the user names, made by this run or brought from elsewhere."""

from pathlib import Path
from textwrap import shorten

from pipeline.checkpoint import load_checkpoint
from pipeline.errors import MtkdError
from pipeline.models import Network
from pipeline.models.card import Card


def load_given(path: Path) -> tuple[Network, Card]:
    """The network in eval mode, and its card.

    Raises:
        MtkdError: no such file, or not a whole checkpoint of this project.
    """
    if path.is_file() and path.suffix != ".safetensors":
        raise MtkdError(
            f"{path} is no .safetensors file, and only checkpoints of this project are read. For "
            "weights of one of its "
            "networks (`mtkd models`) write one with pipeline.checkpoint.save_checkpoint; any "
            "other model can teach "
            "with its logits, see 'Any teacher' in docs/store.md"
        )
    if not path.is_file():
        raise MtkdError(
            f"{path} is missing: name a .safetensors file that `mtkd train-teacher` or `mtkd "
            "train-student` wrote"
        )
    try:
        return load_checkpoint(path, "")
    except MtkdError as error:
        reason = shorten(str(error.__cause__), 160, placeholder=" ...")
        again = "copy it again, or train again if it was made here"
        raise MtkdError(
            f"{path} is no whole checkpoint of this project ({reason}): {again}"
        ) from error
