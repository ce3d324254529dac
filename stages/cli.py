"""The command line ``mtkd``: one verb per stage, and a few beside them.

A stage is imported when it runs: ``mtkd --help`` answers at once.
"""

import os
import sys
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipeline.errors import MtkdError

# Verbs that keep what an interrupted run has done; all others begin anew.
RESUMED = ("train-teacher", "train-teachers", "cache-logits", "train-student", "study")


class _Group(TyperGroup):
    """Show what a user can mend as one line; a traceback is for ``--debug`` and for our own mistakes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "" in args:  # as a path it would be the current folder
            raise typer.BadParameter("an argument is empty: is a variable of the shell not set?")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            what = "goes on from there" if ctx.invoked_subcommand in RESUMED else "begins anew"
            typer.echo(f"stopped: nothing half-written is left; the same command {what}", err=True)
            raise typer.Exit(130) from None
        except Exception as error:
            if ctx.params.get("debug") or not _can_be_mended(error):
                raise
            from stages.shared.remedies import explained

            advice = _advice(error, ctx.invoked_subcommand)
            line = explained(error, verb=ctx.invoked_subcommand)
            typer.echo(f"error: {line}{advice}", err=True)
            raise typer.Exit(1) from None


def _advice(error: Exception, verb: str) -> str:
    """What to do about an error whose message does not say it: one of the system's may be our mistake, too."""
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


app = typer.Typer(
    cls=_Group, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)

Device = Annotated[
    str,
    typer.Option(
        envvar="MTKD_DEVICE",
        help="Where to compute: auto, cpu, cuda or mps. Changes no result's meaning.",
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
        help="Compile the network with torch.compile. It pays for SegFormer-B3 teachers: 154 -> 84 ms a step on an "
        "H100 in bf16-mixed, and 100 s at the start. The small students got slower: MiniNetv2 86 "
        "-> 101 ms, "
        "SegFormer-B0 92 -> 121 ms. The last digits of a result change.",
    ),
]


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option(help="Show a traceback with every error.")] = False,
) -> None:
    """Multi-teacher knowledge distillation for real-time anatomy segmentation, offline.

    The stages read params.yaml in the current folder and are usually run by `dvc repro`, which
    knows what has to run again. Their order: prepare, train-teacher (each anatomy), cache-logits
    (each anatomy), train-student (baseline and mtkd), evaluate, benchmark, report.
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

    if device not in ("auto", "cpu", "cuda", "mps"):
        raise typer.BadParameter(
            f"'{device}' is none of auto, cpu, cuda, mps", param_hint="--device"
        )
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


@app.command()
def phantom(workers: Threads = 2) -> None:
    """Write the embedded data set to data/phantom: a procedural laparoscopic phantom in the layout of DSAD."""
    from stages import phantom

    phantom.run(_project(), max(1, workers))


@app.command()
def prepare(workers: Threads = 2) -> None:
    """Check the whole data set, report every problem together, and write frames and labels at data.image_size."""
    from stages import prepare

    prepare.run(_project(), max(1, workers))


@app.command()
def train_teacher(
    anatomy: Annotated[str, typer.Argument(help="One of data.anatomies.")],
    device: Device = "auto",
    workers: Workers = None,
    devices: Devices = 1,
    accumulate: Accumulate = 1,
    compiled: Compile = False,
) -> None:
    """Train the teacher of one anatomy: one encoder, one decoder (stage 1 of the paper).

    A run that was stopped goes on after the last epoch that it kept: each, where that takes little
    time.
    """
    from stages import train_teacher

    train_teacher.run(
        _project(), anatomy, _machine(device, workers, devices, accumulate, compiled=compiled)
    )


@app.command()
def train_teachers(
    anatomies: Annotated[
        list[str] | None, typer.Argument(help="Whose teachers; all if none is named.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="How many at the same time.", show_default="one per GPU"),
    ] = None,
    device: Device = "auto",
) -> None:
    """Train the teachers side by side, one per GPU, as DVC stages: `dvc repro` then finds them done."""
    from stages import train_teachers

    train_teachers.run(_project(), anatomies or [], jobs, _machine(device, 0))


@app.command()
def cache_logits(
    anatomies: Annotated[
        list[str] | None, typer.Argument(help="Whose teachers; all if none is named.")
    ] = None,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Only say how long it will take and how large it will be."),
    ] = False,
    scheduler: Annotated[
        str | None,
        typer.Option(help="Ask on the workers of a dask.distributed cluster: tcp://HOST:8786."),
    ] = None,
    device: Device = "auto",
    workers: Workers = None,
) -> None:
    """Ask teachers on every training frame and store their float16 logits.

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


@app.command()
def import_teacher(
    anatomy: Annotated[str, typer.Argument(help="One of data.anatomies.")],
    source: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint (.safetensors) with one decoder, or a store (.zarr) of any model's logits."
        ),
    ],
) -> None:
    """Use a teacher that was trained elsewhere, or its answers; `dvc repro` then leaves it alone.

    How any model's logits become a store: docs/store.md.
    """
    from stages import import_teacher

    import_teacher.run(_project(), anatomy, source)


stores = typer.Typer(
    cls=TyperGroup, no_args_is_help=True, help="Look at the logit stores, check and clear them."
)
app.add_typer(stores, name="cache")
Whose = Annotated[
    list[str] | None,
    typer.Argument(
        help="Anatomies, or any store's path, which ends in .zarr; all anatomies if none is named."
    ),
]


@stores.command("ls")
def stores_ls() -> None:
    """List the stores, whole or begun, with frames, size and identity."""
    from stages.stores import commands

    commands.list_stores(_places())


@stores.command("stats")
def stores_stats(anatomies: Whose = None) -> None:
    """Print the sizes of stores as JSON: bytes, per frame, against raw and full-size float16."""
    from stages.stores import commands

    commands.show_stats(_places(), anatomies or [])


@stores.command("verify")
def stores_verify(
    anatomies: Whose = None,
    recompute: Annotated[
        int, typer.Option(min=0, help="Ask the teacher again on so many random frames.")
    ] = 0,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Largest difference of a logit, relative to 1 + |logit|.",
            show_default="0.002; stores in another precision have more",
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Check structure, completeness, checksums, and what stores were written for; exit 1 with what is wrong.

    Of a store that is named by its path, whatever it was written for is right.
    """
    from stages.stores import commands

    if recompute and any(commands.is_path(name) for name in anatomies or []):
        raise typer.BadParameter("--recompute asks teachers: name anatomies, no paths")

    commands.verify(_places(), anatomies or [], recompute, tolerance, _machine(device, 0))


@stores.command("prune")
def stores_prune(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
) -> None:
    """Remove stores, whole or begun, that no run with the current params.yaml, frames and teachers can use."""
    from stages.stores import commands

    commands.prune(_project(), dry_run)


@app.command()
def train_student(
    name: Annotated[
        str, typer.Argument(help="baseline (partial labels only) or mtkd (with the stored logits).")
    ],
    device: Device = "auto",
    workers: Workers = None,
    devices: Devices = 1,
    accumulate: Accumulate = 1,
    compiled: Compile = False,
) -> None:
    """Train one encoder with N decoders, from partial labels and, for mtkd, from the stores (stage 2 of the paper).

    A run that was stopped goes on after the last epoch that it kept: each, where that takes little
    time.
    """
    if name not in ("baseline", "mtkd"):
        raise typer.BadParameter(f"'{name}' is neither baseline nor mtkd", param_hint="NAME")
    from stages import train_student

    train_student.run(
        _project(), name, _machine(device, workers, devices, accumulate, compiled=compiled)
    )


@app.command()
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
    device: Device = "auto",
    workers: Workers = None,
) -> None:
    """Measure on the test surgeries: Dice, IoU, surface distances, intervals, false alarms, confusion, calibration.

    Without options it is the stage, on teachers and students. With --checkpoint and --data, any
    checkpoint on all frames of any data set.
    """
    if (checkpoint is None) != (data is None):
        raise typer.BadParameter("--checkpoint and --data go together")
    if checkpoint is not None and data is not None:
        from stages import evaluate_folder

        evaluate_folder.run(checkpoint, data, output, _machine(device, workers))
        return
    from stages import evaluate

    evaluate.run(_project(), _machine(device, workers))


@app.command()
def benchmark(
    what: Annotated[
        str, typer.Argument(help="run: this run's teachers and student; networks; store; loading.")
    ] = "run",
    everything: Annotated[
        bool,
        typer.Option(
            "--all", help="Every architecture in both forms and every runtime, instead of WHAT."
        ),
    ] = False,
    architectures: Annotated[
        list[str] | None,
        typer.Option(
            "--arch", help="--all, networks: which; by default all, and one of each family."
        ),
    ] = None,
    runtimes: Annotated[
        list[str] | None,
        typer.Option("--runtime", help="--all: which of PyTorch, ONNX Runtime, OpenVINO."),
    ] = None,
    forms: Annotated[
        list[str] | None,
        typer.Option(
            "--form",
            help="--all: which of joined, looped, frozen and, on CUDA, graph and compiled.",
        ),
    ] = None,
    decoders: Annotated[int, typer.Option(min=1, help="How many decoders.")] = 11,
    repeats: Annotated[
        int,
        typer.Option(min=1, help="Calls per measurement; on CUDA half a second of them at least."),
    ] = 5,
    frames: Annotated[
        int, typer.Option(min=16, help="store: how many each measurement sees.")
    ] = 100,
    output: Annotated[
        Path | None,
        typer.Option(help="The JSON, of all but run; by default results/benchmark_<WHAT>.json."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Measure what networks cost.

    run (the stage): parameters, and the time of one frame of the operating room's size, of teachers
    and student. networks: decoders computed together against one after another, training and
    inference, time and peak memory. store: writing beside the bare forward passes, reading beside
    asking the teachers, an epoch with and without. loading: frames per second and core from disk to
    augmented tensor, at 640x512. --all: a 1280x720 frame to all its masks, by every network in
    PyTorch, ONNX Runtime and OpenVINO, beside the paper's time; for this run's student also its
    Dice in each of them.
    """
    if not everything and (runtimes or forms or (architectures and what != "networks")):
        option = "--runtime" if runtimes else "--form" if forms else "--arch"
        raise typer.BadParameter(
            f"it needs --all{' or networks' if option == '--arch' else ''}", param_hint=option
        )
    if everything:
        _benchmark_all(architectures, runtimes, forms, decoders, repeats, output, device)
    elif what == "networks":
        from stages.benchmarks import networks

        chosen = _known(
            "--arch",
            architectures,
            _architectures(),
            ["segformer_b0", "mininetv2", "deeplabv3_efficientnet_lite0"],
        )
        networks.run(chosen, decoders, repeats, output or networks.OUTPUT, _machine(device, 0))
    elif what == "store":
        from stages.benchmarks import store

        store.run(frames, output or store.OUTPUT, _machine(device, None))
    elif what == "loading":
        from stages.benchmarks import loading

        loading.run((512, 640), decoders, repeats, output or loading.OUTPUT)
    elif what == "run":
        from stages import benchmark

        benchmark.run(_project(), _machine(device, 0))
    else:
        raise typer.BadParameter(
            f"'{what}' is none of run, networks, store, loading", param_hint="WHAT"
        )


def _benchmark_all(
    architectures: list[str] | None,
    runtimes: list[str] | None,
    forms: list[str] | None,
    decoders: int,
    repeats: int,
    output: Path | None,
    device: str,
) -> None:
    from pipeline.timing.latency import FORMS, RUNTIMES
    from stages.benchmarks.runtimes import OUTPUT, run

    run(
        _known("--arch", architectures, _architectures()),
        _known("--runtime", runtimes, list(RUNTIMES)),
        _known("--form", forms, list(FORMS)),
        decoders,
        (720, 1280),
        repeats,
        output or OUTPUT,
        _machine(device, 0),
    )


def _architectures() -> list[str]:
    from pipeline.models import ARCHITECTURES

    return list(ARCHITECTURES)


def _known(
    option: str, chosen: list[str] | None, known: list[str], default: list[str] | None = None
) -> list[str]:
    """What was chosen, or the default, or all there is; refuses what is not known."""
    for name in chosen or []:
        if name not in known:
            raise typer.BadParameter(f"'{name}': choose from {', '.join(known)}", param_hint=option)
    return chosen or default or known


@app.command()
def plan(
    what: Annotated[
        str,
        typer.Argument(
            help="dsad: the paper's recipe on DSAD; here: params.yaml on the prepared frames."
        ),
    ] = "dsad",
    devices: Annotated[
        list[int] | None, typer.Option(min=1, help="For how many devices; by default 1 and 8.")
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="Calls per measurement; more, if they are short.")
    ] = 2,
    output: Annotated[Path, typer.Option(help="JSON with the measurements and the plan.")] = Path(
        "results/plan.json"
    ),
    device: Device = "auto",
) -> None:
    """Say what a run will take: hours per stage, disk and memory, from rates that are measured here.

    What is extrapolated from one device to several: docs/scale.md.
    """
    if what not in ("dsad", "here"):
        raise typer.BadParameter(f"'{what}' is neither dsad nor here", param_hint="WHAT")
    from stages import plan

    plan.run(what, devices or [1, 8], repeats, output, _machine(device, 0))


studies = typer.Typer(
    cls=TyperGroup,
    no_args_is_help=True,
    help="Compare ways of training a student on this project's stores."
    "\n\nA study that is stopped goes on with the runs that are missing.",
)
app.add_typer(studies, name="study")
Seeds = Annotated[int, typer.Option(min=1, help="How many seeds of each student.")]
Jobs = Annotated[
    int,
    typer.Option(
        min=1,
        help="Runs at the same time, each with an equal share of torch's threads (OMP_NUM_THREADS).",
    ),
]
Page = Annotated[
    Path | None, typer.Option(help="Markdown with the table; by default results/study_<NAME>.md.")
]


Students = Annotated[
    list[str] | None,
    typer.Option("--student", help="Which students; by default one of each family."),
]
Ways = Annotated[
    list[str] | None, typer.Option("--way", help="Which columns of the table; by default all.")
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
        device: Device = "auto",
        workers: Workers = None,
    ) -> None:
        from stages.study.conditions import STUDENTS, Design, run

        design = Design(name, students or list(STUDENTS), ways or [], seeds, epochs)
        page = output or Path(f"results/study_{name}.md")
        run(_project(), design, jobs, page, _machine(device, workers, jobs=jobs))

    return command


SHARED_RUNS = "\n\nRuns that another study has already trained are taken from there. Needs `dvc repro cache_logits` first."
for _name, _help in {
    "gain": "How much of the way from the baseline to the teachers each way of distilling goes, and hard pseudo-labels."
    "\n\nWithout --way also baselines with class weights, and runs that are two and four times as "
    "long.",
    "settings": "classes_balanced with one setting at a time changed: temperature, weight, grid.",
    "beyond": "What the paper does not do, in the same tables: teachers trusted by their Dice, and more.",
}.items():
    studies.command(_name, help=_help + SHARED_RUNS)(_comparison(_name))


@studies.command("parity")
def study_parity(
    seeds: Seeds = 5,
    views: Annotated[
        int, typer.Option(min=1, help="Stored views of the arm that replays them.")
    ] = 3,
    jobs: Jobs = 1,
    output: Page = None,
    device: Device = "auto",
    workers: Workers = None,
) -> None:
    """Whether a student that learns from the stores equals one whose teachers answer live: Dice, time, memory.

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


@app.command()
def models(
    decoders: Annotated[int, typer.Option(min=1, help="How many anatomies.")] = 11,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON list of objects instead of the table.")
    ] = False,
) -> None:
    """List every architecture in both forms: parameters beside the paper's, multiply-adds, output stride, licence."""
    from stages import models

    models.run(decoders, as_json)


@app.command()
def selfcheck(
    architectures: Annotated[
        list[str] | None, typer.Option("--arch", help="Networks to compare; all if none is named.")
    ] = None,
    device: Device = "auto",
) -> None:
    r"""Check this machine's device against its CPU: networks, training, resume, stores, export. About five minutes.

    Run it once on a new machine with a GPU. Everything is small and made up, in a temporary folder.
    It ends with a table, and with what to do about what failed.
    """
    from stages import selfcheck

    selfcheck.run(_machine(device, 0), _known("--arch", architectures, _architectures()))


@app.command()
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
) -> None:
    r"""Write a checkpoint as ONNX and OpenVINO files: from a frame in memory to all its masks in memory.

    Each file is run and compared with the checkpoint before it is delivered. Needs `pip install -e
    '.\[deploy]'`.
    """
    import re

    match = re.fullmatch(r"(\d+)x(\d+)", size, re.ASCII)
    if match is None:
        raise typer.BadParameter(
            f"'{size}' is not WIDTHxHEIGHT, such as 1280x720", param_hint="--size"
        )
    width, height = int(match[1]), int(match[2])
    if not (32 <= width <= 8192 and 32 <= height <= 8192):
        raise typer.BadParameter(
            f"'{size}': each side must be within 32 .. 8192 pixels", param_hint="--size"
        )
    _require("deploy", "onnx", "onnxruntime", "openvino")
    if int8:
        _require("int8", "nncf")
    from stages import export

    export.run(checkpoint, output, (height, width), frames, int8)


@app.command()
def predict(
    source: Annotated[Path, typer.Argument(help="A frame, a folder of frames, or a video.")],
    output: Annotated[Path, typer.Option(help="A folder; for overlays of a video an .mp4 file.")],
    model: Annotated[
        Path, typer.Option(help="A checkpoint, or a file that `mtkd export` wrote.")
    ] = Path("checkpoints/students/mtkd.safetensors"),
    anatomies: Annotated[
        list[str] | None, typer.Option("--anatomy", help="Which; all if none is named.")
    ] = None,
    kind: Annotated[
        str, typer.Option("--as", help="overlay, labels (one map), or masks (one PNG each).")
    ] = "overlay",
    opacity: Annotated[float, typer.Option(min=0, max=1, help="Of overlays.")] = 0.45,
    device: Device = "auto",
) -> None:
    r"""Show anatomy on a frame, a folder of frames, or a video. Needs `pip install -e '.\[deploy]'`."""
    if kind not in ("overlay", "labels", "masks"):
        raise typer.BadParameter(f"'{kind}' is none of overlay, labels, masks", param_hint="--as")
    _require("deploy", "av")
    from pipeline.training_errors import translated_errors
    from stages import predict

    machine = _machine(device, 0)
    try:
        with translated_errors():
            predict.run(source, output, model, anatomies or [], kind, opacity, machine)  # type: ignore[arg-type]
    except KeyboardInterrupt:
        typer.echo("stopped: the same command begins anew", err=True)
        raise typer.Exit(130) from None


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
            remedy = f"pip install --force-reinstall {package}"
            raise MtkdError(
                f"{package} is installed but cannot be imported ({reason}). Run: {remedy}"
            ) from error


@app.command()
def report() -> None:
    """Write report/index.html, one page with everything, and print the table of results."""
    from stages import report

    report.run(_project())


@app.command()
def summary(
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Fail if it differs from the last commit by more than rounding makes."
        ),
    ] = False,
) -> None:
    """Print the table of results of the last run, where its report is, and how it compares with the last commit.

    On another processor sums are rounded otherwise, and short runs of students differ by some Dice:
    the last line says whether a difference is of that size.
    """
    from stages import summary
    from stages.reporting import recorded

    summary.run(_places())
    recorded.run(_places(), check)


@app.command()
def init(
    preset: Annotated[
        str,
        typer.Option(
            help="paper: the recipe of Maack et al., section 3.2; demo: the embedded data."
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

    init.run(preset, data_root, force)


def _print_whatever_comes() -> None:
    """Let no name of a file, no terminal's encoding and no closed stream end a run."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 (open as long as the program runs)
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """Entry point of the console script."""
    _print_whatever_comes()
    app()


if __name__ == "__main__":
    main()
