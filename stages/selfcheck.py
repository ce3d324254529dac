"""``mtkd selfcheck``: whether this machine's device computes what a CPU does.

From a forward pass to a whole run.

Everything is small and made up; it happens in a temporary folder, and no file of the project is
read or written.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from math import inf
from pathlib import Path
from shutil import copytree, rmtree
from signal import SIGKILL
from textwrap import shorten
from time import monotonic, sleep
from typing import Any

import torch
import yaml
from rich.table import Table
from torch import Tensor

from pipeline.datasets import Sample
from pipeline.deployment.runner import LaunchError, Runner
from pipeline.deployment.segmenter import Segmenter
from pipeline.errors import MtkdError, TooLittleMemoryError
from pipeline.labels import NO_ANATOMY, own_decoder
from pipeline.machine import Machine, computing, float32_products
from pipeline.models import ARCHITECTURES, create_model
from pipeline.models.frozen import Frozen
from pipeline.models.network import Network, normalise
from pipeline.timing.host import machine_record
from pipeline.training import supervised
from pipeline.training_errors import translated_errors
from stages.shared.console import console, progress, say

PRESET = Path(__file__).parent / "presets" / "demo.yaml"
ANATOMIES = ("liver", "colon")
FRAME = (96, 128)
OF_TRAINING = ("MTKD_DEVICES", "MTKD_ACCUMULATE", "MTKD_COMPILE")
# Relative errors against the CPU in float32 that arithmetic alone explains: (logits, loss).
LIMITS = {
    "32-true": (2e-3, 1e-4),
    "tf32": (0.5, 0.02),
    "bf16-mixed": (0.95, 0.05),
    "16-mixed": (0.5, 0.02),
}
# Likewise of the gradients of the decoders and of the encoder: (least cosine, largest ratio of the
# norms, either way). With a network that is not trained, deep batch norms make the encoder's hang
# on the last digits: of deeplabv3_resnet50 the cosines are 0.6 and 0.1 where factors are rounded as
# in bfloat16. So the encoder's direction is left to the check whether training learns.
EXACT = ((0.995, 1.1), (0.995, 1.1))
ROUNDED = ((0.3, 1.5), (-inf, 3.0))
# Dice, in percent, by which the same student's test frames may differ from one device to another.
DICE = 0.1
ADVICE = {
    "device": "install a torch that fits the driver (https://pytorch.org/get-started), "
    "or go on with --device cpu",
    "memory": "end other programs on the device, or go on with --device cpu",
    "network": "update torch and the driver; until then use --device cpu, and tell us: "
    "this must not happen",
    "precision": "use precision: 32-true in params.yaml",
    "training": "use precision: 32-true, and see whether the networks above agree",
    "resume": "look at what the training says with `mtkd --debug`; runs start anew until then",
    "store": "use cache.precision: 32-true; `mtkd cache verify --recompute` tells by how much "
    "logits differ",
    "export": "pip install 'mtkd[deploy]' again; run `mtkd export` on another machine",
}


@dataclass(frozen=True)
class Check:
    """One row of the table.

    Attributes:
        name: what was checked.
        passed: whether it is as it must be; None if it could not be tried here.
        measured: what was measured.
        advice: a key of ``ADVICE``.
    """

    name: str
    passed: bool | None
    measured: str
    advice: str


def run(machine: Machine, architectures: Sequence[str] = tuple(ARCHITECTURES)) -> None:
    """Check, print a table, and say what to do about what failed.

    Args:
        machine: the device to check, against this machine's CPU.
        architectures: networks to compare.

    Raises:
        MtkdError: something failed.
    """
    checks: list[Check] = []
    networks = [
        _failing(_network_checks(architecture), architecture, "network")
        for architecture in architectures
    ]
    groups = [_failing(_device, "device", "device"), *networks, *RUN_CHECKS]
    with progress("checks") as bar, tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder), machine)
        for number, group in enumerate(groups, start=1):
            for check in group(trial):
                checks.append(check)
                say(f"{_word(check)}  {check.name}: {check.measured}")
            bar(number, len(groups))
    _print(checks)
    failed = [check for check in checks if check.passed is False]
    if failed:
        advice = dict.fromkeys(ADVICE[check.advice] for check in failed)
        raise MtkdError(
            "\n  ".join([f"{len(failed)} of {len(checks)} checks failed; what to do:", *advice])
        )


def _word(check: Check) -> str:
    return {True: "pass", False: "FAIL", None: "skip"}[check.passed]


def _print(checks: Sequence[Check]) -> None:
    table = Table("check", "result", "measured")
    for check in checks:
        table.add_row(check.name, _word(check), check.measured)
    console.print(table)


class Trial:
    """A small project in a folder of its own, whose verbs run as a user's do."""

    def __init__(self, folder: Path, machine: Machine) -> None:
        self.folder = folder
        self.machine = machine
        self.device = machine.torch_device
        self.device_name = str(self.device)

    @property
    def precisions(self) -> tuple[str, ...]:
        """What training knows on this device."""
        if self.device.type != "cuda":
            return ("32-true", "bf16-mixed")
        has_tf32 = torch.cuda.get_device_capability(self.device) >= (8, 0)
        return ("32-true", *(("tf32",) if has_tf32 else ()), "bf16-mixed", "16-mixed")

    def write_params(self, **changes: dict[str, Any]) -> None:
        """A params.yaml whose whole run takes a minute on a CPU."""
        params = yaml.safe_load(PRESET.read_text())
        params["data"] |= {"anatomies": list(ANATOMIES)}
        params["teacher"] |= {"epochs": 8}
        params["student"] |= {"epochs": 3}
        for section, values in changes.items():
            params[section] |= values
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params))

    def mtkd(self, *arguments: str, device: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a verb to its end."""
        with self.start(*arguments, device=device) as process:
            out, err = process.communicate()
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def start(self, *arguments: str, device: str | None = None) -> subprocess.Popen[str]:
        """Start a verb, on the device that is checked or on another."""
        root = str(Path(__file__).parents[1])
        paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        # How a user trains says nothing of a trial whose batches are small.
        own = {name: value for name, value in os.environ.items() if name not in OF_TRAINING}
        environment = own | {"MTKD_DEVICE": device or self.device_name, "PYTHONPATH": paths}
        command = [sys.executable, "-m", "stages.cli", *arguments]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def require(self, *arguments: str, device: str | None = None) -> str:
        """What a verb printed.

        Raises:
            VerbError: it did not end well.
        """
        done = self.mtkd(*arguments, device=device)
        if done.returncode:
            raise VerbError(f"mtkd {' '.join(arguments)}: {_last(done.stderr or done.stdout)}")
        return done.stdout

    def losses(self, name: str) -> list[float]:
        """Cross-entropy of each epoch of a training run."""
        file = (
            self.folder
            / "results"
            / "curves"
            / name
            / "plots"
            / "metrics"
            / "cross_entropy"
            / "sum.tsv"
        )
        with file.open() as rows:
            return [float(row["sum"]) for row in csv.DictReader(rows, delimiter="\t")]


class VerbError(Exception):
    """A verb of the trial ended badly."""


def _first(text: str) -> str:
    return shorten(text.strip().partition("\n")[0], 200, placeholder=" ...")


def _last(text: str) -> str:
    lines = text.strip().splitlines() or ["(it said nothing)"]
    return lines[-1][:200]


def _device(trial: Trial) -> Iterator[Check]:
    record = machine_record(trial.machine)
    where = f"{record['device']}, torch {record['torch']}"
    if trial.device.type == "cpu":
        yield Check(
            "device", None, f"{where}: no other device; the CPU is compared with itself", "device"
        )
        return
    if trial.device.type != "cuda":
        yield Check("device", True, where, "device")
        return
    free, total = (size / 2**30 for size in torch.cuda.mem_get_info(trial.device))
    count = torch.cuda.device_count()
    driver = f"{count} devices, {total:.0f} GiB, CUDA {torch.version.cuda}"
    yield Check("device", True, f"{where}, {driver}", "device")
    yield Check("device memory", free > 2, f"{free:.1f} GiB free", "memory")


def _network_checks(architecture: str) -> Callable[[Trial], Iterator[Check]]:
    def checks(trial: Trial) -> Iterator[Check]:
        network = _lively(architecture)
        expected = _pass(network, torch.device("cpu"), "32-true")
        for precision in trial.precisions:
            computed = _pass(network, trial.device, precision)
            yield _pass_check(f"{architecture} {precision}", computed, expected, precision)
        one_decoder = _lively(architecture, shared=True)
        for each, name in (
            (network, architecture),
            (one_decoder, f"{architecture} with one decoder"),
        ):
            yield _frozen_check(each, name, trial.device)
            if trial.device.type == "cuda":
                yield _graph_check(each, name, trial.device)

    return checks


def _pass_check(name: str, computed: "_Pass", expected: "_Pass", precision: str) -> Check:
    logits = _relative(computed.logits, expected.logits)
    loss = _relative(computed.loss, expected.loss)
    most = LIMITS[precision]
    passed = logits <= most[0] and loss <= most[1]
    measured = f"off by {logits:.0e} (logits), {loss:.0e} (loss)"
    limits = EXACT if precision == "32-true" else ROUNDED
    for part, (least, largest) in zip(("decoders", "encoder"), limits, strict=True):
        cosine, ratio = _direction(getattr(computed, part), getattr(expected, part))
        passed = passed and cosine >= least and 1 / largest <= ratio <= largest
        measured += f", {cosine:.2f} x{ratio:.2f} (gradients, {part})"
    advice = "network" if precision == "32-true" else "precision"
    return Check(name, passed, measured, advice)


def _lively(architecture: str, *, shared: bool = False) -> Network:
    """Random weights with statistics of batch norm as training makes them, without dropout."""
    torch.manual_seed(1)
    network = create_model(architecture, len(ANATOMIES), shared=shared)
    with torch.no_grad():
        network.train()(torch.randn(2, 3, *FRAME))
    for module in network.modules():
        for name in ("p", "drop_prob", "_drop_connect_rate"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return network


def _frames(number: int) -> Tensor:
    return torch.randint(
        0, 256, (number, 3, *FRAME), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )


@dataclass(frozen=True)
class _Pass:
    """What one batch gives, on the CPU, in float32.

    Attributes:
        logits: (B, N, 2, h, w).
        loss: ().
        decoders: gradients of their weights, (n,).
        encoder: of all other weights, (m,).
    """

    logits: Tensor
    loss: Tensor
    decoders: Tensor
    encoder: Tensor


def _pass(network: Network, device: torch.device, precision: str) -> _Pass:
    """Forward and backward."""
    network = deepcopy(network).to(device).train()
    frames = _frames(4).to(device)
    anatomy = torch.arange(4, device=device) % len(ANATOMIES)
    organ = torch.where(frames[:, 0] > 127, anatomy[:, None, None], NO_ANATOMY)
    own = own_decoder(anatomy, len(ANATOMIES))
    batch = Sample(organ=organ, background=own, labelled=own)
    objective = supervised()
    scale = 256.0 if precision == "16-mixed" else 1.0  # as a gradient scaler would
    with computing(device, precision):
        logits = network(normalise(frames, network))
        loss = objective.terms(logits, batch)["cross_entropy"].sum()
    with float32_products(device, precision):
        (scale * loss).backward()
    decoders: list[Tensor] = []
    encoder: list[Tensor] = []
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            part = decoders if name.startswith("heads.") else encoder
            part.append(parameter.grad.flatten() / scale)
    tensors = logits.detach(), loss.detach(), torch.cat(decoders), torch.cat(encoder)
    return _Pass(*(x.float().cpu() for x in tensors))


def _direction(computed: Tensor, expected: Tensor) -> tuple[float, float]:
    """Cosine between two gradients, and the ratio of their norms; NaN is not within any limit."""
    a = computed.double()
    b = expected.double()
    least = 1e-30
    cosine = a @ b / (a.norm() * b.norm()).clamp(min=least)
    return float(cosine), float(a.norm() / b.norm().clamp(min=least))


def _relative(computed: Tensor, expected: Tensor) -> float:
    error = float(
        (computed.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30)
    )
    return error if error == error else float("inf")


@torch.inference_mode()
def _frozen_check(network: Network, name: str, device: torch.device) -> Check:
    """The frozen form: pixels of its masks that differ where the margin is not close to 0."""
    frames = _frames(1)
    network = network.eval()
    expected = network.margins(frames)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    computed = Frozen(network, device, dtype).margins(frames.to(device)).float().cpu()
    unclear = (
        expected.abs() < 0.02 * expected.abs().mean()
        if dtype == torch.float16
        else expected.abs() < 1e-3
    )
    wrong = int((((computed > 0) != (expected > 0)) & ~unclear).sum())
    measured = f"{wrong} of {expected.numel()} cells differ in {str(dtype).rpartition('.')[2]}"
    return Check(f"{name} frozen", wrong <= expected.numel() // 1000, measured, "network")


def _graph_check(network: Network, name: str, device: torch.device) -> Check:
    """The same as a graph, while other tensors come and go: it must own all that it reads."""
    frames = _frames(1)
    name = f"{name} graph"

    def segmenter() -> Segmenter:
        return Segmenter(Frozen(network, device, torch.float16), FRAME, FRAME).eval()

    try:
        run = Runner(segmenter(), frames, device, "graph")
    except LaunchError as error:
        return Check(name, False, str(error), "network")
    others = [torch.full((2**power,), torch.nan, device=device) for power in range(8, 24)]
    expected = Runner(segmenter(), frames, device)(frames.numpy())
    wrong = max(int((run(frames.numpy()) != expected).sum()) for _ in others)
    return Check(
        name, wrong <= expected.size // 1000, f"{wrong} of {expected.size} pixels differ", "network"
    )


def _trained(trial: Trial) -> Iterator[Check]:
    """A teacher per precision, and the other teachers for what comes later."""
    trial.write_params()
    trial.require("phantom")
    trial.require("prepare")
    for precision in reversed(trial.precisions):
        trial.write_params(teacher={"precision": precision})
        for rest in ("checkpoints", "scratch", "results"):
            rmtree(trial.folder / rest, ignore_errors=True)
        trial.require("train-teacher", "liver")
        first, *_, last = trial.losses("teachers/liver")
        measured = f"cross-entropy {first:.2f} -> {last:.2f}"
        yield Check(f"training learns, {precision}", last < 0.6 * first, measured, "training")
    for anatomy in ANATOMIES[1:]:
        trial.require("train-teacher", anatomy)


def _resumed(trial: Trial) -> Iterator[Check]:
    kept = trial.folder / "kept"
    copytree(trial.folder / "checkpoints", kept)
    (trial.folder / "checkpoints" / "teachers" / "liver.safetensors").unlink()
    state = trial.folder / "scratch" / "training" / "teachers" / "liver.pt"
    limit = monotonic() + 120
    process = trial.start("train-teacher", "liver")
    while not state.is_file() and process.poll() is None and monotonic() < limit:
        sleep(0.02)
    with suppress(ProcessLookupError):
        process.send_signal(SIGKILL)
    process.communicate()
    if not state.is_file():
        yield Check(
            "kill and resume", None, "the training ended before it could be killed", "resume"
        )
        return
    said = trial.require("train-teacher", "liver")
    line = next((line for line in said.splitlines() if "goes on after" in line), "")
    yield Check("kill and resume", bool(line), line or "it began anew", "resume")


def _stored(trial: Trial) -> Iterator[Check]:
    trial.require("cache-logits")
    for device in dict.fromkeys((trial.device_name, "cpu")):
        done = trial.mtkd("cache", "verify", "--recompute", "8", device=device)
        measured = "whole" if done.returncode == 0 else _last(done.stderr or done.stdout)
        yield Check(f"stores verify on {device}", done.returncode == 0, measured, "store")


def _distilled(trial: Trial) -> Iterator[Check]:
    trial.require("train-student", "mtkd")
    first, *_, last = trial.losses("students/mtkd")
    yield Check(
        "student learns from the stores",
        last < first,
        f"cross-entropy {first:.2f} -> {last:.2f}",
        "training",
    )
    student = "checkpoints/students/mtkd.safetensors"
    dice = {}
    for device in dict.fromkeys((trial.device_name, "cpu")):
        output = f"evaluated-{device}"
        trial.require(
            "evaluate",
            "--checkpoint",
            student,
            "--data",
            "data/phantom",
            "--output",
            output,
            device=device,
        )
        table = json.loads((trial.folder / output / "evaluation.json").read_text())
        dice[device] = float(table["intervals"]["dice"]["mean"]["mean"])
    on_device = dice[trial.device_name]
    apart = abs(on_device - dice["cpu"])
    measured = f"Dice {on_device:.2f} on {trial.device_name}, {dice['cpu']:.2f} on the CPU"
    yield Check("evaluation agrees with the CPU", apart <= DICE, measured, "network")


def _exported(trial: Trial) -> Iterator[Check]:
    done = trial.mtkd("export")
    missing = "pip install" in done.stderr
    measured = _last(done.stdout) if done.returncode == 0 else _last(done.stderr)
    yield Check(
        "exported files give the checkpoint's masks",
        None if missing else done.returncode == 0,
        measured,
        "export",
    )


def _failing(
    group: Callable[[Trial], Iterator[Check]], name: str, advice: str
) -> Callable[[Trial], Iterator[Check]]:
    """A group of checks that may end in an error, whatever it is: that is its result."""

    def checks(trial: Trial) -> Iterator[Check]:
        try:
            with translated_errors():
                yield from group(trial)
        except TooLittleMemoryError as error:
            yield Check(name, False, str(error), "memory")
        except (MtkdError, VerbError) as error:
            yield Check(name, False, str(error), advice)
        except Exception as error:
            yield Check(name, False, f"{type(error).__name__}: {_first(str(error))}", advice)

    return checks


RUN_CHECKS = (
    _failing(_trained, "training", "training"),
    _failing(_resumed, "kill and resume", "resume"),
    _failing(_stored, "stores", "store"),
    _failing(_distilled, "student", "training"),
    _failing(_exported, "export", "export"),
)
