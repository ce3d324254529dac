"""PyTorch modules as ONNX graphs, by the exporter of ``torch.export`` or by tracing.

PyTorch has deprecated tracing. It is there for networks that the other exporter can't follow.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from signal import SIGINT, getsignal, signal
from threading import current_thread, main_thread
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.files import naming

Exporter = Literal["torch.export", "tracing"]
OPSET = 18


def exporters() -> tuple[Exporter, ...]:
    """What can export here, the better one first."""
    return ("torch.export", "tracing") if find_spec("onnxscript") else ("tracing",)


def export_onnx(
    module: nn.Module,
    frame: Tensor,
    path: Path,
    output: str = "masks",
    exporter: Exporter | None = None,
) -> Path:
    """Write an ONNX graph of what a module does with a frame.

    Args:
        module: in eval mode.
        frame: gives the static shapes of the graph, whose input is called ``frame``.
        path: the file.
        output: what the graph's output is called.
        exporter: one of :func:`exporters`; the first by default.

    Returns:
        The file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    export = _by_tracing if (exporter or exporters()[0]) == "tracing" else _by_torch_export
    # With gradients networks take their plain form.
    with warnings.catch_warnings(), torch.enable_grad(), naming(path), _stopped_by_ctrl_c():
        warnings.simplefilter("ignore")  # that shapes become constants is what we want
        export(module, frame, path, output)
    return path


@contextmanager
def _stopped_by_ctrl_c() -> Iterator[None]:
    """Ctrl-C stops an exporter also where PyTorch takes it for an error of its own."""
    before = getsignal(SIGINT)
    if current_thread() is not main_thread() or not callable(before):
        yield
        return
    stops: list[int] = []

    def stop(number: int, frame: Any) -> None:
        stops.append(number)
        before(number, frame)

    signal(SIGINT, stop)
    try:
        yield
    except Exception:
        if not stops:
            raise
    finally:
        signal(SIGINT, before)
    if stops:
        raise KeyboardInterrupt


def _by_torch_export(module: nn.Module, frame: Tensor, path: Path, output: str) -> None:
    with torch.no_grad():
        module(frame)  # constants that are made once must not be made of the exporter's tensors
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    program = torch.onnx.export(
        module,
        (frame,),
        input_names=["frame"],
        output_names=[output],
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(path, external_data=False)


def _by_tracing(module: nn.Module, frame: Tensor, path: Path, output: str) -> None:
    with _IntegerSizes():
        torch.onnx.export(
            module,
            (frame,),
            path,
            input_names=["frame"],
            output_names=[output],
            opset_version=OPSET,
            dynamo=False,
        )


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
