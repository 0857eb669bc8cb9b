"""SIGTERM as a request: finish the step, save, leave. Ctrl-C: leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether this process was asked to stop.

    The ranks of a run are signalled at different moments; they agree on the step to stop after by summing their
    requests in the step's collective.

    Attributes:
        requested: True from SIGTERM on.
        interrupted: True from Ctrl-C on. It raises `KeyboardInterrupt` at once, but where that is raised inside a
            destructor Python drops it: so a step begins with `check`.
    """

    def __init__(self) -> None:
        self.requested = self.interrupted = False

    def check(self) -> None:
        """Raise KeyboardInterrupt after Ctrl-C."""
        if self.interrupted:
            raise KeyboardInterrupt

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to SIGTERM and Ctrl-C inside the block (in the main thread only, as Python demands).

        Raises:
            KeyboardInterrupt: After Ctrl-C, also in the place of an error that a library has made of it.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: FrameType | None) -> None:
            self.requested = True

        def interrupt(number: int, frame: FrameType | None) -> None:
            self.interrupted = True
            raise KeyboardInterrupt

        before = {signal.SIGTERM: signal.signal(signal.SIGTERM, ask)}
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, or another one's
            before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        except Exception as error:
            if self.interrupted:
                raise KeyboardInterrupt from error
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
