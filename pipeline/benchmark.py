"""What a network costs: parameters, and the time from a frame in memory to all its masks in memory."""

from statistics import median
from time import perf_counter

import torch

from pipeline.machine import Machine
from pipeline.models.network import Network, normalise, resize


def parameters(network: Network) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in network.parameters())


@torch.inference_mode()
def latency(network: Network, size: tuple[int, int], warmup: int, repeats: int, machine: Machine) -> float:
    """Median seconds for one frame (H, W) uint8 to its N full-size masks, batch 1, float32."""
    network = network.eval().to(machine.torch_device).to(memory_format=torch.channels_last)
    frame = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    times = []
    for _ in range(warmup + repeats):
        start = perf_counter()
        logits = resize(network(normalise(frame.to(machine.torch_device), network)), size)
        (logits[:, :, 1] > logits[:, :, 0]).cpu()  # the copy waits for the device
        times.append(perf_counter() - start)
    return median(times[warmup:])
