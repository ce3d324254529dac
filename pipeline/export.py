"""One graph from a frame in memory to all masks in memory, as ONNX and OpenVINO files that say what they are."""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.errors import MtkdError
from pipeline.models.network import Network, normalise

KEY = "mtkd"
# A pixel whose logits are closer than this may fall to either side: runtimes add up in another order.
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

    One map per anatomy is upsampled, the difference of its two logits: that is the arg max, for half the work.
    """

    def __init__(self, network: Network, frame_size: tuple[int, int], network_size: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.frame_size, self.network_size = network, frame_size, network_size

    def forward(self, frame: Tensor) -> Tensor:
        """The masks."""
        return (self.leads(frame) > 0).to(torch.uint8)

    def leads(self, frame: Tensor) -> Tensor:
        """How far the anatomy's logit is above the background's, (1, N, H, W)."""
        shown = frame.float()
        if self.frame_size != self.network_size:
            shown = F.interpolate(shown, size=self.network_size, mode="bilinear", align_corners=False)
        logits = self.network(normalise(shown, self.network))
        lead = logits[:, :, 1] - logits[:, :, 0]
        return F.interpolate(lead, size=self.frame_size, mode="bilinear", align_corners=False)


def write_onnx(segmenter: Segmenter, label: Label, path: Path) -> None:
    """An ONNX file with static shapes: input ``frame``, output ``masks``."""
    import onnx

    frame = torch.zeros(1, 3, *segmenter.frame_size, dtype=torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), torch.enable_grad():  # with gradients networks take their plain form
        warnings.simplefilter("ignore")  # that shapes become constants is what we want
        torch.onnx.export(
            segmenter.eval(),
            (frame,),
            path,
            input_names=["frame"],
            output_names=["masks"],
            opset_version=18,
            dynamo=False,
        )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {KEY: json.dumps(asdict(label))})
    onnx.save(model, path)


def write_openvino(onnx_path: Path, label: Label, path: Path, calibration: Sequence[NDArray[np.uint8]] = ()) -> None:
    """An OpenVINO file (``.xml`` and ``.bin``) from an ONNX file; in int8 if there are frames to calibrate with.

    Args:
        onnx_path: what :func:`write_onnx` wrote.
        label: stands in the file, too.
        path: ends in ``.xml``.
        calibration: frames (H, W, 3) of training, for OpenVINO's own quantisation.
    """
    import openvino

    model = openvino.convert_model(onnx_path)
    if calibration:
        import nncf

        tensors = [_batch(frame) for frame in calibration]
        model = nncf.quantize(model, nncf.Dataset(tensors), subset_size=len(tensors))
    model.set_rt_info(json.dumps(asdict(label)), KEY)
    openvino.save_model(model, path, compress_to_fp16=False)


def load_exported(path: Path) -> tuple[Run, Label]:
    """A function from a frame to its masks, and what the file says of itself.

    Raises:
        MtkdError: no such file, or none that this project exported.
    """
    if not path.is_file():
        raise MtkdError(f"{path} is missing: `mtkd export` writes such files")
    try:
        found, run = (_open_onnx if path.suffix == ".onnx" else _open_openvino)(path)
        fields: dict[str, Any] = json.loads(found)
    except (RuntimeError, KeyError, ValueError, OSError) as error:
        raise MtkdError(f"{path} is no file that `mtkd export` wrote ({str(error).splitlines()[0]})") from error
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
    return run, Label(**values)


def _open_onnx(path: Path) -> tuple[str, Run]:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
    except Exception as error:  # its own classes share no base but Exception
        raise RuntimeError(str(error)) from error
    found = session.get_modelmeta().custom_metadata_map[KEY]
    return found, lambda frame: session.run(None, {"frame": _batch(frame)})[0][0].astype(bool)


def _open_openvino(path: Path) -> tuple[str, Run]:
    import openvino

    model = openvino.Core().read_model(path)
    compiled = openvino.compile_model(model)
    found = model.get_rt_info(KEY).astype(str)
    return found, lambda frame: compiled(_batch(frame))[0][0].astype(bool)


def disagreement(segmenter: Segmenter, run: Run, frames: Sequence[NDArray[np.uint8]]) -> int:
    """Pixels, over frames and masks, where another runtime decides differently and the logits were not close."""
    count = 0
    for frame in frames:
        with torch.inference_mode():
            leads = segmenter.leads(torch.from_numpy(_batch(frame)))[0].numpy()
        count += int(((run(frame) != (leads > 0)) & (np.abs(leads) > UNDECIDED)).sum())
    return count


def _batch(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(frame.transpose(2, 0, 1)[None])
