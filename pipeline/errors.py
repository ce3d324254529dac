"""Errors that a user can cause and mend. The command line shows them as one line each, without a traceback."""


class MtkdError(Exception):
    """A mistake in data, settings or files. The message names the file, key or value and what to do."""
