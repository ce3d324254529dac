"""Reading a store: every frame is checked before it is handed out."""

import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from cache.compression import decoded
from cache.errors import FrameError, IdentityError, IncompleteError, IntegrityError, MissingStoreError
from cache.identity import frame_checksum
from cache.layout import CHANNELS, FORMAT, FORMAT_VERSION, identity_from, seal_of, shard_name
from cache.shard import read_chunk


def open_store(path: str | Path, identity: str | None = None) -> "Store":
    """Open a complete store.

    Args:
        path: folder ``<anatomy>.zarr``.
        identity: the identity (sha256, hex) that the reader expects, or None to take the store for what it says it is.

    Raises:
        MissingStoreError: there is none.
        IncompleteError: it was not written to its end.
        IdentityError: it is another one than expected, or its metadata was edited.
        IntegrityError: its metadata or checksums are damaged.
    """
    store = Store(path)
    if identity is not None and store.identity != identity:
        raise IdentityError(
            f"{store.path} has identity {store.identity}, expected {identity}: "
            f"run `dvc repro cache_logits@{store.anatomy}`"
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
        shard_frames = self.attributes["shard_frames"]
        slots = min(shard_frames, self.shape[1])
        file = self.path / shard_name(view, position, shard_frames)
        try:
            content = decoded(read_chunk(file, position % shard_frames, slots), self.attributes["codec"]["chosen"])
            logits = np.frombuffer(bytearray(content), "<f2").reshape(self.shape[2:])  # writable
        except FileNotFoundError:
            raise self._damaged(position, view, "its shard is missing") from None
        except Exception as error:  # whatever a codec raises when its input is damaged
            raise self._damaged(position, view, str(error).splitlines()[0] if str(error) else repr(error)) from error
        if frame_checksum(logits, self.identity) != self._checksums[view, position]:
            raise self._damaged(position, view, "its checksum does not match")
        return logits

    def pixels(self, frame: int | str, view: int = 0) -> int:
        """crc32c of the uint8 frame that the teacher was shown.

        Raises:
            FrameError: no such frame or view.
        """
        position, view = self._place(frame, view)
        return int(self._pixels[view, position])

    def _place(self, frame: int | str, view: int) -> tuple[int, int]:
        position = self._positions.get(frame, -1) if isinstance(frame, str) else operator.index(frame)
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
                f"{self.path / name} cannot be opened ({type(error).__name__}): {_remedy(self.anatomy)}"
            ) from error

    def _table(self, name: str) -> NDArray[np.uint32]:
        """A (view, frame) table, whole."""
        return np.asarray(self._array(name)[:], np.uint32)

    def _damaged(self, position: int, view: int, reason: str) -> IntegrityError:
        shard = shard_name(view, position, self.attributes["shard_frames"])
        return IntegrityError(
            f"{self.path / shard}: frame {self.frames[position]} (view {view}) is damaged, {reason}: "
            f"{_remedy(self.anatomy)}"
        )


def _remedy(anatomy: str) -> str:
    return f"run `dvc repro -f cache_logits@{anatomy}`"


def _read_attributes(path: Path) -> dict[str, Any]:
    if not (path / "zarr.json").is_file():
        raise MissingStoreError(f"{path} is no logit store: run `dvc repro cache_logits@{path.stem}`")
    try:
        attributes = dict(zarr.open_group(path, mode="r", zarr_format=3).attrs)
    except Exception as error:
        raise IntegrityError(f"{path / 'zarr.json'} is damaged: {_remedy(path.stem)}") from error
    if attributes.get("format") != FORMAT or attributes.get("format_version") != FORMAT_VERSION:
        found = f"{attributes.get('format')} {attributes.get('format_version')}"
        raise IdentityError(f"{path} is in format {found}, expected {FORMAT} {FORMAT_VERSION}: {_remedy(path.stem)}")
    if attributes.get("identity") != identity_from(attributes):
        raise IdentityError(
            f"{path / 'zarr.json'} was edited: it says identity {attributes.get('identity')}, its content amounts to "
            f"{identity_from(attributes)}: {_remedy(path.stem)}"
        )
    if attributes.get("complete") is not True:
        raise IncompleteError(f"{path} was not written to its end: run `dvc repro cache_logits@{path.stem}`")
    _check_seal(path, attributes)
    return attributes


def _check_seal(path: Path, attributes: Mapping[str, Any]) -> None:
    written, found = attributes.get("seal") or {}, seal_of(path)
    changed = sorted(name for name in written.keys() | found.keys() if written.get(name) != found.get(name))
    if changed:
        files = ", ".join(str(path / name) for name in changed)
        raise IntegrityError(f"{files}: not as it was written: {_remedy(attributes['anatomy'])}")
