"""From frames in memory to answers in memory, by a module on some device, with buffers that stay."""

import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Launch = Literal["eager", "graph", "compiled"]
Run = Callable[[NDArray[Any]], NDArray[Any]]


@torch.inference_mode()
def runner(module: nn.Module, example: Tensor, device: torch.device, launch: Launch = "eager") -> Run:
    """A function from an array like ``example`` to the module's answer, which is valid until the next call.

    Args:
        module: in eval mode, on ``device``.
        example: one input, in memory: every other has its shape and dtype.
        device: where the module is.
        launch: ``eager``; on CUDA also all kernels at once, as one ``graph`` (ready after a few calls), or ``compiled``
            (faster, and ready after some 15 seconds).
    """
    if device.type != "cuda":
        return lambda frame: _in_memory(module, torch.from_numpy(frame).to(device))
    shown = example.to(device)
    if not example.is_floating_point():
        shown.random_(0, 256)  # what a graph is judged by
    compute, answer = _launched(module, shown, launch)
    held = torch.empty_like(example, pin_memory=True)
    back = torch.empty(answer.shape, dtype=answer.dtype, pin_memory=True)

    @torch.inference_mode()
    def run(frame: NDArray[Any]) -> NDArray[Any]:
        held.copy_(torch.from_numpy(frame))
        shown.copy_(held, non_blocking=True)
        back.copy_(compute(), non_blocking=True)
        torch.cuda.current_stream(device).synchronize()
        return back.numpy()

    return run


@torch.inference_mode()
def _in_memory(module: nn.Module, shown: Tensor) -> NDArray[np.generic]:
    answer = module(shown)
    return (answer.float() if answer.dtype == torch.bfloat16 else answer).cpu().numpy()


def _launched(module: nn.Module, shown: Tensor, launch: Launch) -> tuple[Callable[[], Tensor], Tensor]:
    """What computes the answer to ``shown`` as it then is, and one answer."""
    first = module(shown)  # lets libraries install their hooks, too, which a compiler can't follow
    answer = first.float() if first.dtype == torch.bfloat16 else first
    if launch == "graph":
        return _captured(module, shown), answer
    if launch == "compiled":
        return _captured(torch.compile(module, fullgraph=True, dynamic=False), shown), answer
    return lambda: module(shown), answer


def _captured(module: Callable[[Tensor], Tensor], shown: Tensor) -> Callable[[], Tensor]:
    stream = torch.cuda.Stream(shown.device)
    stream.wait_stream(torch.cuda.current_stream(shown.device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            module(shown)
    torch.cuda.current_stream(shown.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = module(shown)
    graph.replay()
    if not _alike(answer, module(shown)):
        warnings.warn("a CUDA graph answered otherwise than its kernels one by one: it is not used", stacklevel=2)
        return lambda: module(shown)

    def replay() -> Tensor:
        graph.replay()
        return answer

    return replay


def _alike(found: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding: in one value of a thousand at most, which may be a mask's."""
    off = ~torch.isclose(found.float(), expected.float(), rtol=0.01, atol=0.01)
    return bool(off.float().mean() <= 1e-3)
