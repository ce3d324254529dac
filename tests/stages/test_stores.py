"""What the command line does with stores: estimate, list, check, clear; and a cluster that writes
them.
"""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import google_crc32c
import numpy as np
import pytest
import torch
import yaml
from helpers import ROOT, change, mtkd, write_png
from torch.utils.data import default_collate

import cache
from pipeline.checkpoint import load_checkpoint
from pipeline.datasets import FrameDataset
from pipeline.distillation import distilled
from pipeline.machine import Machine
from pipeline.models.network import normalise, resize
from pipeline.prepared import load_frame
from pipeline.training import supervised
from stages.shared.project import load_project
from stages.stores import commands
from stages.stores.commands import TOLERANCES, _recomputed
from stages.stores.plan import StorePlan, make_plans
from stages.stores.reader import open_stores


def files(path):
    return {
        str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()
    }


def test_stored_logits_are_the_teachers_at_full_size(run):
    """Native resolution loses nothing: upsampling is the same function of what is stored, up to
    float16.
    """
    from pathlib import Path

    teacher = load_checkpoint(Path("checkpoints/teachers/liver.safetensors"))[0]
    store = cache.open_store("stores/liver.zarr")
    for frame in load_project().frames_of("train"):
        pixels = torch.from_numpy(load_frame(frame.image).transpose(2, 0, 1).copy())[None]
        with torch.inference_mode():
            live = resize(teacher(normalise(pixels, teacher)), (32, 48))[0, 0]
        stored = resize(
            torch.from_numpy(store.read(frame.id).astype(np.float32))[None, None], (32, 48)
        )[0, 0]
        assert float((live - stored).abs().max()) <= 2**-10 * float(live.abs().max())


def test_an_estimate_writes_nothing(run):
    shutil.rmtree("stores")
    output = mtkd("cache-logits", "--estimate")
    assert "liver: 6 predictions at" in output
    assert "all: 18.0 KiB before compression" in output
    assert not (run / "stores").exists()
    assert not (run / "scratch/stores/liver.zarr").exists()


def test_a_disk_that_is_too_small_is_told_before_work_begins(run, monkeypatch):
    monkeypatch.setattr("stages.stores.plan.free_space", lambda folder: 1000)
    for arguments in (["cache-logits", "--estimate"], ["cache-logits"]):
        assert "before compression, the disk has 1000 B free" in mtkd(*arguments, code=1)


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
    assert "1 problem:" in output
    assert "4 frames, " in output
    assert "dvc repro -s -f cache_logits@colon" in output


def test_verify_finds_answers_in_the_wrong_place(run):
    """A whole store of the right identity, whose writer was given two frames in each other's
    place.
    """
    (plan,) = make_plans(load_project(), ["liver"])
    whole = cache.open_store("stores/liver.zarr")
    order = [1, 0, *range(2, len(whole.frames))]
    with plan.writer(whole.shape[-2:]) as writer:
        for i in order:
            writer.append(whole.read(i)[None], [whole.pixels(i)])
        writer.finish("stores/liver.zarr")
    said = mtkd("cache", "verify", code=1)
    assert (
        "holds logits of other pixels than the prepared ones in 2 places, "
        f"frame {whole.frames[0]} (view 0) first" in said
    )
    assert "stores/colon.zarr: whole" in said


def test_verify_asks_the_teacher_again(run):
    assert mtkd("cache", "verify", "--recompute", "3").count("whole") == 2
    assert "logits are others now" in mtkd(
        "cache", "verify", "--recompute", "6", "--tolerance", "0", code=1
    )
    shutil.copy("checkpoints/teachers/colon.safetensors", "checkpoints/teachers/liver.safetensors")
    assert "its teacher is" in mtkd("cache", "verify", "liver", "--recompute", "1", code=1)


def rounded_to_tf32(network):
    """Ten bits of the mantissa are left of each weight, which is half of what TF32 does."""
    network = copy.deepcopy(network)
    for weights in network.parameters():
        weights.data = (weights.data.view(torch.int32) + 0x1000 & ~0x1FFF).view(torch.float32)
    return network


@pytest.mark.parametrize("precision", TOLERANCES)
def test_a_store_of_another_device_is_the_teachers_and_never_another_teachers(
    run, monkeypatch, precision
):
    """The answers of a device are emulated: they differ from the store's as far as the precision
    lets them.
    """
    real = commands.predictions

    def elsewhere(network, asked, batches, wanted, machine):
        assert wanted == precision
        network = rounded_to_tf32(network) if precision == "tf32" else network
        return real(
            network, asked, batches, "32-true" if precision == "tf32" else precision, machine
        )

    monkeypatch.setattr(commands, "predictions", elsewhere)
    (plan,) = make_plans(load_project(), ["liver"])
    settings = plan.params.cache.model_copy(update={"precision": precision})
    params = plan.params.model_copy(update={"cache": settings})
    plan = replace(plan, project=replace(plan.project, params=params))
    assert _recomputed(plan, 6, None, Machine("cpu")) == []
    if precision != "32-true":
        assert _recomputed(plan, 6, 0, Machine("cpu"))
    (other,) = make_plans(load_project(), ["colon"])
    network = other.teacher()
    monkeypatch.setattr(StorePlan, "teacher", lambda _: network)
    problems = _recomputed(plan, 6, None, Machine("cpu"))
    assert len(problems) == 6
    assert all(
        f"the tolerance for cache.precision {precision} is {TOLERANCES[precision]:g}: run" in p
        for p in problems
    )


def test_verify_asks_every_teacher_that_it_can_and_reports_all_together(run):
    (run / "checkpoints/teachers/liver.safetensors").unlink()
    output = mtkd("cache", "verify", "--recompute", "2", code=1)
    assert "1 problem:\ncheckpoints/teachers/liver.safetensors is missing" in output
    assert "stores/colon.zarr: whole" in output
    change(run, data__image_size=[16, 24], cache__seed=9)
    output = mtkd("cache", "verify", "--recompute", "2", code=1)
    assert "2 problems:" in output
    assert "its view_seed is 1, expected 9; run `dvc repro cache_logits@colon`" in output
    assert "logits are others now" not in output


def test_another_anatomys_store_is_not_read_as_data(run):
    """Whole and sound, and in the wrong place; with or without the teachers beside it."""
    shutil.rmtree("stores/liver.zarr")
    shutil.copytree("stores/colon.zarr", "stores/liver.zarr")
    for _ in range(2):
        for command in (["train-student", "mtkd"], ["cache", "verify"]):
            assert "its anatomy is colon, expected liver" in mtkd(*command, code=1)
        assert "would remove stores/liver.zarr: written for another" in mtkd(
            "cache", "prune", "--dry-run"
        )
        shutil.rmtree("checkpoints", ignore_errors=True)


def test_another_anatomys_teacher_is_not_asked(run):
    shutil.copy("checkpoints/teachers/colon.safetensors", "checkpoints/teachers/liver.safetensors")
    assert "does not match: its list of decoders is colon, expected liver" in mtkd(
        "cache-logits", "liver", code=1
    )


def test_a_store_anywhere_is_checked_by_its_path(run, monkeypatch, tmp_path):
    shutil.copytree("stores/liver.zarr", tmp_path / "alone/mine.zarr")
    assert mtkd("cache", "verify", "stores/liver.zarr", "colon").count("whole") == 2
    monkeypatch.chdir(tmp_path / "alone")
    assert "mine.zarr: whole" in mtkd("cache", "verify", "mine.zarr")
    assert json.loads(mtkd("cache", "stats", "mine.zarr"))["mine.zarr"]["frames"] == 6
    (tmp_path / "alone/mine.zarr/logits/c/0/0/0/0/0").unlink()
    damaged = mtkd("cache", "verify", "mine.zarr", code=1)
    assert "write it again, or take a whole copy" in damaged
    absent = mtkd("cache", "stats", "no.zarr", code=1)
    assert "no.zarr is missing: name a .zarr store" in absent
    assert "name anatomies, no paths" in mtkd(
        "cache", "verify", "mine.zarr", "--recompute", "1", code=2
    )


def test_prune_removes_what_no_run_can_use(run):
    assert "nothing to remove" in mtkd("cache", "prune")
    shutil.copytree("stores/liver.zarr", "stores/spleen.zarr")
    shutil.copytree("stores/colon.zarr", "scratch/stores/colon.zarr")
    shutil.copytree("stores/colon.zarr", "scratch/stores/colon.zarr.old")
    (run / "stores/notes.zarr").mkdir()
    (run / "stores/notes.zarr/mine.txt").touch()
    shutil.copy("checkpoints/teachers/liver.safetensors", "checkpoints/teachers/colon.safetensors")
    assert "written for another teacher" in mtkd("cache", "ls")
    output = mtkd("cache", "prune", "--dry-run")
    assert "would remove stores/spleen.zarr: spleen is not in data.anatomies" in output
    assert "stores/colon.zarr: written for another teacher" in output
    assert "left stores/notes.zarr: it is not a logit store" in output
    mtkd("cache", "prune")
    assert sorted(p.name for p in (run / "stores").iterdir()) == ["liver.zarr", "notes.zarr"]
    assert not list((run / "scratch/stores").iterdir())


def test_prune_says_of_what_cannot_be_identified_why(run):
    edits = {
        "stores/liver.zarr": (b'"precision": "32-true"', b'"precision": "16-mixed"'),
        "stores/colon.zarr": (b"{", b"["),
        "scratch/stores/liver.zarr": (b"{", b"["),
        "scratch/stores/colon.zarr": (b'"attributes"', b'"attribute"'),
    }
    for anatomy in ("liver", "colon"):
        shutil.copytree(f"stores/{anatomy}.zarr", f"scratch/stores/{anatomy}.zarr")
    for store, (old, new) in edits.items():
        file = run / store / "zarr.json"
        assert old in file.read_bytes()
        file.write_bytes(file.read_bytes().replace(old, new, 1))
    output = mtkd("cache", "prune", "--dry-run")
    assert "stores/liver.zarr: stores/liver.zarr/zarr.json does not match: it was edited" in output
    assert "stores/colon.zarr: stores/colon.zarr/zarr.json is damaged" in output
    for anatomy in ("liver", "colon"):
        assert (
            f"scratch/stores/{anatomy}.zarr: its zarr.json does not say what it was begun for"
            in output
        )


def test_prune_leaves_what_a_run_goes_on_with_or_is_writing(run):
    (plan,) = make_plans(load_project(), ["liver"])
    with plan.writer((16, 24)) as writer:
        writer.append(np.zeros((4, 2, 16, 24)), range(4))
        assert "being written" in mtkd("cache", "ls")
        change(run, cache__precision="bf16-mixed")
        assert "left scratch/stores/liver.zarr" in mtkd("cache", "prune")
        assert writer.path.exists()
    change(run, cache__precision="32-true")
    assert "`mtkd cache-logits` goes on with it" in mtkd("cache", "ls")
    assert "nothing to remove" in mtkd("cache", "prune")
    change(run, cache__shard_frames=3)
    assert "removed scratch/stores/liver.zarr: written for another shard_frames" in mtkd(
        "cache", "prune"
    )


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
    """A real scheduler and two worker processes on the loopback; gives its address and the
    workers.
    """
    pytest.importorskip("distributed")
    address = tmp_path / "scheduler.json"
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "5",
    }

    def start(*arguments):
        return subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
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
    params = yaml.safe_load((run / "params.yaml").read_text())
    params["cache"]["shard_frames"] = 1  # more shards than wait at the workers
    (run / "params.yaml").write_text(yaml.safe_dump(params))
    mtkd("cache-logits")
    before = {name: files(run / "stores" / name) for name in ("liver.zarr", "colon.zarr")}
    shutil.rmtree("stores")
    from distributed import Client

    with Client(address) as client:
        client.wait_for_workers(2, timeout=60)

    def kill() -> None:
        """Once the first shards are written."""
        while len(list(run.glob("scratch/stores/*/logits/c/**/*"))) < 3:
            time.sleep(0.01)
        workers[0].send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    output = mtkd("cache-logits", "--scheduler", address)
    killer.join()
    assert "2 workers" in output
    assert workers[0].wait(10) == -signal.SIGKILL
    assert {name: files(run / "stores" / name) for name in before} == before


def test_a_scheduler_that_is_not_there_is_told(run):
    pytest.importorskip("distributed")
    assert "does not answer" in mtkd("cache-logits", "--scheduler", "tcp://127.0.0.1:1", code=1)
    assert "is not an address such as" in mtkd(
        "cache-logits", "--scheduler", "other://127.0.0.1:1", code=1
    )
    assert "is not an address such as" in mtkd("cache-logits", "--scheduler", "nonsense", code=2)
    assert "does not go together" in mtkd(
        "cache-logits", "--estimate", "--scheduler", "tcp://127.0.0.1:1", code=2
    )


@pytest.fixture
def dvc(run, monkeypatch):
    """The finished folder as a project of DVC; gives the stages that were committed."""
    (run / ".dvc").mkdir()
    (run / "dvc.yaml").touch()
    committed = []
    monkeypatch.setattr(
        "stages.import_teacher._commit", lambda project, stage: committed.append(stage)
    )
    return committed


def test_another_models_answers_teach_the_student(run, dvc):
    """What any-teacher.md shows: NumPy in, a store out, imported in place of a teacher."""
    frames = load_project().frames_of("train")
    _write_answers("mine/liver.zarr", reversed(frames))
    assert "imported from mine/liver.zarr" in mtkd("import-teacher", "liver", "mine/liver.zarr")
    assert dvc == ["train_teacher@liver", "cache_logits@liver"]
    np.testing.assert_array_equal(
        cache.open_store("stores/liver.zarr").read(frames[2].id),
        _answer(load_frame(frames[2].image)),
    )
    for command in (["cache", "verify"], ["train-student", "mtkd"], ["evaluate"]):
        mtkd(*command)
    dice = json.loads((run / "metrics/evaluate.json").read_text())["teachers"]["dice"]
    assert dice["liver"] is None
    assert dice["mean"] == dice["colon"]
    assert "holds no weights" in mtkd("cache-logits", "liver", code=1)
    assert "holds no weights" in mtkd("cache", "verify", "liver", "--recompute", "1", code=1)
    before = files(run / "stores/liver.zarr")
    assert "liver: its teacher's logits were imported" in mtkd("cache-logits", "--estimate")
    assert "colon: 6 predictions ->" in mtkd("cache-logits")
    assert files(run / "stores/liver.zarr") == before


def test_an_import_that_fails_replaces_nothing(run, dvc):
    frames = load_project().frames_of("train")
    _write_answers("liver.zarr", frames)
    kept = files(run / "stores"), files(run / "checkpoints"), files(run / "metrics")
    file = run / "liver.zarr/logits/c/0/0/0/0/0"
    sound = bytearray(file.read_bytes())
    file.write_bytes(sound[:40] + bytes([sound[40] ^ 1]) + sound[41:])
    output = mtkd("import-teacher", "liver", "liver.zarr", code=1)
    assert (
        f"frame {frames[0].id} (view 0): its checksum does not match: write it again, or take"
        in output
    )
    file.write_bytes(sound)
    assert "holds the logits of a teacher of liver" in mtkd(
        "import-teacher", "colon", "liver.zarr", code=1
    )
    _write_answers("fine.zarr", frames, grid=(32, 48))
    output = mtkd("import-teacher", "liver", "fine.zarr", code=1)
    assert "fine.zarr has the grid (32, 48), stores/colon.zarr has (16, 24)" in output
    output = mtkd("import-teacher", "liver", "checkpoints/students/mtkd.safetensors", code=1)
    assert "has 2 decoders, a teacher has one: " in output
    assert "image_size" not in output
    (run / ".dvc").rmdir()
    for source in ("liver.zarr", "checkpoints/teachers/colon.safetensors"):
        assert "is not a project of DVC" in mtkd("import-teacher", "liver", source, code=1)
    assert (files(run / "stores"), files(run / "checkpoints"), files(run / "metrics")) == kept
    assert dvc == []


def test_answers_to_other_frames_are_not_imported(run, dvc):
    before = files(run / "stores/liver.zarr")
    frames = load_project().frames_of("train")
    _write_answers("few.zarr", frames[1:])
    assert f"lacks 1 of 6 training frames, {frames[0].id} first" in mtkd(
        "import-teacher", "liver", "few.zarr", code=1
    )
    _write_answers("dark.zarr", frames, lambda pixels: pixels // 2)
    assert "holds logits of other pixels of 6 of 6" in mtkd(
        "import-teacher", "liver", "dark.zarr", code=1
    )
    assert "is not there" in mtkd("import-teacher", "liver", "none.zarr", code=1)
    assert "is not a logit store" in mtkd("import-teacher", "liver", "data", code=1)
    assert files(run / "stores/liver.zarr") == before


def _answer(pixels, step=2):
    lead = pixels[::step, ::step, 0].astype(np.float32) / 16 - 8
    return np.stack([np.zeros_like(lead), lead]).astype(np.float16)


def _write_answers(path, frames, changed=lambda pixels: pixels, grid=(16, 24)):
    frames = list(frames)
    with cache.create_store(
        f"scratch/{path}",
        anatomy="liver",
        frames=[frame.id for frame in frames],
        grid=grid,
        image_size=(32, 48),
        identity_parts={"teacher": "another model"},
    ) as writer:
        for frame in frames:
            pixels = changed(load_frame(frame.image))
            writer.append(
                _answer(pixels, 32 // grid[0])[None], [google_crc32c.value(pixels.tobytes())]
            )
        writer.finish(path)


def test_teachers_speak_on_frames_without_labels(run):
    """They are in every store, and the student that learns from the stores sees them; the baseline
    doesn't.
    """
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3)).astype(np.uint8)
        write_png(run / "video" / "07" / f"{number}.png", pixels)
    params = yaml.safe_load((run / "params.yaml").read_text())
    params["data"]["unlabelled_root"] = "video"
    (run / "hollow").mkdir()
    (run / "params.yaml").write_text(
        yaml.safe_dump(params | {"data": params["data"] | {"unlabelled_root": "hollow"}})
    )
    assert "warning: data.unlabelled_root hollow holds no <surgery>/*.png" in mtkd("prepare")
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
    project = load_project()
    data = FrameDataset(project.distillation_frames(), ["liver", "colon"], 1, open_stores(project))
    batch = default_collate([data[0, 6]])
    assert not data.frames[6].labelled
    logits = torch.randn(1, 2, 2, 16, 24, requires_grad=True)
    terms = distilled(supervised(), project.params.distill).terms(logits, batch)
    assert terms["cross_entropy"].tolist() == [0, 0]
    assert terms["valid_pixels"].tolist() == [0, 0]
    assert (terms["kl_divergence"] > 0).all()
