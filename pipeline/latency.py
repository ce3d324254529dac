"""Seconds for one frame, in every runtime that is installed: from a frame in memory to all its masks in memory.

With ``part`` ``network`` the native logits are computed and put into memory, from frames that are normalised already.
The whole way never writes these logits, some 20 MB of them for eleven anatomies, where a runtime joins the decision to
what comes before: so it can take less than the part.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.checkpoint import load_checkpoint
from pipeline.export import Segmenter, open_onnx, open_openvino, trace, write_int8
from pipeline.machine import Machine
from pipeline.models import create_model
from pipeline.models.looped import Looped

Part = Literal["whole", "network"]
Runtime = Literal["PyTorch", "ONNX Runtime", "OpenVINO"]
Form = Literal["looped", "joined"]
Answer = NDArray[np.float32] | None
PACKAGES = {"ONNX Runtime": "onnxruntime", "OpenVINO": "openvino"}
# What each runtime can compute in on a CPU.
PRECISIONS = {
    "PyTorch": ("float32", "bfloat16"),
    "ONNX Runtime": ("float32",),
    "OpenVINO": ("float32", "bfloat16", "int8"),
}


@dataclass(frozen=True)
class Candidate:
    """One way of getting from a frame to masks.

    Attributes:
        architecture, decoders: the network.
        size: (H, W) of the frame and of the masks.
        machine: where.
        networks: how many of them see the frame, one after another.
        runtime, precision: what computes it.
        form: decoders ``looped``, as their library wrote them, or ``joined``.
        part: the whole way, or only the network.
        checkpoint: trained weights, or None for random ones.
        graph: the exported file, for runtimes other than PyTorch.
    """

    architecture: str
    decoders: int
    size: tuple[int, int]
    machine: Machine
    networks: int = 1
    runtime: Runtime = "PyTorch"
    precision: str = "float32"
    form: Form = "joined"
    part: Part = "whole"
    checkpoint: Path | None = None
    graph: Path | None = None

    @property
    def device(self) -> torch.device:
        """Where it computes; other runtimes than PyTorch use the processor."""
        return self.machine.torch_device if self.runtime == "PyTorch" else torch.device("cpu")

    def build(self) -> Callable[[], Answer]:
        """One call: masks of a frame, or logits (1, N, 2, h, w), which are kept."""
        compute, shown = self.function(), example(self.size, self.part).numpy()

        def call() -> Answer:
            answers = [compute(shown) for _ in range(self.networks)]
            return answers[-1] if self.part == "network" else None

        return call

    def function(self) -> Callable[[NDArray[Any]], NDArray[Any]]:
        """From a frame in memory, as :func:`example` is, to its masks (1, N, H, W) uint8 or logits in memory."""
        if self.runtime == "PyTorch":
            return self._eager()
        assert self.graph is not None
        if self.runtime == "ONNX Runtime":
            session = open_onnx(self.graph)
            return lambda frame: session.run(None, {"frame": frame})[0]
        compiled = open_openvino(self.graph, self.precision, torch.get_num_threads())
        return lambda frame: compiled(frame)[0]

    def _eager(self) -> Callable[[NDArray[Any]], NDArray[Any]]:
        module = self.module().to(self.device).to(memory_format=torch.channels_last)
        low = self.precision == "bfloat16"

        @torch.inference_mode()
        def compute(frame: NDArray[Any]) -> NDArray[Any]:
            shown = torch.from_numpy(frame).to(self.device)
            if self.part == "network":
                shown = shown.contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
                answer = module(shown)
            return (answer.float() if answer.is_floating_point() else answer).cpu().numpy()

        return compute

    def module(self) -> nn.Module:
        """From a frame to masks, or from a normalised frame to logits."""
        torch.manual_seed(0)
        network: Any = (
            load_checkpoint(self.checkpoint, "train_student")[0]
            if self.checkpoint
            else create_model(self.architecture, self.decoders)
        )
        if self.form == "looped":
            network = Looped(network)
        network = network.eval()
        return Segmenter(network, self.size, self.size) if self.part == "whole" else network


def example(size: tuple[int, int], part: Part) -> Tensor:
    """A frame (1, 3, H, W) uint8, or normalised float32."""
    generator = torch.Generator().manual_seed(0)
    if part == "whole":
        return torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, generator=generator)
    return torch.randn((1, 3, *size), generator=generator)


def export_graph(candidate: Candidate, path: Path) -> Path:
    """The candidate's network as a file that its runtime opens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = trace(candidate.module(), example(candidate.size, candidate.part), path.with_suffix(".onnx"))
    if candidate.precision != "int8":
        return file
    shown = [example(candidate.size, candidate.part).numpy()]
    return write_int8(file, path.with_suffix(".xml"), shown)


def available(runtime: str, precision: str) -> bool:
    """Whether the runtime is installed, and with int8 what quantises."""
    package = PACKAGES.get(runtime)
    there = package is None or (find_spec(package) is not None and find_spec("onnx") is not None)
    return there and (precision != "int8" or find_spec("nncf") is not None)
