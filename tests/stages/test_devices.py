"""What the stages do with GPUs, as far as a machine without one can tell: memory that is too
little, who gets which.
"""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import mtkd

from pipeline.deployment.export import open_onnx
from pipeline.errors import MtkdError
from pipeline.machine import Machine
from pipeline.timing.latency import FORMS
from stages import train_teachers
from stages.benchmarks import runtimes
from stages.cli import _machine
from stages.shared import side_by_side
from stages.shared.project import Places, load_project
from stages.shared.slots import slots
from stages.study import runs
from stages.study.targets import Case

STUDENT = "checkpoints/students/mtkd.safetensors"


@pytest.mark.parametrize(
    ("inside", "command", "remedy"),
    [
        (
            "stages.shared.training_run.fit",
            ["train-teacher", "liver"],
            "--accumulate 2 computes a batch in two pieces",
        ),
        ("stages.stores.local.predictions", ["cache-logits", "liver"], "lower cache.batch_size"),
        (
            "stages.stores.commands.predictions",
            ["cache", "verify", "liver", "--recompute", "1"],
            "choose another --device",
        ),
        (
            "stages.evaluate.evaluate",
            ["evaluate"],
            "choose another --device, such as cpu; or, of the stage, lower evaluate.batch_size",
        ),
        (
            "stages.evaluate_folder.evaluate",
            ["evaluate", "--checkpoint", STUDENT, "--data"],
            "choose another --device",
        ),
        ("stages.predict.load_model", ["predict", "--output", "out"], "give it smaller frames"),
        ("stages.benchmarks.store._writing", ["benchmark", "store"], "choose another --device"),
    ],
)
def test_too_little_memory_is_one_line_in_every_stage(run, monkeypatch, inside, command, remedy):
    def fail(*_, **__):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of"
        )

    monkeypatch.setattr(inside, fail)
    data = yaml.safe_load((run / "params.yaml").read_text())["data"]["root"]
    more = {"predict": ["x.png"]}.get(command[0], [data] if command[-1] == "--data" else [])
    if command == ["cache-logits", "liver"]:
        Path("params.yaml").write_text(
            Path("params.yaml").read_text().replace("views: 0", "views: 1")
        )
    output = mtkd(*command, *more, code=1)
    assert output.splitlines()[-1].startswith(f"error: too little memory: {remedy}")


def test_a_row_that_cannot_be_measured_says_so_and_the_others_are(run, monkeypatch):
    real = runtimes.try_interleaved

    def without_joined(subjects, *rest):
        timings = iter(real([subject for subject in subjects if subject.form == "looped"], *rest))
        problem = MtkdError("a network can't be launched as one graph here")
        return [next(timings) if subject.form == "looped" else problem for subject in subjects]

    monkeypatch.setattr(runtimes, "try_interleaved", without_joined)
    said = []
    monkeypatch.setattr(runtimes, "say", said.append)
    settings = runtimes.Settings(["PyTorch"], FORMS, 2, (64, 96), 1, Machine("cpu"))
    problem = "a network can't be launched as one graph here"
    with pytest.raises(MtkdError, match=f"mininetv2 shared PyTorch float32 joined: {problem}"):
        runtimes.run(Places(Path()), ["mininetv2"], settings, Path("all.json"))
    rows = {
        (row["form"], row["precision"], row["decoding"]): row
        for row in json.loads(Path("all.json").read_text())["rows"]
    }
    assert rows["shared", "float32", "joined"]["problem"] == problem
    assert rows["shared", "float32", "joined"]["milliseconds"] is None
    assert rows["shared", "float32", "looped"]["problem"] is None
    assert rows["shared", "float32", "looped"]["milliseconds"] > 0
    assert f"mininetv2 shared PyTorch float32 joined: {problem}" in said


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine with two GPUs, as far as torch says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_a_device_may_have_a_number(two_gpus):
    assert Machine("cuda:1").torch_device == torch.device("cuda", 1)
    assert Machine("auto").torch_device == torch.device("cuda")


def test_a_cluster_worker_keeps_its_gpu_though_another_dies(two_gpus, monkeypatch):
    distributed = pytest.importorskip("distributed")
    from stages.stores import cluster

    monkeypatch.setattr("stages.stores.cluster.loaders", lambda processes: 8 // processes)
    place = cluster._machine.__wrapped__
    options = {
        "n_workers": 2,
        "threads_per_worker": 1,
        "processes": False,
        "dashboard_address": None,
    }
    with distributed.LocalCluster(**options) as workers, distributed.Client(workers) as client:
        first, second = sorted(client.scheduler_info()["workers"])
        found = [
            client.submit(place, workers=[one], pure=False).result() for one in (first, second)
        ]
        assert found == [Machine("cuda:0", 4), Machine("cuda:1", 4)]
        cluster._machine.cache_clear()
        assert client.submit(cluster._machine, workers=[second], pure=False).result() == found[1]
        client.retire_workers([first])
        assert client.submit(place, pure=False).result() == Machine(
            "cuda:0", 8
        )  # what it would be, if found anew
        assert client.submit(cluster._machine, pure=False).result() == found[1]
        cluster._machine.cache_clear()


def test_onnx_runtime_computes_on_the_processor(monkeypatch, tmp_path):
    """Its GPU package would choose TensorRT or CUDA, and TF32, in rows that say processor."""
    onnxruntime = pytest.importorskip("onnxruntime")
    asked, there = (
        [],
        ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, providers: asked.append(providers) or "session",
    )
    assert open_onnx(tmp_path / "x.onnx") == "session"
    assert asked == [["CPUExecutionProvider"]]


def test_threads_of_a_worker_take_turns(monkeypatch):
    """Whether products are TF32 is one setting of their process."""
    pytest.importorskip("distributed")
    from stages.stores import cluster

    inside, most = [], []

    def predictions(teacher, inputs, batches, precision, machine):
        inside.append(1)
        for batch in batches:
            most.append(len(inside))
            time.sleep(0.05)
            yield np.zeros((len(batch), 1, 2, 4, 6), np.float16), [0] * len(batch)
        inside.pop()

    monkeypatch.setattr(cluster, "predictions", predictions)
    monkeypatch.setattr(cluster, "_teacher", lambda checkpoint: None)
    monkeypatch.setattr(cluster, "_machine", lambda: Machine("cpu"))
    with ThreadPoolExecutor(2) as pool:
        shards = pool.map(lambda _: cluster._infer(("a", "b"), [None] * 4, 2, "32-true"), range(2))
        assert [logits.shape for logits, _ in shards] == [(4, 2, 4, 6)] * 2
    assert most == [1] * 4


def test_processes_side_by_side_share_gpus_and_cores(two_gpus, monkeypatch):
    monkeypatch.setattr("pipeline.environment.cores", lambda: 12)
    monkeypatch.delenv("MTKD_WORKERS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def given(jobs, name):
        return [slot.get(name) for slot in slots(jobs, "cuda")]

    assert given(None, "CUDA_VISIBLE_DEVICES") == ["0", "1"]
    assert given(3, "CUDA_VISIBLE_DEVICES") == ["0", "1", "0"]
    assert given(3, "MTKD_WORKERS") == ["4"] * 3
    assert given(1, "MTKD_WORKERS") == ["8"]  # more than a GPU takes
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa,GPU-bb,GPU-of-nobody")
    assert given(None, "CUDA_VISIBLE_DEVICES") == ["GPU-aa", "GPU-bb"]
    monkeypatch.setenv("MTKD_WORKERS", "1")
    assert given(3, "MTKD_WORKERS") == ["1"] * 3
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert slots(2, "cpu") == [{"MTKD_DEVICE": "cpu", "OMP_NUM_THREADS": "3"}] * 2
    assert slots(None, "mps") == [{"MTKD_DEVICE": "mps", "OMP_NUM_THREADS": "7"}]
    assert slots(8, "cpu")[7]["OMP_NUM_THREADS"] == "1"


def test_every_teacher_has_its_gpu_and_its_cores(run, two_gpus, monkeypatch):
    monkeypatch.setattr("pipeline.environment.cores", lambda: 6)
    monkeypatch.delenv("MTKD_WORKERS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    both, given = threading.Barrier(2, timeout=60), {}

    def repro(project, *arguments, environment):
        both.wait()
        given[arguments[1]] = environment
        return True

    monkeypatch.setattr(train_teachers, "require_prepared", lambda project: None)
    monkeypatch.setattr(train_teachers, "stale", lambda project, stages: stages)
    monkeypatch.setattr(side_by_side, "repro", repro)
    mtkd("train-teachers", "--device", "cuda")
    assert sorted(given) == ["train_teacher@colon", "train_teacher@liver"]
    assert sorted(slot["CUDA_VISIBLE_DEVICES"] for slot in given.values()) == ["0", "1"]
    assert {slot["MTKD_WORKERS"] for slot in given.values()} == {"3"}


def test_runs_of_a_study_have_a_gpu_each(run, monkeypatch):
    """Each finds it in its environment from its first moment on, and the next run takes one that is
    free.
    """
    given = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    seen = []
    monkeypatch.setattr(runs, "slots", lambda jobs, kind: list(given[:jobs]))
    monkeypatch.setattr(runs, "_keep", _tell)
    monkeypatch.setattr(runs, "_outcome", lambda case, ended: seen.append(ended.result()) or [])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    student = load_project().params.student
    cases = [Case(f"run {i}", student.model_copy(update={"seed": i}), None) for i in range(3)]
    runs.measure_all(cases, run / "runs", 2, Machine("cpu"))
    assert sorted(seen) in (["0", "0", "1"], ["0", "1", "1"])
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def _tell(case, file, threads, machine):
    file.parent.mkdir(parents=True, exist_ok=True)
    dice = {"mean": 1.0}
    measured = {"name": case.name, "arch": case.student.arch, "seed": case.student.seed}
    measured |= {"epochs": 1, "dice": dice, "validation": dice, "val_dice": [1.0]}
    measured |= {"seconds_per_epoch": 1.0, "peak_mib": 1, "threads": threads}
    file.write_text(json.dumps(measured))
    return os.environ["CUDA_VISIBLE_DEVICES"]


def test_loaders_are_the_share_of_the_cores(two_gpus, monkeypatch):
    monkeypatch.setattr("pipeline.environment.cores", lambda: 12)
    for name in ("TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert [_machine("cuda", None, devices).workers for devices in (1, 2, 4, 64)] == [8, 6, 3, 1]
    assert [_machine("cuda", None, jobs=jobs).workers for jobs in (1, 3)] == [8, 4]
    assert _machine("cpu", None, jobs=3).workers == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert _machine("cuda", None).workers == 8
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert _machine("cuda", None).workers == 3


@pytest.mark.parametrize(
    ("inside", "command", "workers"),
    [
        ("stages.study.gain.run", ["study", "gain", "--jobs", "2"], 6),
        ("stages.study.parity.run", ["study", "parity"], 8),
        ("stages.benchmarks.store.run", ["benchmark", "store"], 8),
    ],
)
def test_what_trains_loads_as_the_stages_do(
    two_gpus, project, monkeypatch, inside, command, workers
):
    monkeypatch.setattr("pipeline.environment.cores", lambda: 12)
    monkeypatch.delenv("MTKD_WORKERS", raising=False)
    seen = []
    monkeypatch.setattr(inside, lambda *arguments: seen.append(arguments[-1].workers))
    mtkd(*command, "--device", "cuda")
    mtkd(*command, "--device", "cpu")
    assert seen == [workers, 0]


def test_a_training_on_the_cpu_leaves_a_gpu_alone(run, monkeypatch):
    """Neither a context nor pinned memory is asked of one that may be full or broken, by no library
    either.
    """

    def fail(*_):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(
        torch.cuda, "device_count", lambda: int(os.environ["CUDA_VISIBLE_DEVICES"] == "0")
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: torch.cuda.device_count() > 0)
    monkeypatch.setattr(torch.cuda, "_lazy_init", fail)
    monkeypatch.setattr(torch.Tensor, "pin_memory", fail)
    assert "epoch 2" in mtkd("train-teacher", "liver", "--device", "cpu", "--workers", "1")


def test_evaluation_with_processes_writes_the_same_tables(run):
    before = {
        path: Path(path).read_bytes() for path in ("results/per_frame.csv", "metrics/evaluate.json")
    }
    for path in before:
        Path(path).unlink()
    mtkd("evaluate", "--device", "cpu", "--workers", "1")
    assert {path: Path(path).read_bytes() for path in before} == before
