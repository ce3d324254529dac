"""The reader of a store."""

import multiprocessing
import pickle
import subprocess
import sys

import google_crc32c
import numpy as np
import pytest
import zarr
from example_stores import GRID, PARTS, begin, logits, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cache
from cache import compression


def test_what_was_written_is_read(tmp_path):
    store = cache.open_store(write(tmp_path))
    for i, frame in enumerate(logits(10)):
        np.testing.assert_array_equal(store.read(i), frame.astype(np.float16))
        np.testing.assert_array_equal(
            store.read(f"liver/01/image{i:02d}"), frame.astype(np.float16)
        )
        assert store.pixels(i) == i
    assert store.read(0).dtype == np.float16
    assert cache.verify(store.path) == []


def test_the_checksum_is_the_one_that_is_documented(tmp_path):
    group = zarr.open_group(write(tmp_path), mode="r")
    seed = google_crc32c.value(group.attrs["identity"].encode("ascii"))
    for i, frame in enumerate(logits(10).astype("<f2")):
        assert group["checksum"][0, i] == google_crc32c.extend(seed, frame.tobytes())


def test_sizes_are_those_on_disk(tmp_path):
    path = write(tmp_path, views=2)
    sizes = cache.stats(path)
    assert cache.estimate(10, 2, GRID) == 2 * 10 * 2 * 6 * 8 * 2
    assert sizes["bytes"] == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert sizes["ratio_to_raw"] == round(cache.estimate(10, 2, GRID) / sizes["bytes"], 3)
    assert sizes["ratio_to_full_size"] == round(cache.estimate(10, 2, (24, 32)) / sizes["bytes"], 3)


def test_the_smallest_candidate_is_chosen(tmp_path):
    codec = cache.open_store(write(tmp_path)).attributes["codec"]
    assert codec["trial_bytes"][codec["chosen"]] == min(codec["trial_bytes"].values())


@pytest.mark.parametrize("codec", list(compression.CANDIDATES))
def test_plain_zarr_reads_the_same_values(tmp_path, monkeypatch, codec):
    monkeypatch.setattr(compression, "trial", lambda block: {"chosen": codec, "trial_bytes": {}})
    path = write(tmp_path, views=2)
    store, plain = cache.open_store(path), zarr.open_group(path, mode="r")["logits"]
    for view in range(2):
        for frame in range(10):
            np.testing.assert_array_equal(store.read(frame, view), plain[view, frame])


def test_xarray_reads_named_dimensions(tmp_path):
    xarray = pytest.importorskip("xarray")
    data = xarray.open_zarr(write(tmp_path), consolidated=False)
    assert data["logits"].dims == ("view", "frame", "channel", "y", "x")
    np.testing.assert_array_equal(
        data["logits"].isel(view=0, frame=3).values, logits(10)[3].astype(np.float16)
    )


def test_thousands_of_frames_fit_in_the_attributes(tmp_path):
    ids = [f"colon/{i // 100:02d}/image{i:05d}" for i in range(2000)]
    options = {"anatomy": "colon", "grid": (1, 1), "image_size": (4, 4), "identity_parts": PARTS}
    with cache.create_store(tmp_path / "s.zarr", frames=ids, shard_frames=250, **options) as writer:
        writer.append(np.arange(4000).reshape(-1, 2, 1, 1) / 1e3, range(2000))
        writer.finish(tmp_path / "colon.zarr")
    store = cache.open_store(tmp_path / "colon.zarr")
    assert store.frames == tuple(ids)
    assert store.read(ids[-1])[1, 0, 0] == np.float16(3.999)


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
    assert (
        group["checksum"].metadata.dimension_names
        == group["pixels"].metadata.dimension_names
        == ("view", "frame")
    )
    assert group.attrs["channels"] == ["background", "anatomy"]
    assert group.attrs["format_version"] == 1
    assert group.attrs["complete"] is True
    assert group.attrs["geometry"].startswith("align_corners=False; ")
    assert group.attrs["codec"]["chosen"] in group.attrs["codec"]["trial_bytes"]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
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


def test_the_identity_is_that_of_everything_that_determines_the_content(tmp_path):
    one = cache.open_store(write(tmp_path / "a"))
    assert one.identity == cache.open_store(write(tmp_path / "b", seed=1)).identity
    assert (
        one.identity
        != cache.open_store(write(tmp_path / "c", parts=PARTS | {"teacher": "cc"})).identity
    )
    assert one.identity != cache.open_store(write(tmp_path / "d", frames=9)).identity


def test_another_identity_is_refused_with_both_values(tmp_path):
    path = write(tmp_path)
    identity = cache.open_store(path).identity
    assert cache.open_store(path, identity).identity == identity
    with pytest.raises(cache.IdentityError) as error:
        cache.open_store(path, "0" * 64)
    assert (error.value.path, error.value.found, error.value.expected) == (path, identity, "0" * 64)
    reason = f"its identity is {identity}, expected {'0' * 64}"
    assert str(error.value) == f"{path} does not match: {reason}"


def test_an_unfinished_or_missing_store_is_refused(tmp_path):
    with begin(tmp_path) as writer:
        writer.append(logits(10)[:8], range(8))
        with pytest.raises(cache.IncompleteError, match="8 of 10"):
            writer.finish(tmp_path / "x.zarr")
    with pytest.raises(cache.IncompleteError, match=r"liver\.zarr was not written to its end: "):
        cache.open_store(tmp_path / "scratch" / "liver.zarr")
    with pytest.raises(cache.MissingStoreError, match=r"nothing\.zarr is missing$"):
        cache.open_store(tmp_path / "nothing.zarr")
    with pytest.raises(cache.MissingStoreError, match="is not a logit store: it has no"):
        cache.open_store(tmp_path)


def test_unknown_frames_and_views_are_refused(tmp_path):
    store = cache.open_store(write(tmp_path))
    for frame, view in ((10, 0), (-1, 0), ("liver/09/image00", 0), (0, 1), (0, -1)):
        for error in (cache.FrameError, IndexError, KeyError):
            with pytest.raises(error, match=r"liver\.zarr holds no"):
                store.read(frame, view)
    with pytest.raises(TypeError):
        store.read(1.5)


def read_all(store):
    return [store.read(i).tobytes() for i in range(store.shape[1])]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same(tmp_path, method):
    store = cache.open_store(write(tmp_path))
    expected = read_all(store)  # the arrays are open in this process when the others begin
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(read_all, [store, pickle.loads(pickle.dumps(store))]) == [
            expected,
            expected,
        ]


def test_the_package_stands_alone():
    code = (
        "import sys, cache;"
        "print(sys.modules.keys() & {'torch', 'pipeline', 'stages', 'transformers'})"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
