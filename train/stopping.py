"""SIGTERM as a request: finish the step, save, leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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


class StopRequest:
    """Whether this process was asked to stop.

    The ranks of a run are signalled at different moments; they agree on the step to stop after by summing their
    requests in the step's collective.

    Attributes:
        requested: True from the signal on.
    """

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def on_sigterm(self) -> Iterator[None]:
        """Listen to SIGTERM inside the block (in the main thread only, as Python demands)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            self.requested = True

        before = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
