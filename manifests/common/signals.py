"""Signals that ask a process to end: raise them as exceptions, block them, and report them as exit statuses."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class SignalInterrupt(KeyboardInterrupt):
    """A signal has asked this process to end; raised where Ctrl-C would raise.

    Attributes:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_status(error: KeyboardInterrupt) -> int:
    """Return the exit status of a process that a signal ended, as shells report it: 128 + the number of the signal."""
    return 128 + (error.number if isinstance(error, SignalInterrupt) else signal.SIGINT)


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Raise `SignalInterrupt` on the first SIGTERM or SIGHUP inside the block. A signal that was ignored stays ignored.

    Python handles signals in the main thread only; in another thread this changes nothing.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)  # a second signal must not interrupt the clean-up
        raise SignalInterrupt(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        numbers = (signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.getsignal(number) for number in numbers}
        before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
        for number in before:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def signals_blocked(*numbers: int) -> Iterator[None]:
    """Block signals in this thread inside the block; they arrive at its end. Processes started inside inherit the mask.

    Args:
        numbers: Signals to block; none: SIGINT, SIGTERM and SIGHUP.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers or (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
