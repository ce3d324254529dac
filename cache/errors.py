"""One error per cause. Every message names the store and what to do."""


class StoreError(Exception):
    """Base of all errors of a logit store."""

    def __str__(self) -> str:
        return Exception.__str__(self)  # KeyError would show the message in quotes


class MissingStoreError(StoreError, FileNotFoundError):
    """There is no store at this path."""


class IncompleteError(StoreError, ValueError):
    """The store was not written to its end."""


class IdentityError(StoreError, ValueError):
    """The store was made from something else, or its metadata was edited."""


class IntegrityError(StoreError, ValueError):
    """What is on disk is not what was written."""


class FrameError(StoreError, IndexError, KeyError):
    """The store holds no such position (IndexError), frame id (KeyError) or view."""


class UnstorableError(StoreError, ValueError):
    """A value is not finite or beyond float16."""


class StoreBusyError(StoreError, BlockingIOError):
    """Another process is writing this store."""


class OccupiedError(StoreError, FileExistsError):
    """What lies where a store would be begun or put is not a writer's to discard."""


class NotWrittenError(StoreError, OSError):
    """The system refused to write, as on a full disk."""
