"""Decoders computed together against decoders one after another: time and memory of training and inference."""

import resource
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.losses.partial_labels import partial_label_cross_entropy, partial_targets
from pipeline.machine import AUTOCAST, Machine, keep_freed_memory
from pipeline.models import create_model
from pipeline.models.network import Network, resize

Form = Literal["looped", "joined"]
Task = Literal["train", "infer"]


class Looped(nn.Module):
    """A network whose decoders run one after another, as their library wrote them."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.heads = nn.ModuleList(head for head in network.reference_heads() if isinstance(head, nn.Module))
        del network.heads

    def forward(self, frames: Tensor) -> Tensor:
        """As :meth:`Network.forward`, for sizes that the network takes as they are."""
        features = self.network.features(frames)
        return torch.stack([head(features) for head in self.heads], dim=1)


@dataclass(frozen=True)
class Case:
    """One measurement of a network with N decoders.

    Attributes:
        architecture, decoders: the network.
        form: decoders ``looped``, or ``joined`` as the network computes them.
        task: ``train``: a step with loss, gradients and Adam; ``infer``: native logits in eval mode.
        precision: 32-true or bf16-mixed.
        batch, size: shape of the frames, (H, W).
        warmup, repeats: calls that aren't counted, and that are.
        machine: where.
    """

    architecture: str
    decoders: int
    form: Form
    task: Task
    precision: str
    batch: int
    size: tuple[int, int]
    warmup: int
    repeats: int
    machine: Machine


@dataclass(frozen=True)
class _Measured:
    """A call, where it computes, and the bytes that were held before the first one."""

    call: Callable[[], None]
    device: torch.device
    before: int


_measured: _Measured  # in a case's own process


def measure(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Median milliseconds per call of each case, and the memory that a call needs on top of the network, in MiB.

    Each case has a process of its own, with the same settings of the allocator: memory of another would hide its peak.
    Their calls take turns: a machine that slows down slows all of them.
    """
    with ExitStack() as stack:
        pools = [stack.enter_context(_process_of(case)) for case in cases]
        rounds = cases[0].warmup + cases[0].repeats
        seconds = [[pool.submit(_call).result() for pool in pools] for _ in range(rounds)][cases[0].warmup :]
        peaks = [pool.submit(_peak_so_far).result() for pool in pools]
    return [
        {"milliseconds": round(1000 * median(own), 1), "peak_mib": round(peak / 2**20, 1)}
        for own, peak in zip(zip(*seconds, strict=True), peaks, strict=True)
    ]


def _process_of(case: Case) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_prepare, initargs=(case,))


def _prepare(case: Case) -> None:
    """Build what a case's process measures."""
    global _measured
    keep_freed_memory()
    torch.manual_seed(0)
    device = case.machine.torch_device
    network: nn.Module = create_model(case.architecture, case.decoders)
    if case.form == "looped":
        network = Looped(network)  # type: ignore[arg-type]
    network = network.to(device).to(memory_format=torch.channels_last).train(case.task == "train")
    frames = torch.randn(case.batch, 3, *case.size, device=device).contiguous(memory_format=torch.channels_last)
    call = _training_step(network, frames, case) if case.task == "train" else _inference(network, frames, case)
    _measured = _Measured(call, device, _peak(device, reset=True))


def _call() -> float:
    start = perf_counter()
    _measured.call()
    return perf_counter() - start


def _peak_so_far() -> int:
    return _peak(_measured.device) - _measured.before


def _autocast(case: Case) -> torch.autocast:
    device = case.machine.torch_device.type
    return torch.autocast(device, AUTOCAST.get(case.precision), enabled=case.precision in AUTOCAST)


def _training_step(network: nn.Module, frames: Tensor, case: Case) -> Callable[[], None]:
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    label = torch.randint(0, 2, (case.batch, *case.size), device=frames.device)
    target = partial_targets(label, torch.arange(case.batch, device=frames.device) % case.decoders, case.decoders)

    def step() -> None:
        with _autocast(case):
            logits = network(frames)
        loss = partial_label_cross_entropy(resize(logits.float(), case.size), target).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        _wait(frames.device)

    return step


def _inference(network: nn.Module, frames: Tensor, case: Case) -> Callable[[], None]:
    @torch.inference_mode()
    def infer() -> None:
        with _autocast(case):
            network(frames)
        _wait(frames.device)

    return infer


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(device: torch.device, *, reset: bool = False) -> int:
    """Bytes that this process held at most (since the last reset, where the system knows one)."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    if sys.platform.startswith("linux"):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def largest_difference(architecture: str, decoders: int, size: tuple[int, int]) -> float:
    """Largest absolute difference between the logits of both forms, with random weights, float32."""
    torch.manual_seed(0)
    network = create_model(architecture, decoders).eval()
    with torch.inference_mode():
        features: Sequence[Tensor] = network.features(torch.randn(1, 3, *size))
        joined = network.decode(features, range(decoders))
        looped = torch.stack([_eval(head)(features) for head in network.reference_heads()], dim=1)
    return float((joined - looped).abs().max())


def _eval(head: Any) -> Any:
    return head.eval()
