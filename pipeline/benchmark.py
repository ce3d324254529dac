"""What a network costs: parameters, multiply-adds, and the time from a frame in memory to all its masks."""

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.machine import Machine
from pipeline.models import create_model
from pipeline.models.network import Network, normalise, resize


def parameters(network: Network) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in network.parameters())


def multiply_adds(architecture: str, decoders: int, size: tuple[int, int]) -> int:
    """Multiply-adds for one frame (H, W), counted without computing anything; upsampling and norms are left out."""
    with torch.enable_grad(), torch.device("meta"):  # the plain form: strips would count their overlap
        network, frame = create_model(architecture, decoders).eval(), torch.empty(1, 3, *size)
        with FlopCounterMode(display=False) as counter:
            network(frame)
    return counter.get_total_flops() // 2


@torch.inference_mode()
def latency(network: Network, size: tuple[int, int], warmup: int, repeats: int, machine: Machine) -> float:
    """Median seconds for one frame (H, W) uint8 to its N full-size masks, batch 1, float32."""
    network = network.eval().to(machine.torch_device).to(memory_format=torch.channels_last)
    frame = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def once() -> None:
        logits = resize(network(normalise(frame.to(machine.torch_device), network)), size)
        (logits[:, :, 1] > logits[:, :, 0]).cpu()  # the copy waits for the device

    return median_seconds(once, warmup, repeats)


def median_seconds(call: Callable[[], None], warmup: int, repeats: int) -> float:
    """The median time of a call, after some that don't count."""
    times = []
    for _ in range(warmup + repeats):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return median(times[warmup:])
