"""What a checkpoint says of its network, and the file that holds both."""

import json
from collections.abc import Mapping
from dataclasses import field
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.errors import MtkdError

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
        trained_on: settings and sha256 of the frames and labels of its training; empty if it came
            from elsewhere.
        shared: whether one decoder does the work of all.
    """

    architecture: str
    anatomies: Annotated[tuple[str, ...], Field(min_length=1)]
    image_size: tuple[Side, Side]
    mean: tuple[Mean, Mean, Mean]
    std: tuple[Std, Std, Std]
    trained_on: dict[str, Any] = field(default_factory=dict)
    shared: bool = False


def read_file(path: Path) -> tuple[Card, dict[str, Tensor]]:
    """The metadata and the weights of a complete checkpoint.

    Raises:
        MtkdError: says what is wrong with the file, without its name.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "mtkd" not in metadata:
                raise ValueError("it was not written by this project")
            fields = json.loads(metadata["mtkd"])
            if not isinstance(fields, dict):
                raise ValueError("its metadata is not a mapping")
            keys = file.keys()
            tensors = {key: file.get_tensor(key) for key in keys}
        if digest_weights(tensors) != fields.pop("sha256"):
            raise ValueError("the checksum of its weights does not match")
        return TypeAdapter(Card).validate_python(fields), tensors
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise MtkdError(
            f"its metadata's {key}: {problem['msg']}, found {problem['input']!r}"
        ) from error
    except (RecursionError, SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise MtkdError(
            str(error).splitlines()[0] if str(error) else type(error).__name__
        ) from error


def digest_weights(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names and values, whatever their order.

    A flipped bit leaves a file that can still be read.
    """
    digest = sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + b"\0" + tensor.numpy().tobytes())
    return digest.hexdigest()
