"""Targets of a study's students: where the teachers' logits come from, and how they are used."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.augmentation import valid_cells
from pipeline.checkpoint import load_checkpoint
from pipeline.datasets import FrameDataset, Key, Sample
from pipeline.distillation import distilled
from pipeline.machine import Machine
from pipeline.models.network import Network, normalise, resize
from pipeline.prepared import Frame
from pipeline.settings import Distill, Training
from pipeline.training import Objective, Terms, placed
from stages.shared.project import Project
from stages.shared.results import read
from stages.shared.training_run import objective_on_labels
from stages.stores.reader import open_stores

TargetKind = Literal[
    "stores",
    "pseudo_labels",
    "live",
    "coarse",
    "trusted",
    "with_pixels",
    "apart",
]
CERTAIN = 30.0  # a logit whose softmax is 1 up to 1e-13
# Shu's reference run, "channel kl 3 4".
PIXELS = Distill(temperature=4, weight=3, softmax="pixels", grid="stores", reconcile=False)


@dataclass(frozen=True)
class Case:
    """One student, trained under one condition.

    Attributes:
        name: of the condition, as tables call it.
        student: the student and its schedule.
        distill: how it is distilled, or None for partial labels alone.
        targets: what is made of the teachers' logits. ``stores``: what the stage makes of them.
            ``pseudo_labels``: only the classes that the stored logits choose. ``live``: teachers in
            memory, which predict on each batch as the student sees it. ``coarse``: as a store with
            half the grid would hold them. ``trusted``: a teacher counts in proportion to its
            validation Dice. ``with_pixels``: Shu's divergence over pixels is added. ``apart``: no
            teacher counts on pixels that are labelled as another organ.
        folder: the project whose frames, teachers and stores are used.
        unlabelled: whether the teachers' logits on frames without a label are used, if there are
            any.
    """

    name: str
    student: Training
    distill: Distill | None
    targets: TargetKind = "stores"
    folder: Path = Path()
    unlabelled: bool = True


def training_material(
    case: Case, project: Project, machine: Machine
) -> tuple[Objective, FrameDataset]:
    """The objective of a case, and frames with the targets that it needs.

    Args:
        case: what is trained, and how.
        project: whose frames, teachers and stores.
        machine: where live teachers compute.

    Raises:
        MtkdError: a teacher, its store or its metrics are missing or of another run.
    """
    anatomies = project.anatomies
    frames = project.frames_of("train")
    seed = case.student.seed
    alone = objective_on_labels(frames, anatomies, case.student)
    if case.distill is None:
        return alone, FrameDataset(frames, anatomies, seed)
    both = distilled(alone, case.distill)
    frames = project.distillation_frames() if case.unlabelled else frames
    if case.targets == "live":
        teachers = _teachers(project, machine)
        data = _WithCells(frames, anatomies, seed, stride=teachers[0].output_stride)
        return _live(both, teachers), data
    replaced = {"pseudo_labels": _hard_labels, "coarse": _coarsened, "apart": _apart}
    if case.targets in replaced:
        both = _with_targets(both, replaced[case.targets])
    elif case.targets == "trusted":
        both = _trusted(both, [_validation_dice(project, anatomy) for anatomy in anatomies])
    elif case.targets == "with_pixels":
        both = _added(both, distilled(alone, PIXELS))
    return both, FrameDataset(frames, anatomies, seed, open_stores(project))


def _with_targets(
    objective: Objective, replacement: Callable[[Tensor, Sample], dict[str, Tensor]]
) -> Objective:
    """The objective on other targets, made from the student's logits and the batch."""

    def terms(logits: Tensor, batch: Sample) -> Terms:
        return objective.terms(logits, cast(Sample, {**batch, **replacement(logits, batch)}))

    return replace(objective, terms=terms)


def _hard_labels(logits: Tensor, batch: Sample) -> dict[str, Tensor]:
    """The class that the teachers' logits choose, as certain as logits can be."""
    classes = batch["teachers"].argmax(2)
    return {"teachers": torch.stack([1 - classes, classes], 2).float() * CERTAIN}


def _coarsened(logits: Tensor, batch: Sample) -> dict[str, Tensor]:
    """The mean of two by two cells, brought back to the grid."""
    height, width = batch["teachers"].shape[-2:]
    halved = resize(batch["teachers"].float(), (-(-height // 2), -(-width // 2)))
    return {"teachers": resize(halved, (height, width))}


def _apart(logits: Tensor, batch: Sample) -> dict[str, Tensor]:
    """The student's own logits where most of a cell is labelled as another organ: no divergence."""
    teachers = batch["teachers"]
    grid = (teachers.shape[-2], teachers.shape[-1])
    of_label = batch["labelled"][:, :, None, None]
    organ = F.adaptive_avg_pool2d((batch["organ"] >= 0).float(), grid)[:, None] > 0.5
    student = resize(logits, grid).detach().float()
    return {"teachers": torch.where((organ & ~of_label)[:, :, None], student, teachers)}


def _trusted(objective: Objective, trust: Sequence[float]) -> Objective:
    """Each teacher's divergence in proportion to its trust, which is 1 on average."""
    share = placed(torch.tensor(trust) / max(sum(trust) / len(trust), 1e-6))

    def terms(logits: Tensor, batch: Sample) -> Terms:
        untrusted = objective.terms(logits, batch)
        divergence = untrusted["kl_divergence"] * share(logits.device)
        return {**untrusted, "kl_divergence": divergence}

    return replace(objective, terms=terms)


def _validation_dice(project: Project, anatomy: str) -> float:
    return read(project.teacher_metrics(anatomy))["val_dice"]["mean"] or 0.0


def _added(objective: Objective, other: Objective) -> Objective:
    """Both divergences, each with its weight."""

    def terms(logits: Tensor, batch: Sample) -> Terms:
        return objective.terms(logits, batch) | {
            "kl_pixels": other.terms(logits, batch)["kl_divergence"]
        }

    def frames(batch: Sample) -> Terms:
        counted = objective.frames(batch)
        return counted | {"kl_pixels": counted["kl_divergence"]}

    return Objective(
        terms, {**objective.weights, "kl_pixels": other.weights["kl_divergence"]}, frames
    )


class _WithCells(FrameDataset):
    """Frames with the cells of the live teachers' grid that lie inside the original."""

    def __init__(
        self, frames: Sequence[Frame], anatomies: Sequence[str], augment: int, *, stride: int
    ) -> None:
        super().__init__(frames, anatomies, augment)
        self.stride = stride

    def __getitem__(self, key: Key) -> Sample:
        item = super().__getitem__(key)
        epoch, position = key
        height, width = item["frame"].shape[-2:]
        affine = self._augmentation(epoch, self.frames[position], (height, width)).affine
        cells = valid_cells(affine, (-(-height // self.stride), -(-width // self.stride)))
        return Sample(**{**item, "valid": torch.from_numpy(cells)})


def _teachers(project: Project, machine: Machine) -> list[Network]:
    paths = [project.teacher_checkpoint(anatomy) for anatomy in project.anatomies]
    return [load_checkpoint(path)[0].to(machine.torch_device) for path in paths]


def _live(objective: Objective, teachers: Sequence[Network]) -> Objective:
    """Teachers in memory predict on each batch as the student sees it."""

    @torch.no_grad()
    def run_inference(logits: Tensor, batch: Sample) -> dict[str, Tensor]:
        predictions = [teacher(normalise(batch["frame"], teacher)) for teacher in teachers]
        return {"teachers": torch.cat(predictions, 1).float()}

    return _with_targets(objective, run_inference)
