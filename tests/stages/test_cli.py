"""What the command line accepts, teaches, and says when something goes wrong."""

import os
import subprocess
import sys
from enum import EnumType
from importlib.metadata import PackageNotFoundError
from inspect import signature
from itertools import chain
from pathlib import Path
from typing import get_args

import pytest
import typer
import yaml
from helpers import ROOT, mtkd
from safetensors import safe_open

from pipeline.annotations import Annotation
from pipeline.convert import formats
from pipeline.convert.cholecseg8k import SUFFIXES
from pipeline.counts import Counts
from pipeline.deployment.bundles import BUNDLES
from pipeline.deployment.segmenter import GIVES, LAYOUTS
from pipeline.evaluation.analysis import annotators
from pipeline.machine import Machine
from pipeline.models import ARCHITECTURES
from pipeline.timing.host import machine_record
from pipeline.timing.latency import FORMS, RUNTIMES
from stages import cli
from stages.benchmarks.runtimes import Settings
from stages.predict import EXPORTS
from stages.shared.console import counted
from stages.shared.project import Places
from stages.study.gain import STUDENTS

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def in_a_process(*arguments, folder, **environment):
    command = [sys.executable, "-m", "stages.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT | environment, capture_output=True)


# What a user may write, each verb with its arguments and options: a change of it is deliberate.
TRAINING = "--device --workers --devices --accumulate --compile"
STUDY = "--student --way --seeds --epochs --jobs --output --device --workers"
CONVERSION = "SOURCE TARGET"
UNKNOWN = "--fill --skip-unknown"
SURFACE = {
    "": "--debug --no-debug --version",
    "settings": "",
    "phantom": "--workers",
    "data-set": "NAME",
    "prepare": "--workers",
    "train-teacher": f"ANATOMY {TRAINING}",
    "train-teachers": "ANATOMIES --jobs --device",
    "repro": "--jobs --device",
    "cache-logits": "ANATOMIES --estimate --scheduler --device --workers",
    "import-teacher": "ANATOMY SOURCE",
    "train-student": f"NAME {TRAINING}",
    "evaluate": "--checkpoint --data --output --device --workers",
    "benchmark": "",
    "benchmark run": "--device",
    "benchmark networks": "--arch --decoders --repeats --output --device",
    "benchmark store": "--frames --output --device",
    "benchmark loading": "--decoders --repeats --output",
    "benchmark runtimes": "--arch --runtime --form --decoders --repeats --size --network --as "
    "--output --device",
    "benchmark video": "SOURCE --model --repeats --output --device",
    "report": "",
    "cache": "",
    "cache ls": "",
    "cache stats": "ANATOMIES",
    "cache verify": "ANATOMIES --recompute --tolerance --device",
    "cache prune": "--dry-run",
    "describe": "FOLDER --output --workers",
    "plan": "WHAT --devices --repeats --output --device",
    "models": "--decoders --json",
    "selfcheck": "--arch --device",
    "study": "",
    "study gain": STUDY,
    "study settings": STUDY,
    "study beyond": STUDY,
    "study absence": STUDY,
    "study decoders": STUDY,
    "study parity": "--seeds --views --jobs --output --device --workers",
    "export": "CHECKPOINT --output --size --frames --int8 --one-organ --as --layout --bundle",
    "predict": "SOURCE --output --model --anatomy --as --opacity --one-organ --device",
    "live": "SOURCE --model --loop --one-organ --smooth --record --host --port --allow-host "
    "--capture-size --capture-rate --capture-format --device",
    "summary": "--check",
    "convert": "",
    "convert cholecseg8k": f"{CONVERSION} --masks --as {UNKNOWN} --force",
    "convert dsad-multilabel": f"{CONVERSION} --as --missing-is-absent --force",
    "convert dsad-parquet": f"{CONVERSION} --config --column --surgery --as --missing-is-absent "
    "--force",
    "convert endoscapes": f"{CONVERSION} --masks --as {UNKNOWN} --force",
    "convert coco": f"{CONVERSION} --surgery --as --images {UNKNOWN} --licence --url --force",
    "convert nnunet": f"{CONVERSION} --surgery --as {UNKNOWN} --licence --url --force",
    "convert video": f"{CONVERSION} --surgery --rate --least-change --least-red --licence --url "
    "--force",
    "init": "--preset --data-root --force --no-force",
}
CHOICES = {
    cli.Device: ["auto", "cpu", "cuda", "mps"],
    cli.Student: ["baseline", "mtkd"],
    cli.Architecture: list(ARCHITECTURES),
    cli.Runtime: list(RUNTIMES),
    cli.Form: list(FORMS),
    cli.Planned: ["dsad", "here"],
    cli.Kind: ["overlay", "labels", "masks", *EXPORTS],
    formats.Labels: ["maps", "masks", "drawn"],
    cli.Complete: ["maps", "masks"],
    formats.CholecMasks: list(SUFFIXES),
    formats.EndoscapesMasks: ["semantic", "coco"],
    formats.ParquetConfig: [
        "single_organ",
        "multi_organ",
        "single_organ_multi_rater",
        "multi_organ_multi_rater",
    ],
    cli.Measured: ["masks", "labels"],
    cli.Gives: list(GIVES),
    cli.Layout: list(LAYOUTS),
    cli.Bundle: list(BUNDLES),
}
ENVIRONMENT_OPTIONS = {
    "--device": "MTKD_DEVICE",
    "--workers": "MTKD_WORKERS",
    "--devices": "MTKD_DEVICES",
    "--accumulate": "MTKD_ACCUMULATE",
    "--compile": "MTKD_COMPILE",
}
PANELS = ["Stages", "Stores", "Studies and measurements", "Deployment", "Project"]


def commands(command, name=""):
    """Every command below this one, by what a user writes."""
    yield name, command
    for below in getattr(command, "commands", {}).values():
        yield from commands(below, f"{name} {below.name}".strip())


COMMANDS = dict(commands(typer.main.get_command(cli.app)))


def written(parameter):
    if parameter.param_type_name == "argument":
        return [parameter.name.upper()]
    return [*parameter.opts, *parameter.secondary_opts]


def choices(annotation):
    """The enumeration of a parameter, however it is wrapped."""
    if isinstance(annotation, EnumType):
        return annotation
    return next(filter(None, map(choices, get_args(annotation))), None)


def test_the_surface_of_the_command_line():
    completion = {"--install-completion", "--show-completion"}
    surface = {}
    for name, command in COMMANDS.items():
        words = chain.from_iterable(map(written, command.params))
        surface[name] = " ".join(word for word in words if word not in completion)
    assert surface == SURFACE


def test_the_variables_of_the_command_line():
    for name, command in COMMANDS.items():
        for parameter in command.params:
            variable = ENVIRONMENT_OPTIONS.get(written(parameter)[0])
            # How many devices a plan is for is no setting of this machine.
            expected = None if name == "plan" and variable == "MTKD_DEVICES" else variable
            assert parameter.envvar == expected, (name, parameter.name)


def test_choices_are_those_that_the_stages_know():
    used = set()
    for command in COMMANDS.values():
        parameters = signature(command.callback).parameters if command.callback else {}
        used |= {choices(parameter.annotation) for parameter in parameters.values()} - {None}
    assert used == set(CHOICES)
    assert {enumeration: list(enumeration) for enumeration in CHOICES} == CHOICES
    assert set(cli.FAMILIES) == set(STUDENTS)
    assert {path.stem for path in (ROOT / "stages/presets").iterdir()} == set(cli.Preset)


def helped(*verb):
    """The text of `--help` without its frame."""
    return " ".join(mtkd(*verb, "--help").replace("│", " ").split())


def test_help_has_panels_in_the_order_of_a_project():
    lines = mtkd("--help").splitlines()
    titles = [line.split("─ ")[1].split(" ─")[0] for line in lines if line.startswith("╭")]
    assert titles == ["Options", *PANELS]
    verbs = [name for name in COMMANDS if name and " " not in name]
    assert all(any(line.startswith(f"│ {verb} ") for line in lines) for verb in verbs)


@pytest.mark.parametrize(
    ("verb", "names"),
    [
        (["predict"], list(cli.Kind)),
        (["plan"], list(cli.Planned)),
        (["train-student"], list(cli.Student)),
        (["init"], list(cli.Preset)),
        (["evaluate"], list(cli.Device)),
        (["study", "gain"], list(STUDENTS)),
        (["benchmark", "networks"], ARCHITECTURES),
        (["benchmark", "runtimes"], [*ARCHITECTURES, *FORMS]),
    ],
    ids=str,
)
def test_help_shows_the_choices(verb, names):
    text = helped(*verb)
    assert all(name in text for name in names)


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--device", "CPU"],
        ["train-student", "teacher"],
        ["plan", "there"],
        ["predict", "f.png", "--output", "o", "--as", "art"],
        ["selfcheck", "--arch", "resnet"],
        ["benchmark", "networks", "--arch", "resnet"],
        ["benchmark", "runtimes", "--runtime", "onnx"],
        ["benchmark", "--all", "--form", "batched"],
    ],
    ids=" ".join,
)
def test_another_value_is_refused_with_the_choices(command):
    assert "is not one of" in " ".join(mtkd(*command, code=2).replace("│", " ").split())


@pytest.fixture
def measured(project, monkeypatch):
    """What the last measurement was called with."""
    calls = []

    def record(name):
        return lambda *arguments: calls.append((name, *chosen(arguments)))

    monkeypatch.setattr("stages.benchmark.run", record("benchmark"))
    for name in ("networks", "store", "loading", "runtimes", "video"):
        monkeypatch.setattr(f"stages.benchmarks.{name}.run", record(name))
    return calls


def chosen(arguments):
    """What a user has chosen, one after another, without the machine and the project."""
    for argument in arguments:
        if isinstance(argument, Settings):
            yield from chosen(vars(argument).values())
        elif not isinstance(argument, Machine | Places):
            yield argument


NETWORKS = ["segformer_b0", "mininetv2", "deeplabv3_efficientnet_lite0"]
OWN = Path("x.json")
# Anatomies, the frame's size, calls, the network's size and what comes out, unless one asks.
USUAL = (11, (720, 1280), 5, (720, 1280), "masks")


@pytest.mark.parametrize(
    ("line", "call"),
    [
        ("", ("benchmark",)),
        ("run", ("benchmark",)),
        ("--device cpu", ("benchmark",)),
        ("--device=cpu run", ("benchmark",)),
        ("networks", ("networks", NETWORKS, 11, 5, Path("results/benchmark_networks.json"))),
        (
            "networks --arch mininetv2 --decoders 3 --repeats 2 --output x.json",
            ("networks", ["mininetv2"], 3, 2, OWN),
        ),
        (
            "--decoders=3 --arch mininetv2 networks --arch segformer_b3 --output x.json",
            ("networks", ["mininetv2", "segformer_b3"], 3, 5, OWN),
        ),
        ("store --frames 300", ("store", 300, Path("results/benchmark_store.json"))),
        ("--frames 300 store --output x.json", ("store", 300, OWN)),
        ("loading --output x.json", ("loading", (512, 640), 11, 5, OWN)),
        (
            "runtimes --output x.json",
            ("runtimes", [*ARCHITECTURES], [*RUNTIMES], [*FORMS], *USUAL, OWN),
        ),
        (
            "--all --arch mininetv2 --runtime OpenVINO --runtime PyTorch --form joined",
            (
                "runtimes", ["mininetv2"], ["OpenVINO", "PyTorch"], ["joined"], *USUAL,
                Path("results/benchmark_all.json"),
            ),
        ),
        (
            "networks --all --form frozen --output x.json",
            ("runtimes", [*ARCHITECTURES], [*RUNTIMES], ["frozen"], *USUAL, OWN),
        ),
        (
            "runtimes --size 640x480 --network 320x240 --as labels --form joined --output x.json",
            (
                "runtimes", [*ARCHITECTURES], [*RUNTIMES], ["joined"], 11, (480, 640), 5,
                (240, 320), "labels", OWN,
            ),
        ),
    ],
)  # fmt: skip
def test_a_measurement_goes_by_its_name_and_by_the_old_spellings(measured, line, call):
    assert "note" not in mtkd("benchmark", *line.split())
    assert measured == [call]
    # A choice of the command line is no plain text, and would be written otherwise.
    lists = [value for value in measured[0] if isinstance(value, list)]
    assert {type(name) for name in chain.from_iterable(lists)} <= {str}


@pytest.mark.parametrize(
    ("line", "name", "option"),
    [
        ("run --repeats 3", "run", "--repeats"),
        ("--output=x.json", "run", "--output"),
        ("store --decoders 3", "store", "--decoders"),
        ("loading --device cpu", "loading", "--device"),
        ("--all --frames 20", "runtimes", "--frames"),
    ],
)
def test_an_option_of_another_measurement_is_named(measured, line, name, option):
    assert f"note: mtkd benchmark {name} ignores {option}\n" == mtkd("benchmark", *line.split())
    assert len(measured) == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("speed", "none of run, networks, store, loading, video, runtimes"),
        ("--runtime OpenVINO", "it is an option of mtkd benchmark runtimes"),
        ("store --arch mininetv2", "it is an option of mtkd benchmark networks or mtkd benchmark"),
        ("--colour red", "No such option: --colour"),
        ("networks more", "unexpected extra argument"),
        ("networks --arch", "requires an argument"),
    ],
)
def test_other_spellings_are_refused(measured, line, says):
    said = mtkd("benchmark", *line.split(), code=2)
    assert says in " ".join(said.replace("│", " ").split())
    assert measured == []


def test_each_measurement_shows_its_own_options():
    assert "--frames" not in helped("benchmark", "networks")
    assert "--frames" in helped("benchmark", "store")
    assert "--runtime" in helped("benchmark", "--all")
    assert "networks" in helped("benchmark")


def test_the_version():
    assert mtkd("--version") == "mtkd 0.1.0\n"


def test_the_version_where_mtkd_is_not_installed(monkeypatch):
    def fail(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", fail)
    assert mtkd("--version").startswith("mtkd (version unknown")


COMPLETED = "from stages.cli import app; app(prog_name='mtkd')"


def completed(folder, words):
    """What bash is told about the last of the words."""
    environment = ENVIRONMENT | {
        "_MTKD_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    command = [sys.executable, "-c", COMPLETED]
    return subprocess.check_output(command, cwd=folder, env=environment, text=True).split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("mtkd benchm", ["benchmark"]),
        ("mtkd benchmark net", ["networks"]),
        ("mtkd train-student b", ["baseline"]),
        ("mtkd train-teacher li", ["liver"]),
        ("mtkd cache verify co", ["colon"]),
        ("mtkd benchmark runtimes --form fr", ["frozen"]),
        ("mtkd study gain --student mini", ["mininetv2"]),
        ("mtkd init --preset p", ["paper"]),
    ],
)
def test_a_shell_completes_verbs_choices_and_anatomies(project, words, expected):
    assert completed(project(), words) == expected


def test_completion_needs_no_params_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli._complete_anatomies() == []
    for text in ("a: [", "data: 3", "- liver", ""):
        (tmp_path / "params.yaml").write_text(text)
        assert cli._complete_anatomies() == []
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"data": {"anatomies": ["liver"]}}))
    assert cli._complete_anatomies() == ["liver"]


def test_settings_are_checked_by_a_stage(project):
    folder = project()
    mtkd("settings")
    accepted = (folder / "data/settings.txt").read_bytes()
    project(student__epochs=9)
    mtkd("settings")
    assert (folder / "data/settings.txt").read_bytes() == accepted
    project(student__arch="segfromer_b0")
    (line,) = mtkd("settings", code=1).splitlines()
    assert line.startswith("error: params.yaml: student.arch: input should be 'segformer_b0', ")
    project(student__arch="own_unet")
    mtkd("settings")


@pytest.mark.parametrize(
    ("verb", "inside", "goes_on"),
    [
        (["prepare"], "prepare.run", False),
        (["train-teacher", "liver"], "train_teacher.run", True),
        (["train-teachers"], "train_teachers.run", True),
        (["repro"], "repro.run", True),
        (["cache-logits"], "cache_logits.run", True),
        (["cache-logits", "--estimate"], "cache_logits.run", False),
        (["train-student", "mtkd"], "train_student.run", True),
        (["evaluate"], "evaluate.run", False),
        (["benchmark"], "benchmark.run", False),
        (["benchmark", "store"], "benchmarks.store.run", False),
        (["benchmark", "--all"], "benchmarks.runtimes.run", False),
        (["report"], "report.run", False),
        (["cache", "verify"], "stores.commands.verify", False),
        (["describe"], "describe.run", False),
        (["plan"], "plan.run", False),
        (["selfcheck"], "selfcheck.run", False),
        (["study", "gain"], "study.gain.run", True),
        (["study", "parity"], "study.parity.run", True),
        (["export"], "export.run", False),
        (["predict", "f.png", "--output", "o"], "predict.run", False),
        (["live", "film.mp4"], "live.run", False),
    ],
)
def test_ctrl_c_promises_to_go_on_where_that_is_true(project, monkeypatch, verb, inside, goes_on):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"stages.{inside}", stop)
    monkeypatch.setattr("stages.cli._require", lambda *_: None)
    line = "nothing half-written is left; the same command goes on from there"
    assert (
        mtkd(*verb, code=130) == f"stopped: {line if goes_on else 'the same command begins anew'}\n"
    )


def test_an_error_of_the_system_says_how_to_see_where(project, monkeypatch):
    def fail(*_):
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
    """Whatever package brings a module: onnxruntime comes from onnxruntime-gpu and others, too."""
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
        f"stages.{verb.replace('-', '_')}.run",
        lambda *arguments: compiled.append(arguments[-1].compile),
    )
    mtkd(verb, name)
    mtkd(verb, name, "--compile")
    monkeypatch.setenv("MTKD_COMPILE", "1")
    mtkd(verb, name)
    assert compiled == [False, True, True]
    assert "154 -> 84 ms" in helped(verb)
