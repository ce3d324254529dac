"""Exported networks: one graph from a frame to all masks, as an ONNX or an OpenVINO file.

Each file carries a card that says what it holds.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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

from pipeline.decision import masks_of_one_organ
from pipeline.deployment.signal_stack import kept_signal_stack
from pipeline.errors import DamagedFileError, MissingFileError, MtkdError
from pipeline.files import naming
from pipeline.models.frozen import Frozen
from pipeline.models.network import Network

# Keys of an exported file's metadata: its card, and the sha256 of the weights it was written with.
CARD_KEY = "mtkd"
WEIGHTS_KEY = "mtkd_weights"
# A pixel whose logit margin is smaller may fall to either side: runtimes add up in another order.
UNDECIDED = 1e-3
FIX = "Fix: copy the file again, or export again"
Run = Callable[[NDArray[np.uint8]], NDArray[np.bool_]]  # frame (H, W, 3) -> masks (N, H, W)


@dataclass(frozen=True)
class ExportCard:
    """What an exported file holds; stands inside it as JSON.

    Attributes:
        architecture: the network's name.
        anatomies: one mask each, in this order.
        frame_size: (H, W) of the frames that go in and the masks that come out.
        network_size: (H, W) at which the network sees them, that of its training.
        mean, std: input statistics, already part of the graph.
        checkpoint: sha256 of the checkpoint.
        one_organ: whether a pixel belongs to one anatomy at most.
    """

    architecture: str
    anatomies: tuple[str, ...]
    frame_size: tuple[int, int]
    network_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    checkpoint: str
    one_organ: bool = False


class Segmenter(nn.Module):
    """Frames (1, 3, H, W) uint8 RGB to masks (1, N, H, W) uint8, 0 or 1.

    One map per anatomy is upsampled, the difference of its two logits: that is the arg max, for
    half the work.

    Args:
        network: in eval mode.
        frame_size: (H, W) of the frames.
        network_size: (H, W) at which the network sees them.
        one_organ: whether a pixel belongs to one anatomy at most (:mod:`pipeline.decision`).
    """

    def __init__(
        self,
        network: Network | Frozen,
        frame_size: tuple[int, int],
        network_size: tuple[int, int],
        *,
        one_organ: bool = False,
    ) -> None:
        super().__init__()
        self.one_organ = one_organ
        self.network = network
        self.frame_size = frame_size
        self.network_size = network_size

    def forward(self, frame: Tensor) -> Tensor:
        """The masks of a frame.

        While no gradients are wanted they are computed one after another: so what is upsampled
        stays in the processor's cache.
        """
        margin = self._native(frame)
        if torch.is_grad_enabled() or margin.device.type != "cpu":
            return self.decided(self._full(margin)).to(torch.uint8)
        if self.one_organ:
            return self._one_after_another(margin)
        masks = [(self._full(part) > 0).to(torch.uint8) for part in margin.split(1, dim=1)]
        return torch.cat(masks, dim=1)

    def decided(self, margins: Tensor) -> Tensor:
        """Masks (1, N, H, W) bool from margins (1, N, H, W)."""
        return masks_of_one_organ(margins) if self.one_organ else margins > 0

    def _one_after_another(self, margin: Tensor) -> Tensor:
        """As :func:`pipeline.decision.masks_of_one_organ`, with one map in the cache at a time."""
        largest = torch.zeros(1, 1, *self.frame_size)
        organ = torch.zeros(1, 1, *self.frame_size, dtype=torch.uint8)
        for number, part in enumerate(margin.split(1, dim=1), start=1):
            full = self._full(part)
            organ.masked_fill_(full > largest, number)
            torch.maximum(largest, full, out=largest)
        numbers = torch.arange(1, margin.shape[1] + 1, dtype=torch.uint8)[:, None, None]
        return (organ == numbers).to(torch.uint8)

    def margins(self, frame: Tensor) -> Tensor:
        """By how much the anatomy's logit exceeds the background's, (1, N, H, W)."""
        return self._full(self._native(frame))

    def _native(self, frame: Tensor) -> Tensor:
        """The margins on the network's own grid, (1, N, h, w)."""
        pixels = frame.float()
        if self.frame_size != self.network_size:
            size = self.network_size
            pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
        return self.network.margins(pixels)

    def _full(self, margin: Tensor) -> Tensor:
        return F.interpolate(margin, size=self.frame_size, mode="bilinear", align_corners=False)


def write_onnx(segmenter: Segmenter, card: ExportCard, path: Path) -> None:
    """An ONNX file with static shapes: input ``frame``, output ``masks``."""
    import onnx

    frame = torch.zeros(1, 3, *segmenter.frame_size, dtype=torch.uint8)
    model = onnx.load(trace(segmenter.eval(), frame, path))
    metadata = {CARD_KEY: json.dumps(asdict(card)), WEIGHTS_KEY: _graph_digest(model)}
    onnx.helper.set_model_props(model, metadata)
    with naming(path):
        onnx.save(model, path)


def trace(module: nn.Module, frame: Tensor, path: Path) -> Path:
    """Write an ONNX graph of what a module does with a frame.

    Args:
        module: in eval mode.
        frame: gives the static shapes of the graph, whose input is called ``frame``.
        path: the file.

    Returns:
        The file.
    """
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
    onnx_path: Path, card: ExportCard, path: Path, calibration: Sequence[NDArray[np.uint8]] = ()
) -> None:
    """An OpenVINO file (``.xml`` and ``.bin``) from an ONNX file.

    Args:
        onnx_path: what :func:`write_onnx` wrote.
        card: stands in the file, too.
        path: ends in ``.xml``.
        calibration: frames (H, W, 3) of training, for OpenVINO's own quantisation in int8; without
            them the file is in float32.
    """
    tensors = [as_batch(frame) for frame in calibration]
    model = _quantised(onnx_path, tensors) if tensors else _converted(onnx_path)
    model.set_rt_info(json.dumps(asdict(card)), CARD_KEY)
    _save_openvino(model, path)
    model.set_rt_info(_file_digest(path.with_suffix(".bin")), WEIGHTS_KEY)
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
    with kept_signal_stack():
        return nncf.quantize(
            model, nncf.Dataset(list(tensors)), subset_size=len(tensors), ignored_scope=subtractions
        )


def load_exported(path: Path) -> tuple[Run, ExportCard]:
    """A function from a frame to its masks, and the card of the file.

    Raises:
        MissingFileError: no such file.
        DamagedFileError: it was changed since it was exported.
        MtkdError: it is not an exported file, or there is no runtime for it.
    """
    _check_file(path)
    is_onnx = path.suffix == ".onnx"
    with _reading(path):
        metadata = _onnx_metadata(path) if is_onnx else _openvino_metadata(path)
        card = TypeAdapter(ExportCard).validate_json(metadata.card)
        if metadata.exported_weights != metadata.weights:  # a runtime may crash on these
            reason = "it has other weights than it was exported with"
            raise DamagedFileError(path, f"{reason}. {FIX}")
        run, shape = _open_onnx(path) if is_onnx else _open_openvino(path)
    expected = (1, len(card.anatomies), *card.frame_size)
    if shape != expected:
        raise DamagedFileError(path, f"it gives masks {shape}, but says {expected}. {FIX}")
    return run, card


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the file in errors of the libraries that read it."""
    try:
        yield
    except ImportError as error:
        packages = "onnx onnxruntime" if path.suffix == ".onnx" else "openvino"
        raise MtkdError(
            f"{path} needs a package that cannot be imported ({_line(error)}). "
            f"Run: pip install --force-reinstall {packages}"
        ) from error
    except (RuntimeError, KeyError, ValueError, OSError) as error:
        raise MtkdError(f"{path} is not a complete exported file ({_line(error)})") from error


def _line(error: Exception) -> str:
    """The message of an error, as one line that is not too long."""
    return " ".join(str(error).split())[:200]


@dataclass(frozen=True)
class _Metadata:
    """What stands in an exported file beside its graph.

    Attributes:
        card: JSON.
        exported_weights: sha256 of the weights that it was written with.
        weights: sha256 of the weights that it has.
    """

    card: str
    exported_weights: str
    weights: str


def _onnx_metadata(path: Path) -> _Metadata:
    import onnx

    try:
        model = onnx.load(path)
    # Of protobuf, whose classes differ from one implementation to the next.
    except Exception as error:
        raise ValueError(str(error)) from error
    entries = {entry.key: entry.value for entry in model.metadata_props}
    return _Metadata(entries[CARD_KEY], entries[WEIGHTS_KEY], _graph_digest(model))


def _openvino_metadata(path: Path) -> _Metadata:
    elements = ElementTree.parse(path).iterfind("./rt_info/*[@value]")
    entries = {element.tag: element.attrib["value"] for element in elements}
    weights = _file_digest(path.with_suffix(".bin"))
    return _Metadata(entries[CARD_KEY], entries[WEIGHTS_KEY], weights)


def _graph_digest(model: Any) -> str:
    return sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _check_file(path: Path) -> None:
    """What can be checked without a runtime, whose own messages are long and name no file."""
    if path.is_dir():
        raise MtkdError(f"{path} is a folder: name the checkpoint or the exported file in it")
    if path.suffix not in (".onnx", ".xml"):
        raise MtkdError(
            f"{path}: expected a checkpoint (.safetensors) or an exported file (.onnx, .xml)"
        )
    if not path.is_file():
        raise MissingFileError(path)
    if path.suffix == ".xml":
        _check_weights(path, path.with_suffix(".bin"))


def _check_weights(path: Path, weights: Path) -> None:
    """Compare the size of a ``.bin`` with what its ``.xml`` says, where each constant is in it."""
    try:
        elements = ElementTree.parse(path).iterfind(".//layer[@type='Const']/data")
        constants = [element.attrib for element in elements]
    except ElementTree.ParseError as error:
        raise MtkdError(f"{path} is not a complete exported file ({error})") from error
    if not weights.is_file():
        raise MtkdError(f"{weights} is missing: it holds the weights of {path}, put it beside")
    expected = max((int(data["offset"]) + int(data["size"]) for data in constants), default=0)
    size = weights.stat().st_size
    if size < expected:
        raise DamagedFileError(weights, f"it is cut off, {size} of {expected} bytes. {FIX}")


def _open_onnx(path: Path) -> tuple[Run, tuple[int, ...]]:
    session = open_onnx(path)
    shape = tuple(session.get_outputs()[0].shape)
    return lambda frame: session.run(None, {"frame": as_batch(frame)})[0][0].astype(bool), shape


def open_onnx(path: Path) -> Any:
    """An ONNX Runtime session on the processor.

    Rows of benchmarks say so, and GPUs would compute in TF32.

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
    shape = tuple(compiled.output(0).shape)
    return lambda frame: compiled(as_batch(frame))[0][0].astype(bool), shape


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
    with kept_signal_stack():
        return openvino.Core().compile_model(path, "CPU", properties)


def disagreement(segmenter: Segmenter, run: Run, frames: Sequence[NDArray[np.uint8]]) -> int:
    """Pixels, over frames and masks, where another runtime decides differently.

    Pixels whose logit margin is within :data:`UNDECIDED` of the decision do not count.

    Args:
        segmenter: the network in PyTorch.
        run: the exported network.
        frames: (H, W, 3).
    """
    count = 0
    for frame in frames:
        with torch.inference_mode():
            margins = segmenter.margins(torch.from_numpy(as_batch(frame)))
        differing = run(frame) != segmenter.decided(margins)[0].numpy()
        count += int((differing & _decided(margins[0].numpy(), segmenter.one_organ)).sum())
    return count


def _decided(margins: NDArray[np.float32], one_organ: bool) -> NDArray[np.bool_]:
    """Where rounding decides nothing; of one organ per pixel it may also decide between two."""
    if not one_organ:
        return np.abs(margins) > UNDECIDED
    ordered = np.sort(np.concatenate([np.zeros_like(margins[:1]), margins]), axis=0)
    return (ordered[-1] - ordered[-2] > UNDECIDED)[None]


def as_batch(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A frame (H, W, 3) as exported files take it, (1, 3, H, W)."""
    return np.ascontiguousarray(frame.transpose(2, 0, 1)[None])
