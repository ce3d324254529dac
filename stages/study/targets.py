"""What the students of a study are taught: where the teachers' answers come from, and what is made of them."""

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
from pipeline.training import Objective, Terms, placed, supervised
from stages.shared.project import Project
from stages.shared.results import read
from stages.shared.training_run import class_weights
from stages.stores.reader import open_stores

TargetKind = Literal["stores", "pseudo_labels", "live", "coarse", "trusted", "with_pixels", "apart"]
CERTAIN = 30.0  # a logit whose softmax is 1 up to 1e-13
PIXELS = Distill(temperature=4, weight=3, softmax="pixels")  # Shu's reference run, "channel kl 3 4"


@dataclass(frozen=True)
class Case:
    """One student, trained in one way.

    Attributes:
        name: of the way, as tables call it.
        student: the student and its schedule.
        distill: how it is distilled, or None for partial labels alone.
        targets: what is done with the teachers' answers. ``stores``: as the stage does it.
            ``pseudo_labels``: only the classes that the stored logits choose. ``live``: teachers in
            memory, asked on each batch as the student sees
            it. ``coarse``: as a store with half the grid would hold them. ``trusted``: a teacher
            counts in proportion
            to its validation Dice. ``with_pixels``: Shu's divergence over pixels is added.
            ``apart``: no teacher speaks
            on pixels that are labelled as another organ.
        folder: the project whose frames, teachers and stores are used.
        unlabelled: whether the teachers also speak on frames without a label, if there are any.
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
    """The objective of a case, and frames with the targets that it needs."""
    anatomies = project.anatomies
    frames = project.frames_of("train")
    seed = case.student.seed
    weights = class_weights(frames, anatomies) if case.student.class_weights else None
    alone = supervised(len(anatomies), weights)
    if case.distill is None:
        return alone, FrameDataset(frames, anatomies, seed)
    both = distilled(alone, case.distill)
    frames = project.distillation_frames() if case.unlabelled else frames
    if case.targets == "live":
        teachers = _teachers(project, machine)
        return _live(both, teachers), _WithCells(
            frames, anatomies, seed, stride=teachers[0].output_stride
        )
    changed: dict[str, Callable[[], Objective]] = {
        "stores": lambda: both,
        "pseudo_labels": lambda: _with_targets(both, _hard_labels),
        "coarse": lambda: _with_targets(both, _coarsened),
        "trusted": lambda: _trusted(
            both, [_validation_dice(project, anatomy) for anatomy in anatomies]
        ),
        "with_pixels": lambda: _added(both, distilled(alone, PIXELS)),
        "apart": lambda: _with_targets(both, _apart),
    }
    return changed[case.targets](), FrameDataset(frames, anatomies, seed, open_stores(project))


def _with_targets(
    objective: Objective, replacement: Callable[[Tensor, Sample], dict[str, Tensor]]
) -> Objective:
    """Something else in place of what the batch says of the teachers, made from the student's logits and the batch."""

    def terms(logits: Tensor, batch: Sample) -> Terms:
        return objective.terms(logits, cast(Sample, {**batch, **replacement(logits, batch)}))

    return replace(objective, terms=terms)


def _hard_labels(logits: Tensor, batch: Sample) -> dict[str, Tensor]:
    """The class that the teachers' logits choose, as certain as logits can be."""
    chosen = batch["teachers"].argmax(2)
    return {"teachers": torch.stack([1 - chosen, chosen], 2).float() * CERTAIN}


def _coarsened(logits: Tensor, batch: Sample) -> dict[str, Tensor]:
    """The mean of two by two cells, brought back to the grid."""
    height, width = batch["teachers"].shape[-2:]
    halved = resize(batch["teachers"].float(), (-(-height // 2), -(-width // 2)))
    return {"teachers": resize(halved, (height, width))}


def _apart(logits: Tensor, batch: Sample) -> dict[str, Tensor]:
    """Where most of a cell is labelled as another organ, the student is its own teacher, and learns nothing."""
    teachers = batch["teachers"]
    grid = (teachers.shape[-2], teachers.shape[-1])
    own = F.one_hot(batch["anatomy"], teachers.shape[1]).bool()[:, :, None, None]
    organ = F.adaptive_avg_pool2d((batch["label"] == 1).float(), grid)[:, None] > 0.5
    return {
        "teachers": torch.where(
            (organ & ~own)[:, :, None], resize(logits, grid).detach().float(), teachers
        )
    }


def _trusted(objective: Objective, trust: Sequence[float]) -> Objective:
    """Each teacher's divergence in proportion to its trust, which is 1 on average."""
    share = placed(torch.tensor(trust) / max(sum(trust) / len(trust), 1e-6))

    def terms(logits: Tensor, batch: Sample) -> Terms:
        found = objective.terms(logits, batch)
        return {**found, "kl_divergence": found["kl_divergence"] * share(logits.device)}

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
    """Frames with the cells of the teachers' grid that lie inside the original, for teachers that are asked live."""

    def __init__(
        self, frames: Sequence[Frame], anatomies: Sequence[str], augment: int, *, stride: int
    ) -> None:
        super().__init__(frames, anatomies, augment)
        self.stride = stride

    def __getitem__(self, key: Key) -> Sample:
        item, (epoch, position) = super().__getitem__(key), key
        height, width = item["frame"].shape[-2:]
        affine = self._augmentation(epoch, self.frames[position], (height, width)).affine
        cells = valid_cells(affine, (-(-height // self.stride), -(-width // self.stride)))
        return Sample(**{**item, "valid": torch.from_numpy(cells)})


def _teachers(project: Project, machine: Machine) -> list[Network]:
    paths = [
        (project.teacher_checkpoint(anatomy), f"train_teacher@{anatomy}")
        for anatomy in project.anatomies
    ]
    return [load_checkpoint(*one)[0].to(machine.torch_device) for one in paths]


def _live(objective: Objective, teachers: Sequence[Network]) -> Objective:
    """Teachers in memory answer on each batch as the student sees it."""

    @torch.no_grad()
    def run_inference(logits: Tensor, batch: Sample) -> dict[str, Tensor]:
        logits_of = [teacher(normalise(batch["frame"], teacher)) for teacher in teachers]
        return {"teachers": torch.cat(logits_of, 1).float()}

    return _with_targets(objective, run_inference)
