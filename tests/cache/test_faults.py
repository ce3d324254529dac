"""Whatever happens to the files of a store, other values than those written are never returned."""

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from example_stores import PARTS, logits, write

import cache

EDITS = ("frames", "identity_parts", "anatomy", "image_size", "views", "identity")
EDITS += ("channels", "geometry", "grid", "shard_frames", "format_version")


@pytest.mark.parametrize("key", EDITS)
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
        "channels": ["anatomy", "background"],
        "geometry": "align_corners=True",
        "grid": [8, 6],
        "shard_frames": 5,
        "format_version": 2,
    }[key]
    (path / "zarr.json").write_text(json.dumps(content))
    with pytest.raises(cache.IdentityError, match=r"was edited|its format is"):
        cache.open_store(path)


def unreadable(path):
    """Problems that verify reports.

    One for the frames of a shard, or one for all if the store cannot be opened.
    """
    problems = cache.verify(path)
    try:
        store = cache.open_store(path)
    except cache.StoreError:
        assert len(problems) == 1
        return problems
    bad = 0
    counts = [
        int(many[1]) if (many := re.search(r": (\d+) frames", line)) else 1 for line in problems
    ]
    for frame, expected in enumerate(logits(10).astype(np.float16)):
        try:
            np.testing.assert_array_equal(store.read(frame), expected)
        except cache.IntegrityError as error:
            assert any(line.startswith(str(error).split(": ")[0]) for line in problems)
            bad += 1
    assert bad == sum(counts)
    return problems


def test_a_missing_shard_is_never_read_as_data(tmp_path):
    path = write(tmp_path)
    (path / "logits/c/0/1/0/0/0").unlink()
    problems = unreadable(path)
    assert len(problems) == 1
    expected = "4 frames, liver/01/image04 first (view 0): its shard is missing"
    assert problems == [f"{path}/logits/c/0/1/0/0/0 is damaged: {expected}"]


def test_a_truncated_shard_is_never_read_as_data(tmp_path):
    path = write(tmp_path)
    shard = path / "logits/c/0/0/0/0/0"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    assert "4 frames" in unreadable(path)[0]


def test_shards_of_another_store_or_place_are_never_read_as_data(tmp_path):
    one, other = write(tmp_path / "a"), write(tmp_path / "b", parts=PARTS | {"teacher": "zz"})
    swapped = tmp_path / "swapped.zarr"
    shutil.copytree(one, swapped)
    shutil.copy(other / "logits/c/0/0/0/0/0", swapped / "logits/c/0/0/0/0/0")
    assert cache.verify(swapped) == []  # the very same values: only their checksums differ
    shutil.copy(other / "checksum/c/0/0", swapped / "checksum/c/0/0")
    assert "is damaged: not as it was written: checksum/c/0/0" in unreadable(swapped)[0]
    third = write(tmp_path / "c", seed=1)
    shutil.copy(one / "checksum/c/0/0", swapped / "checksum/c/0/0")
    shutil.copy(third / "logits/c/0/0/0/0/0", swapped / "logits/c/0/0/0/0/0")
    assert "4 frames" in unreadable(swapped)[0]
    moved = tmp_path / "moved.zarr"
    shutil.copytree(one, moved)
    shutil.copy(one / "logits/c/0/0/0/0/0", moved / "logits/c/0/1/0/0/0")
    assert "4 frames" in unreadable(moved)[0]


@pytest.mark.parametrize("seal", ["text", ["zarr.json"], 7, None])
def test_a_seal_of_another_type_is_refused(tmp_path, seal):
    path = write(tmp_path)
    content = json.loads((path / "zarr.json").read_text())
    content["attributes"]["seal"] = seal
    (path / "zarr.json").write_text(json.dumps(content))
    assert "not as it was written" in unreadable(path)[0]


def test_an_attribute_that_is_no_json_is_refused(tmp_path):
    path = write(tmp_path)
    content = json.loads((path / "zarr.json").read_text())
    content["attributes"]["identity_parts"]["teacher"] = float("nan")
    (path / "zarr.json").write_text(json.dumps(content))
    assert "zarr.json is damaged" in unreadable(path)[0]


def test_errors_carry_their_facts_into_another_process(tmp_path):
    path = write(tmp_path)
    shard = path / "logits/c/0/1/0/0/0"
    shard.unlink()
    with pytest.raises(cache.IntegrityError) as damaged:
        cache.open_store(path).read(4)
    with pytest.raises(cache.IdentityError) as foreign:
        cache.open_store(path, "0" * 64)
    with pytest.raises(cache.MissingStoreError) as missing:
        cache.open_store("no.zarr")
    for error, place in ((damaged, shard), (foreign, path), (missing, Path("no.zarr"))):
        copied = pickle.loads(pickle.dumps(error.value))
        assert type(copied) is error.type
        assert str(copied) == str(error.value)
        assert vars(copied) == vars(error.value)
        assert copied.path == place


@pytest.mark.parametrize("table", ["checksum", "pixels"])
def test_a_missing_or_foreign_table_is_refused(tmp_path, table):
    path, other = write(tmp_path / "a"), write(tmp_path / "b", views=2)
    file = path / table / "c/0/0"
    shutil.copy(other / table / "c/1/0", file)
    for _ in range(2):
        with pytest.raises(
            cache.IntegrityError,
            match=f"is damaged: not as it was written: {table}/c/0/0$",
        ):
            cache.open_store(path)
        file.unlink(missing_ok=True)


def test_one_flipped_bit_anywhere_is_refused(tmp_path):
    """In every file, metadata included.

    Each flip is refused at open, or when the frames that it touches are read.
    """
    path = write(tmp_path)
    rng = np.random.default_rng(0)
    for file in sorted(path.rglob("*")):
        for _ in range(12 * file.is_file()):
            original = file.read_bytes()
            content = bytearray(original)
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
            file.write_bytes(content)
            problems = unreadable(path)
            assert problems, file
            assert all(line.startswith(str(path)) and "\n" not in line for line in problems)
            file.write_bytes(original)


def test_a_truncated_file_is_refused_at_any_length(tmp_path):
    path = write(tmp_path)
    for file in [
        path / "zarr.json",
        path / "logits/zarr.json",
        path / "checksum/c/0/0",
        path / "logits/c/0/2/0/0/0",
    ]:
        original = file.read_bytes()
        for length in (0, 1, 3, len(original) // 2, len(original) - 1):
            file.write_bytes(original[:length])
            assert unreadable(path), (file, length)
        file.write_bytes(original)
    assert cache.verify(path) == []


def test_what_systems_leave_in_a_store_changes_nothing(tmp_path):
    store = write(tmp_path)
    for place in (".", "checksum", "pixels", "logits/c/0"):
        for left in (".DS_Store", "._zarr.json", ".nfs0000001", "Thumbs.db", "@eaDir/SYNO.txt"):
            file = store / place / left
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(b"x")
    assert cache.verify(store) == []
    assert cache.open_store(store).read(0).shape == (2, 6, 8)
    assert cache.is_logit_store(store)


def test_a_further_chunk_is_still_seen(tmp_path):
    store = write(tmp_path)
    (store / "checksum" / "c" / "0" / "1").write_bytes(b"x")
    assert "not as it was written" in cache.verify(store)[0]


def test_consolidated_metadata_of_other_tools_changes_nothing(tmp_path):
    store = write(tmp_path)
    zarr.consolidate_metadata(store)
    assert "consolidated_metadata" in (store / "zarr.json").read_text()
    assert cache.verify(store) == []
