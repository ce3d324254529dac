"""What the command line says when something goes wrong, whatever goes wrong."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT, mtkd
from safetensors import safe_open

from pipeline.annotations import Annotation
from pipeline.counts import Counts
from pipeline.evaluation.analysis import annotators
from pipeline.machine import Machine
from pipeline.timing.host import machine_record
from stages.shared.console import counted

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def in_a_process(*arguments, folder, **environment):
    command = [sys.executable, "-m", "stages.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT | environment, capture_output=True)


@pytest.mark.parametrize(
    ("verb", "says"),
    [
        (["prepare"], "begins anew"),
        (["evaluate"], "begins anew"),
        (["benchmark"], "begins anew"),
        (["plan"], "begins anew"),
        (["report"], "begins anew"),
        (["train-teacher", "liver"], "goes on from there"),
        (["cache-logits"], "goes on from there"),
        (["train-student", "mtkd"], "goes on from there"),
        (["study", "gain"], "goes on from there"),
    ],
)
def test_ctrl_c_promises_to_go_on_where_that_is_true(project, monkeypatch, verb, says):
    def stop(*_, **__):
        raise KeyboardInterrupt

    module = {"study": "study.conditions"}.get(verb[0], verb[0].replace("-", "_"))
    monkeypatch.setattr(f"stages.{module}.run", stop)
    assert f"the same command {says}" in mtkd(*verb, code=130)


def test_an_error_of_the_system_says_how_to_see_where(project, monkeypatch):
    def fail():
        raise PermissionError(13, "Permission denied", "somewhere")

    monkeypatch.setattr("stages.report.run", fail)
    output = mtkd("report", code=1)
    assert (
        output == "error: [Errno 13] Permission denied: 'somewhere' "
        "(`mtkd --debug report ...` shows where)\n"
    )


def test_an_error_of_a_store_says_what_to_do_by_itself(project):
    assert "--debug" not in mtkd("cache", "stats", "nowhere.zarr", code=1)


def test_a_damaged_teacher_is_not_missing(run, monkeypatch):
    """The reason is told: a flipped bit, another architecture, no checkpoint at all."""
    monkeypatch.setattr("stages.import_teacher._require_dvc", lambda project: None)
    teacher = run / "checkpoints/teachers/liver.safetensors"
    content = bytearray(teacher.read_bytes())
    content[-100] ^= 1
    (run / "flipped.safetensors").write_bytes(content)
    output = mtkd("import-teacher", "liver", "flipped.safetensors", code=1)
    assert "flipped.safetensors is damaged: the checksum of its weights does not match" in output
    assert output.endswith(": copy it again, or train again if it was made here\n")
    assert "missing" not in output
    with safe_open(teacher, framework="numpy") as file:
        card = file.metadata()["mtkd"]
    assert b"mininetv2" in card.encode()
    (run / "other.safetensors").write_bytes(
        teacher.read_bytes().replace(b"mininetv2", b"mininetv9")
    )
    assert "mininetv9" in mtkd("import-teacher", "liver", "other.safetensors", code=1)
    (run / "text.safetensors").write_text("no weights")
    assert "text.safetensors is damaged: " in mtkd(
        "import-teacher", "liver", "text.safetensors", code=1
    )


def test_one_of_a_thing_is_singular(project):
    assert [counted(number, "epoch") for number in (0, 1, 2)] == ["0 epochs", "1 epoch", "2 epochs"]
    for path in (project() / "dsad").glob("*/02/*0[12].png"):
        path.unlink()
    assert "  val: 1 frame of 1 anatomy\n" in _prepared(project, ["liver"])
    assert "  val: 2 frames of 2 anatomies\n" in _prepared(project, ["liver", "colon"])


def _prepared(project, anatomies):
    project(data__anatomies=anatomies)
    return mtkd("prepare")


@pytest.mark.parametrize("name", ["x.pth", "x.pt", "x.ckpt", "x.zip", "x"])
def test_weights_in_another_format_are_refused_with_what_to_do(run, monkeypatch, name):
    monkeypatch.setattr("stages.import_teacher._require_dvc", lambda project: None)
    (run / name).write_bytes(b"weights")
    for command in (
        ("import-teacher", "liver", name),
        ("evaluate", "--checkpoint", name, "--data", "dsad"),
    ):
        output = mtkd(*command, code=1)
        assert (
            f"{name} is not a .safetensors file, and only checkpoints of this project are read"
            in output
        )
        assert "pipeline.checkpoint.save_checkpoint" in output


def test_another_anatomys_teacher_is_refused_before_anything_is_replaced(run, monkeypatch):
    monkeypatch.setattr("stages.import_teacher._require_dvc", lambda project: None)
    before = (run / "checkpoints/teachers/liver.safetensors").read_bytes()
    output = mtkd("import-teacher", "liver", "checkpoints/teachers/colon.safetensors", code=1)
    assert "was trained for colon" in output
    assert (run / "checkpoints/teachers/liver.safetensors").read_bytes() == before


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_are_printed_whatever_the_terminal_can_show(tmp_path, project, encoding):
    root = tmp_path / "dsad"
    (root / "colon").rename(root / "Gefäß")
    project(data__anatomies=["liver", "Gefäß"])
    (root / "liver" / "01" / "note\udce9 é.txt").write_text("")
    done = in_a_process("prepare", folder=tmp_path, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert b"1 .txt" in done.stdout
    (root / "Gefäß" / "01" / "mask00.png").unlink()
    done = in_a_process("prepare", folder=tmp_path, PYTHONIOENCODING=encoding)
    assert done.returncode == 1
    assert b"its mask mask00.png is missing" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_closed_stream_ends_no_run(tmp_path, project):
    command = f"{sys.executable} -m stages.cli prepare >&- 2>&-"
    assert subprocess.run(command, shell=True, cwd=tmp_path, env=ENVIRONMENT).returncode == 0
    assert (tmp_path / "data/prepared/frames/train/liver/index.csv").is_file()


def test_versions_are_those_of_the_loaded_modules(tmp_path):
    """Whatever package brings a module: onnxruntime comes from onnxruntime-gpu, -directml and
    others.
    """
    (tmp_path / "onnxruntime.py").write_text("__version__ = '9.9'")
    (tmp_path / "openvino.py").write_text("raise OSError('libtbb.so is missing')")
    (tmp_path / "nncf.py").write_text("")
    code = (
        "from pipeline.timing.host import machine_record; from pipeline.machine import Machine;"
        "print(machine_record(Machine('cpu'), ('onnxruntime', 'openvino', 'nncf'))['libraries'])"
    )
    environment = ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "'onnxruntime': '9.9', 'nncf': 'unknown'" in said.stdout
    assert "openvino" not in said.stdout
    assert "numpy" in machine_record(Machine("cpu"))["libraries"]


def test_frames_that_an_annotator_left_empty_as_the_consensus_did_are_not_counted():
    both_empty, half = Counts(0, 0, 0, 100), Counts(10, 0, 20, 70)
    drawn = [Annotation("a", "anno_1", both_empty), Annotation("b", "anno_1", half)]
    assert annotators(drawn) == {"anno_1": {"dice": 50.0, "frames": 1}}
    assert annotators(drawn[:1]) == {"anno_1": {"dice": None, "frames": 0}}


def test_a_params_file_of_another_encoding_is_one_line(tmp_path, project):
    text = (tmp_path / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_bytes(text.replace("liver", "Gefäß").encode("latin1"))
    assert "params.yaml is not YAML" in mtkd("prepare", code=1)
    (tmp_path / "params.yaml").write_bytes(text.encode("utf-16"))
    assert "frames of 2 anatomies" in mtkd("prepare")


@pytest.mark.parametrize(
    ("verb", "name"), [("train-teacher", "liver"), ("train-student", "baseline")]
)
def test_a_training_is_compiled_if_that_is_asked_for(project, monkeypatch, verb, name):
    compiled = []
    monkeypatch.setattr(
        f"stages.{verb.replace('-', '_')}.run", lambda _, machine: compiled.append(machine.compile)
    )
    mtkd(verb, name)
    mtkd(verb, name, "--compile")
    monkeypatch.setenv("MTKD_COMPILE", "1")
    mtkd(verb, name)
    assert compiled == [False, True, True]
    assert "154 -> 84 ms" in " ".join(mtkd(verb, "--help").replace("│", " ").split())
