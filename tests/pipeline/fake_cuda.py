"""Work on a GPU that is not there: tensors without values, whose operations are seen one by one.

Inference runs on fake ``cuda`` tensors. Autograd's engine would ask for a CUDA context, so training
runs on ``meta`` tensors. They take the same branches, for these ask whether the device is a CPU.
"""

from collections import Counter
from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.cuda.amp.common
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.models.network import _on

HOST = "cpu"
# What gives the host a value, or a shape that depends on values: it waits until the device has it.
READ = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
    "aten::unique_dim",
    "aten::_unique2",
}
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_unsafe_index"}
COPIES = {"aten::_to_copy", "aten::copy_"}


class Waits(TorchDispatchMode):
    """Counts operations in which the host waits for the device, by name."""

    def __init__(self):
        super().__init__()
        self.waits, self.operations = Counter(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        name = function._schema.name
        by_mask = name in INDEXED and any(
            index.dtype == torch.bool for index in args[1] if index is not None
        )
        if (name in READ or by_mask) and _on_device(inputs):
            self.waits[name] += 1  # before it runs: without values it may fail
        result = function(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.operations += _on_device(outputs)
        crossed = len({tensor.device.type for tensor in inputs + outputs}) > 1
        if name in COPIES and crossed and not _overlaps(args, kwargs):
            self.waits[name] += 1
        return result


def _on_device(tensors):
    return any(tensor.device.type != HOST for tensor in tensors)


def _overlaps(args, kwargs):
    return bool(kwargs.get("non_blocking") or (len(args) > 2 and args[2] is True))


@contextmanager
def pretended():
    """Tensors without values may be made on any device in here; autocast to CUDA is allowed."""
    available = patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False)
    low = patch("torch.cuda.is_bf16_supported", return_value=True)
    try:
        with available, low, FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        _on.cache_clear()  # of tensors without values, which a real GPU would be given


def moved(module: nn.Module, device: str) -> nn.Module:
    """The module on a device of :func:`pretended`; ``Module.to`` can't exchange such parameters."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(
                    parameter.detach().to(device), parameter.requires_grad
                )
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(device)
    return module
