"""The table of remedies names what dvc.yaml does."""

from pathlib import Path

import pytest
import typer
import yaml
from helpers import ROOT

import cache
from pipeline.errors import (
    DamagedFileError,
    MismatchError,
    MissingFileError,
    MtkdError,
    NotFiniteError,
    TooLittleMemoryError,
)
from stages.cli import app
from stages.shared.remedies import (
    ANOTHER_DEVICE,
    LESS_MEMORY,
    WRITTEN_BY,
    explained,
    stage_that_writes,
)


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
            "data/prepared/frames/train/a/01/b.png is damaged: no PNG: "
            "run `dvc repro -s -f prepare`",
        ),
        (
            MismatchError(Path("checkpoints/students/mtkd.safetensors"), "image_size", 3, 4),
            "checkpoints/students/mtkd.safetensors does not match: "
            "its image_size is 3, expected 4: run `dvc repro -s -f train_student@mtkd`",
        ),
        (
            DamagedFileError(Path("/elsewhere/stores/a.zarr"), "b"),
            "/elsewhere/stores/a.zarr is damaged: b",
        ),
        (
            cache.MissingStoreError(Path("stores/liver.zarr")),
            "stores/liver.zarr is missing: run `dvc repro cache_logits@liver`",
        ),
        (
            cache.IncompleteError(Path("scratch/stores/liver.zarr"), "it has 8 of 10 frames"),
            "scratch/stores/liver.zarr was not written to its end: it has 8 of 10 frames: "
            "run `dvc repro cache_logits@liver`",
        ),
        (
            cache.IntegrityError(Path("stores/liver.zarr/logits/c/0"), "frame a: its checksum"),
            "stores/liver.zarr/logits/c/0 is damaged: frame a: its checksum: "
            "run `dvc repro -s -f cache_logits@liver`",
        ),
        (
            cache.IdentityError(Path("stores/liver.zarr/zarr.json"), "it was edited", "aa", "bb"),
            "stores/liver.zarr/zarr.json does not match: it was edited: "
            "run `dvc repro -s -f cache_logits@liver`",
        ),
        (
            cache.IntegrityError(Path("/elsewhere/mine.zarr/logits/c/0"), "its shard is truncated"),
            "/elsewhere/mine.zarr/logits/c/0 is damaged: its shard is truncated: "
            "write it again, or take a whole copy",
        ),
        (
            cache.MissingStoreError(Path("no.zarr")),
            "no.zarr is missing: name a .zarr store; `mtkd cache ls` lists this project's",
        ),
        (
            cache.IntegrityError(Path("stores/.liver.zarr.partial/new"), "check the disk"),
            "stores/.liver.zarr.partial/new is damaged: check the disk",
        ),
        (
            cache.StoreBusyError(Path("scratch/stores/liver.zarr"), "is being written: wait"),
            "scratch/stores/liver.zarr is being written: wait",
        ),
        (
            cache.NotWrittenError(Path("stores/liver.zarr"), "cannot be written: make room"),
            "stores/liver.zarr cannot be written: make room",
        ),
        (
            cache.OccupiedError(Path("stores/liver.zarr"), "is not a logit store"),
            "stores/liver.zarr is not a logit store",
        ),
        (
            MissingFileError(Path("mine.safetensors")),
            "mine.safetensors is missing: "
            "name a .safetensors file that `mtkd train-teacher` or `mtkd train-student` wrote",
        ),
        (
            DamagedFileError(Path("mine.safetensors"), "it ends too early"),
            "mine.safetensors is damaged: it ends too early: "
            "copy it again, or train again if it was made here",
        ),
        (
            NotFiniteError("the kl_divergence is not finite", ["kl_divergence"]),
            "the kl_divergence is not finite: lower learning_rate, or use precision 32-true; "
            "`mtkd cache verify` says whether the stored logits are complete",
        ),
        (
            NotFiniteError("both are not finite", ["cross_entropy", "kl_divergence"]),
            "both are not finite: lower learning_rate, or use precision 32-true",
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


def test_what_to_do_about_little_memory_depends_on_the_verb():
    verbs = set(typer.main.get_command(app).commands)
    assert verbs > set(LESS_MEMORY)
    for verb in verbs:
        line = explained(TooLittleMemoryError(), verb=verb)
        assert line == f"too little memory: {LESS_MEMORY.get(verb, ANOTHER_DEVICE)}"


def test_links_and_dots_lead_to_the_stage(tmp_path):
    """A study's project links to the frames and teachers of its own."""
    (tmp_path / "data/prepared").mkdir(parents=True)
    (tmp_path / "scratch/views").mkdir(parents=True)
    (tmp_path / "scratch/views/data").symlink_to(tmp_path / "data")
    linked = tmp_path / "scratch/views/data/prepared/frames/train/liver/index.csv"
    assert stage_that_writes(linked, tmp_path) == "prepare"
    assert (
        stage_that_writes(tmp_path / "stores/../stores/liver.zarr", tmp_path)
        == "cache_logits@liver"
    )


def test_outputs_that_are_links_keep_their_stage(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "project").mkdir()
    (tmp_path / "project/stores").symlink_to(tmp_path / "disk")
    path = tmp_path / "project/stores/liver.zarr"
    assert stage_that_writes(path, tmp_path / "project") == "cache_logits@liver"
