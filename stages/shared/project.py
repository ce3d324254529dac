"""A project: its folder, its settings, and where everything lies, as dvc.yaml names it."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.dsad import DataSet
from pipeline.errors import MtkdError
from pipeline.files import nearest
from pipeline.preparation.settings import PrepareSettings
from pipeline.prepared import Frame, list_frames, list_unlabelled
from pipeline.settings import Params
from stages.shared.params import PARAMS, load_params

NO_UNLABELLED = "data/unlabelled"  # an empty folder of this repository


@dataclass(frozen=True)
class Places:
    """Where everything lies in a project, whatever its settings are.

    Attributes:
        root: the folder that holds params.yaml; every path below starts with it.
    """

    root: Path

    @property
    def params_file(self) -> Path:
        """The settings that every verb reads."""
        return self.root / PARAMS

    @property
    def accepted_settings(self) -> Path:
        """Says that params.yaml was accepted, whatever its settings are."""
        return self.root / "data/settings.txt"

    @property
    def other_sets_folder(self) -> Path:
        """Says what the data sets of ``data.others`` held when they were last looked at."""
        return self.root / "data/others"

    @property
    def phantom(self) -> Path:
        """The embedded data set."""
        return self.root / "data/phantom"

    @property
    def prepared_frames(self) -> Path:
        """What ``prepare`` wrote, by split and anatomy; beside them the frames without masks."""
        return self.root / "data/prepared/frames"

    @property
    def prepared_labels(self) -> Path:
        """The masks of the same frames."""
        return self.root / "data/prepared/labels"

    @property
    def stores(self) -> Path:
        """Finished stores of logits."""
        return self.root / "stores"

    @property
    def scratch(self) -> Path:
        """What is not finished: begun stores, the state of a training."""
        return self.root / "scratch"

    @property
    def begun_stores(self) -> Path:
        """Where stores grow."""
        return self.scratch / "stores"

    @property
    def metrics(self) -> Path:
        """What DVC compares."""
        return self.root / "metrics"

    @property
    def results(self) -> Path:
        """Tables, curves, pictures and measurements."""
        return self.root / "results"

    @property
    def study_runs(self) -> Path:
        """What each training run of a study reached."""
        return self.results / "study"

    @property
    def report(self) -> Path:
        """The page of the last run."""
        return self.root / "report/index.html"

    def teacher_checkpoint(self, anatomy: str) -> Path:
        """The teacher of one anatomy."""
        return self.root / "checkpoints/teachers" / f"{anatomy}.safetensors"

    def student_checkpoint(self, name: str) -> Path:
        """The student ``baseline`` or ``mtkd``."""
        return self.root / "checkpoints/students" / f"{name}.safetensors"

    def teacher_metrics(self, anatomy: str) -> Path:
        """A teacher's Dice on the validation surgeries."""
        return self.metrics / "teachers" / f"{anatomy}.json"

    def student_metrics(self, name: str) -> Path:
        """A student's Dice on the validation surgeries."""
        return self.metrics / "students" / f"{name}.json"

    def teacher_curves(self, anatomy: str) -> Path:
        """The folder of a teacher's values of every epoch."""
        return self.results / "curves/teachers" / anatomy

    def student_curves(self, name: str) -> Path:
        """The folder of a student's values of every epoch."""
        return self.results / "curves/students" / name

    def store(self, anatomy: str) -> Path:
        """The logits of one anatomy's teacher."""
        return self.stores / f"{anatomy}.zarr"

    def begun_store(self, anatomy: str) -> Path:
        """The same store while it grows."""
        return self.begun_stores / f"{anatomy}.zarr"

    def frames_of(self, split: str, anatomies: Sequence[str]) -> list[Frame]:
        """The prepared frames of one split and of some anatomies."""
        return list_frames(self.prepared_frames, self.prepared_labels, split, anatomies)


@dataclass(frozen=True)
class Project(Places):
    """What a verb works on, handed down from the command line.

    Attributes:
        params: the checked settings.
    """

    params: Params

    @property
    def anatomies(self) -> list[str]:
        """``data.anatomies``: the order of the student's decoders."""
        return self.params.data.anatomies

    @property
    def other_sets(self) -> list[DataSet]:
        """``data.others``."""
        others = self.params.data.others.items()
        return [DataSet(self.root / each.root, name, each.rename) for name, each in others]

    @property
    def prepare_settings(self) -> PrepareSettings:
        """What is prepared, and how."""
        data = self.params.data
        unlabelled = self.root / data.unlabelled_root
        # The repository's own empty folder need not be there.
        is_used = data.unlabelled_root != NO_UNLABELLED or unlabelled.exists()
        return PrepareSettings(
            root=self.root / data.root,
            anatomies=data.anatomies,
            splits=data.splits,
            image_size=data.image_size,
            others=self.other_sets,
            unlabelled_root=unlabelled if is_used else None,
            linked=False,  # DVC takes a link to a folder for an empty one
        )

    def require_anatomies(self, names: Iterable[str]) -> None:
        """Refuse names that are not in data.anatomies.

        Raises:
            MtkdError: names them, and those that are.
        """
        unknown = sorted(set(names) - set(self.anatomies))
        if unknown:
            expected = ", ".join(self.anatomies)
            raise MtkdError(f"not in data.anatomies: {', '.join(unknown)}; expected: {expected}")

    def frames_of(self, split: str, anatomies: Sequence[str] | None = None) -> list[Frame]:
        """The prepared frames of one split, of some anatomies or of all."""
        return super().frames_of(split, self.anatomies if anatomies is None else anatomies)

    def distillation_frames(self) -> list[Frame]:
        """The frames of the stores: all training frames, then those without a mask."""
        return self.frames_of("train") + list_unlabelled(self.prepared_frames)


def load_project(root: Path = Path()) -> Project:
    """The project in a folder, by default the current one.

    Raises:
        MtkdError: params.yaml is missing or not in order; every problem of it together.
    """
    return Project(root, load_params(root / PARAMS))


def require_folder(output: Path) -> None:
    """That a folder to write in is there, or can be made.

    Raises:
        MtkdError: it, or one that it would lie in, is a file, or nothing can be written there.
    """
    existing = nearest(output)
    if not existing.is_dir():
        raise MtkdError(f"--output {output}: {existing} is a file; name a folder")
    if not os.access(existing, os.W_OK):
        raise MtkdError(
            f"--output {output}: nothing can be written to {existing}; name another folder"
        )
