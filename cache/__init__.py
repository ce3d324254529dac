"""The logit store: dense outputs of one teacher on many frames, on disk, never silently wrong.

A store is a Zarr v3 group that any Zarr reader opens. Frames are read in any order. This package
adds what a plain array lacks: a store knows what it was made from and refuses to pass for another,
every frame carries a checksum that is compared at each read, and a writer that was killed goes on
where it was. NumPy and Zarr only; no torch, nothing of the rest of this project.

    with create_store(
        "scratch/liver.zarr",
        anatomy="liver",
        frames=ids,
        grid=(128, 160),
        image_size=(512, 640),
        identity_parts={"teacher": file_sha256(checkpoint)},
    ) as writer:
        for logits, pixels in batches_from(writer.next):
            writer.append(logits, pixels)
        writer.finish("stores/liver.zarr")

    open_store("stores/liver.zarr").read("liver/01/image00")   # float16 (2, 128, 160)
"""

from cache.errors import (
    FrameError,
    IdentityError,
    IncompleteError,
    IntegrityError,
    MissingStoreError,
    NotWrittenError,
    OccupiedError,
    StoreBusyError,
    StoreError,
    UnstorableError,
)
from cache.identity import file_sha256, identity_of
from cache.inspect import estimate, stats, verify
from cache.layout import begun_attributes, is_logit_store
from cache.lock import ScratchLock, is_being_written
from cache.store import Store, open_store
from cache.writer import StoreWriter, create_store

__all__ = [
    "FrameError",
    "IdentityError",
    "IncompleteError",
    "IntegrityError",
    "MissingStoreError",
    "NotWrittenError",
    "OccupiedError",
    "ScratchLock",
    "Store",
    "StoreBusyError",
    "StoreError",
    "StoreWriter",
    "UnstorableError",
    "begun_attributes",
    "create_store",
    "estimate",
    "file_sha256",
    "identity_of",
    "is_being_written",
    "is_logit_store",
    "open_store",
    "stats",
    "verify",
]
