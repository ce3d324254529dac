"""What the command line does with stores: estimate, list, check, clear; and a cluster that writes them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import google_crc32c
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, mtkd, write_png
from torch.utils.data import default_collate

import cache
from pipeline.checkpoint import load_checkpoint
from pipeline.datasets import FrameDataset
from pipeline.distillation import distilled
from pipeline.models.network import normalise, resize
from pipeline.prepared import load_frame
from pipeline.training import supervised
from stages.layout import frames_of, taught_frames
from stages.params import load_params
from stages.soft_targets import open_stores


def files(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_stored_logits_are_the_teachers_at_full_size(run):
    """Native resolution loses nothing: upsampling is the same function of what is stored, up to float16."""
    from pathlib import Path

    teacher = load_checkpoint(Path("checkpoints/teachers/liver.safetensors"), "")[0]
    store = cache.open_store("stores/liver.zarr")
    for frame in frames_of("train", ["liver", "colon"]):
        pixels = torch.from_numpy(load_frame(frame.image).transpose(2, 0, 1).copy())[None]
        with torch.inference_mode():
            live = resize(teacher(normalise(pixels, teacher)), (32, 48))[0, 0]
        stored = resize(torch.from_numpy(store.read(frame.id).astype(np.float32))[None, None], (32, 48))[0, 0]
        assert float((live - stored).abs().max()) <= 2**-10 * float(live.abs().max())


def test_an_estimate_writes_nothing(run):
    shutil.rmtree("stores")
    output = mtkd("cache-logits", "--estimate")
    assert "liver: 6 answers at" in output
    assert "all: at most" in output
    assert not (run / "stores").exists()
    assert not (run / "scratch/stores/liver.zarr").exists()


def test_a_disk_that_is_too_small_is_told_before_work_begins(run, monkeypatch):
    monkeypatch.setattr("stages.cache_logits._free", lambda: 1000)
    for arguments in (["cache-logits", "--estimate"], ["cache-logits"]):
        assert "the disk has 0.0 MiB free" in mtkd(*arguments, code=1)


def test_stores_are_listed_and_measured(run):
    output = mtkd("cache", "ls")
    assert "stores/liver.zarr" in output
    assert "complete" in output
    sizes = json.loads(mtkd("cache", "stats", "liver"))
    assert sizes["liver"]["frames"] == 6
    (run / "stores/liver.zarr/logits/zarr.json").unlink()
    assert "unusable" in mtkd("cache", "ls")
    assert "not in data.anatomies: brain" in mtkd("cache", "stats", "brain", code=1)


def test_verify_lists_what_is_wrong_and_exits_1(run):
    assert mtkd("cache", "verify").count("whole") == 2
    shard = run / "stores/colon.zarr/logits/c/0/0/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-1])
    output = mtkd("cache", "verify", code=1)
    assert "stores/liver.zarr: whole" in output
    assert "4 problems" in output
    assert "dvc repro -f cache_logits@colon" in output


def test_verify_asks_the_teacher_again(run):
    assert mtkd("cache", "verify", "--recompute", "3").count("whole") == 2
    assert "answers otherwise" in mtkd("cache", "verify", "--recompute", "6", "--tolerance", "0", code=1)
    shutil.copy("checkpoints/teachers/colon.safetensors", "checkpoints/teachers/liver.safetensors")
    assert "written by another teacher" in mtkd("cache", "verify", "liver", "--recompute", "1", code=1)


def test_prune_removes_what_no_run_can_use(run):
    assert "nothing to remove" in mtkd("cache", "prune")
    shutil.copytree("stores/liver.zarr", "stores/spleen.zarr")
    shutil.copytree("stores/liver.zarr", "scratch/stores/liver.zarr")
    shutil.copy("checkpoints/teachers/liver.safetensors", "checkpoints/teachers/colon.safetensors")
    output = mtkd("cache", "prune", "--dry-run")
    assert "would remove stores/spleen.zarr: spleen is not in data.anatomies" in output
    assert "stores/colon.zarr: written for another teacher" in output
    mtkd("cache", "prune")
    assert [p.name for p in (run / "stores").iterdir()] == ["liver.zarr"]
    assert not (run / "scratch/stores/liver.zarr").exists()


def test_rounded_stores_are_smaller_and_say_what_it_costs(run):
    exact = json.loads((run / "metrics/cache/liver.json").read_text())
    params = yaml.safe_load((run / "params.yaml").read_text())
    params["cache"]["keep_bits"] = 4
    (run / "params.yaml").write_text(yaml.safe_dump(params))
    assert "its keep_bits is None, expected 4" in mtkd("train-student", "mtkd", code=1)
    mtkd("cache-logits", "liver")
    rounded = json.loads((run / "metrics/cache/liver.json").read_text())
    assert rounded["bytes"] < exact["bytes"]
    assert 0 < rounded["rounding_probability"] < 0.02
    assert 0 < rounded["rounding_kl"] < 1e-3
    assert mtkd("cache", "verify", "liver", "--recompute", "3").count("whole") == 1


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A real scheduler and two worker processes on the loopback; gives its address and the workers."""
    pytest.importorskip("distributed")
    address = tmp_path / "scheduler.json"
    env = os.environ | {"PYTHONPATH": str(ROOT), "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "5"}

    def start(*arguments):
        return subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    quiet = ["--no-dashboard", "--scheduler-file", str(address)]
    started = [start("scheduler", "--host", "127.0.0.1", "--port", "0", *quiet)]
    while not address.exists():
        time.sleep(0.05)
    workers = [start("worker", *quiet, "--nthreads", "1", "--no-nanny") for _ in range(2)]
    started += workers
    yield json.loads(address.read_text())["address"], workers
    for process in started:
        process.kill()
        process.wait()


def test_a_cluster_writes_the_same_stores_though_a_worker_dies(run, cluster):
    import threading

    address, workers = cluster
    before = {name: files(run / "stores" / name) for name in ("liver.zarr", "colon.zarr")}
    shutil.rmtree("stores")
    from distributed import Client

    with Client(address) as client:
        client.wait_for_workers(2, timeout=60)
    killer = threading.Timer(1.0, lambda: workers[0].send_signal(signal.SIGKILL))
    killer.start()
    output = mtkd("cache-logits", "--scheduler", address)
    killer.join()
    assert "2 workers" in output
    assert workers[0].wait(10) == -signal.SIGKILL
    assert {name: files(run / "stores" / name) for name in before} == before


def test_a_scheduler_that_is_not_there_is_told(run):
    pytest.importorskip("distributed")
    assert "does not answer" in mtkd("cache-logits", "--scheduler", "tcp://127.0.0.1:1", code=1)


def test_another_models_answers_teach_the_student(run, monkeypatch):
    """What docs/store.md shows: NumPy in, a store out, imported in place of a teacher."""
    committed = []
    monkeypatch.setattr("stages.import_teacher._commit", committed.append)
    frames = frames_of("train", ["liver", "colon"])
    _write_answers("mine/liver.zarr", reversed(frames))
    assert "imported from mine/liver.zarr" in mtkd("import-teacher", "liver", "mine/liver.zarr")
    assert committed == ["train_teacher@liver", "cache_logits@liver"]
    np.testing.assert_array_equal(
        cache.open_store("stores/liver.zarr").read(frames[2].id), _answer(load_frame(frames[2].image))
    )
    for command in (["cache", "verify"], ["train-student", "mtkd"], ["evaluate"]):
        mtkd(*command)
    dice = json.loads((run / "metrics/evaluate.json").read_text())["teachers"]["dice"]
    assert dice["liver"] is None
    assert dice["mean"] == dice["colon"]
    assert "holds no weights" in mtkd("cache-logits", "liver", code=1)
    assert "holds no weights" in mtkd("cache", "verify", "liver", "--recompute", "1", code=1)


def test_answers_to_other_frames_are_not_imported(run):
    before = files(run / "stores/liver.zarr")
    frames = frames_of("train", ["liver", "colon"])
    _write_answers("few.zarr", frames[1:])
    assert f"lacks 1 of 6 training frames, {frames[0].id} first" in mtkd("import-teacher", "liver", "few.zarr", code=1)
    _write_answers("dark.zarr", frames, lambda pixels: pixels // 2)
    assert "answers other pixels of 6 of 6" in mtkd("import-teacher", "liver", "dark.zarr", code=1)
    assert "is not there" in mtkd("import-teacher", "liver", "none.zarr", code=1)
    assert "is no logit store" in mtkd("import-teacher", "liver", "data", code=1)
    assert files(run / "stores/liver.zarr") == before


def _answer(pixels):
    lead = pixels[::2, ::2, 0].astype(np.float32) / 16 - 8
    return np.stack([np.zeros_like(lead), lead]).astype(np.float16)


def _write_answers(path, frames, changed=lambda pixels: pixels):
    frames = list(frames)
    with cache.create_store(
        f"scratch/{path}",
        anatomy="liver",
        frames=[frame.id for frame in frames],
        grid=(16, 24),
        image_size=(32, 48),
        identity_parts={"teacher": "another model"},
    ) as writer:
        for frame in frames:
            pixels = changed(load_frame(frame.image))
            writer.append(_answer(pixels)[None], [google_crc32c.value(pixels.tobytes())])
        writer.finish(path)


def test_teachers_speak_on_frames_without_labels(run):
    """They are in every store, and the student that learns from the stores sees them; the baseline doesn't."""
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3)).astype(np.uint8)
        write_png(run / "video" / "07" / f"{number}.png", pixels)
    params = yaml.safe_load((run / "params.yaml").read_text())
    params["data"]["unlabelled_root"] = "video"
    (run / "params.yaml").write_text(yaml.safe_dump(params))
    assert "without label: 4 frames" in mtkd("prepare")
    assert "run `dvc repro cache_logits@liver`" in mtkd("train-student", "mtkd", code=1)
    mtkd("cache-logits")
    assert cache.open_store("stores/liver.zarr").read("unlabelled/07/3").shape == (2, 16, 24)
    assert "10 training and 6 validation frames" in mtkd("train-student", "mtkd")
    assert "6 training and 6 validation frames" in mtkd("train-student", "baseline")


def test_frames_without_labels_say_nothing_about_anatomies(run):
    """Cross-entropy ignores them; the divergence does not."""
    write_png(run / "video" / "07" / "0.png", np.full((48, 64, 3), 90, np.uint8))
    params = yaml.safe_load((run / "params.yaml").read_text())
    params["data"]["unlabelled_root"] = "video"
    (run / "params.yaml").write_text(yaml.safe_dump(params))
    mtkd("prepare")
    mtkd("cache-logits")
    settings = load_params()
    data = FrameDataset(taught_frames(["liver", "colon"]), ["liver", "colon"], 1, open_stores(settings))
    batch = default_collate([data[0, 6]])
    assert not data.frames[6].labelled
    logits = torch.randn(1, 2, 2, 16, 24, requires_grad=True)
    terms = distilled(supervised(2, None), settings.distill).terms(logits, batch)
    assert terms["cross_entropy"].tolist() == [0, 0]
    assert terms["valid_pixels"].tolist() == [0, 0]
    assert (terms["kl_divergence"] > 0).all()
