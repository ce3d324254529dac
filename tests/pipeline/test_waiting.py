"""On a GPU the host runs ahead: no step and no frame makes it wait. Shown without one, on tensors
without values.
"""

from contextlib import nullcontext, suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_cuda import Waits, moved, pretended
from torch import nn

from pipeline import training_errors
from pipeline.datasets import EpochBatches, Share
from pipeline.deployment.runner import _infer
from pipeline.deployment.segmenter import Segmenter
from pipeline.distillation import distilled
from pipeline.models import ARCHITECTURES, create_model
from pipeline.models.frozen import Frozen, Margins
from pipeline.models.network import normalise
from pipeline.settings import Distill, Training
from pipeline.stopwatch import Stopwatch
from pipeline.training import Trainer, _validate, supervised
from pipeline.training_errors import FiniteTerms

DECODERS, FRAMES, SIZE = 2, 2, (64, 96)


def batch_on(device, grid=(8, 12)):
    """A batch as the loaders give it, after Fabric has copied it."""
    return {
        "frame": torch.zeros(FRAMES, 3, *SIZE, dtype=torch.uint8, device=device),
        "organ": torch.zeros(FRAMES, *SIZE, dtype=torch.int16, device=device),
        "background": torch.ones(FRAMES, DECODERS, dtype=torch.bool, device=device),
        "labelled": torch.ones(FRAMES, DECODERS, dtype=torch.bool, device=device),
        "position": torch.zeros(FRAMES, dtype=torch.int64, device=device),
        "teachers": torch.zeros(FRAMES, DECODERS, 2, *grid, device=device),
        "valid": torch.ones(FRAMES, *grid, dtype=torch.bool, device=device),
    }


@pytest.mark.parametrize(
    "fault",
    [
        lambda on: torch.ones(3, device=on).sum().item(),
        lambda on: torch.ones(3, device=on).tolist(),
        lambda on: float(torch.ones((), device=on)),
        lambda on: torch.ones(3, device=on)[torch.ones(3, dtype=torch.bool, device=on)],
        lambda on: torch.ones(3, device=on).cpu(),
        lambda on: torch.tensor([1.0, 2.0]).to(on),
    ],
)
@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_what_waits_is_counted(fault, device):
    with pretended(), Waits() as seen, suppress(Exception):  # there is no value to give
        fault(device)
    assert seen.waits.total() > 0


def test_what_does_not_wait_is_not_counted():
    with pretended(), Waits() as seen:
        torch.ones(3, device="cuda").to("cpu", non_blocking=True)
        torch.ones(3, device="cuda").masked_fill(
            torch.ones(3, dtype=torch.bool, device="cuda"), 0
        ).sum()
    assert not seen.waits
    assert seen.operations > 2


OBJECTIVES = {
    "supervised": None,
    "pixels": Distill(
        temperature=4.0, weight=3.0, softmax="pixels", grid="stores", reconcile=False
    ),
    "classes": Distill(
        temperature=1.0, weight=3.0, softmax="classes", grid="stores", reconcile=False
    ),
    "classes_balanced": Distill(
        temperature=1.0, weight=3.0, softmax="classes_balanced", grid="student", reconcile=True
    ),
}


def objective_of(name):
    objective = supervised()
    return objective if OBJECTIVES[name] is None else distilled(objective, OBJECTIVES[name])


def backward(logits, objective, batch):
    """The gradients of a batch's loss, with the numbers of frames that the device counts."""
    terms, counted = objective.terms(logits, batch), objective.frames(batch)
    sum(
        weight * terms[name].sum() / counted.get(name, FRAMES)
        for name, weight in objective.weights.items()
    ).backward()


@pytest.mark.parametrize("way", OBJECTIVES)
@pytest.mark.parametrize("grid", [(4, 6), (8, 12), (32, 48)])
def test_no_loss_waits(way, grid):
    with pretended():
        batch, objective = batch_on("meta"), objective_of(way)
        logits = torch.zeros(FRAMES, DECODERS, 2, *grid, device="meta", requires_grad=True)
        with Waits() as seen:
            backward(logits, objective, batch)
    assert not seen.waits
    assert seen.operations > 20


class Loader:
    """Batches on a device; after each it keeps how often the host has waited so far."""

    def __init__(self, device, batches, seen):
        self.batches, self.seen = [batch_on(device) for _ in range(batches)], seen
        self.waits = []

    def __iter__(self):
        for batch in self.batches:
            yield batch
            self.waits.append(dict(self.seen.waits))


def stub_fabric(device):
    """What a training asks of Fabric, for one process on a device of :func:`pretended`."""
    device = torch.device(device)
    return SimpleNamespace(
        device=device,
        world_size=1,
        global_rank=0,
        is_global_zero=True,
        no_backward_sync=lambda model, enabled: nullcontext(),
        backward=lambda loss: loss.backward(),
        autocast=lambda: torch.autocast(device.type, torch.bfloat16),
    )


@pytest.mark.parametrize(
    ("name", "pieces"), [*((name, 1) for name in ARCHITECTURES), ("mininetv2", 2)]
)
def test_no_step_of_an_epoch_waits(monkeypatch, name, pieces):
    """The trainer's own epoch, until it reads the sums at its end."""
    network, seen = create_model(name, DECODERS), Waits()
    # Of a copy that has arrived; that nobody waits for it is shown below.
    monkeypatch.setattr(
        training_errors, "to_host", lambda terms: lambda: np.zeros(terms.shape, np.float32)
    )
    with pretended():
        moved(network, "meta")
        normalise(batch_on("meta")["frame"], network)  # copies its constants, once
        # Training takes Adam's fused form, which has fewer operations and needs a device that
        # exists.
        optimizer = torch.optim.Adam(network.parameters(), foreach=True)
        settings = Training.model_construct(
            epochs=2,
            learning_rate=1e-3,
            final_learning_rate=1e-4,
            batch_size=pieces * FRAMES,
            precision="32-true",
            seed=0,
        )
        trainer = Trainer(
            stub_fabric("meta"),
            network,
            network,
            optimizer,
            objective_of("classes_balanced"),
            settings,
            Stopwatch(),
        )
        sampler = EpochBatches(2 * pieces * FRAMES, pieces * FRAMES, 0, Share(0, 1, pieces))
        loader = Loader("meta", sampler.steps * pieces, seen)
        loaders = SimpleNamespace(train=loader, val=[], sampler=sampler)
        task = SimpleNamespace(train=SimpleNamespace(anatomies=["liver", "colon"]))
        steps = []
        with seen, suppress(Exception):  # there are no values to sum up
            trainer.epoch(0, task, loaders, lambda done, total: steps.append(dict(seen.waits)))
    assert steps == [{}] * 2
    assert seen.operations > 100


@pytest.mark.parametrize("way", OBJECTIVES)
def test_no_loss_makes_constants_on_a_gpu(way):
    """That copies them; on ``meta`` nothing is copied, so that gradients can't show it."""
    with pretended(), torch.no_grad():
        batch, objective = batch_on("cuda"), objective_of(way)
        with Waits() as seen:
            objective.terms(torch.zeros(FRAMES, DECODERS, 2, 32, 48, device="cuda"), batch)
            objective.frames(batch)
    assert not seen.waits
    assert seen.operations > 10


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("training", [False, True])
def test_no_forward_pass_waits(name, training):
    network = create_model(name, DECODERS)
    with pretended(), torch.no_grad():
        moved(network, "cuda").train(training)
        batch = batch_on("cuda")
        normalise(batch["frame"], network)
        with Waits() as seen, torch.autocast("cuda", torch.bfloat16):
            logits = network(normalise(batch["frame"], network))
    assert logits.dtype == torch.bfloat16
    assert not seen.waits
    assert seen.operations > 100


def test_validation_does_not_wait_before_its_end():
    network, seen = create_model("mininetv2", DECODERS), Waits()
    with pretended():
        moved(network, "cuda")
        normalise(batch_on("cuda")["frame"], network)
        loader = Loader("cuda", 3, seen)
        with seen, suppress(Exception):  # there are no values to count
            _validate(stub_fabric("cuda"), network, loader, 5)
    assert loader.waits == [{}] * 3
    assert seen.operations > 100


def frozen_frame(name, decoders, *, shared):
    """From a frame on the device to its masks there, as `mtkd predict` computes them."""
    network = create_model(name, decoders, shared=shared).eval()
    frozen = Frozen(network, torch.device("cpu"), torch.float16)
    frozen.native = (network.frozen(wide=True) or Margins(network)).eval().half()
    segmenter = Segmenter(frozen, (80, 120), SIZE).eval()
    with pretended(), torch.no_grad():
        moved(segmenter, "cuda")
        frame = torch.zeros(1, 3, 80, 120, dtype=torch.uint8, device="cuda")
        with Waits() as seen:
            masks = _infer(segmenter, frame)
    assert masks.shape == (1, decoders, 80, 120)
    assert masks.device.type == "cuda"
    return seen


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_frame_waits_in_the_frozen_form(name, shared):
    seen = frozen_frame(name, DECODERS, shared=shared)
    assert not seen.waits
    assert seen.operations > 30


@pytest.mark.parametrize("name", ["mininetv2", "segformer_b0"])
def test_the_frozen_form_launches_no_more_kernels_for_more_decoders(name):
    two, five = (frozen_frame(name, decoders, shared=False).operations for decoders in (2, 5))
    assert two == five


def test_a_forward_pass_on_a_gpu_folds_nothing(monkeypatch):
    """That takes dozens of kernels, which on a CPU cost less than the maps they save."""
    network = create_model("mininetv2", DECODERS).eval()
    monkeypatch.setattr("pipeline.models.mininetv2.FrozenHead", None)
    with pretended(), torch.no_grad():
        moved(network, "cuda")
        assert network(torch.zeros(1, 3, *SIZE, device="cuda")).shape[1] == DECODERS


def test_a_loss_is_judged_when_the_next_one_is_there(monkeypatch):
    """Its copy has left, and the host waits for that alone."""
    arrived = []
    event = SimpleNamespace(synchronize=lambda: arrived.append(1))
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: SimpleNamespace(record_event=lambda: event)
    )
    finite = FiniteTerms(["loss"], ["liver", "colon"], 0, speaks=True)
    with pretended(), Waits() as seen:
        finite.add(1, {"loss": torch.zeros(2, device="cuda")})
    assert not seen.waits
    assert arrived == []
    with suppress(Exception):  # there is no value to judge
        finite.judge()
    assert arrived == [1]


def test_class_weights_are_copied_once():
    objective = supervised(torch.ones(DECODERS, 2))
    logits = torch.zeros(FRAMES, DECODERS, 2, 8, 12)
    with pretended():
        batch, there = batch_on("cuda"), logits.to("cuda")
        objective.terms(there, batch)
        with Waits() as seen:
            objective.terms(there, batch)
    assert not seen.waits


def test_a_module_is_moved_whole():
    with pretended():
        module = moved(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "cuda")
        assert {tensor.device.type for tensor in module.state_dict().values()} == {"cuda"}
