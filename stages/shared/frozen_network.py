"""A checkpoint's network as ``mtkd predict`` and ``mtkd live`` compute it."""

import gc
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.deployment.runner import LaunchError, LaunchMode, Runner
from pipeline.deployment.segmenter import Gives, Layout, Segmenter
from pipeline.models.frozen import Frozen, half_suffices
from pipeline.models.network import Network
from stages.shared.console import say


class FrozenNetwork:
    """What a network says of frames, one at a time.

    It is frozen by the first frame. On CUDA it is in half precision then, unless that gives other
    masks on this frame; half precision is left for good at the first frame whose logits are not
    finite in it. Frames may change their size; of one that stays, all kernels are launched at once.

    Args:
        network: in eval mode, on ``device``.
        device: where it computes.
        network_size: (H, W) at which it sees frames.
        one_organ: whether a pixel belongs to one anatomy at most.
        gives: what comes out, see :data:`pipeline.deployment.segmenter.Gives`.
        layout: what goes in, ``nchw`` or ``nhwc``, uint8.
    """

    def __init__(
        self,
        network: Network,
        device: torch.device,
        network_size: tuple[int, int],
        *,
        one_organ: bool = False,
        gives: Gives = "masks",
        layout: Layout = "nchw",
    ) -> None:
        self.network = network
        self.device = device
        self.network_size = network_size
        self.one_organ = one_organ
        self.gives = gives
        self.layout = layout
        self._frozen: Frozen | None = None
        self._size = (0, 0)
        self._launched = False
        self._run: Runner | None = None
        self._watched: _Watched | None = None  # in half precision, by the runner
        self._graphs = device.type == "cuda"

    @property
    def precision(self) -> str:
        """What it computes in, such as ``float16``; before the first frame what it will try."""
        likely = torch.float16 if self.device.type == "cuda" else torch.float32
        dtype = likely if self._frozen is None else self._frozen.dtype
        return str(dtype).removeprefix("torch.")

    def __call__(self, frame: NDArray[np.uint8]) -> NDArray[Any]:
        """The output for a batch of one frame; it is valid until the next call."""
        if self._frozen is None:
            self._frozen = self._half_or_float(frame)
        output = self._output(frame)
        # The runner has waited for the end of the frame, so that reading this waits for nothing.
        if self._watched is None or bool(self._watched.finite):
            return output
        say("warning: in half precision the logits of a frame are not finite: float32 is used")
        self._frozen = Frozen(self.network, self.device, torch.float32)
        self._size = (0, 0)
        return self._output(frame)

    def _half_or_float(self, frame: NDArray[np.uint8]) -> Frozen:
        if self.device.type == "cuda":
            half = Frozen(self.network, self.device, torch.float16)
            pixels = torch.from_numpy(frame).to(self.device).float()
            planes = pixels if self.layout == "nchw" else pixels.permute(0, 3, 1, 2)
            seen = F.interpolate(planes, size=self.network_size, mode="bilinear")
            if half_suffices(self.network, half, seen):
                return half
            say("warning: in half precision this network decides otherwise: float32 is used")
        return Frozen(self.network, self.device, torch.float32)

    def _output(self, frame: NDArray[np.uint8]) -> NDArray[Any]:
        planes = frame.shape[2:] if self.layout == "nchw" else frame.shape[1:3]
        size = (planes[0], planes[1])
        if size != self._size:
            self._run = None
            self._watched = None
            self._launched = False  # its memory is the next one's
            self._run = self._runner(frame, size, "eager")
        elif self._graphs and not self._launched:
            self._launch(frame, size)
        self._size = size
        return cast(Runner, self._run)(frame)

    def _launch(self, frame: NDArray[np.uint8], size: tuple[int, int]) -> None:
        try:
            self._run = self._runner(frame, size, "graph")
            self._launched = True
            return
        except LaunchError as error:
            reason = str(error)
        except torch.OutOfMemoryError:
            reason = "too little memory to launch a network as one graph"
        say(f"warning: {reason}: its kernels are launched one by one, which takes longer")
        self._graphs = False
        # What was begun is garbage now, and the one that launches one by one needs its memory.
        gc.collect()
        torch.cuda.empty_cache()

    def _runner(
        self, frame: NDArray[np.uint8], size: tuple[int, int], launch: LaunchMode
    ) -> Runner:
        frozen = cast(Frozen, self._frozen)
        in_half = frozen.dtype != torch.float32
        module = (_Watched if in_half else Segmenter)(
            frozen,
            size,
            self.network_size,
            one_organ=self.one_organ,
            gives=self.gives,
            layout=self.layout,
        ).eval()
        example = torch.zeros(frame.shape, dtype=torch.uint8)
        runner = Runner(module, example, self.device, launch)
        self._watched = module if isinstance(module, _Watched) else None
        return runner


class _Watched(Segmenter):
    """Notes whether all logits of the last frame are finite."""

    finite: Tensor

    def __init__(self, frozen: Frozen, *args: Any, **kwargs: Any) -> None:
        super().__init__(frozen, *args, **kwargs)
        # On the network's device. A graph writes it with every frame.
        self.register_buffer("finite", torch.ones_like(frozen.scale[0, 0, 0], dtype=torch.bool))

    def _native(self, frame: Tensor) -> Tensor:
        margins = super()._native(frame)
        self.finite.copy_(margins.isfinite().all())
        return margins
