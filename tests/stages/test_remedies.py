"""The table of remedies names what dvc.yaml does."""

from pathlib import Path

import pytest
import yaml
from helpers import ROOT

from pipeline.errors import DamagedFileError, MismatchError, MissingFileError, MtkdError
from stages.shared.remedies import WRITTEN_BY, explained, stage_that_writes


def outputs():
    for stage, entry in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        body, each = entry.get("do", entry), "@{}" if "foreach" in entry else ""
        for output in [*body.get("outs", []), *body.get("metrics", [])]:
            name = output if isinstance(output, str) else next(iter(output))
            yield name.replace("${item}", "{}").replace("${key}", "{}"), stage + each


def test_every_output_of_dvc_has_its_stage():
    assert {output: stage_that_writes(Path(output)) for output, _ in outputs()} == dict(outputs())
    assert set(WRITTEN_BY.values()) == {stage for _, stage in outputs()}


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            MissingFileError(Path("checkpoints/teachers/left ureter.safetensors")),
            "checkpoints/teachers/left ureter.safetensors is missing: "
            "run `dvc repro train_teacher@left ureter`",
        ),
        (
            DamagedFileError(Path("data/prepared/frames/train/a/01/b.png"), "no PNG"),
            "data/prepared/frames/train/a/01/b.png is damaged: no PNG: run `dvc repro -s -f prepare`",
        ),
        (
            MismatchError(Path("checkpoints/students/mtkd.safetensors"), "image_size", 3, 4),
            "checkpoints/students/mtkd.safetensors does not match: its image_size is 3, expected 4: "
            "run `dvc repro -s -f train_student@mtkd`",
        ),
        (
            DamagedFileError(Path("/elsewhere/stores/a.zarr"), "b"),
            "/elsewhere/stores/a.zarr is damaged: b",
        ),
        (MtkdError("something else"), "something else"),
    ],
)
def test_an_error_of_a_file_names_the_stage_that_writes_it(error, line):
    assert explained(error) == line


def test_the_root_of_the_project_may_be_another_folder(tmp_path):
    error = MissingFileError(tmp_path / "stores/liver.zarr")
    assert explained(error, tmp_path).endswith("run `dvc repro cache_logits@liver`")
    assert explained(error) == str(error)
