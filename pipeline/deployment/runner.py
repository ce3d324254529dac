"""From frames in memory to answers in memory, by a module on some device, with buffers that stay."""

from collections.abc import Callable
from contextlib import ExitStack
from textwrap import shorten
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.errors import MtkdError
from pipeline.machine import float32_products

Launch = Literal["eager", "graph", "compiled"]


class LaunchError(MtkdError):
    """A module's kernels can't be launched as one graph here, or answer otherwise so."""


class Runner:
    """From an array like ``example`` to the module's answer, float32 or uint8; it is valid until the next call.

    Products in float32 are IEEE's, without TF32.

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
        self, module: nn.Module, example: Tensor, device: torch.device, launch: Launch = "eager"
    ) -> None:
        self.device = device
        self.module = (
            module  # a graph reads its weights where they are: they must live as long as it does
        )
        self._pinned = device.type == "cuda"
        if not self._pinned:
            return
        self._held, self._shown = torch.empty_like(example, pin_memory=True), example.to(device)
        with self._exactly():
            first = (
                self._eager()
            )  # lets libraries install their hooks, too, which a compiler can't follow
            self._back = torch.empty(first.shape, dtype=first.dtype, pin_memory=True)
            self._compute = self._launched(launch)

    def __call__(self, frame: NDArray[Any]) -> NDArray[Any]:
        """See the class."""
        with self._exactly():
            if not self._pinned:
                return _ask(self.module, torch.from_numpy(frame).to(self.device)).cpu().numpy()
            self._held.copy_(torch.from_numpy(frame))
            self._shown.copy_(self._held, non_blocking=True)
            self._back.copy_(self._compute(), non_blocking=True)
            torch.cuda.current_stream(self.device).synchronize()
        return self._back.numpy()

    def _exactly(self) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(torch.inference_mode())
        stack.enter_context(float32_products(self.device, "32-true"))
        return stack

    def _eager(self) -> Tensor:
        return _ask(self.module, self._shown)

    def _launched(self, launch: Launch) -> Callable[[], Tensor]:
        if launch == "eager":
            return self._eager
        module: Any = self.module
        if launch == "compiled":
            module = torch.compile(module, fullgraph=True, dynamic=False)
        try:
            return self._captured(module)
        except torch.OutOfMemoryError:
            raise
        except (
            Exception
        ) as error:  # of capture, of the compiler and its backends: their classes share no base
            reason = shorten(" ".join(str(error).split()), 160, placeholder=" ...")
            raise LaunchError(
                f"a network can't be launched as one graph here ({reason})"
            ) from error

    def _captured(self, module: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        if not self._shown.is_floating_point():
            self._shown.random_(0, 256)  # what the graph is judged by
        stream, current = torch.cuda.Stream(self.device), torch.cuda.current_stream(self.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(3):
                _ask(module, self._shown)
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            answer = _ask(module, self._shown)

        def replay() -> Tensor:
            graph.replay()
            return answer

        if not _alike(replay(), self._eager()):
            raise LaunchError(
                "as one graph a network answers otherwise than its kernels one by one"
            )
        return replay


def _ask(module: Callable[[Tensor], Tensor], shown: Tensor) -> Tensor:
    """The answer; contiguous, or a copy to the host would need memory of its own."""
    answer = module(shown)
    return (answer.float() if answer.is_floating_point() else answer).contiguous()


def _alike(found: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding: in one value of a thousand at most, which may be a mask's."""
    off = ~torch.isclose(found.float(), expected.float(), rtol=0.01, atol=0.01)
    return bool(off.float().mean() <= 1e-3)
