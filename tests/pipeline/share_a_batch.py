"""``python share_a_batch.py FOLDER OUTPUT DEVICES ACCUMULATE``: one epoch, and its gradients.

Batch norm is in eval mode and nothing is dropped, so that all ways of sharing a batch must agree.
"""

import sys
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn

from pipeline.datasets import FrameDataset
from pipeline.distillation import distilled
from pipeline.machine import Machine, make_fabric
from pipeline.models import create_model
from pipeline.prepared import list_frames
from pipeline.settings import Distill, Training
from pipeline.training import Callbacks, TrainingTask, fit, supervised

ANATOMIES = ("liver", "colon", "spleen")
SETTINGS = Training(
    arch="mininetv2",
    decoders="separate",
    pretrained="none",
    epochs=1,
    batch_size=4,
    learning_rate=1e-9,  # so small that the gradients of every step are those of the same weights
    final_learning_rate=1e-9,
    class_weights=False,
    absence_weight=0.0,
    select_by="own",
    precision="32-true",
    seed=3,
)


class Answers:
    """Teachers that answer at once: any numbers that depend on the frame."""

    views, view_seed = 0, 0

    def read(self, frame, view, pixels):
        return (
            torch.randn((3, 2, 8, 12), generator=torch.Generator().manual_seed(pixels))
            .numpy()
            .astype("float16")
        )


def frozen_norms(network):
    """Batch norm with running statistics while all else trains; no dropout."""

    def train(mode=True):
        nn.Module.train(network, mode)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d | nn.Dropout | nn.Dropout2d):
                module.training = False
            if hasattr(module, "p"):
                module.p = 0.0
        return network

    network.train = train
    return network


def counted(name):
    """Calls of a function of torch.distributed, which does what it does."""
    return patch.object(torch.distributed, name, wraps=getattr(torch.distributed, name))


def run(folder, devices, accumulate, *, compiled=False, fabric=None, resume=None):
    machine = Machine("cpu", 0, devices, accumulate, compiled)
    fabric = fabric or make_fabric(machine, SETTINGS.precision)
    torch.manual_seed(0)
    network = frozen_norms(create_model("mininetv2", 3))
    gradients = []
    settings = Distill(
        temperature=1.0, weight=3.0, softmax="classes_balanced", grid="stores", reconcile=False
    )
    frames = [
        list_frames(folder / "frames", folder / "labels", split, ANATOMIES)
        for split in ("train", "val")
    ]
    with counted("all_reduce") as messages, counted("barrier") as barriers:
        epoch = fit(
            fabric,
            network,
            TrainingTask(
                FrameDataset(frames[0], ANATOMIES, 1, Answers()),
                FrameDataset(frames[1], ANATOMIES),
                distilled(supervised(), settings),
            ),
            SETTINGS,
            machine,
            Callbacks(
                done=lambda epoch: None,
                step=lambda *_: gradients.append(
                    {k: p.grad.clone() for k, p in network.named_parameters()}
                ),
            ),
            resume=resume,
        )[0]
    told = {
        "terms": epoch.terms,
        "norms": epoch.gradient_norms,
        "dice": epoch.dice,
        "gradients": gradients,
    }
    told |= {"messages": messages.call_count, "barriers": barriers.call_count}
    return fabric.global_rank, told


if __name__ == "__main__":
    rank, told = run(Path(sys.argv[1]), int(sys.argv[3]), int(sys.argv[4]))
    torch.save(told, f"{sys.argv[2]}.{rank}")
