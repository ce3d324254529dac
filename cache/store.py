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


def open_store(path: str | Path, identity: str | None = None) -> "Store":
    """Open a complete store.

    Args:
        path: folder ``<anatomy>.zarr``.
        identity: the identity (sha256, hex) that the reader expects, or None to take the store for
            what it says it is.

    Raises:
        MissingStoreError: there is none.
        IncompleteError: it was not written to its end.
        IdentityError: it is another one than expected, or its metadata was edited.
        IntegrityError: its metadata or checksums are damaged.
    """
    store = Store(path)
    if identity is not None and store.identity != identity:
        raise IdentityError(
            store.path,
            f"its identity is {store.identity}, expected {identity}",
            found=store.identity,
            expected=identity,
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

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.attributes = _read_attributes(self.path)
        self.anatomy: str = self.attributes["anatomy"]
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
            raise self._damage(view, [position], _reason(error)) from error

    def pixels(self, frame: int | str, view: int = 0) -> int:
        """crc32c of the uint8 frame that was the teacher's input.

        Raises:
            FrameError: no such frame or view.
        """
        position, view = self._place(frame, view)
        return int(self._pixels[view, position])

    def faults(self) -> list[str]:
        """:meth:`integrity_errors` as text, one line each."""
        return [str(error) for error in self.integrity_errors()]

    def integrity_errors(self) -> list[IntegrityError]:
        """What is wrong with the logits, after reading all of them.

        The frames of a shard that have the same fault share one error.
        """
        damaged: dict[tuple[int, int, str], list[int]] = {}
        for view, position in np.ndindex(self.shape[:2]):
            try:
                self._decoded(position, view)
            except Exception as error:  # as in read
                shard = position // self.attributes["shard_frames"]
                damaged.setdefault((view, shard, _reason(error)), []).append(position)
        return [
            self._damage(view, positions, reason)
            for (view, _, reason), positions in damaged.items()
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
            raise FrameError(self.path, f"holds no frame {frame!r}; it has {len(self.frames)}")
        if not 0 <= view < self.shape[0]:
            raise FrameError(self.path, f"holds no view {view}; it has {self.shape[0]}")
        return position, operator.index(view)

    def _array(self, name: str) -> Any:
        try:
            return zarr.open_array(self.path / name, mode="r", zarr_format=3)
        except Exception as error:
            raise IntegrityError(
                self.path / name, f"it cannot be opened ({type(error).__name__})"
            ) from error

    def _table(self, name: str) -> NDArray[np.uint32]:
        """A (view, frame) table, whole."""
        return np.asarray(self._array(name)[:], np.uint32)

    def _damage(self, view: int, positions: Sequence[int], reason: str) -> IntegrityError:
        """The error of one or more frames of a shard."""
        shard = shard_name(view, positions[0], self.attributes["shard_frames"])
        which = f"frame {self.frames[positions[0]]}"
        if len(positions) > 1:
            which = f"{len(positions)} frames, {self.frames[positions[0]]} first"
        return IntegrityError(self.path / shard, f"{which} (view {view}): {reason}")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "its shard is missing"
    return str(error).splitlines()[0] if str(error) else repr(error)


def _read_attributes(path: Path) -> dict[str, Any]:
    """What a store says of itself, checked against its identity and its seal."""
    if not (path / "zarr.json").is_file():
        if path.exists():
            raise MissingStoreError(path, "is not a logit store: it has no zarr.json")
        raise MissingStoreError(path)
    try:
        attributes = dict(zarr.open_group(path, mode="r", zarr_format=3).attrs)
        content_identity = identity_from(attributes)
    except Exception as error:  # whatever Zarr raises, or a value that is not JSON
        raise IntegrityError(path / "zarr.json", _reason(error)) from error
    _check_identity(path, attributes, content_identity)
    if attributes.get("complete") is not True:
        raise IncompleteError(path, "its zarr.json does not say that it is complete")
    _check_seal(path, attributes)
    return attributes


def _check_identity(path: Path, attributes: Mapping[str, Any], content_identity: str) -> None:
    layout = f"{attributes.get('format')} {attributes.get('format_version')}"
    expected = f"{FORMAT} {FORMAT_VERSION}"
    if (attributes.get("format"), attributes.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise IdentityError(
            path, f"its format is {layout}, expected {expected}", found=layout, expected=expected
        )
    identity = attributes.get("identity")
    if identity != content_identity:
        raise IdentityError(
            path / "zarr.json",
            f"it was edited: it says identity {identity}, its content amounts to "
            f"{content_identity}",
            found=identity,
            expected=content_identity,
        )


def _check_seal(path: Path, attributes: Mapping[str, Any]) -> None:
    """Compare all files but the shards with what they were when the store was finished."""
    seal = attributes.get("seal")
    if not isinstance(seal, dict):  # the one attribute that no hash covers
        seal = {}
    hashes = seal_of(path)
    names = seal.keys() | hashes.keys()
    changed = sorted(name for name in names if seal.get(name) != hashes.get(name))
    if changed:
        raise IntegrityError(path, f"not as it was written: {', '.join(changed)}")
