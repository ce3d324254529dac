"""The command line ``mtkd``: one verb per stage, and a few beside them.

A stage is imported when it runs: ``mtkd --help`` answers at once. So the choices of options stand
here, and a test holds them against what the stages know.
"""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from functools import partial
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipeline.convert.formats import (
    FORMATS,
    CholecMasks,
    EndoscapesMasks,
    Labels,
    ParquetConfig,
)
from pipeline.errors import MtkdError

# Verbs that keep what an interrupted run has done; all others begin anew.
RESUMED = (
    "train-teacher",
    "train-teachers",
    "repro",
    "cache-logits",
    "train-student",
    "study",
    "convert",
)
ARGUMENTS = "stages.cli.arguments"  # where a context keeps what the user wrote

# Panels of `mtkd --help`.
STAGES = "Stages"
STORES = "Stores"
MEASUREMENTS = "Studies and measurements"
DEPLOYMENT = "Deployment"
PROJECT = "Project"


class Device(StrEnum):
    """Where to compute."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


class Student(StrEnum):
    """The students of one run."""

    BASELINE = "baseline"
    MTKD = "mtkd"


class Architecture(StrEnum):
    """The networks of ``pipeline.models.ARCHITECTURES``."""

    DEEPLABV3_EFFICIENTNET_B0 = "deeplabv3_efficientnet_b0"
    DEEPLABV3_EFFICIENTNET_B3 = "deeplabv3_efficientnet_b3"
    DEEPLABV3_EFFICIENTNET_LITE0 = "deeplabv3_efficientnet_lite0"
    DEEPLABV3_RESNET18 = "deeplabv3_resnet18"
    DEEPLABV3_RESNET50 = "deeplabv3_resnet50"
    MININETV2 = "mininetv2"
    SEGFORMER_B0 = "segformer_b0"
    SEGFORMER_B3 = "segformer_b3"


# One of each family.
FAMILIES = (
    Architecture.SEGFORMER_B0,
    Architecture.MININETV2,
    Architecture.DEEPLABV3_EFFICIENTNET_LITE0,
)


class Runtime(StrEnum):
    """What computes a network."""

    PYTORCH = "PyTorch"
    ONNX_RUNTIME = "ONNX Runtime"
    OPENVINO = "OpenVINO"


class Form(StrEnum):
    """How a network is computed; ``graph`` and ``compiled`` only on CUDA."""

    JOINED = "joined"
    LOOPED = "looped"
    FROZEN = "frozen"
    GRAPH = "graph"
    COMPILED = "compiled"


class Planned(StrEnum):
    """Which run is planned."""

    DSAD = "dsad"
    HERE = "here"


class Kind(StrEnum):
    """What a prediction is written as."""

    OVERLAY = "overlay"
    LABELS = "labels"
    MASKS = "masks"
    COCO = "coco"
    NNUNET = "nnunet"


class Gives(StrEnum):
    """What an exported file gives."""

    MASKS = "masks"
    LABELS = "labels"
    MARGINS = "margins"


class Measured(StrEnum):
    """What the time to is measured."""

    MASKS = "masks"
    LABELS = "labels"


class Layout(StrEnum):
    """How an exported file takes a frame."""

    NCHW = "nchw"
    NHWC = "nhwc"
    NHWC_FLOAT32 = "nhwc-float32"


class Complete(StrEnum):
    """What labels of all anatomies are converted to."""

    MAPS = "maps"
    MASKS = "masks"


class Bundle(StrEnum):
    """What an ONNX file can be packed as."""

    MONAI = "monai"
    TRITON = "triton"


class Preset(StrEnum):
    """The files of ``stages/presets``."""

    PAPER = "paper"
    DEMO = "demo"


class _Group(TyperGroup):
    """Show what a user can mend as one line.

    A traceback is for ``--debug`` and for our own mistakes.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """The verbs of `--help`: a group comes last by itself, but benchmark is a stage."""
        names = super().list_commands(ctx)
        names.remove("benchmark")
        names.insert(names.index("report"), "benchmark")
        return names

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "" in args and not ctx.resilient_parsing:  # as a path it would be the current folder
            raise typer.BadParameter("an argument is empty: is a variable of the shell not set?")
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo(f"stopped: {_after_a_stop(ctx)}", err=True)
            raise typer.Exit(130) from None
        except typer.BadParameter as error:  # of a choice, in the words of the library that checks
            error.message = error.message.removeprefix("Value error, ")
            raise
        except Exception as error:
            if ctx.params.get("debug") or not _can_be_mended(error):
                raise
            from stages.shared.remedies import explained

            advice = _advice(error, ctx.invoked_subcommand)
            line = explained(error, verb=ctx.invoked_subcommand)
            typer.echo(f"error: {line}{advice}", err=True)
            raise typer.Exit(1) from None


def _after_a_stop(ctx: Any) -> str:
    """What the same command does after Ctrl-C: an estimate, unlike its verb, keeps nothing."""
    if ctx.invoked_subcommand in RESUMED and "--estimate" not in ctx.meta[ARGUMENTS]:
        return "nothing half-written is left; the same command goes on from there"
    return "the same command begins anew"


def _advice(error: Exception, verb: str) -> str:
    """What to do about an error of the system, whose message does not say it.

    It may be our mistake, too.
    """
    from cache import StoreError

    if isinstance(error, MtkdError | StoreError) or not isinstance(error, OSError):
        return ""
    if _is_full(error):
        return ": make room, then start the same command again"
    return f" (`mtkd --debug {verb} ...` shows where)"


def _can_be_mended(error: Exception) -> bool:
    from cache import StoreError

    # A reader such as `head` that has gone is no error; click ends quietly.
    return isinstance(error, MtkdError | StoreError | OSError) and not isinstance(
        error, BrokenPipeError
    )


def _is_full(error: Exception) -> bool:
    from pipeline.files import FULL

    return isinstance(error, OSError) and error.errno in FULL


app = typer.Typer(cls=_Group, no_args_is_help=True, pretty_exceptions_enable=False)


def _complete_anatomies() -> list[str]:
    """For the shell: data.anatomies of the params.yaml in the current folder, if there is one."""
    import yaml

    try:
        params = yaml.safe_load(Path("params.yaml").read_text())
        return [str(name) for name in params["data"]["anatomies"]]
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        return []


def _complete_presets() -> list[str]:
    return list(Preset)


def _complete_families() -> list[str]:
    return list(FAMILIES)


Anatomy = Annotated[
    str, typer.Argument(autocompletion=_complete_anatomies, help="One of data.anatomies.")
]
Anatomies = Annotated[
    list[str] | None,
    typer.Argument(
        autocompletion=_complete_anatomies, help="Whose teachers; all if none is named."
    ),
]
Architectures = Annotated[
    list[Architecture] | None,
    typer.Option(
        "--arch",
        metavar="NAME",
        help=f"Which of {', '.join(Architecture)}. May be repeated.",
    ),
]
DeviceOption = Annotated[
    Device,
    typer.Option(
        envvar="MTKD_DEVICE", help="Where to compute. It does not change what a result means."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        envvar="MTKD_WORKERS",
        min=0,
        help="Processes per device that load frames; 0 loads in the computing process.",
        show_default="0 on a CPU, else its share of the processor's cores, at most 8",
    ),
]
Threads = Annotated[
    int, typer.Option(envvar="MTKD_WORKERS", min=0, help="How many work side by side; 0 is one.")
]
Devices = Annotated[
    int,
    typer.Option(
        envvar="MTKD_DEVICES",
        min=1,
        help="Train on so many devices, which share every batch (DDP).",
    ),
]
Accumulate = Annotated[
    int,
    typer.Option(
        envvar="MTKD_ACCUMULATE",
        min=1,
        help="Compute a batch in so many pieces, one after another, to save memory.",
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        envvar="MTKD_COMPILE",
        help="Compile the network with torch.compile, which takes 100 s at the start. "
        "It pays for SegFormer-B3 teachers: 154 -> 84 ms a step on an H100. "
        "The small students get slower. The last digits of a result change.",
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mtkd {_version()}")
        raise typer.Exit


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("mtkd")
    except PackageNotFoundError:
        return "(version unknown: the package is not installed)"


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option(help="Show a traceback with every error.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Multi-teacher knowledge distillation for real-time anatomy segmentation, offline.

    The stages read params.yaml in the current folder. `dvc repro` runs them
    in their order, and after a change only those that have to run again.
    """
    from pipeline.environment import name_user

    name_user()


def _machine(
    device: str,
    workers: int | None,
    devices: int = 1,
    accumulate: int = 1,
    jobs: int = 1,
    *,
    compiled: bool = False,
) -> Any:
    """Where a verb computes; ``jobs`` of it run side by side."""
    from pipeline.environment import loaders
    from pipeline.machine import Machine, keep_freed_memory

    device = str(device)  # a choice of the command line must not get into a record
    if device == "cpu":
        # PyTorch's Adam asks for a GPU's stream in each step, wherever it computes: a broken one
        # would end the run.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    keep_freed_memory()
    if workers is None:
        waits = Machine(device).torch_device.type != "cpu"
        workers = loaders(jobs * max(devices, _of_torchrun())) if waits else 0
    return Machine(device, workers, devices, accumulate, compiled)


def _project() -> Any:
    """The project in the current folder."""
    from stages.shared.project import load_project

    return load_project()


def _places() -> Any:
    """The same of a verb that needs no settings, or not always."""
    from stages.shared.project import Places

    return Places(Path())


def _of_torchrun() -> int:
    """Processes on this machine that torchrun started to share each batch."""
    started = os.environ.get("LOCAL_WORLD_SIZE", "") if "TORCHELASTIC_RUN_ID" in os.environ else ""
    return int(started) if started.isdecimal() else 1


@app.command(rich_help_panel=STAGES)
def settings() -> None:
    """Check params.yaml, before DVC looks for the files that it names."""
    from stages import settings

    settings.run(_project())


@app.command(rich_help_panel=STAGES)
def phantom(workers: Threads = 2) -> None:
    """Write the embedded data set, a laparoscopic phantom in DSAD's layout, to data/phantom."""
    from stages import phantom

    phantom.run(_project(), max(1, workers))


@app.command(rich_help_panel=STAGES)
def data_set(
    name: Annotated[str, typer.Argument(help="One of data.others.", show_default=False)],
) -> None:
    """Look at another data set, so that `prepare` runs again when it has changed."""
    from stages import data_set

    data_set.run(_project(), name)


@app.command(rich_help_panel=STAGES)
def prepare(workers: Threads = 2) -> None:
    """Check the whole data set, and write frames and labels at data.image_size.

    All problems are reported together.
    """
    from stages import prepare

    prepare.run(_project(), max(1, workers))


@app.command(rich_help_panel=STAGES)
def train_teacher(
    anatomy: Anatomy,
    device: DeviceOption = Device.AUTO,
    workers: Workers = None,
    devices: Devices = 1,
    accumulate: Accumulate = 1,
    compiled: Compile = False,
) -> None:
    """Train the teacher of one anatomy: one encoder, one decoder (stage 1 of the paper).

    A run that was stopped goes on after the last epoch that it kept.
    """
    from stages import train_teacher

    train_teacher.run(
        _project(), anatomy, _machine(device, workers, devices, accumulate, compiled=compiled)
    )


SideBySide = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="How many at the same time. On a CPU they share its threads.",
        show_default="one per GPU",
    ),
]


@app.command(rich_help_panel=STAGES)
def train_teachers(
    anatomies: Anatomies = None,
    jobs: SideBySide = None,
    device: DeviceOption = Device.AUTO,
) -> None:
    """Train the teachers that are not up to date, side by side.

    They are DVC stages: `dvc repro` then finds them done.
    """
    from stages import train_teachers

    train_teachers.run(_project(), anatomies or [], jobs, _machine(device, 0))


@app.command(rich_help_panel=STAGES)
def repro(jobs: SideBySide = None, device: DeviceOption = Device.AUTO) -> None:
    """Do what `dvc repro` does, with teachers, stores and students side by side.

    What is up to date is left as it is. `dvc repro` afterwards has nothing to do.
    """
    from stages import repro

    repro.run(_project(), jobs, _machine(device, 0))


@app.command(rich_help_panel=STAGES)
def cache_logits(
    anatomies: Anatomies = None,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Only say how long it takes and how large it gets."),
    ] = False,
    scheduler: Annotated[
        str | None,
        typer.Option(help="Compute on the workers of a dask.distributed cluster: tcp://HOST:8786."),
    ] = None,
    device: DeviceOption = Device.AUTO,
    workers: Workers = None,
) -> None:
    """Run the teachers on every training frame, and store their logits as float16.

    A run that was stopped goes on after its last whole shard.
    """
    if estimate and scheduler is not None:
        raise typer.BadParameter(
            "--estimate measures this machine: it does not go together with --scheduler"
        )
    if scheduler is not None:
        _require_address(scheduler)
    from stages import cache_logits

    cache_logits.run(
        _project(),
        anatomies or [],
        _machine(device, workers),
        estimate=estimate,
        scheduler=scheduler,
    )


def _require_address(scheduler: str) -> None:
    from urllib.parse import urlsplit

    try:
        address = urlsplit(scheduler if "://" in scheduler else f"tcp://{scheduler}")
        sound = bool(address.hostname and address.port)
    except ValueError:
        sound = False
    if not sound:
        raise typer.BadParameter(
            f"'{scheduler}' is not an address such as tcp://HOST:8786", param_hint="--scheduler"
        )


@app.command(rich_help_panel=STORES)
def import_teacher(
    anatomy: Anatomy,
    source: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint (.safetensors) with one decoder, or a store (.zarr) of logits."
        ),
    ],
) -> None:
    """Use a teacher that was trained elsewhere, or its logits.

    `dvc repro` then leaves it alone. How any model's logits become a store:
    docs/how-to/any-teacher.md.
    """
    from stages import import_teacher

    import_teacher.run(_project(), anatomy, source)


stores = typer.Typer(
    cls=TyperGroup, no_args_is_help=True, help="List, check and clear the stores of logits."
)
app.add_typer(stores, name="cache", rich_help_panel=STORES)
Whose = Annotated[
    list[str] | None,
    typer.Argument(
        autocompletion=_complete_anatomies,
        help="Anatomies, or paths of stores, which end in .zarr; all anatomies if none is named.",
    ),
]


@stores.command("ls")
def stores_ls() -> None:
    """List the stores, complete or begun, with frames, size and identity."""
    from stages.stores import commands

    commands.list_stores(_places())


@stores.command("stats")
def stores_stats(anatomies: Whose = None) -> None:
    """Print the sizes of stores as JSON: bytes, per frame, and against raw float16."""
    from stages.stores import commands

    commands.show_stats(_places(), anatomies or [])


@stores.command("verify")
def stores_verify(
    anatomies: Whose = None,
    recompute: Annotated[
        int, typer.Option(min=0, help="Run the teacher again on so many random frames.")
    ] = 0,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Largest difference of a logit, relative to 1 + |logit|.",
            show_default="0.002; stores in another precision have more",
        ),
    ] = None,
    device: DeviceOption = Device.AUTO,
) -> None:
    """Check stores: structure, completeness, checksums, and what they were written for.

    Exit code 1 if something is wrong. A store that is named by its path may be
    for any run.
    """
    from stages.stores import commands

    if recompute and any(commands.is_path(name) for name in anatomies or []):
        raise typer.BadParameter("--recompute runs teachers: name anatomies, no paths")

    commands.verify(_places(), anatomies or [], recompute, tolerance, _machine(device, 0))


@stores.command("prune")
def stores_prune(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
) -> None:
    """Remove stores that no run with the current params.yaml, frames and teachers can use."""
    from stages.stores import commands

    commands.prune(_project(), dry_run)


@app.command(rich_help_panel=STAGES)
def train_student(
    name: Annotated[
        Student,
        typer.Argument(help="baseline learns from partial labels only, mtkd also from the stores."),
    ],
    device: DeviceOption = Device.AUTO,
    workers: Workers = None,
    devices: Devices = 1,
    accumulate: Accumulate = 1,
    compiled: Compile = False,
) -> None:
    """Train a student: one encoder with a decoder per anatomy (stage 2 of the paper).

    A run that was stopped goes on after the last epoch that it kept.
    """
    from stages import train_student

    machine = _machine(device, workers, devices, accumulate, compiled=compiled)
    train_student.run(_project(), name.value, machine)


@app.command(rich_help_panel=STAGES)
def evaluate(
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Only this teacher or student, on --data, without params.yaml."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="A folder in DSAD's layout, or <surgery>/imageMM.png with complete labelMM.png."
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Of --checkpoint: folder for the tables.")] = Path(
        "results/evaluate_checkpoint"
    ),
    device: DeviceOption = Device.AUTO,
    workers: Workers = None,
) -> None:
    """Measure teachers and students on the test surgeries.

    Dice, IoU, surface distances, intervals, false alarms, confusion and
    calibration. With --checkpoint and --data: any checkpoint, on all frames
    of any data set.
    """
    if (checkpoint is None) != (data is None):
        raise typer.BadParameter("--checkpoint and --data go together")
    if checkpoint is not None and data is not None:
        from stages import evaluate_folder

        evaluate_folder.run(_places(), checkpoint, data, output, _machine(device, workers))
        return
    from stages import evaluate

    evaluate.run(_project(), _machine(device, workers))


class _Benchmarks(TyperGroup):
    """The commands of `mtkd benchmark`, which also go by the spellings of a time with only one.

    Then the name could stand anywhere among the options, ``--all`` meant ``runtimes``, and options
    of one measurement were accepted, and ignored, by the others.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:  # a shell that completes sees what is written
            args = self._translated(ctx, args)
        return super().parse_args(ctx, args)

    def _translated(self, ctx: Any, args: Sequence[str]) -> list[str]:
        names, options = _split(args)
        if ("--all",) in options:
            names = ["runtimes", *names[1:]]
            options = [option for option in options if option != ("--all",)]
        elif not names and ("--help",) not in options:
            names = ["run"]
        if not names:
            return list(args)
        name, *rest = names
        if name not in self.commands:
            choices = ", ".join(self.commands)
            raise typer.BadParameter(f"'{name}' is none of {choices}", ctx, param_hint="COMMAND")
        options = [option for option in options if self._concerns(ctx, name, option[0])]
        return [name, *chain.from_iterable(options), *rest]

    def _concerns(self, ctx: Any, name: str, word: str) -> bool:
        """Whether an option is for a command, which refuses by itself what is for none."""
        option = word.partition("=")[0]
        users = [user for user, command in self.commands.items() if option in _options(command)]
        if name in users or not users:
            return True
        if option in ("--arch", "--runtime", "--form"):
            commands = " or ".join(f"mtkd benchmark {user}" for user in users)
            raise typer.BadParameter(f"it is an option of {commands}", ctx, param_hint=option)
        typer.echo(f"note: mtkd benchmark {name} ignores {option}", err=True)
        return False


def _split(args: Sequence[str]) -> tuple[list[str], list[tuple[str, ...]]]:
    """The words that are no options, and the options, each with its value."""
    words: list[str] = []
    options: list[tuple[str, ...]] = []
    rest = iter(args)
    for word in rest:
        if not word.startswith("-"):
            words.append(word)
        elif word in ("--all", "--help") or "=" in word:
            options.append((word,))
        else:
            options.append((word, *islice(rest, 1)))
    return words, options


def _options(command: Any) -> list[str]:
    return list(chain.from_iterable(parameter.opts for parameter in command.params))


benchmarks = typer.Typer(
    cls=_Benchmarks,
    help="Measure what networks cost; without COMMAND the stage, run."
    "\n\nMore about one of them: mtkd benchmark COMMAND --help.",
)
app.add_typer(benchmarks, name="benchmark", rich_help_panel=STAGES)
Decoders = Annotated[int, typer.Option(min=1, help="How many decoders.")]
Repeats = Annotated[
    int, typer.Option(min=1, help="Calls per measurement; on CUDA half a second of them at least.")
]


def _output(name: str) -> Any:
    """The option of a measurement that is written to its own file of results/."""
    return typer.Option(help=f"The JSON; by default results/benchmark_{name}.json.")


@benchmarks.command("run")
def benchmark_run(device: DeviceOption = Device.AUTO) -> None:
    """The stage: what this run's teachers and student cost, in parameters and time per frame."""
    from stages import benchmark

    benchmark.run(_project(), _machine(device, 0))


@benchmarks.command("networks")
def benchmark_networks(
    architectures: Architectures = None,
    decoders: Decoders = 11,
    repeats: Repeats = 5,
    output: Annotated[Path | None, _output("networks")] = None,
    device: DeviceOption = Device.AUTO,
) -> None:
    """Batched decoders against sequential ones: training and inference, time and memory.

    Without --arch it is one network of each family.
    """
    from stages.benchmarks import networks

    selected = _values(architectures or FAMILIES)
    networks.run(selected, decoders, repeats, output or networks.OUTPUT, _machine(device, 0))


@benchmarks.command("store")
def benchmark_store(
    frames: Annotated[int, typer.Option(min=16, help="How many each measurement sees.")] = 100,
    output: Annotated[Path | None, _output("store")] = None,
    device: DeviceOption = Device.AUTO,
) -> None:
    """Stores against live teachers: writing, reading, and an epoch with and without them."""
    from stages.benchmarks import store

    store.run(frames, output or store.OUTPUT, _machine(device, None))


@benchmarks.command("loading")
def benchmark_loading(
    decoders: Decoders = 11,
    repeats: Repeats = 5,
    output: Annotated[Path | None, _output("loading")] = None,
) -> None:
    """Frames per second and core from disk to augmented tensor, at 640x512."""
    from stages.benchmarks import loading

    loading.run((512, 640), decoders, repeats, output or loading.OUTPUT)


@benchmarks.command("video")
def benchmark_video(
    source: Annotated[Path, typer.Argument(help="A video.")],
    model: Annotated[
        Path, typer.Option(help="A checkpoint, or a file that `mtkd export` wrote.")
    ] = Path("checkpoints/students/mtkd.safetensors"),
    repeats: Annotated[
        int, typer.Option(min=1, help="How often the video is written; the median counts.")
    ] = 3,
    output: Annotated[Path | None, _output("video")] = None,
    device: DeviceOption = Device.AUTO,
) -> None:
    """Frames per second from a video to its overlay, beside the network alone."""
    _require("deploy", "av")
    from stages import predict
    from stages.benchmarks import video

    machine = _machine(device, 0)
    options = predict.Options([], "overlay", 0.45)
    prediction = video.Prediction(
        model,
        lambda: predict.load_model(model, machine, options),
        lambda target: predict.run(source, target, model, options, machine),
    )
    video.run(source, prediction, repeats, output or video.OUTPUT, machine)


@benchmarks.command("runtimes")
def benchmark_runtimes(
    architectures: Architectures = None,
    runtimes: Annotated[
        list[Runtime] | None, typer.Option("--runtime", help="What computes; may be repeated.")
    ] = None,
    forms: Annotated[
        list[Form] | None,
        typer.Option("--form", help="May be repeated; graph and compiled are for CUDA."),
    ] = None,
    decoders: Decoders = 11,
    repeats: Repeats = 5,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT of the frame.")] = "1280x720",
    network_size: Annotated[
        str | None,
        typer.Option(
            "--network", help="WIDTHxHEIGHT at which networks see it; by default the frame's own."
        ),
    ] = None,
    gives: Annotated[
        Measured, typer.Option("--as", help="All masks, or one label map.")
    ] = Measured.MASKS,
    output: Annotated[Path | None, _output("all")] = None,
    device: DeviceOption = Device.AUTO,
) -> None:
    """Every network, form and runtime: the time from a frame to all its masks, or its label map.

    Beside the paper's times; for this run's student also its Dice. Without
    --arch, --runtime or --form it is all of them.
    """
    from stages.benchmarks.runtimes import OUTPUT, Settings, run

    settings = Settings(
        _values(runtimes or Runtime),
        _values(forms or Form),
        decoders,
        _size(size, "--size"),
        repeats,
        _machine(device, 0),
        _size(network_size or size, "--network"),
        gives.value,
    )
    run(_places(), _values(architectures or Architecture), settings, output or OUTPUT)


def _values(choices: Iterable[StrEnum]) -> list[str]:
    return [choice.value for choice in choices]


@app.command(rich_help_panel=MEASUREMENTS)
def describe(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="A folder in DSAD's layout, or <surgery>/imageMM.png with complete labelMM.png; "
            "without it the data set of params.yaml."
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of describe.json and describe.html.")] = Path(
        "results"
    ),
    workers: Threads = 2,
) -> None:
    """Show what is in a data set, before the first epoch.

    Frames, masks, what is known of pixels, duplicates and odd files: as a
    table, as JSON, and as a page with overlays. Problems are listed, and the
    rest is described.
    """
    from stages import describe

    describe.run(_places(), folder, output, max(1, workers))


@app.command(rich_help_panel=MEASUREMENTS)
def plan(
    what: Annotated[
        Planned,
        typer.Argument(
            help="dsad: the paper's recipe on DSAD; here: params.yaml on the prepared frames."
        ),
    ] = Planned.DSAD,
    devices: Annotated[
        list[int] | None, typer.Option(min=1, help="For how many devices; by default 1 and 8.")
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="Calls per measurement; more, if they are short.")
    ] = 2,
    output: Annotated[Path, typer.Option(help="JSON with the measurements and the plan.")] = Path(
        "results/plan.json"
    ),
    device: DeviceOption = Device.AUTO,
) -> None:
    """Estimate a run: hours per stage, disk and memory, from rates that are measured here.

    What is extrapolated from one device to several: docs/how-to/plan-a-run.md.
    """
    from stages import plan

    plan.run(_places(), what.value, devices or [1, 8], repeats, output, _machine(device, 0))


studies = typer.Typer(
    cls=TyperGroup,
    no_args_is_help=True,
    help="Compare students that were trained under several conditions."
    "\n\nA study that is stopped goes on with the runs that are missing.",
)
app.add_typer(studies, name="study", rich_help_panel=MEASUREMENTS)
Seeds = Annotated[int, typer.Option(min=1, help="How many seeds of each student.")]
Jobs = Annotated[
    int,
    typer.Option(
        min=1,
        help="Runs at the same time, which share torch's threads (OMP_NUM_THREADS) equally.",
    ),
]
Page = Annotated[
    Path | None, typer.Option(help="Markdown with the table; by default results/study_<NAME>.md.")
]


Students = Annotated[
    list[str] | None,
    typer.Option(
        "--student",
        autocompletion=_complete_families,
        help=f"Which of {', '.join(FAMILIES)}; all by default.",
    ),
]
Ways = Annotated[
    list[str] | None,
    typer.Option("--way", help="Which conditions, the columns of the table; all by default."),
]
StudentEpochs = Annotated[int, typer.Option("--epochs", min=1, help="Of each student.")]


def _comparison(name: str) -> Callable[..., None]:
    def command(
        students: Students = None,
        ways: Ways = None,
        seeds: Seeds = 3,
        epochs: StudentEpochs = 12,
        jobs: Jobs = 1,
        output: Page = None,
        device: DeviceOption = Device.AUTO,
        workers: Workers = None,
    ) -> None:
        from stages.study.gain import STUDENTS, Design, run

        design = Design(name, students or list(STUDENTS), ways or [], seeds, epochs)
        page = output or Path(f"results/study_{name}.md")
        run(_project(), design, jobs, page, _machine(device, workers, jobs=jobs))

    return command


SHARED_RUNS = (
    "\n\nRuns that another study has already trained are taken from there. "
    "Needs `dvc repro cache_logits` first."
)
for _name, _help in {
    "gain": "How far each way of distilling goes from the baseline to the teachers."
    "\n\nWithout --way also hard pseudo-labels, baselines with class weights, "
    "and runs that are two and four times as long.",
    "settings": "Change temperature, weight and grid of classes_balanced, one at a time.",
    "beyond": "What the paper does not do, such as teachers that are trusted by their Dice.",
    "absence": "What known absence and reconciled teachers do, on own frames and on every frame.",
    "decoders": "What a decoder for each anatomy is worth, against one for all.",
}.items():
    studies.command(_name, help=_help + SHARED_RUNS)(_comparison(_name))


@studies.command("parity")
def study_parity(
    seeds: Seeds = 5,
    views: Annotated[
        int, typer.Option(min=1, help="Stored views of the condition that replays them.")
    ] = 3,
    jobs: Jobs = 1,
    output: Page = None,
    device: DeviceOption = Device.AUTO,
    workers: Workers = None,
) -> None:
    """Compare students that learn from stores and from live teachers: Dice, time and memory.

    Needs `dvc repro cache_logits` first.
    """
    from stages.study import parity

    parity.run(
        _project(),
        seeds,
        views,
        jobs,
        output or parity.OUTPUT,
        _machine(device, workers, jobs=jobs),
    )


@app.command(rich_help_panel=MEASUREMENTS)
def models(
    decoders: Annotated[int, typer.Option(min=1, help="How many anatomies.")] = 11,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON list of objects instead of the table.")
    ] = False,
) -> None:
    """List the architectures: parameters, multiply-adds, output stride and licence.

    Each comes as a network for each anatomy, with a decoder for each, and with one
    for all. Beside them stand the paper's parameters.
    """
    from stages import models

    models.run(decoders, as_json)


@app.command(rich_help_panel=MEASUREMENTS)
def selfcheck(
    architectures: Architectures = None,
    device: DeviceOption = Device.AUTO,
) -> None:
    """Check this machine's device against its CPU, in about five minutes.

    Networks, training, resume, stores and export, with small synthetic data in
    a temporary folder. Run it once on a new machine with a GPU. It ends with a
    table, and with what to do about failures.
    """
    from stages import selfcheck

    selfcheck.run(_machine(device, 0), _values(architectures or Architecture))


OneOrgan = Annotated[
    bool,
    typer.Option(
        "--one-organ",
        help="A pixel belongs to the anatomy with the largest margin; else several may claim it.",
    ),
]


@app.command(rich_help_panel=DEPLOYMENT)
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A student or a teacher.")] = Path(
        "checkpoints/students/mtkd.safetensors"
    ),
    output: Annotated[Path, typer.Option(help="Folder of the files.")] = Path("exported"),
    size: Annotated[
        str, typer.Option(help="WIDTHxHEIGHT of the frames that the files take.")
    ] = "1280x720",
    frames: Annotated[
        Path | None,
        typer.Option(
            help="PNG frames on which runtimes are compared; by default the prepared test frames."
        ),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Also quantise for OpenVINO; calibrates on training frames."),
    ] = False,
    one_organ: OneOrgan = False,
    gives: Annotated[
        Gives,
        typer.Option(
            "--as",
            help="Masks (1, N, H, W); one label map (1, H, W), 0 = none; or margins (1, N + 1, h, "
            "w), whose first plane is 0, on the network's own grid.",
        ),
    ] = Gives.MASKS,
    layout: Annotated[
        Layout,
        typer.Option(
            help="Of the frames: (1, 3, H, W) uint8; (1, H, W, 3) uint8; or that in float32, 0 to "
            "255."
        ),
    ] = Layout.NCHW,
    bundle: Annotated[
        list[Bundle] | None,
        typer.Option(help="Also a MONAI bundle, or a Triton repository; may be repeated."),
    ] = None,
) -> None:
    r"""Write a checkpoint as ONNX and OpenVINO files, from a frame to all its anatomies.

    Each file is run and compared with the checkpoint before it is delivered.
    Needs `pip install -e '.\[deploy]'`.
    """
    frame_size = _size(size, "--size")
    _require("deploy", "onnx", "onnxruntime", "openvino")
    if int8:
        _require("int8", "nncf")
    from stages import export

    options = export.Options(
        frame_size,
        gives.value,
        layout.value,
        one_organ,
        int8,
        [kind.value for kind in bundle or []],
    )
    export.run(_places(), checkpoint, output, frames, options)


@app.command(rich_help_panel=DEPLOYMENT)
def predict(
    source: Annotated[Path, typer.Argument(help="A frame, a folder of frames, or a video.")],
    output: Annotated[Path, typer.Option(help="A folder; for overlays of a video an .mp4 file.")],
    model: Annotated[
        Path, typer.Option(help="A checkpoint, or a file that `mtkd export` wrote.")
    ] = Path("checkpoints/students/mtkd.safetensors"),
    anatomies: Annotated[
        list[str] | None, typer.Option("--anatomy", help="Which; may be repeated; all by default.")
    ] = None,
    kind: Annotated[
        Kind,
        typer.Option(
            "--as",
            help="Overlays, one label map, masks (one PNG each), or a folder that an annotator can "
            "correct: COCO for CVAT, or nnU-Net.",
        ),
    ] = Kind.OVERLAY,
    opacity: Annotated[float, typer.Option(min=0, max=1, help="Of overlays.")] = 0.45,
    one_organ: OneOrgan = False,
    device: DeviceOption = Device.AUTO,
) -> None:
    r"""Segment a frame, a folder of frames, or a video. Needs `pip install -e '.\[deploy]'`."""
    _require("deploy", "av")
    if kind is Kind.COCO:
        _require("convert", "pycocotools")
    from pipeline.training_errors import translated_errors
    from stages import predict

    machine = _machine(device, 0)
    with translated_errors():
        options = predict.Options(anatomies or [], kind.value, opacity, one_organ)
        predict.run(source, output, model, options, machine)


@app.command(rich_help_panel=DEPLOYMENT)
def live(
    source: Annotated[
        str, typer.Argument(help="/dev/video0, rtsp://.., udp://.., http://.., or a film.")
    ],
    model: Annotated[
        Path, typer.Option(help="A checkpoint, or a file that `mtkd export` wrote.")
    ] = Path("checkpoints/students/mtkd.safetensors"),
    loop: Annotated[bool, typer.Option("--loop", help="Play a film again and again.")] = False,
    one_organ: OneOrgan = False,
    smooth: Annotated[
        float,
        typer.Option(
            min=0, max=0.95, help="Steadier masks: the share of the frames before in the margins."
        ),
    ] = 0.0,
    record: Annotated[
        Path | None,
        typer.Option(help="Keep overlays in this .mp4, and label maps in .labels.mkv beside it."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; with another the page needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: a free one.")] = 8000,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Another name of this page, such as a proxy's; it needs a token then."),
    ] = None,
    capture_size: Annotated[
        str, typer.Option(help="Of a capture device, such as 1920x1080; its default without.")
    ] = "",
    capture_rate: Annotated[
        float | None, typer.Option(min=1, help="Frames per second of a capture device.")
    ] = None,
    capture_format: Annotated[
        str | None, typer.Option(help="Of a capture device's pictures, such as mjpeg or yuyv422.")
    ] = None,
    device: DeviceOption = Device.AUTO,
) -> None:
    r"""Watch a camera, a stream or a film in the browser, with all anatomies on top.

    For research alone: this is no medical device. Needs `pip install -e '.\[live]'`.
    """
    _require("live", "av", "psutil", "starlette", "uvicorn", "websockets")
    from pipeline.live.sources import Mode
    from pipeline.training_errors import translated_errors
    from stages import live

    machine = _machine(device, 0)
    size = _size(capture_size, "--capture-size") if capture_size else None
    mode = Mode(size, capture_rate, capture_format)
    allow = tuple(allow_host or ())
    options = live.Options(loop, one_organ, smooth, record, host, port, allow, mode)
    with translated_errors():
        live.run(source, model, options, machine)


def _size(text: str, option: str) -> tuple[int, int]:
    """(H, W) of WIDTHxHEIGHT."""
    import re

    match = re.fullmatch(r"(\d+)x(\d+)", text, re.ASCII)
    if match is None:
        raise typer.BadParameter(
            f"'{text}' is not WIDTHxHEIGHT, such as 1280x720", param_hint=option
        )
    width = int(match[1])
    height = int(match[2])
    if not (32 <= width <= 8192 and 32 <= height <= 8192):
        raise typer.BadParameter(
            f"'{text}': each side must be within 32 .. 8192 pixels", param_hint=option
        )
    return height, width


def _require(extra: str, *packages: str) -> None:
    """Refuse in one line what an extra would install, if it is missing or cannot be imported."""
    from importlib import import_module
    from importlib.util import find_spec

    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise MtkdError(f"{', '.join(missing)} is not installed: pip install -e '.[{extra}]'")
    for package in packages:
        try:
            import_module(package)
        except Exception as error:  # a damaged package raises anything
            reason = " ".join(str(error).split())[:200]
            command = f"pip install --force-reinstall {package}"
            raise MtkdError(
                f"{package} is installed but cannot be imported ({reason}). Run: {command}"
            ) from error


@app.command(rich_help_panel=STAGES)
def report() -> None:
    """Write report/index.html, one page with everything, and print the table of results."""
    from stages import report

    report.run(_project())


@app.command(rich_help_panel=PROJECT)
def summary(
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Fail if it differs from the last commit by more than rounding makes."
        ),
    ] = False,
) -> None:
    """Print the results of the last run, and how they compare with the last commit.

    On another processor sums are rounded otherwise, and short runs of students
    differ by some Dice. The last line says whether a difference is of that size.
    """
    from stages import summary
    from stages.reporting import recorded

    summary.run(_places())
    recorded.run(_places(), check)


@app.command(rich_help_panel=PROJECT)
def init(
    preset: Annotated[
        str,
        typer.Option(
            autocompletion=_complete_presets,
            metavar="|".join(Preset),
            help="paper: the recipe of Maack et al., section 3.2; demo: the embedded data.",
        ),
    ],
    data_root: Annotated[
        Path | None, typer.Option(help="The folder that holds <anatomy>/<surgery>/imageMM.png.")
    ] = None,
    force: Annotated[
        bool, typer.Option(help="Replace params.yaml, which is kept as params.yaml.bak.")
    ] = False,
) -> None:
    """Put a preset in place as params.yaml."""
    from stages import init

    init.run(_places(), preset, data_root, force)


conversions = typer.Typer(
    cls=TyperGroup,
    no_args_is_help=True,
    help="Convert data sets of others into the layouts that are read here."
    "\n\nEvery file is checked before the first one is written. More about a format: "
    "mtkd convert NAME --help.",
)
app.add_typer(conversions, name="convert", rich_help_panel=PROJECT)
SourceData = Annotated[Path, typer.Argument(metavar="SRC", help="The data set; see above.")]
TargetFolder = Annotated[
    Path, typer.Argument(metavar="DST", help="The folder that is written, outside of SRC.")
]
Force = Annotated[
    bool, typer.Option("--force", help="Replace an earlier conversion in DST, and other files.")
]
SurgeryRegex = Annotated[
    str,
    typer.Option(
        "--surgery",
        metavar="REGEX",
        help="Its one group is the surgery, searched in the frame's name: '^([^/]+)/'.",
    ),
]
MAPS_OR_MASKS = (
    "maps: complete label maps. masks: DSAD's layout, each frame labelled for every anatomy."
)
WrittenAs = Annotated[Complete, typer.Option("--as", help=MAPS_OR_MASKS)]
WrittenAsDrawn = Annotated[
    Labels,
    typer.Option("--as", help=f"{MAPS_OR_MASKS} drawn: for those that are drawn in it."),
]
Fill = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="PIXELS",
        help="Pixels without a known label take that of the nearest one, up to so far away.",
    ),
]
SkipUnknown = Annotated[
    bool,
    typer.Option(
        "--skip-unknown",
        help="Leave out frames that still have such pixels, which only label maps can keep.",
    ),
]
MissingIsAbsent = Annotated[
    bool,
    typer.Option(
        "--missing-is-absent", help="A missing mask means that the organ is not in the frame."
    ),
]
Licence = Annotated[str, typer.Option(help="Of the data, for SOURCE.md.")]
Url = Annotated[str, typer.Option(help="Where the data comes from, for SOURCE.md.")]


def _convert(ctx: typer.Context, name: str, **options: Any) -> None:
    """Run the conversion of a format with its own options; the common ones are in the context."""
    _require("convert", *FORMATS[name].packages)
    from importlib import import_module

    from pipeline.convert.unknown_pixels import UnknownPixels
    from stages import convert

    given = ctx.params
    module = import_module(f"pipeline.convert.{name.replace('-', '_')}")
    settings = convert.Settings(
        UnknownPixels(given.get("fill", 0), given.get("skip_unknown", False)),
        given["force"],
        given.get("licence", ""),
        given.get("url", ""),
        {key: value for key, value in given.items() if value not in (None, [], "")},
    )
    plan = partial(module.plan, options=module.Options(**options))
    convert.run(name, Path(given["source"]), Path(given["target"]), plan, settings)


@conversions.command("cholecseg8k", help=FORMATS["cholecseg8k"].help)
def convert_cholecseg8k(
    ctx: typer.Context,
    source: SourceData,
    target: TargetFolder,
    masks: Annotated[
        CholecMasks, typer.Option(help="Which of the two files of a frame is read.")
    ] = CholecMasks.WATERSHED,
    labels: WrittenAs = Complete.MAPS,
    fill: Fill = 0,
    skip_unknown: SkipUnknown = False,
    force: Force = False,
) -> None:
    """See FORMATS."""
    _convert(ctx, "cholecseg8k", masks=masks, labels=Labels(labels))


@conversions.command("dsad-multilabel", help=FORMATS["dsad-multilabel"].help)
def convert_dsad_multilabel(
    ctx: typer.Context,
    source: SourceData,
    target: TargetFolder,
    labels: WrittenAs = Complete.MAPS,
    missing_is_absent: MissingIsAbsent = False,
    force: Force = False,
) -> None:
    """See FORMATS."""
    _convert(ctx, "dsad-multilabel", labels=Labels(labels), missing_is_absent=missing_is_absent)


@conversions.command("dsad-parquet", help=FORMATS["dsad-parquet"].help)
def convert_dsad_parquet(
    ctx: typer.Context,
    source: SourceData,
    target: TargetFolder,
    config: Annotated[
        ParquetConfig | None, typer.Option(help="Which configuration, if SRC holds several.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROLE=NAME",
            help="Which column is the image, organ, mask, merged, surgery or frame; may be "
            "repeated.",
        ),
    ] = None,
    surgery: SurgeryRegex = "",
    labels: WrittenAs = Complete.MASKS,
    missing_is_absent: MissingIsAbsent = False,
    force: Force = False,
) -> None:
    """See FORMATS."""
    _convert(
        ctx,
        "dsad-parquet",
        config=config,
        columns=dict(_assignment(text) for text in column or []),
        surgery=surgery,
        labels=Labels(labels),
        missing_is_absent=missing_is_absent,
    )


@conversions.command("endoscapes", help=FORMATS["endoscapes"].help)
def convert_endoscapes(
    ctx: typer.Context,
    source: SourceData,
    target: TargetFolder,
    masks: Annotated[
        EndoscapesMasks, typer.Option(help="Which of the two kinds of labels is read.")
    ] = EndoscapesMasks.SEMANTIC,
    labels: WrittenAs = Complete.MAPS,
    fill: Fill = 0,
    skip_unknown: SkipUnknown = False,
    force: Force = False,
) -> None:
    """See FORMATS."""
    _convert(ctx, "endoscapes", masks=masks, labels=Labels(labels))


@conversions.command("coco", help=FORMATS["coco"].help)
def convert_coco(
    ctx: typer.Context,
    source: SourceData,
    target: TargetFolder,
    surgery: SurgeryRegex = "",
    labels: WrittenAsDrawn = Labels.DRAWN,
    images: Annotated[
        Path | None, typer.Option(help="The folder of the frames, if they are elsewhere.")
    ] = None,
    fill: Fill = 0,
    skip_unknown: SkipUnknown = False,
    licence: Licence = "",
    url: Url = "",
    force: Force = False,
) -> None:
    """See FORMATS."""
    _convert(ctx, "coco", surgery=surgery, labels=labels, images=images)


@conversions.command("nnunet", help=FORMATS["nnunet"].help)
def convert_nnunet(
    ctx: typer.Context,
    source: SourceData,
    target: TargetFolder,
    surgery: SurgeryRegex = "",
    labels: WrittenAs = Complete.MAPS,
    fill: Fill = 0,
    skip_unknown: SkipUnknown = False,
    licence: Licence = "",
    url: Url = "",
    force: Force = False,
) -> None:
    """See FORMATS."""
    _convert(ctx, "nnunet", surgery=surgery, labels=Labels(labels))


@conversions.command("video", help=FORMATS["video"].help)
def convert_video(
    ctx: typer.Context,
    source: SourceData,
    target: TargetFolder,
    surgery: SurgeryRegex = "",
    rate: Annotated[float, typer.Option(min=0.001, help="Frames per second.")] = 1.0,
    least_change: Annotated[
        float,
        typer.Option(
            min=0,
            help="A frame that differs less from the one before is left out: mean over the pixels "
            "of a thumbnail, of 255. 0 keeps all.",
        ),
    ] = 2.0,
    least_red: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="A frame of which a smaller share is reddish counts as outside of the body. 0 "
            "keeps all.",
        ),
    ] = 0.2,
    licence: Licence = "",
    url: Url = "",
    force: Force = False,
) -> None:
    """See FORMATS."""
    choices = {"rate": rate, "least_change": least_change, "least_red": least_red}
    _convert(ctx, "video", surgery=surgery, **choices)


def _assignment(text: str) -> tuple[str, str]:
    """The two parts of ROLE=NAME."""
    role, sign, name = text.partition("=")
    if not (role and sign and name):
        raise typer.BadParameter(f"'{text}' is not ROLE=NAME", param_hint="--column")
    return role, name


def _print_whatever_comes() -> None:
    """Let no name of a file, no terminal's encoding and no closed stream end a run."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Open as long as the program runs.
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """Entry point of the console script."""
    _print_whatever_comes()
    app()


if __name__ == "__main__":
    main()
