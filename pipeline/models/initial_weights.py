"""Initial weights: what was loaded, what stayed random, and why they can't be had."""

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline.errors import MtkdError

SAME_ARCHITECTURE = "give weights of the same architecture, or set pretrained: none"


@dataclass(frozen=True)
class InitialWeights:
    """Where a network's initial weights came from.

    Attributes:
        source: ``none``, ``imagenet``, a hub id or a path.
        loaded: names of the tensors that were loaded from there.
        random: names of those that were not.
    """

    source: str = "none"
    loaded: tuple[str, ...] = ()
    random: tuple[str, ...] = ()

    @classmethod
    def of(cls, network: nn.Module, source: str, loaded: AbstractSet[str]) -> "InitialWeights":
        """The record for a network whose tensors of these names were loaded."""
        names = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
        return cls(
            source,
            tuple(name for name in names if name in loaded),
            tuple(name for name in names if name not in loaded),
        )

    def __str__(self) -> str:
        if not self.loaded:
            return "all weights random"
        return f"from {self.source}: {_parts(self.loaded)}; random: {_parts(self.random)}"


def _parts(names: tuple[str, ...]) -> str:
    """Tensor names summed up by the module that they belong to."""
    counts: dict[str, int] = {}
    for name in names:
        parts = [p for p in name.split(".") if not p.isdigit()]
        # A decoder is listed part by part, since its classifier is often new; an encoder as one.
        key = parts[0] if parts[0] == "encoder" or len(parts) < 3 else ".".join(parts[:2])
        counts[key] = counts.get(key, 0) + 1
    return ", ".join(f"{key} ({count} tensors)" for key, count in counts.items()) or "nothing"


def copy_weights(target: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Load weights into a module, all of them and nothing else.

    Args:
        target: the module.
        weights: a tensor for each of its own; counters of batch norm may be missing.
        what: what is loaded from where, for the message.

    Raises:
        MtkdError: names or shapes differ; says the first difference.
    """
    expected = target.state_dict()
    for name, tensor in expected.items():
        if name.endswith("num_batches_tracked"):
            continue
        shape = tuple(tensor.shape)
        if name not in weights:
            raise MtkdError(f"{what}: no tensor {name} {shape}; {SAME_ARCHITECTURE}")
        if tuple(weights[name].shape) != shape:
            raise MtkdError(
                f"{what}: {name} has shape {tuple(weights[name].shape)}, expected {shape}; "
                f"{SAME_ARCHITECTURE}"
            )
    unknown = sorted(weights.keys() - expected.keys())
    if unknown:
        raise MtkdError(
            f"{what}: holds {unknown[0]}, which this network lacks; {SAME_ARCHITECTURE}"
        )
    target.load_state_dict(dict(weights), strict=False)


def require_architecture(
    settings: Mapping[str, Any], expected: Mapping[str, Any], what: str
) -> None:
    """Refuse weights of an architecture that differs in what shapes do not show.

    Args:
        settings: of the weights' network; more than are expected are ignored.
        expected: settings that must be equal, whether lists or tuples.
        what: what is loaded from where, for the message.

    Raises:
        MtkdError: names the first setting that differs.
    """
    for setting, value in expected.items():
        if _listed(settings.get(setting)) != _listed(value):
            raise MtkdError(
                f"{what} has {setting} {settings.get(setting)}, expected {value}; "
                f"{SAME_ARCHITECTURE}"
            )


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def unavailable(source: str, expected: str, error: Exception) -> MtkdError:
    """The error of weights that could not be had at all."""
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
        MtkdError: it is not a JSON object.
    """
    try:
        values = json.loads(path.read_text()) if path.is_file() else {}
        return dict(values.items())
    except (ValueError, AttributeError) as error:
        raise MtkdError(f"{path} is not a JSON object ({error}): copy it again") from error


def read_statistics(
    values: Mapping[str, Any], key: str, default: tuple[float, float, float], what: str
) -> tuple[float, float, float]:
    """Three numbers, one per colour, that stand beside weights; the default where there are none.

    Raises:
        MtkdError: something else stands there.
    """
    statistics = values.get(key, default)
    try:
        red, green, blue = map(float, statistics)
    except (TypeError, ValueError) as error:
        raise MtkdError(
            f"{what}: {key} is {statistics!r}, expected three numbers; mend that, or remove it"
        ) from error
    return red, green, blue
