"""Requests to stop: SIGTERM waits for the end of the step, Ctrl-C is never lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from bmlpipe.train.engine.stop_request import StopRequest


@pytest.fixture(autouse=True)
def handlers_as_they_were() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_sigterm_only_sets_a_flag() -> None:
    stop = StopRequest()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        stop.check()
    assert (stop.requested, stop.interrupted) == (True, False)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_lost_in_a_destructor_is_raised_at_the_next_step() -> None:
    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):  # the handler runs between two instructions
                pass

    stop = StopRequest()
    with stop.listening():
        Dying()
        assert stop.interrupted  # and the program continues
        with pytest.raises(KeyboardInterrupt):
            stop.check()


def test_an_interrupt_that_a_library_turned_into_an_error_stays_an_interrupt() -> None:
    def save() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):
                pass
        finally:
            raise RuntimeError("unexpected pos")  # as torch.save does

    with pytest.raises(KeyboardInterrupt), StopRequest().listening():
        save()


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="unexpected pos"), StopRequest().listening():
        raise RuntimeError("unexpected pos")


def test_an_ignored_interrupt_stays_ignored() -> None:
    """As under nohup, or in the background of a script."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = StopRequest()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
        stop.check()
    assert not stop.interrupted
