"""Reading a store: every frame is checked before it is handed out."""

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from cache.compression import decoded
from cache.errors import (
    FrameError,
    IdentityError,
    IncompleteError,
    IntegrityError,
    MissingStoreError,
)
from cache.identity import frame_checksum
from cache.layout import CHANNELS, FORMAT, FORMAT_VERSION, identity_from, seal_of, shard_name
from cache.shard import read_chunk


def open_store(
    path: str | Path, identity: str | None = None, *, remedy: str | None = None
) -> "Store":
    """Open a complete store.

    Args:
        path: folder ``<anatomy>.zarr``.
        identity: the identity (sha256, hex) that the reader expects, or None to take the store for
            what it says it is.
        remedy: what errors tell the user to do; by default to run the stage that writes
            ``<anatomy>``'s store.

    Raises:
        MissingStoreError: there is none.
        IncompleteError: it was not written to its end.
        IdentityError: it is another one than expected, or its metadata was edited.
        IntegrityError: its metadata or checksums are damaged.
    """
    store = Store(path, remedy)
    if identity is not None and store.identity != identity:
        raise IdentityError(
            f"{store.path} has identity {store.identity}, expected {identity}: "
            f"{remedy or f'run `dvc repro cache_logits@{store.anatomy}`'}"
        )
    return store


class Store:
    """The logits of one teacher; safe to send to forked or spawned workers: it holds no open file.

    Attributes:
        path: the folder.
        attributes: all that the store says of itself.
        anatomy: whose teacher.
        identity: sha256 (hex) of everything that determines the content.
        identity_parts: what went into it.
        frames: frame ids by position.
        shape: (views, frames, 2, h, w).
    """

    def __init__(self, path: str | Path, remedy: str | None = None) -> None:
        self.path = Path(path)
        self.attributes = _read_attributes(self.path, remedy)
        self.anatomy: str = self.attributes["anatomy"]
        self._remedy = remedy or _rewrite(self.anatomy)
        self.identity: str = self.attributes["identity"]
        self.identity_parts: dict[str, Any] = self.attributes["identity_parts"]
        self.frames: tuple[str, ...] = tuple(self.attributes["frames"])
        views = len(self.attributes["views"])
        self.shape = (views, len(self.frames), len(CHANNELS), *self.attributes["grid"])
        self._positions = {frame: i for i, frame in enumerate(self.frames)}
        self._checksums = self._table("checksum")
        self._pixels = self._table("pixels")

    def read(self, frame: int | str, view: int = 0) -> NDArray[np.float16]:
        """The logits (2, h, w) float16 of one frame, as they were written.

        Args:
            frame: its position or its id.
            view: which stored view.

        Raises:
            FrameError: no such frame or view.
            IntegrityError: what is on disk is not what was written.
        """
        position, view = self._place(frame, view)
        try:
            return self._decoded(position, view)
        except Exception as error:  # whatever a codec raises when its input is damaged
            raise IntegrityError(self._damaged(view, [position], _reason(error))) from error

    def pixels(self, frame: int | str, view: int = 0) -> int:
        """crc32c of the uint8 frame that the teacher was shown.

        Raises:
            FrameError: no such frame or view.
        """
        position, view = self._place(frame, view)
        return int(self._pixels[view, position])

    def faults(self) -> list[str]:
        """What is wrong with the logits, after reading all: one line for the frames of a shard with the same fault."""
        found: dict[tuple[int, int, str], list[int]] = {}
        for view, position in np.ndindex(self.shape[:2]):
            try:
                self._decoded(position, view)
            except Exception as error:  # as in read
                shard = position // self.attributes["shard_frames"]
                found.setdefault((view, shard, _reason(error)), []).append(position)
        return [
            self._damaged(view, positions, reason) for (view, _, reason), positions in found.items()
        ]

    def _decoded(self, position: int, view: int) -> NDArray[np.float16]:
        """The logits of one frame; raises whatever its damage leads to."""
        shard_frames = self.attributes["shard_frames"]
        file = self.path / shard_name(view, position, shard_frames)
        chunk = read_chunk(file, position % shard_frames, min(shard_frames, self.shape[1]))
        content = decoded(chunk, self.attributes["codec"]["chosen"])
        logits = np.frombuffer(bytearray(content), "<f2").reshape(self.shape[2:])  # writable
        if frame_checksum(logits, self.identity) != self._checksums[view, position]:
            raise ValueError("its checksum does not match")
        return logits

    def _place(self, frame: int | str, view: int) -> tuple[int, int]:
        position = (
            self._positions.get(frame, -1) if isinstance(frame, str) else operator.index(frame)
        )
        if not 0 <= position < len(self.frames):
            raise FrameError(f"{self.path} holds no frame {frame!r}; it has {len(self.frames)}")
        if not 0 <= view < self.shape[0]:
            raise FrameError(f"{self.path} holds no view {view}; it has {self.shape[0]}")
        return position, operator.index(view)

    def _array(self, name: str) -> Any:
        try:
            return zarr.open_array(self.path / name, mode="r", zarr_format=3)
        except Exception as error:
            raise IntegrityError(
                f"{self.path / name} cannot be opened ({type(error).__name__}): {self._remedy}"
            ) from error

    def _table(self, name: str) -> NDArray[np.uint32]:
        """A (view, frame) table, whole."""
        return np.asarray(self._array(name)[:], np.uint32)

    def _damaged(self, view: int, positions: Sequence[int], reason: str) -> str:
        shard = shard_name(view, positions[0], self.attributes["shard_frames"])
        first = self.frames[positions[0]]
        which = (
            f"frame {first}" if len(positions) == 1 else f"{len(positions)} frames, {first} first,"
        )
        verb = "is" if len(positions) == 1 else "are"
        return (
            f"{self.path / shard}: {which} (view {view}) {verb} damaged, {reason}: {self._remedy}"
        )


def _rewrite(anatomy: str) -> str:
    return f"run `dvc repro -s -f cache_logits@{anatomy}`"


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "its shard is missing"
    return str(error).splitlines()[0] if str(error) else repr(error)


def _read_attributes(path: Path, remedy: str | None) -> dict[str, Any]:
    write, rewrite = (
        remedy or f"run `dvc repro cache_logits@{path.stem}`",
        remedy or _rewrite(path.stem),
    )
    if not (path / "zarr.json").is_file():
        raise MissingStoreError(f"{path} is no logit store: {write}")
    try:
        attributes = dict(zarr.open_group(path, mode="r", zarr_format=3).attrs)
        amounts_to = identity_from(attributes)
    except Exception as error:  # whatever Zarr raises, or a value that is no JSON
        raise IntegrityError(f"{path / 'zarr.json'} is damaged: {rewrite}") from error
    if attributes.get("format") != FORMAT or attributes.get("format_version") != FORMAT_VERSION:
        found = f"{attributes.get('format')} {attributes.get('format_version')}"
        raise IdentityError(
            f"{path} is in format {found}, expected {FORMAT} {FORMAT_VERSION}: {rewrite}"
        )
    if attributes.get("identity") != amounts_to:
        raise IdentityError(
            f"{path / 'zarr.json'} was edited: it says identity {attributes.get('identity')}, its "
            "content amounts to "
            f"{amounts_to}: {rewrite}"
        )
    if attributes.get("complete") is not True:
        raise IncompleteError(f"{path} was not written to its end: {write}")
    _check_seal(path, attributes, remedy or _rewrite(attributes["anatomy"]))
    return attributes


def _check_seal(path: Path, attributes: Mapping[str, Any], remedy: str) -> None:
    written, found = attributes.get("seal"), seal_of(path)
    if not isinstance(written, dict):  # the one attribute that no hash covers
        written = {}
    changed = sorted(
        name for name in written.keys() | found.keys() if written.get(name) != found.get(name)
    )
    if changed:
        files = ", ".join(str(path / name) for name in changed)
        raise IntegrityError(f"{files}: not as it was written: {remedy}")
