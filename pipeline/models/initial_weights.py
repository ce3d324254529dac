"""Initial weights: what was loaded, what stayed random, and one clear line when they can't be had."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline.errors import MtkdError


@dataclass(frozen=True)
class Start:
    """Where a network's initial weights came from.

    Attributes:
        source: ``none``, ``imagenet``, a hub id or a path.
        loaded: names of the tensors that were loaded from there.
        random: names of those that were not.
    """

    source: str = "none"
    loaded: tuple[str, ...] = ()
    random: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.loaded:
            return "all weights random"
        return f"from {self.source}: {_parts(self.loaded)}; random: {_parts(self.random)}"


def _parts(names: tuple[str, ...]) -> str:
    """Tensor names summed up by the module that they belong to."""
    counts: dict[str, int] = {}
    for name in names:
        parts = [p for p in name.split(".") if not p.isdigit()]
        # A decoder is told part by part, since its classifier is often new; an encoder as a whole.
        key = parts[0] if parts[0] == "encoder" or len(parts) < 3 else ".".join(parts[:2])
        counts[key] = counts.get(key, 0) + 1
    return ", ".join(f"{key} ({count} tensors)" for key, count in counts.items()) or "nothing"


def started(network: nn.Module, source: str, loaded: set[str]) -> Start:
    """The record for a network whose tensors of these names were loaded."""
    names = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    return Start(
        source, tuple(n for n in names if n in loaded), tuple(n for n in names if n not in loaded)
    )


def copy_weights(target: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Load weights into a module, all of them and nothing else.

    Args:
        target: the module.
        weights: a tensor for each of its own; counters of batch norm may be missing.
        what: what is loaded from where, for the message.

    Raises:
        MtkdError: names or shapes differ; says the first difference.
    """
    own = target.state_dict()
    for name, tensor in own.items():
        if name.endswith("num_batches_tracked"):
            continue
        if name not in weights:
            raise MtkdError(f"{what}: no tensor {name} {tuple(tensor.shape)}; {REMEDY}")
        if weights[name].shape != tensor.shape:
            found, expected = tuple(weights[name].shape), tuple(tensor.shape)
            raise MtkdError(f"{what}: {name} has shape {found}, expected {expected}; {REMEDY}")
    unknown = sorted(weights.keys() - own.keys())
    if unknown:
        raise MtkdError(f"{what}: holds {unknown[0]}, which this network has not; {REMEDY}")
    target.load_state_dict(dict(weights), strict=False)


def require_architecture(found: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    """Refuse weights of an architecture that differs in what shapes do not tell.

    Args:
        found: settings of the weights' network; more than these are ignored.
        expected: settings that must be equal, whether lists or tuples.
        what: what is loaded from where, for the message.

    Raises:
        MtkdError: names the first setting that differs.
    """
    for setting, own in expected.items():
        theirs = found.get(setting)
        if (list(theirs) if isinstance(theirs, tuple) else theirs) != (
            list(own) if isinstance(own, tuple) else own
        ):
            raise MtkdError(f"{what} has {setting} {theirs}, expected {own}; {REMEDY}")


REMEDY = "give weights of the same architecture, or set pretrained: none"


def unavailable(source: str, expected: str, error: Exception) -> MtkdError:
    """The line for weights that could not be had at all."""
    reason = next(
        (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
    )
    return MtkdError(
        f"pretrained: '{source}' gave no weights, expected {expected} ({reason[:200]}): "
        "go online once, give the path of a local copy, or set pretrained: none"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON file beside weights; empty if it isn't there.

    Raises:
        MtkdError: it is no JSON object.
    """
    try:
        values = json.loads(path.read_text()) if path.is_file() else {}
        return dict(values.items())
    except (ValueError, AttributeError) as error:
        raise MtkdError(f"{path} is no JSON object ({error}): copy it again") from error


def read_statistics(
    values: Mapping[str, Any], key: str, default: tuple[float, float, float], what: str
) -> tuple[float, float, float]:
    """Three numbers, one per colour, that stand beside weights; the default where there are none.

    Raises:
        MtkdError: something else stands there.
    """
    found = values.get(key, default)
    try:
        red, green, blue = (float(value) for value in found)
    except (TypeError, ValueError) as error:
        raise MtkdError(
            f"{what}: {key} is {found!r}, expected three numbers; mend that, or remove it"
        ) from error
    return red, green, blue
