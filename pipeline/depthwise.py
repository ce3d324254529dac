"""Dilated depthwise convolutions in bfloat16 on a CPU, whose gradients PyTorch gets wrong.

oneDNN's gradient of such a convolution's weights, on maps wider than some twenty cells, contains
memory that nothing was written to: mostly small numbers, at times NaN (PyTorch 2.14.1, x86 with
AVX512-BF16). MiniNetv2's dilated residuals and the EfficientNets at output stride 8 have them.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def exact_depthwise(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """For the forward pass of training: on a CPU, autocast leaves these convolutions in float32.

    Args:
        device: where the network computes.
        precision: as in ``student``; other than bf16-mixed is exact without it, and faster.
    """
    is_wrong = device.type == "cpu" and precision == "bf16-mixed"
    return _Float32Depthwise() if is_wrong else nullcontext()


class _Float32Depthwise(TorchFunctionMode):
    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        call = _conv2d if function is F.conv2d and torch.is_autocast_enabled("cpu") else function
        return call(*args, **(kwargs or {}))


def _conv2d(
    input: Tensor,  # noqa: A002 (F.conv2d's own name)
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """F.conv2d, in float32 if it is dilated and depthwise."""
    exact = dilation not in (1, (1, 1), [1, 1]) and groups == input.shape[1]
    with torch.autocast("cpu", enabled=not exact):
        return F.conv2d(
            input.float() if exact else input, weight, bias, stride, padding, dilation, groups
        )
