"""Networks for inference alone: what only training needs is multiplied into the weights, once.

A convolution and the batch norm behind it are one convolution; of two logits only their difference
is computed, the margin, whose sign is the arg max. On a GPU all decoders are one wide decoder, in
half precision if asked for: fewer and larger kernels. On a CPU decoders stay one after another, so
that their maps stay in the processor's cache.
"""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pipeline.models.network import Network, padded


class Frozen(nn.Module):
    """A network in eval mode with fixed weights, on one device and in one dtype."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: Network, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.stride = network.stride
        self.smallest = network.smallest
        self.output_stride = network.output_stride
        self.dtype = dtype
        self.layout = _layout(network, device)
        native = network.frozen(wide=device.type != "cpu") or Margins(network)
        self.native = native.to(dtype).to(memory_format=self.layout)
        mean, std = (torch.tensor(values)[:, None, None] for values in (network.mean, network.std))
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)
        self.to(device).eval().requires_grad_(False)

    def margins(self, frames: Tensor) -> Tensor:
        """As :meth:`Network.margins`, in the dtype of the weights."""
        return self(frames.float() * self.scale + self.shift)

    def forward(self, frames: Tensor) -> Tensor:
        """The same of normalised frames."""
        inputs = frames.to(self.dtype).contiguous(memory_format=self.layout)
        h, w = (-(-n // self.output_stride) for n in frames.shape[-2:])
        return cast(Tensor, self.native(padded(inputs, self.stride, self.smallest)))[..., :h, :w]


class Margins(nn.Module):
    """Any network: padded and normalised frames (B, 3, H, W) -> margins (B, N, h, w)."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = fused(network)

    def forward(self, frames: Tensor) -> Tensor:
        """See the class."""
        logits = self.network(frames)
        return logits[:, :, 1] - logits[:, :, 0]


def fused(module: nn.Module) -> Any:
    """A copy, in eval mode, of what takes (B, 3, H, W), with batch norms folded.

    A convolution whose result only one batch norm reads becomes one with it.
    """
    module = copy.deepcopy(module).eval()
    parts = dict(module.named_modules())
    with torch.no_grad():
        for conv, norm in _pairs(module):
            weights = _fused_weights(parts[conv], parts[norm])
            parts[conv].weight, parts[conv].bias = map(nn.Parameter, weights)
            _replace(module, norm, _rest(parts[norm]))
    return module


def _pairs(module: nn.Module) -> list[tuple[str, str]]:
    """Names of convolutions and of the batch norms that read their results.

    One pass of a small frame shows them.
    """
    outputs: dict[int, tuple[str, Tensor]] = {}  # by id, kept so that no id comes again
    pairs: list[tuple[str, str]] = []

    def note_output(name: str, output: Tensor) -> None:
        outputs[id(output)] = (name, output)

    def note_pair(name: str, read: Tensor) -> None:
        if id(read) in outputs:
            pairs.append((outputs[id(read)][0], name))

    handles = []
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d):
            handles.append(
                part.register_forward_hook(lambda m, i, o, name=name: note_output(name, o))
            )
        elif isinstance(part, nn.BatchNorm2d):
            handles.append(
                part.register_forward_pre_hook(lambda m, i, name=name: note_pair(name, i[0]))
            )
    first = next(module.parameters())
    with torch.inference_mode():
        module(torch.zeros(1, 3, 64, 64, device=first.device))
    for handle in handles:
        handle.remove()
    convolutions = [conv for conv, _ in pairs]
    return [(conv, norm) for conv, norm in pairs if convolutions.count(conv) == 1]


def _rest(norm: nn.Module) -> nn.Module:
    """What a batch norm does besides: timm's end in an activation."""
    parts = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
    return nn.Sequential(*parts) if parts else nn.Identity()


def _fused_weights(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    return fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )


def _replace(module: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, part)


def _layout(network: nn.Module, device: torch.device) -> torch.memory_format:
    """Channels last, except on a GPU for networks with dilated depthwise convolutions.

    cuDNN takes up to a millisecond for a depthwise convolution of theirs in channels last: on an
    H100 DeepLabv3 on EfficientNet-B0 needs 20 ms a frame of 1280x720 so, and 11 ms with channels
    first.
    """
    dilated = any(
        isinstance(part, nn.Conv2d)
        and part.groups == part.in_channels > 1
        and max(part.dilation) > 1
        for part in network.modules()
    )
    return torch.contiguous_format if dilated and device.type != "cpu" else torch.channels_last


@torch.inference_mode()
def half_suffices(network: Network, frozen: Frozen, frames: Tensor) -> bool:
    """Whether a frozen form in half precision decides as the network does.

    One cell in a hundred may differ, of each anatomy.

    Args:
        network: in eval mode, on the same device.
        frozen: made from it.
        frames: (B, 3, H, W) of 0..255, there.
    """
    margins = frozen.margins(frames)
    expected = network.margins(frames)
    differing = ((margins > 0) != (expected > 0)).float().mean((0, 2, 3))
    return bool(margins.isfinite().all()) and float(differing.max()) <= 0.01
