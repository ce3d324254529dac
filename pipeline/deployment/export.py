"""Exported networks: one graph from a frame to all anatomies, as an ONNX or an OpenVINO file.

Each file carries a card that says what it holds.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import file_digest, sha256
from io import BytesIO
from pathlib import Path
from queue import Queue
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

from pipeline.deployment.onnx_graph import Exporter, export_onnx
from pipeline.deployment.segmenter import (
    Gives,
    Layout,
    Segmenter,
    as_input,
    as_masks,
    resized,
)
from pipeline.deployment.signal_stack import kept_signal_stack
from pipeline.errors import DamagedFileError, MissingFileError, MtkdError
from pipeline.files import naming

# Keys of an exported file's metadata: its card, and the sha256 of the weights it was written with.
CARD_KEY = "mtkd"
WEIGHTS_KEY = "mtkd_weights"
# A pixel whose logit margin is smaller may fall to either side: runtimes add up in another order.
UNDECIDED = 1e-3
ATTENTION = {"ScaledDotProductAttention", "Softmax"}  # OpenVINO's names
FIX = "Fix: copy the file again, or export again"
Run = Callable[[NDArray[np.uint8]], NDArray[np.bool_]]  # frame (H, W, 3) -> masks (N, H, W)
Compute = Callable[[NDArray[Any]], NDArray[Any]]  # what a graph takes -> what it gives


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
        gives: what comes out.
        layout: of the frames.
    """

    architecture: str
    anatomies: tuple[str, ...]
    frame_size: tuple[int, int]
    network_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    checkpoint: str
    one_organ: bool = False
    gives: Gives = "masks"
    layout: Layout = "nchw"

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Of what comes out; None where the network's own grid says it."""
        n = len(self.anatomies)
        shapes: dict[Gives, tuple[int | None, ...]] = {
            "masks": (1, n, *self.frame_size),
            "labels": (1, *self.frame_size),
            "margins": (1, n + 1, None, None),
        }
        return shapes[self.gives]


def write_onnx(
    segmenter: Segmenter, card: ExportCard, path: Path, exporter: Exporter | None = None
) -> None:
    """An ONNX file with static shapes; its output is called as what the card says it gives.

    Args:
        segmenter: what is exported.
        card: stands in the file.
        path: ends in ``.onnx``.
        exporter: as of :func:`pipeline.deployment.onnx_graph.export_onnx`.
    """
    import onnx

    black = np.zeros((*segmenter.frame_size, 3), np.uint8)
    frame = torch.from_numpy(as_input(black, segmenter.layout))
    model = onnx.load(export_onnx(segmenter.eval(), frame, path, segmenter.gives, exporter))
    metadata = {CARD_KEY: json.dumps(asdict(card)), WEIGHTS_KEY: _graph_digest(model)}
    onnx.helper.set_model_props(model, metadata)
    with naming(path):
        onnx.save(model, path)


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
    tensors = [as_input(frame, card.layout) for frame in calibration]
    model = _quantised(onnx_path, tensors) if tensors else _converted(onnx_path)
    model.set_rt_info(json.dumps(asdict(card)), CARD_KEY)
    for key, value in _model_info(card).items():
        model.set_rt_info(value, ["model_info", key])
    _save_openvino(model, path)
    model.set_rt_info(_file_digest(path.with_suffix(".bin")), WEIGHTS_KEY)
    _save_openvino(model, path)


def _model_info(card: ExportCard) -> dict[str, str]:
    """What OpenVINO's Model API and DL Streamer read; they know one organ per pixel only."""
    if card.gives == "masks":
        return {}
    # Labels are separated by spaces; the first plane, or 0, is none of them.
    labels = " ".join(name.replace(" ", "_") for name in card.anatomies)
    return {"model_type": "Segmentation", "labels": labels, "resize_type": "standard"}


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
    # A network with attention needs NNCF's own way for it, see docs/results/realtime.md.
    attention = ATTENTION & {op.get_type_name() for op in model.get_ops()}
    with kept_signal_stack():
        return nncf.quantize(
            model,
            nncf.Dataset(list(tensors)),
            subset_size=len(tensors),
            model_type=nncf.ModelType.TRANSFORMER if attention else None,
            ignored_scope=subtractions,
        )


def load_exported(
    path: Path, *, one_organ: bool = False, in_flight: int = 1
) -> tuple[Run, ExportCard]:
    """A function from a frame to its masks, and the card of the file.

    Masks and label maps have the size that the file was exported for; margins are decided at the
    size of the frame, whatever it is.

    Args:
        path: the file.
        one_organ: whether margins are decided so that a pixel belongs to one anatomy at most; what
            else a file gives is decided already.
        in_flight: how many threads may call the function at the same time.

    Raises:
        MtkdError: as of :func:`load_graph`.
    """
    compute, card = load_graph(path, in_flight=in_flight)
    exclusive = one_organ or card.one_organ

    def run(frame: NDArray[np.uint8]) -> NDArray[np.bool_]:
        size = frame.shape[:2] if card.gives == "margins" else card.frame_size
        anatomies = len(card.anatomies)
        return as_masks(compute(frame), card.gives, anatomies, size, one_organ=exclusive)

    return run, card


def load_graph(path: Path, *, in_flight: int = 1) -> tuple[Compute, ExportCard]:
    """A function from a frame (H, W, 3) uint8 to what the graph gives, and the card of the file.

    Args:
        path: the file.
        in_flight: how many threads may call the function at the same time.

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
        compute, shape = _open_onnx(path) if is_onnx else _open_openvino(path, in_flight)
    if len(shape) != len(card.shape) or any(
        side not in (found, None) for found, side in zip(shape, card.shape, strict=True)
    ):
        raise DamagedFileError(path, f"it gives {card.gives} {shape}, but says {card.shape}. {FIX}")

    def resized_first(frame: NDArray[np.uint8]) -> NDArray[Any]:
        return compute(as_input(resized(frame, card.frame_size), card.layout))

    return resized_first, card


def runtime_of(path: Path) -> str:
    """What an exported file is computed by, and in which precision."""
    if path.suffix == ".onnx":
        return "ONNX Runtime, float32"
    is_int8 = 'type="FakeQuantize"' in path.read_text(errors="replace")
    return f"OpenVINO, {'int8' if is_int8 else 'float32'}"


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


def _open_onnx(path: Path) -> tuple[Compute, tuple[int, ...]]:
    session = open_onnx(path)
    shape = tuple(session.get_outputs()[0].shape)
    return lambda batch: session.run(None, {"frame": batch})[0], shape


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


def _open_openvino(path: Path, in_flight: int) -> tuple[Compute, tuple[int, ...]]:
    compiled = open_openvino(path, in_flight=in_flight)
    shape = tuple(compiled.output(0).shape)
    free: Queue[Any] = Queue()
    for _ in range(in_flight):
        free.put(compiled.create_infer_request())

    def compute(batch: NDArray[Any]) -> NDArray[Any]:
        request = free.get()
        try:
            # Of its own memory, which the next call writes.
            return np.array(request.infer({0: batch})[0])
        finally:
            free.put(request)

    return compute, shape


def open_openvino(
    path: Path, precision: str = "float32", threads: int | None = None, in_flight: int = 1
) -> Any:
    """An OpenVINO (or ONNX) file, compiled for one frame at a time or for several.

    Args:
        path: the file.
        precision: what it computes in, where the file leaves that open; left to itself OpenVINO
            takes what is fastest, bfloat16 on some processors, and masks would differ from one to
            the other.
        threads: of the processor; None for all.
        in_flight: frames; one is computed by all threads, several share them.
    """
    import openvino

    hint = {"bfloat16": "bf16"}.get(precision, "f32")
    properties: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    if in_flight > 1:
        properties |= {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "PERFORMANCE_HINT_NUM_REQUESTS": in_flight,
        }
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
            margins = segmenter.margins(torch.from_numpy(as_input(frame, segmenter.layout)))
        differing = run(frame) != segmenter.decided(margins)[0].numpy()
        count += int((differing & _decided(margins[0].numpy(), segmenter.one_organ)).sum())
    return count


def _decided(margins: NDArray[np.float32], one_organ: bool) -> NDArray[np.bool_]:
    """Where rounding decides nothing; of one organ per pixel it may also decide between two."""
    if not one_organ:
        return np.abs(margins) > UNDECIDED
    ordered = np.sort(np.concatenate([np.zeros_like(margins[:1]), margins]), axis=0)
    return (ordered[-1] - ordered[-2] > UNDECIDED)[None]
