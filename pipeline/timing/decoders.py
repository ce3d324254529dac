"""Batched against sequential decoders: time and memory of training and inference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.depthwise import exact_depthwise
from pipeline.losses.partial_labels import partial_label_cross_entropy, partial_targets
from pipeline.machine import Machine, computing, float32_products, require_trainable, weights_format
from pipeline.models import create_model
from pipeline.models.network import resize
from pipeline.models.sequential import SequentialDecoders
from pipeline.timing.interleaved import interleave

DecoderForm = Literal["looped", "joined"]  # sequential, or batched
Task = Literal["train", "infer"]


@dataclass(frozen=True)
class DecoderCase:
    """One measurement of a network with N decoders.

    Attributes:
        architecture, decoders: the network.
        form: ``looped``, sequential decoders; or ``joined``, batched as the network computes
            them.
        task: ``train``: a step with loss, gradients and Adam; ``infer``: native logits in eval
            mode.
        precision: 32-true, tf32, bf16-mixed or 16-mixed.
        batch, size: shape of the frames, (H, W).
        machine: where.
        shared: whether one decoder does the work of all.
    """

    architecture: str
    decoders: int
    form: DecoderForm
    task: Task
    precision: str
    batch: int
    size: tuple[int, int]
    machine: Machine
    shared: bool = False

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.machine.torch_device

    def build(self) -> Callable[[], None]:
        """One training step, or one forward pass."""
        network: nn.Module = create_model(self.architecture, self.decoders, shared=self.shared)
        if self.form == "looped":
            network = SequentialDecoders(network)  # type: ignore[arg-type]
        layout = torch.channels_last
        if self.task == "train":
            layout = weights_format(self.device, self.precision)
        network = network.to(self.device).to(memory_format=layout).train(self.task == "train")
        frames = torch.randn(self.batch, 3, *self.size, device=self.device)
        frames = frames.contiguous(memory_format=torch.channels_last)
        return (_training_step if self.task == "train" else _inference)(network, frames, self)


def measure(
    cases: Sequence[DecoderCase], warmup: int, repeats: int, seconds: float = 0.0
) -> list[dict[str, Any]]:
    """Median milliseconds per call of each case, and the memory that a call needs.

    Args:
        cases: what to measure, interleaved.
        warmup: calls of each that don't count.
        repeats: calls of each that do.
        seconds: that the counted calls of each take at least.

    Returns:
        Per case ``milliseconds``, and ``peak_mib``: memory on top of the network, in MiB.

    Raises:
        TooLittleMemoryError: one of them does not fit into memory.
        MtkdError: a process ended by itself.
    """
    return [
        {"milliseconds": round(1000 * timing.median, 3), "peak_mib": round(timing.peak / 2**20, 1)}
        for timing in interleave(cases, warmup, repeats, seconds=seconds)
    ]


def _training_step(network: nn.Module, frames: Tensor, case: DecoderCase) -> Callable[[], None]:
    require_trainable(case.device, case.precision)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    label = torch.randint(0, 2, (case.batch, *case.size), device=frames.device)
    anatomy = torch.arange(case.batch, device=frames.device) % case.decoders
    target = partial_targets(label, anatomy, case.decoders)

    def step() -> None:
        exact = exact_depthwise(frames.device, case.precision)
        with computing(case.device, case.precision), exact:
            logits = network(frames)
        loss = partial_label_cross_entropy(resize(logits.float(), case.size), target).sum()
        optimizer.zero_grad(set_to_none=True)
        with float32_products(case.device, case.precision):
            loss.backward()
        optimizer.step()

    return step


def _inference(network: nn.Module, frames: Tensor, case: DecoderCase) -> Callable[[], None]:
    @torch.inference_mode()
    def infer() -> None:
        with computing(case.device, case.precision):
            network(frames)

    return infer


def largest_difference(architecture: str, decoders: int, size: tuple[int, int]) -> float:
    """Largest absolute difference between the logits of batched and of sequential decoders.

    Both compute in float32, with random weights.
    """
    torch.manual_seed(0)
    network = create_model(architecture, decoders).eval()
    with torch.inference_mode():
        features: Sequence[Tensor] = network.features(torch.randn(1, 3, *size))
        batched = network.decode(features, range(decoders))
        sequential = torch.stack(
            [_eval(head)(features) for head in network.reference_heads()], dim=1
        )
    return float((batched - sequential).abs().max())


def _eval(head: Any) -> Any:
    return head.eval()
