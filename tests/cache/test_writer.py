"""The writer of a store: what it refuses, and that a stop at any moment leaves no trace."""

import logging
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import example_stores
import numpy as np
import pytest
import zarr
from example_stores import begin, files, logits, resume, write
from zarr.storage import LocalStore

import cache

KILLS = int(os.environ.get("MTKD_KILLS", "3"))

writer_log = logging.getLogger("cache.writer")


def test_a_resumed_store_is_the_same_to_the_byte(tmp_path):
    whole = files(write(tmp_path / "a"))
    with begin(tmp_path / "b") as writer:
        writer.append(logits(10)[:7], range(7))
    with begin(tmp_path / "b") as writer:
        assert writer.next == 4  # the second shard was not full
        writer.append(logits(10)[4:], range(4, 10))
        writer.finish(tmp_path / "b" / "stores" / "liver.zarr")
    assert files(tmp_path / "b" / "stores" / "liver.zarr") == whole
    assert not list((tmp_path / "b" / "scratch").iterdir())


def test_a_shard_with_damaged_content_is_written_again(tmp_path):
    with begin(tmp_path) as writer:
        writer.append(logits(10)[:8], range(8))
    shard = tmp_path / "scratch/liver.zarr/logits/c/0/1/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-20])
    with begin(tmp_path) as writer:
        assert writer.next == 4


def test_another_identity_starts_anew(tmp_path, caplog, monkeypatch):
    # A library that another test has loaded may have switched loggers off.
    monkeypatch.setattr(writer_log, "disabled", False)
    monkeypatch.setattr(writer_log, "propagate", True)
    monkeypatch.setattr(writer_log.manager, "disable", logging.NOTSET)
    caplog.set_level(logging.WARNING, writer_log.name)
    with begin(tmp_path) as writer:
        writer.append(logits(10)[:8], range(8))
    with begin(tmp_path, parts={"teacher": "other"}) as writer:
        assert writer.next == 0
    assert "starts anew" in caplog.text


def test_a_store_that_was_only_half_begun_starts_anew(tmp_path, monkeypatch):
    put = LocalStore.set
    for stop_at in range(1, 6):
        left = stop_at

        async def stopping(self, key, value, *args, **options):
            nonlocal left
            left -= 1
            if not left:
                raise Stopped
            await put(self, key, value, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(LocalStore, "set", stopping)
            with begin(tmp_path) as writer, pytest.raises(Stopped):
                writer.append(logits(10)[:4], range(4))
        with begin(tmp_path, parts={"teacher": "other"}) as writer:
            assert writer.next == 0


def test_what_is_no_begun_store_is_not_discarded(tmp_path):
    """The user's folder, another Zarr, a complete store: none is begun over."""
    mine = tmp_path / "scratch" / "liver.zarr"
    (mine / "logits").mkdir(parents=True)
    (mine / "logits" / "frame0.npy").write_bytes(b"mine")
    with pytest.raises(cache.OccupiedError, match="is not a logit store and would be lost"):
        begin(tmp_path)
    shutil.rmtree(mine)
    zarr.create_group(mine).create_array("logits", shape=(2,), dtype="f2")[:] = 1
    with pytest.raises(cache.OccupiedError, match="is not a logit store"):
        begin(tmp_path)
    shutil.rmtree(mine)
    whole = files(write(tmp_path))
    (tmp_path / "stores").rename(tmp_path / "scratch2")
    mine.parent.rmdir()
    (tmp_path / "scratch2").rename(mine.parent)
    with pytest.raises(cache.OccupiedError, match="is a complete store of something else"):
        begin(tmp_path, parts={"teacher": "other"})
    assert files(mine) == whole


def test_what_is_no_store_is_not_replaced(tmp_path):
    for name, make in (("folder", Path.mkdir), ("file", Path.touch)):
        make(tmp_path / name)
        inside = tmp_path / name / "notes.txt" if name == "folder" else tmp_path / name
        inside.write_text("mine")
        with begin(tmp_path) as writer:
            if writer.next < 10:
                writer.append(logits(10), range(10))
            with pytest.raises(cache.OccupiedError, match="is not a logit store and would be lost"):
                writer.finish(tmp_path / name)
        assert inside.read_text() == "mine"
    with begin(tmp_path) as writer:
        with pytest.raises(ValueError, match="ends at another path"):
            writer.finish(writer.path)
        writer.finish(tmp_path / "stores" / "liver.zarr")


def test_a_damaged_store_is_replaced_and_what_a_killed_writer_put_aside_is_cleared(tmp_path):
    target = write(tmp_path)
    shutil.copytree(target, tmp_path / "scratch" / "liver.zarr.old")
    (target / "zarr.json").write_text("{")
    (target / "logits" / "zarr.json").unlink()
    assert cache.verify(write(tmp_path, seed=1)) == []
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("frames", "abc", "frames a list of str"),
        ("frames", ["a", 1], "frames a list of str"),
        ("anatomy", None, "anatomy is a str"),
        ("grid", (2,), "grid"),
        ("grid", (2.5, 2), "grid"),
        ("grid", (0, 2), "grid"),
        ("image_size", 7, "image_size"),
        ("identity_parts", {"teacher": Path("x")}, "identity_parts"),
        ("identity_parts", {"scale": float("nan")}, "identity_parts"),
        ("views", [{"view": {1}}], "views"),
    ],
)
def test_arguments_are_checked_before_anything_is_begun(tmp_path, argument, value, error):
    sound = {
        "anatomy": "liver",
        "frames": ["a"],
        "grid": (2, 2),
        "image_size": (8, 8),
        "identity_parts": {},
    }
    with pytest.raises((TypeError, ValueError), match=error):
        cache.create_store(tmp_path / "s.zarr", **(sound | {argument: value}))
    assert not list(tmp_path.iterdir())


def test_logits_that_are_not_real_are_refused(tmp_path):
    with begin(tmp_path) as writer, pytest.raises(cache.UnstorableError, match="complex128"):
        writer.append(logits(10).astype(complex), range(10))


def test_a_live_writer_is_seen(tmp_path):
    with begin(tmp_path) as writer:
        assert cache.is_being_written(writer.path)
    assert not cache.is_being_written(writer.path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65520.0, -1e9])
def test_what_float16_cannot_hold_stops_the_writer_with_the_frame(tmp_path, value):
    values = logits(10)
    values[5, 1, 2, 3] = value
    with begin(tmp_path) as writer, pytest.raises(cache.UnstorableError, match="liver/01/image05"):
        writer.append(values, range(10))


def test_wrong_shapes_and_too_many_frames_are_refused(tmp_path):
    with begin(tmp_path) as writer:
        with pytest.raises(ValueError, match="for a store of"):
            writer.append(np.zeros((1, 2, 5, 5)), [0])
        with pytest.raises(ValueError, match="holds 10 frames"):
            writer.append(logits(11), range(11))
    with pytest.raises(ValueError, match="each once"):
        begin(tmp_path, 0)


def test_a_writer_goes_on_after_a_shard_that_it_could_not_write(tmp_path, monkeypatch):
    whole = files(write(tmp_path / "whole"))
    with begin(tmp_path / "a") as writer:
        for stop in (4, 8, 10):  # the disk is full once for each shard
            start, written = writer.next, writer.bytes_written
            with monkeypatch.context() as patch:
                patch.setattr(
                    writer,
                    "_write_shard",
                    lambda: (_ for _ in ()).throw(OSError(28, "No space left")),
                )
                with pytest.raises(cache.NotWrittenError, match=f"after {start} of 10"):
                    writer.append(logits(10)[start:stop], range(start, stop))
                with pytest.raises((cache.IncompleteError, cache.NotWrittenError)):
                    writer.finish(tmp_path / "a/stores/liver.zarr")
            writer.append(logits(10)[stop:stop], [])
            assert writer.next == stop
            assert writer.bytes_written > written
        writer.finish(tmp_path / "a/stores/liver.zarr")
        with pytest.raises(ValueError, match="was finished before"):
            writer.finish(tmp_path / "b.zarr")
    assert files(tmp_path / "a/stores/liver.zarr") == whole
    assert not list((tmp_path / "a/scratch").iterdir())


def test_numbers_of_numpy_will_do_and_checksums_are_checked(tmp_path):
    with begin(tmp_path, shard=np.int64(4)) as writer:
        for wrong in (2**32, -1):
            with pytest.raises(ValueError, match="crc32c gives"):
                writer.append(logits(1), [wrong])
        writer.append(logits(1), [np.uint32(7)])


def test_a_second_writer_is_refused(tmp_path):
    with begin(tmp_path), pytest.raises(cache.StoreBusyError, match="another process"):
        begin(tmp_path)
    begin(tmp_path).__exit__(None, None, None)


def say_and_sleep(running):
    running.set()
    time.sleep(60)


def test_a_worker_that_was_forked_while_writing_does_not_keep_others_out(tmp_path):
    context = multiprocessing.get_context("fork")
    running = context.Event()
    with begin(tmp_path):
        worker = context.Process(target=say_and_sleep, args=(running,))
        worker.start()
        assert running.wait(30)
    try:
        begin(tmp_path).__exit__(None, None, None)
    finally:
        worker.kill()
        worker.join()


def test_another_shard_size_starts_anew(tmp_path):
    with begin(tmp_path, shard=4) as writer:
        writer.append(logits(10)[:8], range(8))
    assert files(resume(tmp_path, shard=3)) == files(write(tmp_path / "whole", shard=3))


class Stopped(Exception):  # noqa: N818
    """Stands for the end of the process."""


@pytest.mark.parametrize("written", [False, True], ids=["before", "after"])
def test_a_stop_before_or_after_any_write_leaves_no_trace(tmp_path, monkeypatch, written):
    """Exhaustive: stop at the first file that is written, at the second, ... and then go on."""
    whole = files(write(tmp_path / "whole", 6, views=2))
    put = LocalStore.set
    stop_at = 0

    async def stopping(self, key, value, *args, **options):
        nonlocal left
        left -= 1
        if written or left:
            await put(self, key, value, *args, **options)
        if not left:
            raise Stopped

    while True:
        stop_at += 1
        path = tmp_path / str(stop_at)
        left = stop_at
        with monkeypatch.context() as patch:
            patch.setattr(LocalStore, "set", stopping)
            try:
                resume(path, 6, views=2)
                break
            except Stopped:
                pass
        assert files(resume(path, 6, views=2)) == whole, f"stopped at write {stop_at}"
        assert not list((path / "scratch").iterdir())
    assert stop_at > 4 * 3  # four shards, and each has two tables


def test_a_half_written_last_shard_is_written_again(tmp_path):
    whole = files(write(tmp_path / "whole", 10, views=2))
    with begin(tmp_path, views=2) as writer:
        writer.append(logits(20)[:18], range(18))
        assert writer.next == 18
    shard = tmp_path / "scratch/liver.zarr/logits/c/1/1/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-20])
    (shard.parent / "0.0123.partial").write_bytes(b"left by a killed writer")
    assert files(resume(tmp_path, views=2)) == whole


@pytest.mark.parametrize("seed", range(KILLS))
def test_kill_9_at_a_random_moment_leaves_no_trace(tmp_path, seed):
    """`make test-all` kills twenty times."""
    whole = files(write(tmp_path / "whole", 30, views=2))
    child = subprocess.Popen(
        [sys.executable, example_stores.__file__, tmp_path / "killed"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(cache.__file__).parents[1])},
    )
    assert child.stdout.readline() == b"begun\n"
    time.sleep(random.Random(seed).uniform(0, 0.6))
    child.kill()
    child.wait()
    child.stdout.close()
    assert files(resume(tmp_path / "killed", 30, views=2)) == whole


def test_a_full_disk_loses_no_whole_shard(tmp_path):
    """Writing fails in the middle, and goes on with room.

    A limit on the size of files stands for the disk.
    """
    whole = files(write(tmp_path / "whole", 30, views=2, grid=(64, 80)))
    code = (
        "import resource, sys; from pathlib import Path; import example_stores as e;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1));"
        "e.resume(Path(sys.argv[1]), 30, views=2, batch=3, grid=(64, 80))"
    )
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(Path(cache.__file__).parents[1]), str(Path(__file__).parent)]
        ),
    }
    largest = max(len(content) for name, content in whole.items() if "/c/" in name)
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "full", str(largest - 1)],
        env=env,
        capture_output=True,
    )
    assert done.returncode == 1
    message = done.stderr.decode().splitlines()[-1]
    assert "cache.errors.NotWrittenError" in message
    assert re.search(
        r"full/scratch/liver.zarr cannot be written after \d+ of 60 frames \(File too large\)",
        message,
    )
    assert "start again: it goes on after these" in message
    assert not (tmp_path / "full" / "stores" / "liver.zarr").exists()
    assert files(resume(tmp_path / "full", 30, views=2, grid=(64, 80))) == whole
