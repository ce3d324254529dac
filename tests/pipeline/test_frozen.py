"""The frozen form of every network: the same margins and masks, without batch norm, one map per
anatomy.
"""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.deployment.runner import Runner
from pipeline.deployment.segmenter import Segmenter
from pipeline.models import ARCHITECTURES, create_model
from pipeline.models.frozen import Frozen, Margins, _layout, fused, half_suffices
from pipeline.models.network import Network

CPU = torch.device("cpu")


def lively(name: str, decoders: int = 3, *, shared: bool = False) -> Network:
    """A network whose batch norms have statistics that differ from 0 and 1, and margins of both
    signs.
    """
    torch.manual_seed(1)
    network = create_model(name, decoders, shared=shared)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    with torch.no_grad():
        network.train()(torch.randn(2, 3, 96, 128))
        margins = network.eval().margins(frames(96, 128)).mean((0, 2, 3))
        for head, margin in zip(network.heads, margins.chunk(len(network.heads)), strict=True):
            head.classifier.bias[1::2] -= margin
    return network


def frames(height: int, width: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_frozen_margins_are_the_networks(name, wide, shared):
    network = lively(name, shared=shared)
    frozen = Frozen(network, CPU, torch.float32)
    if wide:  # as on a GPU
        frozen.native = (network.frozen(wide=True) or Margins(network)).eval()
    for size in ((96, 128), (75, 101)):  # of the second no network's stride is a divisor
        expected = network.margins(frames(*size))
        assert expected.min() < 0 < expected.max()
        torch.testing.assert_close(frozen.margins(frames(*size)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_frozen_masks_are_the_networks(name):
    network, size = lively(name), (90, 120)
    plain, frozen = (
        Segmenter(network, size, (96, 128)),
        Segmenter(Frozen(network, CPU, torch.float32), size, (96, 128)),
    )
    shown = frames(*size)[:1]
    differ = plain(shown) != frozen(shown)
    assert not (differ & (plain.margins(shown).abs() > 1e-3)).any()
    assert plain(shown).float().mean() not in (0, 1)


class Largest(TorchDispatchMode):
    """Notes how many values the largest tensor has that any operation returns."""

    values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.values = max(self.values, result.numel())
        return result


@pytest.mark.parametrize("name", ["mininetv2", "segformer_b0"])
def test_maps_of_wide_decoders_do_not_grow_with_the_batch(name):
    wide = create_model(name, 11).eval().frozen(wide=True).eval()
    largest = []
    for batch in (1, 4):
        with torch.no_grad(), Largest() as seen:
            wide(torch.zeros(batch, 3, 96, 128))
        largest.append(seen.values)
    assert largest[0] == largest[1]


@pytest.mark.parametrize("name", ["mininetv2", "segformer_b0", "deeplabv3_efficientnet_lite0"])
@torch.inference_mode()
def test_half_precision_stays_near(name):
    network = lively(name)
    expected = network.margins(frames(96, 128))
    frozen = Frozen(network, CPU, torch.bfloat16).margins(frames(96, 128))
    assert frozen.dtype == torch.bfloat16
    assert (frozen.float() - expected).norm() < 0.1 * expected.norm()


def test_freezing_copies():
    network = lively("mininetv2")
    before = copy.deepcopy(network.state_dict())
    frozen = Frozen(network, CPU, torch.float32)
    expected = frozen.margins(frames(64, 96))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(frozen.margins(frames(64, 96)), expected)
    network.load_state_dict(before)
    torch.testing.assert_close(network.margins(frames(64, 96)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_batch_norm_that_reads_a_convolution_is_left(name):
    left = [
        m
        for m in Frozen(create_model(name, 1), CPU, torch.float32).native.modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    # MiniNetv2 norms convolutions beside max-pools; smp's EfficientNet keeps the head of its
    # classifier.
    assert len(left) == (5 if name == "mininetv2" else int("efficientnet_b" in name))


class TwoReaders(nn.Module):
    """A convolution whose result two batch norms read can be one with neither."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = (
            nn.Conv2d(3, 4, 1),
            nn.BatchNorm2d(4),
            nn.BatchNorm2d(4),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.first(y) + 2 * self.second(y)


def test_a_shared_convolution_is_not_fused():
    module = TwoReaders()
    module(torch.randn(4, 3, 8, 8))
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(fused(module)(x), module.eval()(x))


def test_runner_answers_as_the_module():
    module = Segmenter(Frozen(lively("mininetv2"), CPU, torch.float32), (64, 96), (64, 96)).eval()
    run = Runner(module, frames(64, 96)[:1], CPU)
    for shown in frames(64, 96).split(1):
        assert torch.equal(torch.from_numpy(run(shown.numpy())), module(shown))


def test_a_runner_keeps_its_module():
    module = Segmenter(Frozen(lively("mininetv2"), CPU, torch.float32), (64, 96), (64, 96)).eval()
    alive, run = weakref.ref(module), Runner(module, frames(64, 96)[:1], CPU)
    del module
    gc.collect()
    assert alive() is not None  # a graph would read weights that are gone
    assert run(frames(64, 96)[:1].numpy()).shape == (1, 3, 64, 96)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("launch", ["graph", "compiled"])
@pytest.mark.parametrize("name", ["mininetv2", "segformer_b0", "deeplabv3_resnet18"])
def test_launched_at_once_answers_as_the_module(name, launch):
    device = torch.device("cuda")
    network, shown = lively(name, 11), torch.randn(1, 3, 64, 96)
    expected = Frozen(network, device, torch.float16)
    run = Runner(Frozen(network, device, torch.float16), shown, device, launch)
    gc.collect()
    others = [torch.full((2**power,), torch.nan, device=device) for power in range(8, 24)]
    for _ in others:
        with torch.inference_mode():
            wanted = expected(shown.to(device)).float().cpu()
        assert (torch.from_numpy(run(shown.numpy())) - wanted).norm() < 0.01 * wanted.norm()


def test_dilated_depthwise_convolutions_are_channels_first_on_a_gpu():
    network = create_model("mininetv2", 1)
    assert _layout(network, CPU) == torch.channels_last
    assert _layout(network, torch.device("cuda")) == torch.contiguous_format
    assert _layout(create_model("segformer_b0", 1), torch.device("cuda")) == torch.channels_last


def test_half_precision_that_overflows_does_not_suffice():
    network = lively("mininetv2")
    half = Frozen(network, CPU, torch.bfloat16)
    assert half_suffices(network, half, frames(96, 128))
    half.native.heads[0].classifier.bias.fill_(torch.nan)
    assert not half_suffices(network, half, frames(96, 128))
    half.native.heads[0].classifier.bias.fill_(100.0)
    assert not half_suffices(network, half, frames(96, 128))


def test_half_precision_that_loses_one_anatomy_of_many_does_not_suffice():
    network = lively("mininetv2", 11)
    margins = network.margins(frames(96, 128))[:, 4]
    with torch.no_grad():  # a small one: of all cells it has less than one in a hundred
        network.heads[4].classifier.bias[1] -= margins.flatten().quantile(0.95)
    half = Frozen(network, CPU, torch.bfloat16)
    half.native.heads[4].classifier.bias.fill_(-1000.0)
    assert not half_suffices(network, half, frames(96, 128))
