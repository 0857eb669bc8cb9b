"""Signals during training: SIGTERM asks to finish the step, save and end; Ctrl-C ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """A request to stop this process, which a signal makes.

    The ranks of a run receive a signal at different moments. They agree on the step after which they stop by summing
    `requested` over the ranks in the step's collective.

    Attributes:
        requested: Whether SIGTERM has arrived.
        interrupted: Whether Ctrl-C has arrived. Ctrl-C raises `KeyboardInterrupt` at once, but Python drops an
            exception that is raised inside a destructor, so every step begins with `check`.
    """

    def __init__(self) -> None:
        self.requested = self.interrupted = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C has arrived."""
        if self.interrupted:
            raise KeyboardInterrupt

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGTERM and Ctrl-C inside the block. Python allows signal handlers in the main thread only.

        Raises:
            KeyboardInterrupt: After Ctrl-C, even if a library has turned it into another exception.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def request(number: int, frame: FrameType | None) -> None:
            self.requested = True

        def interrupt(number: int, frame: FrameType | None) -> None:
            self.interrupted = True
            raise KeyboardInterrupt

        before = {signal.SIGTERM: signal.signal(signal.SIGTERM, request)}
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # otherwise SIGINT is ignored or handled
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
