"""Keeping the stack on which this thread handles signals.

A model that OpenVINO compiles puts a signal stack of its own in place of the thread's, and when it
is deleted puts back what it found. Two models that are deleted in the order in which they were
compiled leave the stack of the first, which is no longer there: the next signal, Ctrl-C or the end
of a child process, then kills the process.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class SignalStack(ctypes.Structure):
    """``stack_t`` of Linux."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> SignalStack:
    """The signal stack of this thread."""
    stack = SignalStack()
    _sigaltstack(None, ctypes.byref(stack))
    return stack


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Afterwards this thread has the signal stack that it had before."""
    if not sys.platform.startswith("linux"):
        yield
        return
    before = signal_stack()
    try:
        yield
    finally:
        _sigaltstack(ctypes.byref(before), None)


def _sigaltstack(new: object, old: object) -> None:
    ctypes.CDLL(None).sigaltstack(new, old)
