"""One graph from a frame in memory to all masks in memory, as ONNX and OpenVINO files that say what they are."""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import file_digest, sha256
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.deployment.signal_stack import own_signal_stack
from pipeline.errors import MtkdError
from pipeline.files import naming
from pipeline.models.frozen import Frozen
from pipeline.models.network import Network

# Under these keys an exported file says what it is, and the sha256 of the weights that it was
# written with.
KEY, WEIGHTS = "mtkd", "mtkd_weights"
# A pixel whose logits are closer than this may fall to either side: runtimes add up in another
# order.
UNDECIDED = 1e-3
Run = Callable[[NDArray[np.uint8]], NDArray[np.bool_]]  # frame (H, W, 3) -> masks (N, H, W)


@dataclass(frozen=True)
class Label:
    """What an exported file holds; stands inside it as JSON.

    Attributes:
        architecture: the network's name.
        anatomies: one mask each, in this order.
        frame_size: (H, W) of the frames that go in and the masks that come out.
        network_size: (H, W) at which the network sees them, that of its training.
        mean, std: input statistics, already part of the graph.
        checkpoint: sha256 of the checkpoint.
    """

    architecture: str
    anatomies: tuple[str, ...]
    frame_size: tuple[int, int]
    network_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    checkpoint: str


class Segmenter(nn.Module):
    """Frames (1, 3, H, W) uint8 RGB to masks (1, N, H, W) uint8, 0 or 1.

    One map per anatomy is upsampled, the difference of its two logits: that is the arg max, for
    half the work.
    """

    def __init__(
        self, network: Network | Frozen, frame_size: tuple[int, int], network_size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.network, self.frame_size, self.network_size = network, frame_size, network_size

    def forward(self, frame: Tensor) -> Tensor:
        """The masks; one after another while no gradients are wanted, so that what is upsampled stays in the cache."""
        margin = self._native(frame)
        if torch.is_grad_enabled() or margin.device.type != "cpu":
            return (self._full(margin) > 0).to(torch.uint8)
        return torch.cat(
            [(self._full(one) > 0).to(torch.uint8) for one in margin.split(1, dim=1)], dim=1
        )

    def margins(self, frame: Tensor) -> Tensor:
        """By how much the anatomy's logit exceeds the background's, (1, N, H, W)."""
        return self._full(self._native(frame))

    def _native(self, frame: Tensor) -> Tensor:
        """The margins on the network's own grid, (1, N, h, w)."""
        shown = frame.float()
        if self.frame_size != self.network_size:
            shown = F.interpolate(
                shown, size=self.network_size, mode="bilinear", align_corners=False
            )
        return self.network.margins(shown)

    def _full(self, margin: Tensor) -> Tensor:
        return F.interpolate(margin, size=self.frame_size, mode="bilinear", align_corners=False)


def write_onnx(segmenter: Segmenter, label: Label, path: Path) -> None:
    """An ONNX file with static shapes: input ``frame``, output ``masks``."""
    import onnx

    frame = torch.zeros(1, 3, *segmenter.frame_size, dtype=torch.uint8)
    model = onnx.load(trace(segmenter.eval(), frame, path))
    onnx.helper.set_model_props(
        model, {KEY: json.dumps(asdict(label)), WEIGHTS: _graph_digest(model)}
    )
    with naming(path):
        onnx.save(model, path)


def trace(module: nn.Module, frame: Tensor, path: Path) -> Path:
    """What a module in eval mode does with such a frame, as an ONNX graph with static shapes; input ``frame``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # With gradients networks take their plain form.
    with warnings.catch_warnings(), torch.enable_grad(), _IntegerSizes():
        warnings.simplefilter("ignore")  # that shapes become constants is what we want
        with naming(path):
            torch.onnx.export(
                module,
                (frame,),
                path,
                input_names=["frame"],
                output_names=["masks"],
                opset_version=18,
                dynamo=False,
            )
    return path


class _IntegerSizes(TorchFunctionMode):
    """Sizes of tensors are Python integers, wherever a network or a library of its own reads them.

    The tracer returns tensors instead, and arithmetic on sizes becomes part of the graph. There
    integer division truncates, in PyTorch it floors: ``-(-n // 4)`` differs for every n that 4 does
    not divide.
    """

    _counts = (Tensor.size, Tensor.numel, Tensor.nelement)

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Size):  # of .shape and .size()
            return torch.Size(map(int, result))
        return int(result) if function in self._counts else result


def write_openvino(
    onnx_path: Path, label: Label, path: Path, calibration: Sequence[NDArray[np.uint8]] = ()
) -> None:
    """An OpenVINO file (``.xml`` and ``.bin``) from an ONNX file; in int8 if there are frames to calibrate with.

    Args:
        onnx_path: what :func:`write_onnx` wrote.
        label: stands in the file, too.
        path: ends in ``.xml``.
        calibration: frames (H, W, 3) of training, for OpenVINO's own quantisation.
    """
    model = (
        _quantised(onnx_path, [as_batch(f) for f in calibration])
        if calibration
        else _converted(onnx_path)
    )
    model.set_rt_info(json.dumps(asdict(label)), KEY)
    _save_openvino(model, path)
    model.set_rt_info(_file_digest(path.with_suffix(".bin")), WEIGHTS)
    _save_openvino(model, path)


def write_int8(onnx_path: Path, path: Path, tensors: Sequence[NDArray[Any]]) -> Path:
    """An OpenVINO file in int8 from an ONNX file, calibrated on its own inputs."""
    _save_openvino(_quantised(onnx_path, tensors), path)
    return path


def _save_openvino(model: Any, path: Path) -> None:
    import openvino

    with naming(path):
        try:
            openvino.save_model(model, path, compress_to_fp16=False)
        except RuntimeError as error:  # its only class, also where the disk is full
            raise OSError(str(error)) from error


def _converted(onnx_path: Path) -> Any:
    import openvino

    # Of a path with commas OpenVINO makes several.
    return openvino.convert_model(BytesIO(onnx_path.read_bytes()))


def _quantised(onnx_path: Path, tensors: Sequence[NDArray[Any]]) -> Any:
    import logging

    import nncf

    nncf.set_log_level(logging.ERROR)
    model = _converted(onnx_path)
    # The margin of anatomy over background: OpenVINO cannot compile it after logits (1, N, 2, h, w)
    # in int8.
    subtractions = nncf.IgnoredScope(types=["Subtract"], validate=False)
    with own_signal_stack():
        return nncf.quantize(
            model, nncf.Dataset(list(tensors)), subset_size=len(tensors), ignored_scope=subtractions
        )


def load_exported(path: Path) -> tuple[Run, Label]:
    """A function from a frame to its masks, and what the file says of itself.

    Raises:
        MtkdError: no such file, none that this project exported, one that was changed since, or no
            runtime for it.
    """
    _check_file(path)
    is_onnx = path.suffix == ".onnx"
    try:
        told, written, found = (_told_by_onnx if is_onnx else _told_by_openvino)(path)
        label = TypeAdapter(Label).validate_json(told)
        if written == found:  # a runtime may crash on damaged weights
            run, shape = (_open_onnx if is_onnx else _open_openvino)(path)
    except ImportError as error:
        remedy = f"pip install --force-reinstall {'onnx onnxruntime' if is_onnx else 'openvino'}"
        raise MtkdError(
            f"{path} needs a package that cannot be imported ({_line(error)}). Run: {remedy}"
        ) from error
    except (RuntimeError, KeyError, ValueError, OSError) as error:
        raise MtkdError(f"{path} is no file that `mtkd export` wrote ({_line(error)})") from error
    if written != found:
        raise MtkdError(
            f"{path} has other weights than it was exported with: copy it again, or export again"
        )
    expected = (1, len(label.anatomies), *label.frame_size)
    if shape != expected:
        raise MtkdError(
            f"{path} gives masks {shape}, but says {expected}: copy it again, or export again"
        )
    return run, label


def _line(error: Exception) -> str:
    """The message of an error, as one line that is not too long."""
    return " ".join(str(error).split())[:200]


def _told_by_onnx(path: Path) -> tuple[str, str, str]:
    """What a file says of itself; the digest of the weights that it was written with, and of those that it has."""
    import onnx

    try:
        model = onnx.load(path)
    except (
        Exception
    ) as error:  # of protobuf, whose classes differ from one implementation to the next
        raise ValueError(str(error)) from error
    told = {entry.key: entry.value for entry in model.metadata_props}
    return told[KEY], told[WEIGHTS], _graph_digest(model)


def _told_by_openvino(path: Path) -> tuple[str, str, str]:
    """As :func:`_told_by_onnx`."""
    told = {
        entry.tag: entry.attrib["value"]
        for entry in ElementTree.parse(path).iterfind("./rt_info/*[@value]")
    }
    return told[KEY], told[WEIGHTS], _file_digest(path.with_suffix(".bin"))


def _graph_digest(model: Any) -> str:
    return sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _check_file(path: Path) -> None:
    """What can be told without a runtime, whose own messages are long and name no file."""
    if path.is_dir():
        raise MtkdError(f"{path} is a folder: name the checkpoint or the exported file in it")
    if path.suffix not in (".onnx", ".xml"):
        raise MtkdError(
            f"{path}: expected a checkpoint (.safetensors) or what `mtkd export` wrote (.onnx, "
            ".xml)"
        )
    if not path.is_file():
        raise MtkdError(f"{path} is missing: `mtkd export` writes such files")
    if path.suffix == ".xml":
        _check_weights(path, path.with_suffix(".bin"))


def _check_weights(path: Path, weights: Path) -> None:
    """An OpenVINO file says where in its ``.bin`` each constant is."""
    try:
        constants = [
            data.attrib for data in ElementTree.parse(path).iterfind(".//layer[@type='Const']/data")
        ]
    except ElementTree.ParseError as error:
        raise MtkdError(f"{path} is no whole file that `mtkd export` wrote ({error})") from error
    if not weights.is_file():
        raise MtkdError(f"{weights} is missing: it holds the weights of {path}, put it beside")
    expected = max((int(data["offset"]) + int(data["size"]) for data in constants), default=0)
    if weights.stat().st_size < expected:
        found = f"{weights.stat().st_size} of {expected} bytes"
        raise MtkdError(f"{weights} is cut off, {found}: copy it again, or export again")


def _open_onnx(path: Path) -> tuple[Run, tuple[int, ...]]:
    session = open_onnx(path)
    shape = tuple(session.get_outputs()[0].shape)
    return lambda frame: session.run(None, {"frame": as_batch(frame)})[0][0].astype(bool), shape


def open_onnx(path: Path) -> Any:
    """An ONNX Runtime session on the processor, as the rows of benchmarks say; GPUs would compute in TF32.

    Raises:
        RuntimeError: it can't read the file.
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)  # its warnings are about devices that are not there
    try:
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own classes share no base but Exception
        raise RuntimeError(str(error)) from error


def _open_openvino(path: Path) -> tuple[Run, tuple[int, ...]]:
    compiled = open_openvino(path)
    return lambda frame: compiled(as_batch(frame))[0][0].astype(bool), tuple(
        compiled.output(0).shape
    )


def open_openvino(path: Path, precision: str = "float32", threads: int | None = None) -> Any:
    """An OpenVINO (or ONNX) file, compiled for one frame at a time.

    Args:
        path: the file.
        precision: what it computes in, where the file leaves that open; left to itself OpenVINO
            takes what is fastest, bfloat16 on some processors, and masks would differ from one to
            the other.
        threads: of the processor; None for all.
    """
    import openvino

    hint = {"bfloat16": "bf16"}.get(precision, "f32")
    properties: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        properties["INFERENCE_NUM_THREADS"] = threads
    with own_signal_stack():
        return openvino.Core().compile_model(path, "CPU", properties)


def disagreement(segmenter: Segmenter, run: Run, frames: Sequence[NDArray[np.uint8]]) -> int:
    """Pixels, over frames and masks, where another runtime decides differently and the logits were not close."""
    count = 0
    for frame in frames:
        with torch.inference_mode():
            margins = segmenter.margins(torch.from_numpy(as_batch(frame)))[0].numpy()
        count += int(((run(frame) != (margins > 0)) & (np.abs(margins) > UNDECIDED)).sum())
    return count


def as_batch(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A frame (H, W, 3) as exported files take it, (1, 3, H, W)."""
    return np.ascontiguousarray(frame.transpose(2, 0, 1)[None])
