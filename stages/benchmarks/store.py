"""``mtkd benchmark store``: writing and reading logits against the teachers' inference."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import cv2
import numpy as np
import torch
import yaml
import zarr
from numpy.typing import NDArray

import cache
from pipeline.augmentation import warp_logits
from pipeline.checkpoint import save_checkpoint
from pipeline.datasets import FrameDataset
from pipeline.distillation import distilled
from pipeline.files import write_atomically, write_json
from pipeline.machine import Machine, computing, make_fabric
from pipeline.models import create_model
from pipeline.models.network import normalise
from pipeline.prepared import load_frame
from pipeline.settings import Params
from pipeline.timing.host import machine_record
from pipeline.training import Callbacks, Objective, TrainingTask, fit, supervised
from pipeline.training_errors import translated_errors
from stages.benchmarks.synthetic_frames import write_example
from stages.shared.console import say
from stages.shared.params import PARAMS
from stages.shared.project import Project, load_project
from stages.stores.local import write_local_stores
from stages.stores.plan import make_plans
from stages.stores.reader import TeacherLogits

OUTPUT = Path("results/benchmark_store.json")
TEACHERS = 11
FULL = (512, 640)
SMALL = (128, 160)  # rows, columns of frames


@translated_errors()
def run(frames: int, output: Path, machine: Machine) -> None:
    """Measure, print and write as JSON.

    Args:
        frames: how many each measurement sees.
        output: JSON file.
        machine: where the networks compute.
    """
    with _example_project(FULL, frames, 1) as project:
        writing = _writing(project, machine)
    reading = _reading(frames, machine)
    with _example_project(SMALL, frames, TEACHERS) as project:
        training = _training(project, machine)
    write_json(
        output,
        {
            "machine": machine_record(machine),
            "frames": frames,
            "writing": writing,
            "reading": reading,
            "training": training,
        },
    )
    say(f"-> {output}")


@contextmanager
def _example_project(size: tuple[int, int], frames: int, anatomies: int) -> Iterator[Project]:
    """A temporary project: prepared frames, and SegFormer-B0 teachers with random weights."""
    names = [f"organ{i}" for i in range(anatomies)]
    with tempfile.TemporaryDirectory() as folder:
        _write_params(Path(folder), names, size)
        project = load_project(Path(folder))
        _write_frames(project, frames, size)
        for name in names:
            teacher = create_model("segformer_b0", 1)
            teacher.anatomies = (name,)
            save_checkpoint(project.teacher_checkpoint(name), teacher, size)
        yield project


def _write_params(folder: Path, anatomies: list[str], size: tuple[int, int]) -> None:
    text = (files("stages") / "presets" / "demo.yaml").read_text()
    params = yaml.safe_load(text)
    params["data"] |= {"anatomies": anatomies, "image_size": list(size)}
    params["cache"] |= {"batch_size": 4, "shard_frames": 16}
    params["student"] |= {"arch": "segformer_b0", "batch_size": 8, "epochs": 3}
    (folder / PARAMS).write_text(yaml.safe_dump(params))


def _write_frames(project: Project, frames: int, size: tuple[int, int]) -> None:
    """Frames of one surgery, in turn of each anatomy, and their lists as of ``prepare``."""
    names = project.anatomies
    for i in range(frames):
        write_example(project, names[i % len(names)], i, size)
    for number, name in enumerate(names):
        ids = [f"01/image{i:02d}" for i in range(number, frames, len(names))]
        index = project.prepared_frames / "train" / name / "index.csv"
        write_atomically(index, "\n".join(["frame", *ids]).encode())
    write_atomically(project.prepared_frames / "unlabelled" / "index.csv", b"frame")


def _writing(project: Project, machine: Machine) -> dict[str, float]:
    """Writing stores against the bare forward passes, on the same frames in the same batches."""
    (plan,) = make_plans(project, [])
    teacher = plan.teacher()
    size = plan.params.cache.batch_size
    loaded = [torch.from_numpy(load_frame(f.image).transpose(2, 0, 1).copy()) for f in plan.frames]
    batches = [torch.stack(loaded[i : i + size]) for i in range(0, len(loaded), size)]

    device = machine.torch_device

    @torch.inference_mode()
    def forward() -> None:
        with computing(device, plan.params.cache.precision):
            for batch in batches:
                teacher(normalise(batch.to(device), teacher)).cpu()

    teacher.to(device)
    forward()
    stage = []
    bare = []
    for _ in range(3):
        bare.append(_seconds(forward))
        shutil.rmtree(plan.path, ignore_errors=True)
        stage.append(_seconds(lambda: write_local_stores([plan], machine)))
    ratio = median(stage) / median(bare)
    say(
        f"writing: {median(bare):.2f} s of forward passes, {median(stage):.2f} s for the stage: "
        f"{ratio:.2f} times"
    )
    return {
        "forward_seconds": round(median(bare), 3),
        "stage_seconds": round(median(stage), 3),
        "ratio": round(ratio, 3),
    }


def _reading(frames: int, machine: Machine) -> dict[str, float]:
    """One frame's logits of eleven teachers at 128x160: from the stores, or from the teachers.

    From the stores they are read, checked, decoded and warped.
    """
    grid = (FULL[0] // 4, FULL[1] // 4)
    ids = [f"organ/01/image{i:02d}" for i in range(frames)]
    with tempfile.TemporaryDirectory() as folder:
        stores = [_filled_store(Path(folder), number, ids, grid) for number in range(TEACHERS)]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        reader = TeacherLogits(stores, 0, 0)
        times = [_seconds(partial(_read_and_warp, reader, ids[i], i)) for i in range(frames)]
        arrays = [zarr.open_group(one.path, mode="r")["logits"] for one in stores]
        plain = [_seconds(partial(_read_plainly, arrays, i)) for i in range(frames)]
        torch.set_num_threads(threads)
    teacher = create_model("segformer_b0", 1).eval().to(machine.torch_device)
    pixels = torch.rand(1, 3, *FULL, device=machine.torch_device)
    with torch.inference_mode(), computing(pixels.device, "32-true"):
        teacher(pixels)
        live = TEACHERS * median([_seconds(lambda: teacher(pixels).cpu()) for _ in range(5)])
    milliseconds = {
        "store_milliseconds": 1000 * median(times),
        "plain_zarr_read_milliseconds": 1000 * median(plain),
        "live_teachers_milliseconds": 1000 * live,
    }
    say(", ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in milliseconds.items()))
    return {name: round(value, 2) for name, value in milliseconds.items()}


def _filled_store(
    folder: Path, number: int, ids: Sequence[str], grid: tuple[int, int]
) -> cache.Store:
    """Smooth logits, as networks give them."""
    path = folder / f"organ{number}.zarr"
    rng = np.random.default_rng(number)
    with cache.create_store(
        folder / "scratch" / path.name,
        anatomy=path.stem,
        frames=ids,
        grid=grid,
        image_size=FULL,
        identity_parts={"teacher": str(number)},
    ) as writer:
        for position in range(len(ids)):
            coarse = rng.normal(0, 4, (16, 20, 2)).astype(np.float32)
            writer.append(cv2.resize(coarse, grid[::-1]).transpose(2, 0, 1)[None], [position])
        writer.finish(path)
    return cache.open_store(path)


def _read_and_warp(reader: TeacherLogits, frame: str, pixels: int) -> NDArray[np.float32]:
    return warp_logits(reader.read(frame, 0, pixels), (0.98, 0.03, 0.02, -0.03, 0.98, 0.01))


def _read_plainly(arrays: Sequence[Any], frame: int) -> list[NDArray[np.float16]]:
    return [np.asarray(array[0, frame]) for array in arrays]


def _training(project: Project, machine: Machine) -> dict[str, float]:
    """An epoch of a SegFormer-B0 student at 160x128, with the stores and without."""
    params = project.params
    write_local_stores(make_plans(project, []), machine)
    frames = project.frames_of("train")
    objective = supervised()
    reader = TeacherLogits([cache.open_store(project.store(a)) for a in project.anatomies], 0, 0)
    plain = _epoch_seconds(params, frames, objective, None, machine)
    both = _epoch_seconds(params, frames, distilled(objective, params.distill), reader, machine)
    say(
        f"training: {plain:.2f} s per epoch without stores, {both:.2f} s with them: "
        f"{both / plain:.2f} times"
    )
    return {
        "epoch_seconds": round(plain, 3),
        "distilled_epoch_seconds": round(both, 3),
        "ratio": round(both / plain, 3),
    }


def _epoch_seconds(
    params: Params,
    frames: Sequence[Any],
    objective: Objective,
    targets: TeacherLogits | None,
    machine: Machine,
) -> float:
    """The last of three epochs, with a loader process at least; the first two start processes."""
    train = FrameDataset(frames, params.data.anatomies, params.student.seed, targets)
    empty = FrameDataset([], params.data.anatomies)
    network = create_model(params.student.arch, TEACHERS, shared=params.student.shared)
    ends: list[float] = []
    fit(
        make_fabric(machine, params.student.precision),
        network,
        TrainingTask(train, empty, objective),
        params.student,
        replace(machine, workers=max(1, machine.workers)),
        Callbacks(lambda epoch: ends.append(perf_counter())),
    )
    return ends[-1] - ends[-2]


def _seconds(call: Callable[[], Any]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start
