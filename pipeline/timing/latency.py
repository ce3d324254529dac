"""Seconds for one frame, in every runtime that is installed: from a frame in memory to all its masks in memory.

With ``part`` ``network`` the native logits are computed and put into memory, from frames that are
normalised already. The whole way never writes these logits, some 20 MB of them for eleven
anatomies, where a runtime joins the decision to what comes before: so it can take less than the
part.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.checkpoint import load_checkpoint
from pipeline.deployment.export import Segmenter, open_onnx, open_openvino, trace, write_int8
from pipeline.deployment.runner import Launch, Runner
from pipeline.machine import Machine
from pipeline.models import create_model
from pipeline.models.frozen import Frozen
from pipeline.models.sequential import Looped

Part = Literal["whole", "network"]
Runtime = Literal["PyTorch", "ONNX Runtime", "OpenVINO"]
Form = Literal["looped", "joined", "frozen", "graph", "compiled"]
Answer = NDArray[np.float32] | None
LAUNCHES: dict[str, Launch] = {"graph": "graph", "compiled": "compiled"}
PACKAGES = {"ONNX Runtime": "onnxruntime", "OpenVINO": "openvino"}
RUNTIMES: tuple[Runtime, ...] = ("PyTorch", "ONNX Runtime", "OpenVINO")
Way = tuple[Runtime, str, Form]
# Runtime, precision and form, of PyTorch by its device; other runtimes use the processor.
PYTORCH: dict[str, tuple[tuple[str, Form], ...]] = {
    "cpu": (
        ("float32", "joined"),
        ("float32", "looped"),
        ("bfloat16", "joined"),
        ("float32", "frozen"),
        ("bfloat16", "frozen"),
    ),
    "cuda": (
        ("float32", "joined"),
        ("float32", "looped"),
        ("bfloat16", "joined"),
        ("float16", "frozen"),
        ("float16", "graph"),
        ("float16", "compiled"),
    ),
}
OTHERS: tuple[Way, ...] = (
    ("ONNX Runtime", "float32", "joined"),
    ("ONNX Runtime", "float32", "looped"),
    ("OpenVINO", "float32", "joined"),
    ("OpenVINO", "float32", "looped"),
    ("OpenVINO", "bfloat16", "joined"),
    ("OpenVINO", "int8", "joined"),
)
FORMS: tuple[Form, ...] = ("joined", "looped", "frozen", "graph", "compiled")


@dataclass(frozen=True)
class Candidate:
    """One way of getting from a frame to masks.

    Attributes:
        architecture, decoders: the network.
        size: (H, W) of the frame and of the masks.
        machine: where.
        networks: how many of them see the frame, one after another.
        runtime, precision: what computes it.
        form: decoders ``looped``, as their library wrote them, or ``joined``; or the whole network
            ``frozen`` (see :mod:`pipeline.models.frozen`), on CUDA also as one ``graph`` or
            ``compiled``, which in part ``network`` answers with margins (1, N, h, w).
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
        shown = example(self.size, self.part)
        return Runner(self.module(), shown, self.device, LAUNCHES.get(self.form, "eager"))

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
        if self.form not in ("looped", "joined"):
            network = Frozen(network, self.device, getattr(torch, self.precision))
        elif self.runtime == "PyTorch":
            network = network.to(self.device).to(memory_format=torch.channels_last)
        module = Segmenter(network, self.size, self.size) if self.part == "whole" else network
        return Autocast(module, self.device) if self._by_autocast else module

    @property
    def _by_autocast(self) -> bool:
        return (
            self.runtime == "PyTorch"
            and self.precision == "bfloat16"
            and self.form in ("looped", "joined")
        )


class Autocast(nn.Module):
    """A module in bfloat16, by autocast."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.module, self.kind = module, device.type

    def forward(self, frame: Tensor) -> Tensor:
        """As the module, which answers in float32."""
        with torch.autocast(self.kind, torch.bfloat16):
            return self.module(frame)


def example(size: tuple[int, int], part: Part) -> Tensor:
    """A frame (1, 3, H, W) uint8, or normalised float32."""
    generator = torch.Generator().manual_seed(0)
    if part == "whole":
        return torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, generator=generator)
    return torch.randn((1, 3, *size), generator=generator)


def export_graph(candidate: Candidate, path: Path) -> Path:
    """The candidate's network as a file that its runtime opens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = trace(
        candidate.module(), example(candidate.size, candidate.part), path.with_suffix(".onnx")
    )
    if candidate.precision != "int8":
        return file
    shown = [example(candidate.size, candidate.part).numpy()]
    return write_int8(file, path.with_suffix(".xml"), shown)


def ways(runtimes: Sequence[str], forms: Sequence[str], device: torch.device) -> list[Way]:
    """What can be measured here in these runtimes and forms, when PyTorch computes on ``device``."""
    own: list[Way] = [("PyTorch", *way) for way in PYTORCH.get(device.type, PYTORCH["cpu"])]
    return [
        way
        for way in (*own, *OTHERS)
        if way[0] in runtimes and way[2] in forms and available(way[0], way[1])
    ]


def available(runtime: str, precision: str) -> bool:
    """Whether the runtime is installed, and with int8 what quantises."""
    package = PACKAGES.get(runtime)
    there = package is None or (find_spec(package) is not None and find_spec("onnx") is not None)
    return there and (precision != "int8" or find_spec("nncf") is not None)
