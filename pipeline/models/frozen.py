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
        self.stride, self.smallest, self.output_stride = (
            network.stride,
            network.smallest,
            network.output_stride,
        )
        self.dtype, self.layout = dtype, _layout(network, device)
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
        shown = frames.to(self.dtype).contiguous(memory_format=self.layout)
        h, w = (-(-n // self.output_stride) for n in frames.shape[-2:])
        return cast(Tensor, self.native(padded(shown, self.stride, self.smallest)))[..., :h, :w]


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
    """A copy, in eval mode, of what takes (B, 3, H, W): convolutions that one batch norm reads are one with it."""
    module = copy.deepcopy(module).eval()
    parts = dict(module.named_modules())
    with torch.no_grad():
        for conv, norm in _pairs(module):
            weights = _fused_weights(parts[conv], parts[norm])
            parts[conv].weight, parts[conv].bias = map(nn.Parameter, weights)
            # timm's batch norms end in an activation.
            rest = [
                getattr(parts[norm], name) for name in ("drop", "act") if hasattr(parts[norm], name)
            ]
            _replace(module, norm, nn.Sequential(*rest) if rest else nn.Identity())
    return module


def _pairs(module: nn.Module) -> list[tuple[str, str]]:
    """Names of convolutions and of the batch norms that read their results, as one pass of a small frame shows."""
    made, pairs = dict[int, tuple[str, Tensor]](), list[tuple[str, str]]()
    handles = []
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d):
            handles.append(
                part.register_forward_hook(
                    lambda m, i, o, name=name: made.update({id(o): (name, o)})
                )
            )
        elif isinstance(part, nn.BatchNorm2d):
            handles.append(
                part.register_forward_pre_hook(
                    lambda m, i, name=name: (
                        pairs.append((made[id(i[0])][0], name)) if id(i[0]) in made else None
                    )
                )
            )
    first = next(module.parameters())
    with torch.inference_mode():
        module(torch.zeros(1, 3, 64, 64, device=first.device))
    for handle in handles:
        handle.remove()
    once = [conv for conv, _ in pairs]
    return [(conv, norm) for conv, norm in pairs if once.count(conv) == 1]


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
    """Whether a frozen form in half precision decides as the network does, but for one cell in a hundred.

    Args:
        network: in eval mode, on the same device.
        frozen: made from it.
        frames: (B, 3, H, W) of 0..255, there.
    """
    found, expected = frozen.margins(frames), network.margins(frames)
    return (
        bool(found.isfinite().all())
        and float(((found > 0) != (expected > 0)).float().mean()) <= 0.01
    )
