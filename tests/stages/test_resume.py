"""A training run that was killed at any moment ends with the weights of one that was not."""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path

import pytest
import yaml
from helpers import ROOT, mtkd

import cache

KILLS = int(os.environ.get("MTKD_KILLS", "3"))
EPOCHS = 5
RUNS = {"teachers/liver": ("train-teacher", "liver"), "students/mtkd": ("train-student", "mtkd")}
context = multiprocessing.get_context("forkserver")
# What a training imports, some of it late.
LIBRARIES = [
    "stages.train_teacher", "stages.train_student", "stages.stores.reader", "pipeline.models",
    "pipeline.models.mininetv2", "albumentations", "dvc.repo",
]  # fmt: skip


def command(folder, arguments, output, prepare):
    """The command line in a process of its own, which has its libraries already."""
    os.chdir(folder)
    with output.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    prepare()
    sys.argv = ["mtkd", *arguments]
    from stages.cli import main

    main()


def nothing():
    pass


class DieWhileWriting:
    """At the given call, only half of a file reaches the disk before the process is killed. Every
    epoch is kept.
    """

    def __init__(self, call):
        self.call = call

    def __call__(self):
        import pipeline.files
        import pipeline.resume

        pipeline.files.os = self
        pipeline.resume.PAUSE = 0

    def __getattr__(self, name):
        return getattr(os, name)

    def fsync(self, descriptor):
        self.call -= 1
        if self.call == 0:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)


class WaitWhileWriting(DieWhileWriting):
    """At the given call, a file takes longer to write than anybody waits."""

    def fsync(self, descriptor):
        self.call -= 1
        if self.call == 0:
            time.sleep(600)


def limit_files():
    """A limit on the size of files stands for a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))


def start(folder, run, prepare=nothing):
    process = context.Process(
        target=command, args=(folder, RUNS[run], folder / "output.txt", prepare)
    )
    process.start()
    return process


def finish(folder, run):
    """Let it run to its end; what it said."""
    (folder / "output.txt").unlink(missing_ok=True)
    process = start(folder, run)
    process.join(120)
    said = (folder / "output.txt").read_text()
    assert process.exitcode == 0, said
    return said


def results(folder, run):
    """All that a run leaves: weights, metrics, curves."""
    files = [folder / f"checkpoints/{run}.safetensors", folder / f"metrics/{run}.json"]
    files += sorted((folder / "results/curves" / run / "plots").rglob("*.tsv"))
    assert len(files) > 5
    return {file.relative_to(folder): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def begun(finished, tmp_path_factory):
    """A folder in which both runs are still to do; their results, and the seconds that they
    take.
    """
    folder = tmp_path_factory.mktemp("begun") / "run"
    shutil.copytree(finished[0], folder)
    forkserver._forkserver._stop()  # that of the measurements before has other libraries
    context.set_forkserver_preload(LIBRARIES)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    for section in ("teacher", "student"):
        params[section]["epochs"] = EPOCHS
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    whole, seconds = {}, {}
    for run in RUNS:
        finish(folder, run)  # the first one starts the server
        began = time.monotonic()
        finish(folder, run)
        seconds[run] = time.monotonic() - began
        whole[run] = results(folder, run)
        (folder / f"checkpoints/{run}.safetensors").unlink()
        if run == "teachers/liver":  # the stores were written by the teacher of two epochs
            shutil.copy(
                finished[0] / f"checkpoints/{run}.safetensors", folder / "checkpoints/teachers"
            )
    return folder, whole, seconds


@pytest.fixture(params=RUNS)
def killed(request, begun, tmp_path):
    """A copy of the folder, which run, and what it must give."""
    folder = tmp_path / "run"
    shutil.copytree(begun[0], folder)
    return folder, request.param, begun[1][request.param], begun[2][request.param]


def leftovers(folder):
    return [
        p
        for part in ("checkpoints", "metrics", "scratch")
        for p in (folder / part).rglob("*.p*t*")
        if p.is_file()
    ]


@pytest.mark.parametrize("moment", range(KILLS))
def test_kill_9_at_a_random_moment(killed, moment):
    folder, run, whole, seconds = killed
    process = start(folder, run)
    time.sleep(random.Random(f"{run} {moment}").uniform(0.1, seconds))
    process.kill()
    process.join()
    resumed = (folder / f"scratch/training/{run}.pt").is_file()
    assert ("goes on after epoch" in finish(folder, run)) == resumed
    assert results(folder, run) == whole
    assert leftovers(folder) == []


@pytest.mark.parametrize("call", [1, 3, EPOCHS + 1, EPOCHS + 2])
def test_kill_9_while_a_file_is_half_written(killed, call):
    """The state after an epoch, the checkpoint, or the metrics."""
    folder, run, whole, _ = killed
    process = start(folder, run, DieWhileWriting(call))
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert (
        not (folder / f"checkpoints/{run}.safetensors").is_file()
        or call == EPOCHS + 2
        or "teachers" in run
    )
    said = finish(folder, run)
    assert (f"goes on after epoch {min(call - 1, EPOCHS)}" in said) == (call > 1)
    assert results(folder, run) == whole
    assert leftovers(folder) == []


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(killed):
    folder, run, whole, _ = killed
    process = start(folder, run, WaitWhileWriting(2))  # the state of the second epoch
    state = folder / f"scratch/training/{run}.pt"
    while not (state.is_file() and list(state.parent.glob("*.partial"))) and process.is_alive():
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    process.join(120)
    said = (folder / "output.txt").read_text()
    assert process.exitcode == 130
    assert (
        said.splitlines()[-1]
        == "stopped: nothing half-written is left; the same command goes on from there"
    )
    assert "Traceback" not in said
    assert "goes on after epoch" in finish(folder, run)
    assert results(folder, run) == whole


def test_a_full_disk_ends_in_one_line_and_loses_nothing(killed):
    folder, run, whole, _ = killed
    process = start(folder, run, limit_files)
    process.join(60)
    last = (folder / "output.txt").read_text().splitlines()[-1]
    assert process.exitcode == 1
    assert last.startswith("error: ")
    assert f"{run}.pt can't be written (File too large): make room" in last
    assert leftovers(folder) == []
    finish(folder, run)
    assert results(folder, run) == whole


@pytest.mark.parametrize("what", ["other settings", "damaged"])
def test_a_state_that_does_not_fit_is_not_used(killed, what):
    folder, run, whole, _ = killed
    state = folder / f"scratch/training/{run}.pt"
    params = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(
        params.replace("learning_rate: 0.005", "learning_rate: 0.004")
    )
    process = start(folder, run)
    while not state.is_file() and process.is_alive():
        time.sleep(0.005)
    process.kill()
    process.join()
    (folder / "params.yaml").write_text(params)
    if what == "damaged":
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    said = finish(folder, run)
    assert "begins anew, scratch/training/" in said
    assert what in said
    assert results(folder, run) == whole


def test_one_run_has_one_writer(run, monkeypatch):
    monkeypatch.setattr("stages.shared.training_run.PATIENCE", 0.1)
    (run / "scratch/training/students").mkdir(parents=True, exist_ok=True)
    with cache.ScratchLock(run / "scratch/training/students/baseline"):
        assert "another process trains this" in mtkd("train-student", "baseline", code=1)


def test_data_that_changes_during_a_run_stops_it(run, monkeypatch):
    from stages.shared import training_run

    def meddle(*arguments, **others):
        *before, callbacks = arguments

        def changed(*where):
            os.utime(run / "stores/colon.zarr/zarr.json")
            callbacks.step(*where)

        return whole(*before, replace(callbacks, step=changed), **others)

    whole = training_run.fit
    monkeypatch.setattr(training_run, "fit", meddle)
    before = Path("checkpoints/students/mtkd.safetensors").read_bytes()
    assert "changed while it was learnt from" in mtkd("train-student", "mtkd", code=1)
    assert Path("checkpoints/students/mtkd.safetensors").read_bytes() == before
    assert not Path("scratch/training/students/mtkd.pt").exists()


def test_two_devices_train_one_student_and_speak_with_one_voice(run):
    """Frames of validation and batches are shared; two processes end with one checkpoint."""
    path = run / "checkpoints/students/mtkd.safetensors"
    path.unlink()
    command = [
        sys.executable,
        "-m",
        "stages.cli",
        "train-student",
        "mtkd",
        "--devices",
        "2",
        "--device",
        "cpu",
    ]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": epoch 2 ") == 1
    assert "2 processes share every batch" in done.stdout
    assert path.is_file()


def test_a_batch_that_cannot_be_shared_is_refused(run):
    assert "at least two frames (--devices 2, --accumulate 2)" in mtkd(
        "train-student",
        "baseline",
        "--devices",
        "2",
        "--accumulate",
        "2",
        "--device",
        "cpu",
        code=1,
    ).replace("batch_size 4 makes no 4 pieces of ", "")


def test_devices_that_share_batch_norm_may_have_one_frame_each(monkeypatch):
    from pipeline.datasets import EpochBatches, Share
    from pipeline.errors import MtkdError
    from pipeline.machine import Machine
    from pipeline.settings import Training
    from stages.shared.params import load_params
    from stages.shared.training_run import _require_shareable

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    settings: Training = load_params(ROOT / "params.yaml").student.model_copy(
        update={"batch_size": 8}
    )
    _require_shareable(settings, Machine("cuda", devices=8))
    with pytest.raises(MtkdError, match="makes no 16 pieces"):
        _require_shareable(settings, Machine("cuda", devices=8, accumulate=2))
    with pytest.raises(MtkdError, match="makes no 8 pieces"):
        _require_shareable(settings, Machine("cuda", accumulate=8))
    shares = [EpochBatches(19, 8, 1, Share(rank, 8, least=1)) for rank in range(8)]
    assert all(len(piece) == 1 for share in shares for piece in share)
    assert [[sum(sizes) for sizes in share.sizes()] for share in shares] == [[1, 1, 1]] * 3 + [
        [1, 1, 0]
    ] * 5


@pytest.mark.parametrize("options", [[], ["--compile"]])
def test_another_device_or_a_compiled_network_is_another_run(run, monkeypatch, options):
    """A checkpoint does not say which: they change the last digits of the weights alone."""
    from pipeline.checkpoint import load_checkpoint
    from stages.shared import training_run

    whole, seen = training_run.run_identity, []
    monkeypatch.setattr(
        training_run,
        "run_identity",
        lambda parts, weights: seen.append(parts) or whole(parts, weights),
    )
    monkeypatch.setattr("torch.compile", lambda module, **options: module)
    mtkd("train-student", "baseline", "--device", "cpu", *options)
    assert [(parts["device"], parts["compile"]) for parts in seen] == [("cpu", bool(options))]
    _, card = load_checkpoint(run / "checkpoints/students/baseline.safetensors")
    assert {"device", "compile"}.isdisjoint(card.trained_on)


def test_a_checkpoint_says_what_it_was_trained_on(run):
    from pipeline.checkpoint import load_checkpoint

    _, card = load_checkpoint(run / "checkpoints/students/mtkd.safetensors")
    assert card.trained_on["settings"]["arch"] == "mininetv2"
    assert card.trained_on["distill"]["softmax"] == "classes_balanced"
    assert len(card.trained_on["stores"]) == 2
    assert len(card.trained_on["frames"]) == 64
    assert card.trained_on["processes"] == card.trained_on["accumulate"] == 1


def test_one_flipped_bit_in_a_checkpoint_is_refused(run):
    path = run / "checkpoints/students/mtkd.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.unlink()
    path.write_bytes(content)
    assert "mtkd.safetensors is damaged: the checksum of its weights does not match" in mtkd(
        "evaluate", code=1
    )
