"""Teachers whose logits alone were imported: a file without weights stands for the checkpoint."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pipeline.files import write_atomically

KEY = "answers of"  # as earlier versions wrote it, too


def write_stand_in(checkpoint: Path, identity: str) -> None:
    """Say, in the place of a teacher's checkpoint, which store's logits stand for it."""
    write_atomically(checkpoint, save({}, metadata={KEY: identity}))


def is_imported(checkpoint: Path) -> bool:
    """Whether only the teacher's logits are here, and no weights."""
    try:
        with safe_open(checkpoint, framework="numpy") as file:
            return KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False
