"""Writing a store: whole shards, in order, in a scratch folder that becomes the store when it is complete.

A shard counts as written once its checksums are on disk and match, which they can only after its logits were. A writer
that was killed goes on after the last such shard and ends with the same bytes as one that was not.
"""

import fcntl
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from cache import compression
from cache.errors import IncompleteError, StoreBusyError, UnstorableError
from cache.identity import frame_checksum
from cache.layout import CHANNELS, DIMENSIONS, describe

log = logging.getLogger(__name__)
LARGEST = float(np.finfo(np.float16).max)
CLEAN = ({"view": 0, "clean": True},)


def create_store(
    scratch: str | Path,
    *,
    anatomy: str,
    frames: Sequence[str],
    grid: tuple[int, int],
    image_size: tuple[int, int],
    identity_parts: Mapping[str, Any],
    views: Sequence[Mapping[str, Any]] = CLEAN,
    shard_frames: int = 64,
) -> "StoreWriter":
    """Begin a store, or go on with one of the same identity that was begun here.

    Args:
        scratch: folder to grow it in, on the file system where it will end; what another identity left there is
            discarded.
        anatomy: whose teacher.
        frames: frame ids, in the order in which logits will come.
        grid: (h, w) of the logits.
        image_size: (H, W) of the frames.
        identity_parts: everything that determines the content, as JSON values: hash of the teacher, of the frames, ...
        views: one description per stored view.
        shard_frames: frames per file.

    Raises:
        StoreBusyError: another process is writing there.
        ValueError: no frames, or a frame twice.
    """
    if not frames or len(set(frames)) != len(frames):
        raise ValueError("a store needs frames, each once")
    attributes = describe(anatomy, frames, grid, image_size, views, identity_parts, shard_frames)
    return StoreWriter(Path(scratch), attributes)


class StoreWriter:
    """Appends frames to a store. Use it in a ``with`` block, which lets go of the scratch folder.

    Attributes:
        path: the scratch folder.
        attributes: of the store to be.
    """

    def __init__(self, path: Path, attributes: dict[str, Any]) -> None:
        self.path, self.attributes = path, attributes
        self._shape = (
            len(attributes["views"]),
            len(attributes["frames"]),
            len(CHANNELS),
            *attributes["grid"],
        )
        self._shard = min(int(attributes["shard_frames"]), self._shape[1])
        self._logits: list[NDArray[np.float16]] = []
        self._pixels: list[int] = []
        self._arrays: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(path.with_name(f"{path.name}.lock"))
        self._done = self._resume()

    @property
    def next(self) -> int:
        """Number of frames, counted over all views, that are already written; the next one to append."""
        return self._done + len(self._logits)

    @property
    def total(self) -> int:
        """Number of frames over all views."""
        return self._shape[0] * self._shape[1]

    def append(self, logits: NDArray[np.floating[Any]], pixels: Sequence[int]) -> None:
        """Add frames in order, all of view 0 first; a full shard is written at once.

        Args:
            logits: (n, 2, h, w), any float dtype.
            pixels: n checksums (crc32c) of the uint8 frames that the teacher was shown.

        Raises:
            UnstorableError: a value is not finite or beyond float16; names the frame.
            ValueError: the shape is not that of this store, or there are more frames than it holds.
        """
        if logits.shape[1:] != self._shape[2:] or len(pixels) != len(logits):
            raise ValueError(f"{len(pixels)} frames of {logits.shape[1:]} for a store of {self._shape[2:]}")
        if self.next + len(logits) > self.total:
            raise ValueError(f"{self.path} holds {self.total} frames, not more")
        for frame, shown in zip(logits, pixels, strict=True):
            self._logits.append(self._half(frame))
            self._pixels.append(int(shown))
            if len(self._logits) == self._shard_length():
                self._write_shard()

    def finish(self, path: str | Path) -> None:
        """Mark the store complete and move it into place; what was there is replaced.

        Raises:
            IncompleteError: frames are missing.
        """
        if self.next != self.total:
            raise IncompleteError(f"{self.path} has {self.next} of {self.total} frames: append the rest first")
        zarr.open_group(self.path, mode="r+").attrs["complete"] = True
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        self.path.replace(target)
        self._let_go(remove=True)

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._let_go()

    def _half(self, frame: NDArray[np.floating[Any]]) -> NDArray[np.float16]:
        largest = float(np.abs(frame).max())
        if not largest <= LARGEST:
            name = self.attributes["frames"][self.next % self._shape[1]]
            raise UnstorableError(
                f"the teacher of {self.attributes['anatomy']} answers {largest} on frame {name}, which float16 cannot "
                "hold: check its training, or ask it in precision 32-true"
            )
        return np.ascontiguousarray(frame, dtype=np.float16)

    def _shard_length(self) -> int:
        """Frames of the shard that is being filled; a view's last one may be short."""
        return min(self._shard, self._shape[1] - self._done % self._shape[1])

    def _write_shard(self) -> None:
        block = np.stack(self._logits)
        if not self._arrays:
            self._create(compression.trial(block))
        view, start = divmod(self._done, self._shape[1])
        place = (view, slice(start, start + len(block)))
        self._arrays["logits"][place] = block
        self._arrays["pixels"][place] = np.array(self._pixels, np.uint32)
        # Last: a shard without its checksums was not written.
        checksums = [frame_checksum(frame, self.attributes["identity"]) for frame in block]
        self._arrays["checksum"][place] = np.array(checksums, np.uint32)
        self._done += len(block)
        self._logits, self._pixels = [], []

    def _create(self, codec: dict[str, Any]) -> None:
        group = zarr.open_group(self.path, mode="w", zarr_format=3)
        self._arrays["logits"] = group.create_array(
            "logits",
            shape=self._shape,
            dtype="float16",
            chunks=(1, 1, *self._shape[2:]),
            shards=(1, self._shard, *self._shape[2:]),
            compressors=compression.codecs(codec["chosen"]),
            fill_value=np.float16("nan"),
            dimension_names=DIMENSIONS,
        )
        for name in ("checksum", "pixels"):
            self._arrays[name] = group.create_array(
                name,
                shape=self._shape[:2],
                dtype="uint32",
                chunks=(1, self._shard),
                compressors=[Crc32cCodec()],
                fill_value=0,
                dimension_names=DIMENSIONS[:2],
            )
        # Last: a scratch folder without attributes is begun anew.
        group.attrs.put({**self.attributes, "codec": codec})

    def _resume(self) -> int:
        """Open what an earlier writer left, and count the frames of its whole shards."""
        if not self.path.exists():
            return 0
        try:
            group = zarr.open_group(self.path, mode="r+", zarr_format=3)
            found = group.attrs.get("identity")
            self._arrays = {name: group[name] for name in ("logits", "checksum", "pixels")}
        except Exception:
            found = None
        if found != self.attributes["identity"]:
            log.warning("%s was begun for something else: it starts anew", self.path)
            shutil.rmtree(self.path)
            self._arrays = {}
            return 0
        for leftover in self.path.rglob("*.partial"):
            leftover.unlink()
        done = 0
        while done < self.total and (length := self._whole_shard(done)):
            done += length
        log.info("%s: goes on after %d of %d frames", self.path, done, self.total)
        return done

    def _whole_shard(self, done: int) -> int:
        """Frames of the shard that begins here if all of them match their checksums, else 0."""
        view, start = divmod(done, self._shape[1])
        stop = min(start + self._shard, self._shape[1])
        try:
            checksums = self._arrays["checksum"][view, start:stop]
            block = self._arrays["logits"][view, start:stop]
        except Exception:
            return 0
        identity = self.attributes["identity"]
        whole = all(frame_checksum(f, identity) == c for f, c in zip(block, checksums, strict=True))
        return stop - start if whole else 0

    def _let_go(self, *, remove: bool = False) -> None:
        if self._lock.closed:
            return
        if remove:
            Path(self._lock.name).unlink(missing_ok=True)
        self._lock.close()


def _lock(path: Path) -> Any:
    """Hold the scratch folder for this process; the kernel lets go when the process ends, however it does."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise StoreBusyError(
            f"{path.with_suffix('')} is being written by another process: wait for it, or stop it"
        ) from None
    return file
