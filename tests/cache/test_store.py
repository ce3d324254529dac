"""The store as its readers and writers see it, and what it refuses."""

import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cache

GRID = (6, 8)
PARTS = {"teacher": "aa", "frames": "bb", "precision": "32-true"}


def logits(frames, seed=0, grid=GRID):
    return (np.random.default_rng(seed).standard_normal((frames, 2, *grid)) * 5).astype(np.float32)


def begin(path, frames=10, *, shard=4, parts=PARTS, views=1, anatomy="liver", grid=GRID):
    return cache.create_store(
        path / "scratch" / f"{anatomy}.zarr",
        anatomy=anatomy,
        frames=[f"liver/01/image{i:02d}" for i in range(frames)],
        grid=grid,
        image_size=(4 * grid[0], 4 * grid[1]),
        identity_parts=parts,
        views=[{"view": v, "clean": views == 1} for v in range(views)],
        shard_frames=shard,
    )


def write(path, frames=10, *, seed=0, views=1, **options):
    target = path / "stores" / f"{options.get('anatomy', 'liver')}.zarr"
    with begin(path, frames, views=views, **options) as writer:
        writer.append(logits(frames * views, seed, options.get("grid", GRID)), range(frames * views))
        writer.finish(target)
    return target


def files(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_what_was_written_is_read(tmp_path):
    store = cache.open_store(write(tmp_path))
    for i, frame in enumerate(logits(10)):
        np.testing.assert_array_equal(store.read(i), frame.astype(np.float16))
        np.testing.assert_array_equal(store.read(f"liver/01/image{i:02d}"), frame.astype(np.float16))
        assert store.pixels(i) == i
    assert store.read(0).dtype == np.float16
    assert cache.verify(store.path) == []


def test_any_zarr_reader_understands_it(tmp_path):
    group = zarr.open_group(write(tmp_path), mode="r")
    array = group["logits"]
    assert (array.dtype, array.shape) == (np.float16, (1, 10, 2, *GRID))
    assert array.metadata.dimension_names == ("view", "frame", "channel", "y", "x")
    assert array.chunks == (1, 1, 2, *GRID)
    assert array.shards == (1, 4, 2, *GRID)
    assert np.isnan(array.fill_value)
    assert group["checksum"].shape == (1, 10)
    assert group["checksum"].dtype == np.uint32
    assert group.attrs["channels"] == ["background", "anatomy"]
    assert group.attrs["codec"]["chosen"] in group.attrs["codec"]["trial_bytes"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames=st.integers(1, 9),
    views=st.integers(1, 3),
    shard=st.integers(1, 6),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    batch=st.integers(1, 7),
)
def test_any_sizes(tmp_path_factory, frames, views, shard, grid, batch):
    path = tmp_path_factory.mktemp("any")
    values = logits(frames * views, 3, grid)
    with begin(path, frames, views=views, shard=shard, grid=grid) as writer:
        for start in range(0, len(values), batch):
            part = values[start : start + batch]
            writer.append(part, [start + i for i in range(len(part))])
        writer.finish(path / "liver.zarr")
    store = cache.open_store(path / "liver.zarr")
    for view in range(views):
        for frame in range(frames):
            expected = values[view * frames + frame].astype(np.float16)
            np.testing.assert_array_equal(store.read(frame, view), expected)
            assert store.pixels(frame, view) == view * frames + frame


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


def test_another_identity_starts_anew(tmp_path, caplog):
    with begin(tmp_path) as writer:
        writer.append(logits(10)[:8], range(8))
    with begin(tmp_path, parts={"teacher": "other"}) as writer:
        assert writer.next == 0
    assert "starts anew" in caplog.text


def test_the_identity_is_that_of_everything_that_determines_the_content(tmp_path):
    one = cache.open_store(write(tmp_path / "a"))
    assert one.identity == cache.open_store(write(tmp_path / "b", seed=1)).identity
    assert one.identity != cache.open_store(write(tmp_path / "c", parts=PARTS | {"teacher": "cc"})).identity
    assert one.identity != cache.open_store(write(tmp_path / "d", frames=9)).identity


def test_another_identity_is_refused_with_both_values_and_the_stage(tmp_path):
    path = write(tmp_path)
    identity = cache.open_store(path).identity
    assert cache.open_store(path, identity).identity == identity
    with pytest.raises(cache.IdentityError) as error:
        cache.open_store(path, "0" * 64)
    for part in (identity, "0" * 64, "dvc repro cache_logits@liver"):
        assert part in str(error.value)


@pytest.mark.parametrize("key", ["frames", "identity_parts", "anatomy", "image_size", "views", "identity"])
def test_edited_metadata_is_refused(tmp_path, key):
    path = write(tmp_path)
    content = json.loads((path / "zarr.json").read_text())
    value = content["attributes"][key]
    content["attributes"][key] = {
        "frames": [value, "x"][0][::-1] if isinstance(value, list) else value,
        "identity_parts": {"teacher": "zz"},
        "anatomy": "colon",
        "image_size": [1, 1],
        "views": [{"view": 0, "clean": False}],
        "identity": "0" * 64,
    }[key]
    (path / "zarr.json").write_text(json.dumps(content))
    with pytest.raises(cache.IdentityError, match="was edited"):
        cache.open_store(path)


def test_an_unfinished_or_missing_store_is_refused(tmp_path):
    with begin(tmp_path) as writer:
        writer.append(logits(10)[:8], range(8))
        with pytest.raises(cache.IncompleteError, match="8 of 10"):
            writer.finish(tmp_path / "x.zarr")
    with pytest.raises(cache.IncompleteError):
        cache.open_store(tmp_path / "scratch" / "liver.zarr")
    with pytest.raises(cache.MissingStoreError, match="cache_logits@nothing"):
        cache.open_store(tmp_path / "nothing.zarr")


def test_unknown_frames_and_views_are_refused(tmp_path):
    store = cache.open_store(write(tmp_path))
    for frame, view in ((10, 0), (-1, 0), ("liver/09/image00", 0), (0, 1), (0, -1)):
        with pytest.raises(cache.FrameError):
            store.read(frame, view)


def unreadable(path):
    """Problems that verify and every read report; a store that can't be opened has one for all."""
    problems = cache.verify(path)
    try:
        store = cache.open_store(path)
    except cache.StoreError:
        assert len(problems) == 1
        return problems
    bad = 0
    for frame in range(store.shape[1]):
        try:
            store.read(frame)
        except cache.IntegrityError as error:
            assert str(error) in problems
            bad += 1
    assert bad == len(problems)
    return problems


def test_a_missing_shard_is_never_read_as_data(tmp_path):
    path = write(tmp_path)
    (path / "logits/c/0/1/0/0/0").unlink()
    problems = unreadable(path)
    assert len(problems) == 4
    assert "logits/c/0/1/0/0/0" in problems[0]
    assert "shard is missing" in problems[0]
    assert "dvc repro -f cache_logits@liver" in problems[0]


def test_a_truncated_shard_is_never_read_as_data(tmp_path):
    path = write(tmp_path)
    shard = path / "logits/c/0/0/0/0/0"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    assert len(unreadable(path)) == 4


def test_shards_of_another_store_or_place_are_never_read_as_data(tmp_path):
    one, other = write(tmp_path / "a"), write(tmp_path / "b", parts=PARTS | {"teacher": "zz"})
    swapped = tmp_path / "swapped.zarr"
    shutil.copytree(one, swapped)
    for part in ("logits/c/0/0/0/0/0", "checksum/c/0/0"):  # the same values, and their own checksums
        shutil.copy(other / part, swapped / part)
    assert len(unreadable(swapped)) == 4
    moved = tmp_path / "moved.zarr"
    shutil.copytree(one, moved)
    shutil.copy(one / "logits/c/0/0/0/0/0", moved / "logits/c/0/1/0/0/0")
    assert len(unreadable(moved)) == 4


def test_a_flipped_bit_is_never_read_as_data(tmp_path):
    path = write(tmp_path)
    values = logits(10).astype(np.float16)
    rng = np.random.default_rng(0)
    shards = sorted(path.glob("*/c/**/*"))
    shards = [p for p in shards if p.is_file() and "pixels" not in str(p)]
    noticed = 0
    for _ in range(60):
        file = shards[rng.integers(len(shards))]
        content = bytearray(file.read_bytes())
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        original = file.read_bytes()
        file.write_bytes(content)
        try:
            store = cache.open_store(path)
            for i in range(10):
                np.testing.assert_array_equal(store.read(i), values[i])
        except cache.StoreError:
            noticed += 1
        finally:
            file.write_bytes(original)
    assert noticed >= 55  # the rest are bytes that no reader looks at, such as unused index entries


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


def test_a_second_writer_is_refused(tmp_path):
    with begin(tmp_path), pytest.raises(cache.StoreBusyError, match="another process"):
        begin(tmp_path)
    begin(tmp_path).__exit__(None, None, None)


def read_all(store):
    return [store.read(i).tobytes() for i in range(store.shape[1])]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same(tmp_path, method):
    store = cache.open_store(write(tmp_path))
    here = read_all(store)  # the arrays are open in this process when the others begin
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(read_all, [store, pickle.loads(pickle.dumps(store))]) == [here, here]


def test_the_package_stands_alone():
    code = "import sys, cache; print([m for m in ('torch', 'pipeline', 'stages', 'transformers') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
