"""Signals that ask a process to end, raised where Ctrl-C would raise, and exit statuses that tell of them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stopped(KeyboardInterrupt):
    """A signal that asks this process to end, raised where Ctrl-C would raise.

    Attributes:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_status(error: KeyboardInterrupt) -> int:
    """What a shell reports of a process that a signal ended: 128 + the signal's number."""
    return 128 + (error.number if isinstance(error, Stopped) else signal.SIGINT)


@contextmanager
def signals_raised() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Stopped` inside the block, the first of them only; ignored signals stay so.

    Python handles signals in the main thread alone: in another thread nothing is changed.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)  # what is being cleaned up is not interrupted again
        raise Stopped(number)

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
def helpers_started() -> Iterator[None]:
    """Helper processes of a rank that are started inside the block do not hear SIGTERM: the rank ends them.

    SLURM and container engines signal all processes; a loader process that died of it, be it while it starts, would
    take its rank with it before that has saved.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
