"""Inference from frames in memory to outputs in memory, by a module on some device.

Buffers are allocated once.
"""

from collections.abc import Callable
from contextlib import ExitStack
from textwrap import shorten
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.errors import MtkdError
from pipeline.machine import float32_products

LaunchMode = Literal["eager", "graph", "compiled"]


class LaunchError(MtkdError):
    """A module's kernels can't be launched as one graph here, or their output differs then."""


class Runner:
    """From an array like ``example`` to the module's output, float32 or uint8.

    The output is valid until the next call. Products in float32 are IEEE's, without TF32.

    Args:
        module: in eval mode, on ``device``.
        example: one input, in memory: every other has its shape and dtype.
        device: where the module is.
        launch: ``eager``; on CUDA also all kernels at once, as one ``graph`` (ready after a few
            calls), or ``compiled`` (faster, and ready after some 15 seconds).

    Raises:
        LaunchError: the module can't be launched so.
    """

    def __init__(
        self, module: nn.Module, example: Tensor, device: torch.device, launch: LaunchMode = "eager"
    ) -> None:
        self.device = device
        # A graph reads its weights where they are: they must live as long as it does.
        self.module = module
        self._pinned = device.type == "cuda"
        if not self._pinned:
            return
        self._host_input = torch.empty_like(example, pin_memory=True)
        self._input = example.to(device)
        with self._exactly():
            # This also lets libraries install their hooks, which a compiler can't follow.
            first = self._eager()
            self._host_output = torch.empty(first.shape, dtype=first.dtype, pin_memory=True)
            self._compute = self._launched(launch)

    def __call__(self, frame: NDArray[Any]) -> NDArray[Any]:
        """See the class."""
        with self._exactly():
            if not self._pinned:
                return _infer(self.module, torch.from_numpy(frame).to(self.device)).cpu().numpy()
            self._host_input.copy_(torch.from_numpy(frame))
            self._input.copy_(self._host_input, non_blocking=True)
            self._host_output.copy_(self._compute(), non_blocking=True)
            torch.cuda.current_stream(self.device).synchronize()
        return self._host_output.numpy()

    def _exactly(self) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(torch.inference_mode())
        stack.enter_context(float32_products(self.device, "32-true"))
        return stack

    def _eager(self) -> Tensor:
        return _infer(self.module, self._input)

    def _launched(self, launch: LaunchMode) -> Callable[[], Tensor]:
        if launch == "eager":
            return self._eager
        module: Any = self.module
        if launch == "compiled":
            module = torch.compile(module, fullgraph=True, dynamic=False)
        try:
            return self._captured(module)
        except torch.OutOfMemoryError:
            raise
        # Errors of capture, of the compiler and of its backends share no other base.
        except Exception as error:
            reason = shorten(" ".join(str(error).split()), 160, placeholder=" ...")
            message = f"a network can't be launched as one graph here ({reason})"
            raise LaunchError(message) from error

    def _captured(self, module: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        if not self._input.is_floating_point():
            self._input.random_(0, 256)  # what the graph is judged by
        stream = torch.cuda.Stream(self.device)
        current = torch.cuda.current_stream(self.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(3):
                _infer(module, self._input)
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = _infer(module, self._input)

        def replay() -> Tensor:
            graph.replay()
            return output

        if not _alike(replay(), self._eager()):
            raise LaunchError("the output of a network differs when it is launched as one graph")
        return replay


def _infer(module: Callable[[Tensor], Tensor], frame: Tensor) -> Tensor:
    """The output; contiguous, or a copy to the host would need memory of its own."""
    output = module(frame)
    return (output.float() if output.is_floating_point() else output).contiguous()


def _alike(output: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding: in one value of a thousand at most, which may be a mask's."""
    off = ~torch.isclose(output.float(), expected.float(), rtol=0.01, atol=0.01)
    return bool(off.float().mean() <= 1e-3)
