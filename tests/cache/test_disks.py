"""A store that ends on another disk than it grew on, and disks that lack what local ones have."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from example_stores import begin, files, logits, resume, write

import cache
from cache import durable, lock, place

fork = multiprocessing.get_context("fork")


@pytest.fixture
def linked(tmp_path, disk):
    """A folder whose ``stores`` is a link to another disk."""
    folder = tmp_path / "linked"
    folder.mkdir()
    (folder / "stores").symlink_to(disk)
    return folder


def left(folder):
    """What lies at rest where stores grow and where they end."""
    return sorted(p.name for part in ("scratch", "stores") for p in (folder / part).iterdir())


def test_a_store_ends_on_another_disk(tmp_path, linked):
    whole = files(write(tmp_path / "whole"))
    for seed in (1, 0):  # the second one replaces the first
        assert cache.verify(write(linked, seed=seed)) == []
        assert left(linked) == ["liver.zarr"]
    assert (linked / "stores").is_symlink()
    assert files(linked / "stores/liver.zarr") == whole


def test_a_mount_of_the_same_disk_is_another_one_too(tmp_path, monkeypatch):
    """Renaming between bind mounts fails, though both say that they are one device."""
    move = Path.replace

    def replace(self, target):
        if (self.parent.name, Path(target).parent.name) in [
            ("scratch", "stores"),
            ("stores", "scratch"),
        ]:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return move(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    for _ in range(2):
        assert cache.verify(write(tmp_path)) == []
        assert left(tmp_path) == ["liver.zarr"]


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same disk", "another disk"])
def test_a_link_in_the_place_of_a_store_is_replaced_and_what_it_points_to_stays(
    tmp_path, disk, elsewhere
):
    other = write(tmp_path / "other", seed=1)
    kept = files(other)
    if elsewhere:
        (tmp_path / "stores").symlink_to(disk)
    target = tmp_path / "stores/liver.zarr"
    target.parent.mkdir(exist_ok=True)
    for points_to in (other, tmp_path / "nothing"):
        shutil.rmtree(target, ignore_errors=True)
        target.symlink_to(points_to)
        assert cache.verify(write(tmp_path)) == []
        assert not target.is_symlink()
        assert files(other) == kept
        assert left(tmp_path) == ["liver.zarr"]


def test_a_disk_that_gets_full_while_a_store_is_copied_there_loses_nothing(linked, monkeypatch):
    old = files(write(linked, seed=1))
    with monkeypatch.context() as patch:
        patch.setattr(
            place,
            "sync",
            lambda file: (_ for _ in ()).throw(OSError(errno.EDQUOT, "Disk quota exceeded")),
        )
        with pytest.raises(
            cache.NotWrittenError,
            match=r"stores/liver.zarr cannot .* \(Disk quota exceeded\): make room",
        ):
            write(linked)
    assert left(linked) == ["liver.zarr", "liver.zarr"]
    assert files(linked / "stores/liver.zarr") == old
    with begin(linked) as writer:
        assert writer.next == 10
        writer.finish(linked / "stores/liver.zarr")
    assert files(linked / "stores/liver.zarr") != old
    assert left(linked) == ["liver.zarr"]


def test_a_copy_that_is_not_what_was_written_does_not_take_the_place(linked, monkeypatch):
    old = files(write(linked, seed=1))

    def damaging(source, written):
        content = bytearray(source.read())
        content[len(content) // 2] ^= 1
        written.write(content)

    monkeypatch.setattr("cache.place.shutil.copyfileobj", damaging)
    with pytest.raises(
        cache.IntegrityError, match=r"all of it is kept in .*scratch/liver.zarr: check the disk"
    ):
        write(linked)
    assert files(linked / "stores/liver.zarr") == old
    assert left(linked) == ["liver.zarr", "liver.zarr"]


def test_one_copies_to_a_place_at_a_time(linked):
    """Two projects may share a folder of stores."""
    with (
        cache.ScratchLock(linked / "stores/.liver.zarr.partial"),
        pytest.raises(cache.StoreBusyError),
    ):
        write(linked)
    resume(linked)
    assert left(linked) == ["liver.zarr"]


def die_at(step, scratch, target):
    """Put a store in place, and be killed before the given change of the disk."""

    def dying(change):
        def changed(*arguments, **options):
            nonlocal step
            step -= 1
            if not step:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*arguments, **options)

        return changed

    place.sync = dying(place.sync)
    for name in ("mkdir", "replace", "unlink", "rmdir"):
        setattr(Path, name, dying(getattr(Path, name)))
    os.unlink, os.rmdir = dying(os.unlink), dying(os.rmdir)
    place.put_in_place(scratch, target, scratch.with_name("liver.zarr.old"))


def test_kill_9_at_every_step_of_a_copy_loses_nothing(tmp_path, linked, monkeypatch):
    """Exhaustive: at the first change of the disk, at the second, ...

    The next run copies again, and leaves nothing.
    """
    whole = files(write(tmp_path / "whole", 4))
    target, scratch = linked / "stores/liver.zarr", linked / "scratch/liver.zarr"
    with monkeypatch.context() as patch, begin(linked, 4) as writer:
        patch.setattr("cache.writer.put_in_place", lambda *places: None)
        writer.append(logits(4), range(4))
        writer.finish(target)
    shutil.copytree(scratch, tmp_path / "sealed")
    write(linked / "earlier", 4, seed=1)
    step = 0
    status = -signal.SIGKILL
    while status == -signal.SIGKILL:
        step += 1
        shutil.rmtree(linked / "scratch", ignore_errors=True)
        shutil.copytree(tmp_path / "sealed", scratch)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(linked / "earlier/stores/liver.zarr", target)
        child = fork.Process(target=die_at, args=(step, scratch, target))
        child.start()
        child.join(60)
        status = child.exitcode
        copied = target.exists() and files(target) == whole
        assert copied or files(scratch) == whole, step
        if not copied:
            with begin(linked, 4) as writer:
                assert writer.next == 4, step
                writer.finish(target)
        elif scratch.exists() or (linked / "scratch/liver.zarr.old").exists():
            resume(linked, 4)
        assert files(target) == whole, step
        if not copied:
            assert left(linked) == ["liver.zarr"], step
    assert status == 0
    assert step > 20
    resume(linked, 4)
    assert left(linked) == ["liver.zarr"]


def test_what_a_kill_leaves_of_a_discarded_store_is_discarded(tmp_path, monkeypatch):
    """However many of its files are gone, and also if its attributes were damaged before."""
    remove = Path.unlink
    for damaged in (False, True):
        source = write(tmp_path / f"source{damaged}")
        if damaged:
            (source / "zarr.json").write_text("{")
        for count in range(len(files(source))):
            store = tmp_path / f"{damaged}{count}.zarr"
            shutil.copytree(source, store)
            calls = iter(range(count))

            def stopping(self, missing_ok=False, calls=calls):
                if next(calls, None) is None:
                    raise KeyboardInterrupt
                remove(self, missing_ok)

            with monkeypatch.context() as patch:
                patch.setattr(Path, "unlink", stopping)
                with pytest.raises(KeyboardInterrupt):
                    place.discard(store)
            place.discard(store)
            assert not store.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "scratch").symlink_to(tmp_path / "missing")
    with pytest.raises(
        cache.NotWrittenError, match=r"scratch cannot be made \(File exists\): begin in a folder on"
    ):
        begin(tmp_path)


def test_a_disk_without_fsync_will_do(tmp_path, monkeypatch):
    monkeypatch.setattr(
        durable.os, "fsync", lambda number: (_ for _ in ()).throw(OSError(errno.EINVAL, "Invalid"))
    )
    with (tmp_path / "a").open("w") as file:
        durable.sync(file)
    monkeypatch.setattr(
        durable.os, "fsync", lambda number: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error"))
    )
    with (tmp_path / "a").open("w") as file, pytest.raises(OSError, match="I/O error"):
        durable.sync(file)


def refuse(number):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    return flock


@pytest.fixture(
    params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=["ENOSYS", "ENOLCK", "EOPNOTSUPP"]
)
def no_flock(request, monkeypatch):
    """As on Lustre without -o flock, on NFS without a lock daemon, ..."""
    monkeypatch.setattr(lock.fcntl, "flock", refuse(request.param))


def test_without_flock_stores_are_written_by_one_writer_at_a_time(tmp_path, no_flock):
    with begin(tmp_path) as writer:
        with pytest.raises(
            cache.StoreBusyError, match=f"is being written by process {os.getpid()}: wait for it"
        ):
            begin(tmp_path)
        assert cache.is_being_written(writer.path)
        child = fork.Process(target=writer._lock.let_go)  # a loader worker's copy of the writer
        child.start()
        child.join()
        assert cache.is_being_written(writer.path)
    assert not cache.is_being_written(writer.path)
    assert cache.verify(resume(tmp_path)) == []
    assert left(tmp_path) == ["liver.zarr"]


HOLD = """
import errno, os, sys, time
from pathlib import Path
import cache.lock

def flock(file, operation):
    raise OSError(errno.ENOSYS, "Function not implemented")

cache.lock.fcntl.flock = flock
held = cache.ScratchLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def ended(tmp_path):
    """A scratch folder whose lock was left by a process that was killed, without flock."""
    scratch = tmp_path / "scratch/liver.zarr"
    scratch.parent.mkdir()
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, scratch],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(cache.__file__).parents[1])},
    )
    assert child.stdout.readline() == b"held\n"
    with pytest.raises(cache.StoreBusyError, match=f"by process {child.pid}: wait for it"):
        cache.ScratchLock(scratch)  # with flock: what the file says counts as well
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    yield scratch  # nobody has read its exit status yet: its number is still taken
    child.wait()
    child.stdout.close()


def test_the_lock_of_a_killed_process_is_replaced(tmp_path, ended, monkeypatch):
    content = (tmp_path / "scratch/liver.zarr.lock").read_text()
    cache.ScratchLock(ended).let_go()
    monkeypatch.setattr(lock.fcntl, "flock", refuse(errno.ENOSYS))
    (tmp_path / "scratch/liver.zarr.lock").write_text(content)
    with cache.ScratchLock(ended):
        assert cache.is_being_written(ended)
    assert not list(ended.parent.iterdir())


def lock_of(scratch, **changes):
    """A lock as this process would leave it, or another one."""
    path = scratch.with_name(f"{scratch.name}.lock")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(lock._myself() | changes))
    return path


def test_a_process_of_another_machine_may_still_run(tmp_path, no_flock):
    scratch = tmp_path / "scratch/liver.zarr"
    for changes in ({"host": "node7"}, {"boot": "before the last start, or another container"}):
        path = lock_of(scratch, since=time.time() - 7200, pid=4_000_000, **changes)
        with pytest.raises(cache.StoreBusyError) as refused:
            cache.ScratchLock(scratch)
        host = changes.get("host", lock._myself()["host"])
        holder = f"locked by process 4000000 on {host} for 120 min"
        advice = f"wait for it; if it has ended, remove {path}"
        assert str(refused.value).endswith(f"{holder}: {advice}")
    path.unlink()
    cache.ScratchLock(scratch).let_go()


def test_a_number_that_another_process_has_now_is_not_its_own(tmp_path, no_flock):
    scratch = tmp_path / "scratch/liver.zarr"
    lock_of(scratch, started="1")
    cache.ScratchLock(scratch).let_go()


def test_a_lock_that_does_not_say_whose_it_is_is_not_replaced(tmp_path, no_flock):
    scratch = tmp_path / "scratch/liver.zarr"
    for content in ("", "{", "7", "{}"):
        lock_of(scratch).write_text(content)
        with pytest.raises(
            cache.StoreBusyError,
            match=r"does not say by which process: if none writes there, remove",
        ):
            cache.ScratchLock(scratch)


def race(scratch, started, wins):
    lock.fcntl.flock = refuse(errno.ENOSYS)
    started.wait()
    try:
        cache.ScratchLock(scratch)
    except cache.StoreBusyError:
        return
    wins.put(os.getpid())
    time.sleep(0.5)


def test_of_many_that_find_a_dead_lock_one_replaces_it(tmp_path):
    scratch = tmp_path / "scratch/liver.zarr"
    for _ in range(3):
        lock_of(scratch, started="1")
        started, wins = fork.Event(), fork.Queue()
        racers = [fork.Process(target=race, args=(scratch, started, wins)) for _ in range(6)]
        for racer in racers:
            racer.start()
        started.set()
        first = wins.get(timeout=30)
        for racer in racers:
            racer.join()
        assert wins.empty()
        assert json.loads((tmp_path / "scratch/liver.zarr.lock").read_text())["pid"] == first
        assert len(list(scratch.parent.iterdir())) == 1


@pytest.mark.parametrize(
    "number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.ENAMETOOLONG, errno.EIO]
)
def test_a_lock_that_cannot_be_written_is_named(tmp_path, monkeypatch, number):
    special = {errno.ENOSPC: "make room", errno.ENAMETOOLONG: "give a shorter name"}
    advice = special.get(number, "let its folder be on a disk that this user can write")
    message = rf"scratch/liver.zarr.lock cannot be written \({os.strerror(number)}\): {advice}"
    monkeypatch.setattr(lock.fcntl, "flock", refuse(number))
    with pytest.raises(cache.NotWrittenError, match=message):
        begin(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(Path, "open", lambda self, mode="r": refuse(number)(self, mode))
    with pytest.raises(cache.NotWrittenError, match=message):
        begin(tmp_path)


@pytest.fixture
def numbered_anew(monkeypatch):
    """As CIFS and some NFS do: no two looks at a file see one number."""
    same = os.path.samestat
    monkeypatch.setattr(
        lock.os.path, "samestat", lambda one, other: stat.S_ISDIR(one.st_mode) and same(one, other)
    )


def test_where_files_are_numbered_anew_a_lock_is_known_by_its_content(tmp_path, numbered_anew):
    with begin(tmp_path) as writer:
        with pytest.raises(cache.StoreBusyError):
            begin(tmp_path)
        assert cache.is_being_written(writer.path)
    assert not cache.is_being_written(writer.path)
    assert cache.verify(resume(tmp_path)) == []


@pytest.mark.parametrize("replaced", [False, True])
def test_the_lock_of_a_removed_file_keeps_nobody_out(
    tmp_path, numbered_anew, monkeypatch, replaced
):
    """Who held it may remove it after it was opened here, and another may create it again."""
    path = tmp_path / "scratch/liver.zarr.lock"
    opened = lock._opened

    def removed_since(*arguments):
        file = opened(*arguments)
        path.unlink()
        if replaced:
            path.touch()
        return file

    monkeypatch.setattr(lock, "_opened", removed_since)
    with pytest.raises(cache.StoreBusyError, match="another process"):
        begin(tmp_path)
