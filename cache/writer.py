"""Writing a store: whole shards, in order, in a scratch folder that becomes the store at the end.

A shard counts as written once its checksums are on disk and match, which they can only after its
logits were. A writer that was killed goes on after the last such shard and ends with the same bytes
as one that was not.
"""

import logging
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from cache import compression
from cache.durable import FULL
from cache.errors import (
    IncompleteError,
    NotWrittenError,
    OccupiedError,
    StoreError,
    UnstorableError,
)
from cache.identity import frame_checksum, identity_of
from cache.layout import (
    CHANNELS,
    DIMENSIONS,
    TABLES,
    begun_attributes,
    describe,
    seal_of,
    shard_name,
)
from cache.lock import ScratchLock
from cache.place import discard, put_in_place, require_logit_store

log = logging.getLogger(__name__)
LARGEST = float(np.finfo(np.float16).max)
CLEAN = ({"view": 0, "clean": True},)


def create_store(
    path: str | Path,
    *,
    anatomy: str,
    frames: Sequence[str],
    grid: tuple[int, int],
    image_size: tuple[int, int],
    identity_parts: Mapping[str, Any],
    views: Sequence[Mapping[str, Any]] = CLEAN,
    shard_frames: int = 64,
    keep_bits: int | None = None,
) -> "StoreWriter":
    """Begin a store, or go on with one of the same identity that was begun here.

    Args:
        path: scratch folder to grow it in; on the file system where it will end, it need not be
            copied there. What was begun there for another identity is discarded.
        anatomy: whose teacher.
        frames: frame ids, in the order in which logits will come.
        grid: (h, w) of the logits.
        image_size: (H, W) of the frames.
        identity_parts: everything that determines the content, as JSON values: hash of the teacher,
            of the frames, ...
        views: one description per stored view.
        shard_frames: frames per file.
        keep_bits: bits of the mantissa to keep, 1 to 9 of float16's ten; None keeps all and is
            without loss.

    Raises:
        StoreBusyError: another process is writing there.
        NotWrittenError: nothing can be written there.
        OccupiedError: a complete store of another identity lies there, or something that is not a
            store.
        TypeError: an argument is of another type, or holds what is not JSON; named in the message.
        ValueError: no frames, or a frame twice; no view; an empty grid or shard.
    """
    if isinstance(frames, str) or not all(isinstance(frame, str) for frame in [anatomy, *frames]):
        raise TypeError("anatomy is a str and frames a list of str")
    if not frames or len(set(frames)) != len(frames):
        raise ValueError("a store needs frames, each once")
    grid = _size("grid", grid)
    image_size = _size("image_size", image_size)
    shard_frames = operator.index(shard_frames)  # NumPy's too
    if not views or shard_frames < 1:
        raise ValueError(
            f"{len(views)} views, {shard_frames} frames to a shard: each must be at least 1"
        )
    if keep_bits is not None:
        keep_bits = operator.index(keep_bits)
        if not 1 <= keep_bits <= 9:
            raise ValueError(f"keep_bits {keep_bits}: 1 to 9, or None")
    for name, value in (("identity_parts", identity_parts), ("views", views)):
        _require_json(name, value)
    attributes = describe(
        anatomy, frames, grid, image_size, views, identity_parts, shard_frames, keep_bits
    )
    return StoreWriter(Path(path), attributes)


def _size(name: str, size: Sequence[int]) -> tuple[int, int]:
    """Two positive whole numbers, NumPy's too."""
    try:
        height, width = (operator.index(n) for n in size)
    except (TypeError, ValueError):
        raise TypeError(f"{name} {size!r}: two whole numbers, rows and columns") from None
    if min(height, width) < 1:
        raise ValueError(f"{name} {size!r}: rows and columns must be at least 1")
    return height, width


def _require_json(name: str, value: Any) -> None:
    try:
        identity_of({name: value})
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must hold JSON values: {error}") from error


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotWrittenError(
            folder,
            f"cannot be made ({error.strerror}): begin in a folder on a disk that this user can "
            "write",
        ) from error


class StoreWriter:
    """Appends frames to a store. Use it in a ``with`` block, which lets go of the scratch folder.

    Attributes:
        path: the scratch folder.
        attributes: of the store to be.
        bytes_written: size of the whole shards on disk, of an earlier run too.
    """

    def __init__(self, path: Path, attributes: dict[str, Any]) -> None:
        self.path = path
        self.attributes = attributes
        self._shape = (
            len(attributes["views"]),
            len(attributes["frames"]),
            len(CHANNELS),
            *attributes["grid"],
        )
        self._shard = min(int(attributes["shard_frames"]), self._shape[1])
        self._logits: list[NDArray[np.float16]] = []
        self._pixels: list[int] = []
        self._tables = {name: np.zeros(self._shape[:2], np.uint32) for name in TABLES}
        self._group: Any = None
        _make(path.parent)
        self._lock = ScratchLock(path)
        try:
            self._done = self._resume()
            self.bytes_written = sum(
                file.stat().st_size for file in path.glob("logits/c/**/*") if file.is_file()
            )
        except BaseException:
            self._lock.let_go()
            raise

    @property
    def next(self) -> int:
        """Number of frames, counted over all views, that were appended.

        ``divmod`` by the frames of a view gives view and frame of the next one.
        """
        return self._done + len(self._logits)

    @property
    def total(self) -> int:
        """Number of frames over all views."""
        return self._shape[0] * self._shape[1]

    def append(self, logits: NDArray[np.floating[Any]], pixels: Sequence[int]) -> None:
        """Add frames in order, all of view 0 first; a full shard is written at once.

        A call that failed may be followed by another, from frame :attr:`next` on.

        Args:
            logits: (n, 2, h, w), any float dtype.
            pixels: n checksums (crc32c) of the uint8 frames that were the teacher's input.

        Raises:
            UnstorableError: a value is not finite, not real or beyond float16; names the frame.
            NotWrittenError: the disk is full; what whole shards hold is safe.
            ValueError: the shape is not that of this store, there are more frames than it holds, or
                a number cannot be a crc32c.
        """
        if logits.shape[1:] != self._shape[2:] or len(pixels) != len(logits):
            raise ValueError(
                f"logits {logits.shape} with {len(pixels)} pixel checksums for a store of "
                f"{self._shape[2:]}"
            )
        if self.next + len(logits) > self.total:
            raise ValueError(f"{self.path} holds {self.total} frames, not more")
        if not all(0 <= operator.index(checksum) < 2**32 for checksum in pixels):
            raise ValueError(
                f"pixel checksums {list(pixels)}: crc32c gives numbers from 0 to 2**32 - 1"
            )
        self._write_full_shard()  # that an earlier call could not write
        for frame, checksum in zip(logits, pixels, strict=True):
            self._logits.append(self._half(frame))
            self._pixels.append(int(checksum))
            self._write_full_shard()

    def finish(self, path: str | Path) -> None:
        """Mark the store complete and move it into place; what was there is replaced.

        A link is replaced by the store itself. Onto another file system the store is copied, and
        the copy is read back before it takes its place.

        Raises:
            IncompleteError: frames are missing.
            OccupiedError: what lies there is not a logit store.
            NotWrittenError: the disk is full.
            IntegrityError: the copy on another file system cannot be read back as it was written.
            StoreBusyError: another process copies a store there.
            ValueError: it was finished before, or ``path`` is where it grows.
        """
        target = Path(path)
        old = self.path.with_name(f"{self.path.name}.old")
        if self.next != self.total:
            raise IncompleteError(self.path, f"it has {self.next} of {self.total} frames")
        self._write_full_shard()
        if self._group is None:
            raise ValueError(f"{self.path} was finished before")
        if target.resolve() == self.path.resolve():
            raise ValueError(f"{target} is where the store grows: it ends at another path")
        require_logit_store(target)
        discard(old)  # of a writer that was killed below
        with self._writing():
            attributes = {**self.attributes, "codec": self._group.attrs["codec"], "complete": True}
            self._group.attrs.put(attributes)
            self._group.attrs.put({**attributes, "seal": seal_of(self.path)})
        with self._writing(target):
            put_in_place(self.path, target, old)
        self._group = None
        self._lock.let_go()

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.let_go()

    @contextmanager
    def _writing(self, place: Path | None = None) -> Iterator[None]:
        """Say which store was not written, and that the work before is not lost."""
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            advice = "make room" if error.errno in FULL else "mend that"
            raise NotWrittenError(
                place or self.path,
                f"cannot be written after {self._done} of {self.total} frames "
                f"({error.strerror or error}): {advice}, and start again: it goes on after these",
            ) from error

    def _half(self, frame: NDArray[np.floating[Any]]) -> NDArray[np.float16]:
        if frame.dtype.kind not in "fiu":
            raise UnstorableError(
                self.path, f"cannot hold {frame.dtype}: give logits that are real numbers"
            )
        largest = float(np.abs(frame).max())
        if not largest <= LARGEST:  # so written, NaN is refused too
            name = self.attributes["frames"][self.next % self._shape[1]]
            raise UnstorableError(
                self.path,
                f"cannot hold the logits of frame {name}: one is {largest}, beyond float16; check "
                "the teacher's training, and compute its logits in 32 bits",
            )
        return compression.rounded(
            np.ascontiguousarray(frame, dtype=np.float16), self.attributes["keep_bits"]
        )

    def _shard_length(self) -> int:
        """Frames of the shard that is being filled; a view's last one may be short."""
        return min(self._shard, self._shape[1] - self._done % self._shape[1])

    def _write_full_shard(self) -> None:
        if len(self._logits) == self._shard_length():
            with self._writing():
                self._write_shard()

    def _write_shard(self) -> None:
        block = np.stack(self._logits)
        if self._group is None:
            self._create(compression.trial(block))
        view, start = divmod(self._done, self._shape[1])
        place = (view, slice(start, start + len(block)))
        self._group["logits"][place] = block
        self._tables["pixels"][place] = self._pixels
        self._tables["checksum"][place] = [
            frame_checksum(frame, self.attributes["identity"]) for frame in block
        ]
        for name in TABLES:  # checksum last: a shard without its checksums was not written
            self._group[name][view] = self._tables[name][view]
        self.bytes_written += (self.path / shard_name(view, start, self._shard)).stat().st_size
        self._done += len(block)
        self._logits = []
        self._pixels = []

    def _create(self, codec: dict[str, Any]) -> None:
        group = zarr.open_group(self.path, mode="w", zarr_format=3)
        group.create_array(
            "logits",
            shape=self._shape,
            dtype="float16",
            chunks=(1, 1, *self._shape[2:]),
            shards=(1, self._shard, *self._shape[2:]),
            compressors=compression.CANDIDATES[codec["chosen"]],
            fill_value=np.float16("nan"),
            dimension_names=DIMENSIONS,
        )
        for name in TABLES:
            group.create_array(
                name,
                shape=self._shape[:2],
                dtype="uint32",
                chunks=(1, self._shape[1]),
                compressors=[Crc32cCodec()],
                fill_value=0,
                dimension_names=DIMENSIONS[:2],
            )
        # Last: a scratch folder without attributes is begun anew.
        group.attrs.put({**self.attributes, "codec": codec})
        self._group = group

    def _resume(self) -> int:
        """Open what an earlier writer left, and count the frames of its whole shards."""
        if not self.path.exists():
            return 0
        if not self._open_scratch():
            if "seal" in begun_attributes(self.path):
                raise OccupiedError(
                    self.path,
                    "is a complete store of something else and would be lost: begin in another "
                    "folder, or remove it",
                )
            require_logit_store(self.path)
            log.warning("%s was begun for something else, or is damaged: it starts anew", self.path)
            discard(self.path)
            return 0
        done = 0
        while done < self.total and (length := self._whole_shard(done)):
            done += length
        self._remove_unfinished(done)
        log.info("%s: goes on after %d of %d frames", self.path, done, self.total)
        return done

    def _open_scratch(self) -> bool:
        """Whether a store of this identity was begun; if so, it is open."""
        try:
            group = zarr.open_group(self.path, mode="r+", zarr_format=3)
            if (
                group.attrs.get("identity") != self.attributes["identity"]
                or "codec" not in group.attrs
            ):
                return False
            self._tables = {name: np.array(group[name][:], np.uint32) for name in TABLES}
        except Exception:  # whatever Zarr raises on a folder that was half begun, or was damaged
            return False
        self._group = group
        return True

    def _whole_shard(self, done: int) -> int:
        """Frames of the shard that begins here if all of them match their checksums, else 0."""
        view, start = divmod(done, self._shape[1])
        stop = min(start + self._shard, self._shape[1])
        try:
            block = self._group["logits"][view, start:stop]
        except Exception:  # whatever a codec raises when its input is damaged
            return 0
        checksums = [frame_checksum(frame, self.attributes["identity"]) for frame in block]
        matches = np.array_equal(checksums, self._tables["checksum"][view, start:stop])
        return stop - start if matches else 0

    def _remove_unfinished(self, done: int) -> None:
        """Remove every shard that does not count.

        Zarr would read it to write the rest of it, and fail or mix them.
        """
        places = (divmod(i, self._shape[1]) for i in range(done))
        counted = {self.path / shard_name(view, position, self._shard) for view, position in places}
        for file in self.path.rglob("*"):
            unfinished = file.is_relative_to(self.path / "logits/c") and file not in counted
            if file.is_file() and (unfinished or file.suffix == ".partial"):
                file.unlink()
