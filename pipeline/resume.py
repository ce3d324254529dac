"""Where a training run stands, kept at the end of epochs: a run that was killed resumes there."""

import json
import pickle
from collections.abc import Mapping
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from pipeline.files import write_atomically

State = dict[str, Any]
DIGEST = 32  # bytes of the sha256 in front of the state
# Times as long as saving took pass before it is due again: at most 5 % of the time go into it.
PAUSE = 20


class Resume:
    """A complete epoch of one run, in a file that only the same run goes on from.

    Args:
        path: the file; absent before the first epoch.
        identity: of everything that determines the run.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self.identity = identity
        self._due = 0.0

    def load(self) -> tuple[State | None, str]:
        """What :meth:`save` was given last.

        Returns:
            That with tensors on the CPU, and an empty string; or None, and why it can't be used,
            empty if there is nothing.
        """
        if not self.path.is_file():
            return None, ""
        content = self.path.read_bytes()
        if content[:DIGEST] != sha256(content[DIGEST:]).digest():
            return None, f"{self.path} is damaged"
        try:
            # weights_only: tensors and plain values, no code.
            state = torch.load(BytesIO(content[DIGEST:]), map_location="cpu", weights_only=True)
            identity = state.pop("identity")
        except (
            OSError,
            RuntimeError,
            EOFError,
            KeyError,
            AttributeError,
            TypeError,
            ValueError,
            pickle.PickleError,
        ):
            return None, f"{self.path} is damaged"
        if identity != self.identity:
            return None, f"{self.path} is of other settings, frames or code"
        return state, ""

    @property
    def is_due(self) -> bool:
        """Whether :data:`PAUSE` times as long as the last save took has passed since then."""
        return monotonic() >= self._due

    def save(self, state: State) -> None:
        """Replace what was saved; a crash leaves the one or the other."""
        start = monotonic()
        content = BytesIO()  # torch hides why a file can't be written
        torch.save({"identity": self.identity, **state}, content)
        write_atomically(self.path, sha256(content.getbuffer()).digest() + content.getbuffer())
        end = monotonic()
        self._due = end + PAUSE * (end - start)

    def done(self) -> None:
        """Forget: the run's results are in place."""
        self.path.unlink(missing_ok=True)


def run_identity(parts: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """sha256 over what a run is made of, its initial weights, and the code of this package.

    Args:
        parts: anything that JSON can hold.
        weights: the network's state before the first step: it depends on seed, architecture and
            pretrained weights.
    """
    digest = sha256(json.dumps(parts, sort_keys=True).encode())
    for name, tensor in weights.items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
