"""What re-runs for which change, on the real dvc.yaml.

DVC runs the real commands through a stand-in for ``python``: ``settings`` and ``prepare`` do their
real work, every other stage writes outputs that are a hash of exactly what it declares to depend
on. So a change spreads as far as it would in earnest, in seconds.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
import yaml
from helpers import ROOT, write_dataset, write_png

from pipeline.models import ARCHITECTURES
from stages.cli import app

STAND_IN = """
import hashlib, os, re, sys
from pathlib import Path
import yaml

verb, *rest = sys.argv[3:]
stage, params = verb.replace("-", "_"), yaml.safe_load(Path("params.yaml").read_text())
entry = yaml.safe_load(Path("dvc.yaml").read_text())["stages"][stage]
if rest:
    each = entry["foreach"][rest[0]] if isinstance(entry["foreach"], dict) else rest[0]
    entry = entry["do"]


def value(key):
    if key in ("item", "key"):
        return rest[0]
    found = {"item": each} | params if rest else params
    for part in key.split("."):
        found = found[part]
    return found


def fill(text):
    return re.sub(r"\\$\\{([^}]*)\\}", lambda m: str(value(m[1])), text)


def content(path):
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return b"".join(str(p).encode() + p.read_bytes() for p in files)


digest = hashlib.sha256()
for path in entry["deps"]:
    digest.update(content(Path(fill(path))))
for key in entry.get("params", []):
    digest.update(repr(value(fill(key))).encode())
for out in [o for kind in ("outs", "metrics", "plots") for o in entry.get(kind, [])]:
    path = Path(fill(out if isinstance(out, str) else next(iter(out))))
    if not path.suffix or path.suffix == ".zarr":
        path = path / "content.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text('{"digest": "%s"}' % digest.hexdigest())
"""

PREPARED = ["prepare"]
STUDENTS = ["train_student@baseline", "train_student@mtkd"]
MEASURED = ["evaluate", "report"]


def teachers(*anatomies):
    return [f"train_teacher@{a}" for a in anatomies]


def stores(*anatomies):
    return [f"cache_logits@{a}" for a in anatomies]


class Project:
    """A copy of this project with a small data set, under git and DVC."""

    def __init__(self, folder):
        self.folder = folder
        self.env = os.environ | {
            "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "DVC_NO_ANALYTICS": "1",
            **{
                f"GIT_{who}_{what}": "tests"
                for who in ("AUTHOR", "COMMITTER")
                for what in ("NAME", "EMAIL")
            },
        }

    def begin(self):
        folder = self.folder
        for name in ("pipeline", "stages", "cache", "dvc.yaml", "params.yaml", ".gitignore"):
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(
                source,
                folder / name,
                **({"ignore": shutil.ignore_patterns("__pycache__")} if source.is_dir() else {}),
            )
        shutil.copytree(ROOT / "data" / "unlabelled", folder / "data" / "unlabelled")
        write_dataset(folder / "dsad", ("liver", "colon", "left ureter"), size=(24, 32))
        (folder / "bin").mkdir()
        (folder / "stand_in.py").write_text(STAND_IN)
        python = folder / "bin" / "python"
        python.write_text(
            "#!/bin/sh\n"
            f'case "$3" in settings|data-set|prepare) exec {sys.executable} "$@";; esac\n'
            f'exec {sys.executable} stand_in.py "$@"\n'
        )
        python.chmod(0o755)
        self.params(
            data__root="dsad", data__anatomies=["liver", "colon"], data__image_size=[24, 32]
        )
        self.params(data__splits={"val": [2], "test": [3]})
        self.run("git", "init", "-q")
        self.run("dvc", "init", "-q")
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", "start")

    def run(self, *command):
        done = self.attempt(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def attempt(self, *command):
        return subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True
        )

    def params(self, **changes):
        path = self.folder / "params.yaml"
        params = yaml.safe_load(path.read_text())
        for key, value in changes.items():
            section, _, name = key.partition("__")
            params[section][name] = value
        path.write_text(yaml.safe_dump(params))

    def edit(self, path, text="\n# a comment\n"):
        with (self.folder / path).open("a") as file:
            file.write(text)

    def repro(self, *stages):
        """The stages that ran, of all or of some and what they depend on."""
        return sorted(re.findall(r"Running stage '(.*)'", self.run("dvc", "repro", *stages)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("graph"))
    project.begin()
    everything = project.repro()
    assert everything == sorted([
        "settings", "phantom", *PREPARED, *teachers("liver", "colon"), *stores("liver", "colon"),
        *STUDENTS, *MEASURED, "benchmark",
    ])  # fmt: skip
    assert project.repro() == []
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "everything has run")
    return project


@pytest.fixture
def project(finished, tmp_path):
    """A copy of the finished project: its outputs are those of its dvc.lock there, too."""
    shutil.copytree(finished.folder, tmp_path / "project", ignore=shutil.ignore_patterns("tmp"))
    return Project(tmp_path / "project")


ALL = ("liver", "colon")
STUDENT_EDITS = [
    "stages/train_student.py",
    "pipeline/distillation.py",
    "pipeline/losses/distillation.py",
    "stages/stores/reader.py",
    "pipeline/models/mininetv2.py",
]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"student__epochs": 99}, [*STUDENTS, *MEASURED]),
        ({"student__arch": "segformer_b0"}, ["settings", *STUDENTS, *MEASURED, "benchmark"]),
        ({"student__decoders": "shared"}, [*STUDENTS, *MEASURED, "benchmark"]),
        ({"distill__weight": 9.0}, ["train_student@mtkd", *MEASURED]),
        (
            {"teacher__epochs": 99},
            [*teachers(*ALL), *stores(*ALL), "train_student@mtkd", *MEASURED],
        ),
        ({"cache__views": 2}, [*stores(*ALL), "train_student@mtkd", *MEASURED]),
        ({"evaluate__batch_size": 3}, MEASURED),
        ({"benchmark__repeats": 9}, ["benchmark", "report"]),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_parameters_rerun_what_depends_on_them(project, changes, expected):
    if "student__arch" in changes:
        project.params(teacher__arch="deeplabv3_resnet18")
        project.repro()
    project.params(**changes)
    assert project.repro() == sorted(expected)


def test_teachers_that_were_trained_side_by_side_are_done(project):
    project.params(teacher__epochs=98)
    said = project.run(
        sys.executable, "-m", "stages.cli", "train-teachers", "--jobs", "2", "--device", "cpu"
    )
    assert "2 of 2 teachers to train, 2 at a time" in said
    assert project.repro() == sorted([*stores(*ALL), "train_student@mtkd", *MEASURED])
    said = project.run(sys.executable, "-m", "stages.cli", "train-teachers", "--device", "cpu")
    assert "0 of 2 teachers to train" in said


def test_stages_that_ran_side_by_side_are_done(project):
    project.params(teacher__epochs=97)
    arguments = ("-m", "stages.cli", "repro", "--jobs", "2", "--device", "cpu")
    said = project.run(sys.executable, *arguments)
    assert "teachers: 2 of 2 to make, 2 at a time" in said
    assert "students: 1 of 2 to make" in said
    assert project.repro() == []
    assert "Running stage" not in project.run(sys.executable, *arguments)


def test_what_another_data_set_holds_is_prepared_again_when_it_changes(project):
    clinic = project.folder / "clinic"
    write_dataset(clinic, ("hepar",), size=(24, 32), seed=7)
    other = {"root": "clinic", "rename": {"hepar": "liver"}}
    project.params(data__others={"clinic": other})
    ran = project.repro()
    assert {"data_set@clinic", "prepare", *teachers(*ALL)} <= set(ran)
    assert (project.folder / "data/prepared/frames/train/liver/clinic.01").is_dir()
    assert project.repro() == []
    write_png(clinic / "hepar/01/mask00.png", np.zeros((24, 32), np.uint8))
    assert project.repro("prepare") == ["data_set@clinic", "prepare"]
    project.params(data__others={})
    assert "prepare" in project.repro("prepare")
    assert not (project.folder / "data/prepared/frames/train/liver/clinic.01").exists()


def test_an_edit_of_the_students_code_retrains_no_teacher(project):
    project.params(teacher__arch="deeplabv3_resnet18")
    project.repro()
    for path in STUDENT_EDITS:
        project.edit(path)
    ran = project.repro()
    assert set(ran) >= set(STUDENTS)
    assert not set(ran) & {"phantom", *PREPARED, *teachers(*ALL), *stores(*ALL)}


def test_one_teachers_checkpoint_rewrites_one_store(project):
    path = project.folder / "checkpoints" / "teachers" / "colon.safetensors"
    path.unlink()
    path.write_text("trained elsewhere")
    project.run("dvc", "commit", "-f", "train_teacher@colon")
    assert project.repro() == sorted([*stores("colon"), "train_student@mtkd", *MEASURED])


def test_an_imported_teacher_is_left_alone(project):
    code = (
        "from pathlib import Path; from pipeline.checkpoint import save_checkpoint;"
        "from pipeline.models import create_model;"
        "n = create_model('mininetv2', 1); n.anatomies = ('x',); "
        "save_checkpoint(Path('mine.safetensors'), n, (24, 32))"
    )
    project.run(sys.executable, "-c", code)
    project.run(sys.executable, "-m", "stages.cli", "import-teacher", "colon", "mine.safetensors")
    assert project.repro() == sorted([*stores("colon"), "train_student@mtkd", *MEASURED])


@pytest.mark.parametrize("corrected", ["mask", "weak label"])
def test_a_corrected_training_label_retrains_every_teacher_that_may_have_seen_it(
    project, corrected
):
    folder = project.folder / "dsad" / "colon" / "01"
    if corrected == "mask":
        (folder / "mask00.png").write_bytes((folder / "mask01.png").read_bytes())
    else:
        (folder / "weak_labels.csv").write_text("image,liver\nimage00.png,0\n")
    assert project.repro() == sorted(
        [*PREPARED, *teachers(*ALL), *stores(*ALL), *STUDENTS, *MEASURED]
    )


@pytest.mark.parametrize("corrected", ["mask", "weak label", "map"])
def test_a_corrected_test_label_only_measures_again(project, corrected):
    folder = project.folder / "dsad" / "colon" / "03"
    if corrected == "mask":
        (folder / "mask00.png").write_bytes((folder / "mask01.png").read_bytes())
    elif corrected == "weak label":
        (folder / "weak_labels.csv").write_text("image,liver\nimage00.png,0\n")
    else:
        mask = cv2.imread(str(folder / "mask00.png"), cv2.IMREAD_GRAYSCALE)
        path = project.folder / "dsad/multilabel/colon/03/label00.png"
        write_png(path, (mask > 0) * np.uint8(2))  # the second of data.anatomies
    assert project.repro() == sorted([*PREPARED, *MEASURED])


def test_new_training_frames_rerun_what_sees_them(project):
    for kind in ("image", "mask"):
        folder = project.folder / "dsad" / "colon" / "01"
        shutil.copy(folder / f"{kind}00.png", folder / f"{kind}77.png")
    ran = project.repro()
    assert ran == sorted([*PREPARED, *teachers(*ALL), *stores(*ALL), *STUDENTS, *MEASURED])


def test_new_frames_without_labels_reach_only_those_who_learn_from_teachers(project):
    frames = project.folder / "frames" / "01"
    frames.mkdir(parents=True)
    shutil.copy(project.folder / "dsad" / "colon" / "01" / "image00.png", frames / "a.png")
    project.params(data__unlabelled_root="frames")
    ran = project.repro()
    assert ran == sorted([*PREPARED, *stores(*ALL), "train_student@mtkd", *MEASURED])


def test_a_new_anatomy_is_seen_by_all_teachers(project):
    project.params(data__anatomies=["liver", "colon", "left ureter"])
    ran = project.repro()
    new = [*teachers(*ALL, "left ureter"), *stores(*ALL, "left ureter")]
    assert ran == sorted([*PREPARED, *new, *STUDENTS, *MEASURED, "benchmark"])


def test_device_and_workers_rerun_nothing(project, monkeypatch):
    monkeypatch.setitem(project.env, "MTKD_DEVICE", "cpu")
    monkeypatch.setitem(project.env, "MTKD_WORKERS", "3")
    assert project.repro() == []


@pytest.mark.parametrize(("where", "epochs"), [([], 77), (["--temp"], 78)])
def test_an_experiment_with_another_student_uses_the_same_stores(project, where, epochs):
    said = project.run("dvc", "exp", "run", *where, "-S", f"student.epochs={epochs}")
    assert sorted(re.findall(r"Running stage '(.*)'", said)) == sorted([*STUDENTS, *MEASURED])


@pytest.mark.parametrize(
    ("section", "command"),
    [
        ("teacher", ["repro"]),
        ("student", ["repro", "train_student@mtkd"]),
        ("student", ["exp", "run"]),
    ],
    ids=str,
)
def test_a_misspelt_architecture_is_answered_with_those_that_there_are(project, section, command):
    """By a stage before all others, as DVC says of a missing module only that it is missing."""
    if command[0] == "exp":
        command = [*command, "-S", f"{section}.arch=segfromer_b0"]
    else:
        project.params(**{f"{section}__arch": "segfromer_b0"})
    done = project.attempt("dvc", *command)
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: params.yaml: {section}.arch: input should be ")
    assert all(f"'{name}'" in line for name in ARCHITECTURES)
    assert line.endswith("found 'segfromer_b0'")
    assert "No such file" not in done.stderr
    # Nothing is lost by it.
    project.run("git", "checkout", "-q", "--", "params.yaml")
    assert project.repro() == []


def test_bare_tables_of_dvc_fit_a_screen(project):
    """Every figure of a DVC metric is a column: those of each anatomy are outputs beside them."""
    shutil.copytree(ROOT / "metrics", project.folder / "metrics", dirs_exist_ok=True)
    table = project.run("dvc", "metrics", "show").splitlines()
    assert [row.split()[0] for row in table] == [
        "Path",
        "metrics/summary.json",
        "metrics/benchmark.json",
    ]
    assert max(map(len, table)) < 260
    assert project.run("dvc", "metrics", "diff").count("metrics/") < 20


# Modules whose edits cannot change a result: they check settings, refuse, talk, or say where to
# compute and go on.
NEUTRAL = {
    "stages/__init__.py", "stages/shared/__init__.py", "stages/stores/__init__.py",
    "stages/reporting/__init__.py",
    "stages/shared/params.py", "stages/shared/console.py", "stages/shared/project.py",
    "stages/shared/environment.py",
    "stages/stores/cluster.py",
    "pipeline/__init__.py", "pipeline/losses/__init__.py", "pipeline/models/__init__.py",
    "pipeline/evaluation/__init__.py", "pipeline/timing/__init__.py",
    "pipeline/deployment/__init__.py",
    "pipeline/settings.py", "pipeline/errors.py", "pipeline/machine.py", "pipeline/files.py",
    "pipeline/stopwatch.py",
    "pipeline/prefetch.py", "pipeline/training_errors.py", "pipeline/resume.py",
    "pipeline/environment.py",
    "pipeline/handover.py", "pipeline/launch.py",
    "cache/lock.py", "cache/durable.py", "cache/errors.py",
    # Reading what prepare wrote: how it is written is a dependency of prepare, and what is written
    # one of everybody.
    "pipeline/prepared.py", "pipeline/dsad.py", "pipeline/surgeries.py",
    "pipeline/preparation/__init__.py", "pipeline/preparation/settings.py",
    # The form for inference: who asks it depends on the whole of pipeline/models.
    "pipeline/models/frozen.py",
    # Tries later stages, and refuses or warns.
    "stages/shared/preflight.py",
    # Says what to do about errors.
    "stages/shared/remedies.py",
}  # fmt: skip
# What these import changes nothing that a reader of prepared frames computes.
NOT_FOLLOWED = (
    "pipeline/prepared.py", "pipeline/preparation/settings.py",
    "stages/shared/preflight.py", "stages/shared/remedies.py",
)  # fmt: skip
STAGES = [
    "settings",
    "phantom",
    "data_set",
    "prepare",
    "train_teacher",
    "cache_logits",
    "train_student",
    "evaluate",
    "benchmark",
    "report",
]


def imported(path):
    """Modules of this project that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            base = name.replace(".", "/")
            found |= {p for p in (f"{base}.py", f"{base}/__init__.py") if (ROOT / p).is_file()}
    return found


def closure(path):
    seen, todo = set(), {path}
    while todo:
        one = todo.pop()
        seen.add(one)
        if one not in NOT_FOLLOWED:
            todo |= imported(one) - seen
    return seen


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_every_module_that_it_uses(stage):
    entry = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]
    deps = entry.get("do", entry)["deps"]
    used = closure(f"stages/{stage}.py") - NEUTRAL
    missing = {m for m in used if not any(m == d or m.startswith(f"{d}/") for d in deps)}
    assert missing == set()
    assert all((ROOT / d).exists() for d in deps if d.endswith(".py") and "$" not in d)


def test_every_stage_is_checked():
    assert list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_the_verb_of_its_name(stage):
    entry = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]
    verb = stage.replace("_", "-")
    assert entry.get("do", entry)["cmd"].split()[:4] == ["python", "-m", "stages.cli", verb]
    assert verb in typer.main.get_command(app).commands


@pytest.mark.parametrize("stage", ["train_teacher", "cache_logits", "train_student"])
def test_a_stage_depends_on_the_modules_of_every_family(stage):
    """DVC knows a network's own module by its name in params.yaml, but not what that imports."""
    own = {f"pipeline/models/{name}.py" for name in ARCHITECTURES}
    used = set().union(*map(closure, own)) - own - NEUTRAL
    families = {path for path in used if path.startswith("pipeline/models/")}
    if stage == "cache_logits":
        families.remove("pipeline/models/dropout.py")  # which inference has none of
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["do"]["deps"]
    assert families - set(deps) == set()
