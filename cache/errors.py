"""One error per cause. Every message names the store and what to do."""


class StoreError(Exception):
    """Base of all errors of a logit store."""


class MissingStoreError(StoreError, FileNotFoundError):
    """There is no store at this path."""


class IncompleteError(StoreError, ValueError):
    """The store was not written to its end."""


class IdentityError(StoreError, ValueError):
    """The store was made from something else, or its metadata was edited."""


class IntegrityError(StoreError, ValueError):
    """What is on disk is not what was written."""


class FrameError(StoreError, LookupError):
    """The store holds no such frame or view."""


class UnstorableError(StoreError, ValueError):
    """A value is not finite or beyond float16."""


class StoreBusyError(StoreError, BlockingIOError):
    """Another process is writing this store."""
