"""SIGTERM as a request: finish the step, save, leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def leave_sigterm_to_the_rank() -> None:
    """For a helper process of a rank: the rank answers SIGTERM, and ends its helpers when it has saved.

    SLURM and container engines signal all processes; a loader process that died of it would take its rank with it.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


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
