"""Seconds from a frame in memory to all its masks in memory, in every installed runtime.

With ``part`` ``network`` the native logits are computed and put into memory, from frames that are
normalised already. The ``whole`` never writes these logits, some 20 MB of them for eleven
anatomies, where a runtime fuses the decision with what comes before. So it can take less time than
the part.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.checkpoint import load_checkpoint
from pipeline.decision import label_map
from pipeline.deployment.export import open_onnx, open_openvino, write_int8
from pipeline.deployment.onnx_graph import export_onnx
from pipeline.deployment.runner import LaunchMode, Runner
from pipeline.deployment.segmenter import Gives, Segmenter, resized
from pipeline.machine import Machine
from pipeline.models import create_model
from pipeline.models.frozen import Frozen
from pipeline.models.sequential import SequentialDecoders

Part = Literal["whole", "network"]
Runtime = Literal["PyTorch", "ONNX Runtime", "OpenVINO"]
# Sequential decoders, batched ones, or the whole network frozen: as it is, as a graph, or compiled.
NetworkForm = Literal["looped", "joined", "frozen", "graph", "compiled"]
Variant = tuple[Runtime, str, NetworkForm]  # runtime, precision, form
Output = NDArray[np.float32] | None
FORMS: tuple[NetworkForm, ...] = ("joined", "looped", "frozen", "graph", "compiled")
RUNTIMES: tuple[Runtime, ...] = ("PyTorch", "ONNX Runtime", "OpenVINO")
LAUNCH_MODES: dict[str, LaunchMode] = {"graph": "graph", "compiled": "compiled"}
PACKAGES = {"ONNX Runtime": "onnxruntime", "OpenVINO": "openvino"}
# By PyTorch's device; other runtimes use the processor.
PYTORCH_VARIANTS: dict[str, tuple[Variant, ...]] = {
    "cpu": (
        ("PyTorch", "float32", "joined"),
        ("PyTorch", "float32", "looped"),
        ("PyTorch", "bfloat16", "joined"),
        ("PyTorch", "float32", "frozen"),
        ("PyTorch", "bfloat16", "frozen"),
    ),
    "cuda": (
        ("PyTorch", "float32", "joined"),
        ("PyTorch", "float32", "looped"),
        ("PyTorch", "bfloat16", "joined"),
        ("PyTorch", "float16", "frozen"),
        ("PyTorch", "float16", "graph"),
        ("PyTorch", "float16", "compiled"),
    ),
}
OTHER_VARIANTS: tuple[Variant, ...] = (
    ("ONNX Runtime", "float32", "joined"),
    ("ONNX Runtime", "float32", "looped"),
    ("OpenVINO", "float32", "joined"),
    ("OpenVINO", "float32", "looped"),
    ("OpenVINO", "bfloat16", "joined"),
    ("OpenVINO", "int8", "joined"),
)


@dataclass(frozen=True)
class Candidate:
    """A network in one variant, from a frame to masks.

    Attributes:
        architecture, decoders, shared: the network.
        size: (H, W) of the frame, and of what comes out of it.
        machine: where.
        networks: how many of them see the frame, one after another.
        runtime, precision: what computes it.
        form: decoders ``looped`` (sequential, as their library wrote them) or ``joined`` (batched);
            or the whole network ``frozen`` (see :mod:`pipeline.models.frozen`), on CUDA also as one
            ``graph`` or ``compiled``. Frozen, the output of part ``network`` is logit margins
            (1, N, h, w).
        part: from frame to masks, or only the network.
        checkpoint: trained weights, or None for random ones.
        graph: the exported file, for runtimes other than PyTorch.
        network_size: (H, W) at which the network sees the frame; None for the frame's own.
        gives: ``masks`` or ``labels``, what comes out of the whole.
    """

    architecture: str
    decoders: int
    size: tuple[int, int]
    machine: Machine
    networks: int = 1
    runtime: Runtime = "PyTorch"
    precision: str = "float32"
    form: NetworkForm = "joined"
    part: Part = "whole"
    checkpoint: Path | None = None
    graph: Path | None = None
    shared: bool = False
    network_size: tuple[int, int] | None = None
    gives: Gives = "masks"

    @property
    def seen_size(self) -> tuple[int, int]:
        """(H, W) at which the network sees the frame."""
        return self.network_size or self.size

    @property
    def input_size(self) -> tuple[int, int]:
        """(H, W) of what goes in."""
        return self.size if self.part == "whole" else self.seen_size

    @property
    def device(self) -> torch.device:
        """Where it computes; other runtimes than PyTorch use the processor."""
        return self.machine.torch_device if self.runtime == "PyTorch" else torch.device("cpu")

    def build(self) -> Callable[[], Output]:
        """One call: masks of a frame, or logits (1, N, 2, h, w), which are kept."""
        compute = self.function()
        frame = self._frame(self.input_size).numpy()

        def call() -> Output:
            outputs = [compute(frame) for _ in range(self.networks)]
            return outputs[-1] if self.part == "network" else None

        return call

    def function(self) -> Callable[[NDArray[Any]], NDArray[Any]]:
        """From a frame in memory, as :func:`example` is, to its output in memory.

        The output is masks (1, N, H, W) uint8, a label map (H, W) uint8, or logits.
        """
        compute = self._in_pytorch() if self.runtime == "PyTorch" else self._in_runtime()
        if not self._decides_outside:
            return compute

        def label(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
            margins = compute(resized(frame[0], self.seen_size)[None])[0, 1:]
            return label_map(margins, self.size)

        return label

    def _in_runtime(self) -> Callable[[NDArray[Any]], NDArray[Any]]:
        assert self.graph is not None
        if self.runtime == "ONNX Runtime":
            session = open_onnx(self.graph)
            return lambda frame: session.run(None, {"frame": frame})[0]
        compiled = open_openvino(self.graph, self.precision, torch.get_num_threads())
        return lambda frame: compiled(frame)[0]

    @property
    def _decides_outside(self) -> bool:
        """Whether the network gives margins, and OpenCV resizes the frame and decides.

        On a processor its integers and its use of the cache take a fraction of the time of a graph
        that enlarges all planes.
        """
        return self.part == "whole" and self.gives == "labels" and self.device.type == "cpu"

    def _frame(self, size: tuple[int, int]) -> Tensor:
        """An example of this size; where OpenCV resizes it, as a decoder of videos gives it."""
        frame = example(size, self.part)
        return frame.permute(0, 2, 3, 1).contiguous() if self._decides_outside else frame

    def _in_pytorch(self) -> Callable[[NDArray[Any]], NDArray[Any]]:
        frame = self.graph_input()
        module = self.module()
        mode = LAUNCH_MODES.get(self.form, "eager")

        @cache
        def runner() -> Runner:
            """Made by the first call, whose time and memory are those of a graph's capture, too."""
            return Runner(module, frame, self.device, mode)

        return lambda frame: runner()(frame)

    def module(self) -> nn.Module:
        """From a frame to masks, or from a normalised frame to logits."""
        torch.manual_seed(0)
        network: Any = (
            load_checkpoint(self.checkpoint)[0]
            if self.checkpoint
            else create_model(self.architecture, self.decoders, shared=self.shared)
        )
        if self.form == "looped":
            network = SequentialDecoders(network)
        network = network.eval()
        if self.form not in ("looped", "joined"):
            network = Frozen(network, self.device, getattr(torch, self.precision))
        elif self.runtime == "PyTorch":
            network = network.to(self.device).to(memory_format=torch.channels_last)
        module = network
        if self._decides_outside:
            seen = self.seen_size
            module = Segmenter(network, seen, seen, gives="margins", layout="nhwc")
        elif self.part == "whole":
            module = Segmenter(network, self.size, self.seen_size, gives=self.gives)
        return Autocast(module, self.device) if self._by_autocast else module

    def graph_input(self) -> Tensor:
        """What a graph of this candidate takes."""
        return self._frame(self.seen_size if self._decides_outside else self.input_size)

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
        self.module = module
        self.device_type = device.type

    def forward(self, frame: Tensor) -> Tensor:
        """As the module, whose output is float32."""
        with torch.autocast(self.device_type, torch.bfloat16):
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
    frame = candidate.graph_input()
    file = path.with_suffix(".onnx")
    if not file.is_file():
        export_onnx(candidate.module(), frame, file)
    if candidate.precision != "int8":
        return file
    return write_int8(file, path.with_suffix(".xml"), [frame.numpy()])


def variants(runtimes: Sequence[str], forms: Sequence[str], device: torch.device) -> list[Variant]:
    """What can be measured here in these runtimes and forms.

    Args:
        runtimes: names of :data:`RUNTIMES`.
        forms: names of :data:`FORMS`.
        device: where PyTorch computes.
    """
    of_pytorch = PYTORCH_VARIANTS.get(device.type, PYTORCH_VARIANTS["cpu"])
    return [
        (runtime, precision, form)
        for runtime, precision, form in (*of_pytorch, *OTHER_VARIANTS)
        if runtime in runtimes and form in forms and available(runtime, precision)
    ]


def available(runtime: str, precision: str) -> bool:
    """Whether the runtime is installed, and for int8 the package that quantises."""
    package = PACKAGES.get(runtime)
    installed = package is None or _installed(package, "onnx")
    return installed and (precision != "int8" or _installed("nncf"))


def _installed(*packages: str) -> bool:
    return all(find_spec(package) is not None for package in packages)
