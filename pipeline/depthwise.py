"""Dilated depthwise convolutions in bfloat16 on a CPU, whose gradients PyTorch gets wrong.

oneDNN's gradient of such a convolution's weights, on maps wider than some twenty cells, contains memory that nothing
was written to: mostly small numbers, at times NaN (PyTorch 2.14.1, x86 with AVX512-BF16). MiniNetv2's dilated residuals
and the EfficientNets at output stride 8 have them.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def exact_depthwise(device: torch.device) -> AbstractContextManager[object]:
    """Where a network that is trained has to be called: on a CPU, such convolutions are computed in float32."""
    return _Float32Depthwise() if device.type == "cpu" else nullcontext()


class _Float32Depthwise(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        call = _float32_if_depthwise if function is F.conv2d else function
        return call(*args, **(kwargs or {}))


def _float32_if_depthwise(
    x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    if groups == 1 or dilation in (1, (1, 1)):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    with torch.autocast("cpu", enabled=False):
        return F.conv2d(x.float(), weight, bias, stride, padding, dilation, groups)
