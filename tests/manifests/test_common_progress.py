"""Progress: log lines without a terminal, one line updated in place on a terminal."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable

import pytest

from bmlpipe.manifests.common.progress import ProgressMeter, StatusLine, duration_text


@pytest.fixture
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())


@pytest.mark.usefixtures("no_terminal")
def test_the_meter_counts_items_and_failures(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "bmlpipe"), ProgressMeter("clips") as meter:
        meter.expect(10)
        meter.advance(3, {"timeout": 1})
        meter.advance(2, {"timeout": 1, "not_media": 1})
    (record,) = caplog.records  # the interval is longer than this test
    assert record.getMessage().startswith("5 of 10 clips  ")
    assert record.getMessage().endswith(" left  timeout 2  not_media 1")
    assert vars(record)["failures"] == {"timeout": 2, "not_media": 1}
    assert {"done": 5, "total": 10}.items() <= vars(record).items()


@pytest.mark.usefixtures("no_terminal")
def test_no_progress_is_logged_without_a_finished_item(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "bmlpipe"), ProgressMeter("clips", 10):
        pass
    assert caplog.records == []


@pytest.mark.usefixtures("no_terminal")
def test_a_line_is_due_after_its_interval() -> None:
    with StatusLine(in_log=1e6) as line:
        assert not line.due()
    with StatusLine(in_log=0) as line:
        assert line.due()


def test_durations_are_shown_in_minutes_or_hours() -> None:
    assert [duration_text(seconds) for seconds in (0, 59.9, 60, 3599, 3600, 90_000)] == [
        "0 min 00 s",
        "0 min 59 s",
        "1 min 00 s",
        "59 min 59 s",
        "1 h 00 min",
        "25 h 00 min",
    ]


def test_on_a_terminal_the_line_stays_below_the_log(run_on_terminal: Callable[[str], str]) -> None:
    program = (
        "import logging\nfrom bmlpipe.manifests.common.logs import configure\n"
        "from bmlpipe.manifests.common.progress import ProgressMeter\nconfigure()\n"
        "with ProgressMeter('clips', 3) as meter:\n"
        "    for number in range(3):\n"
        "        logging.getLogger('bmlpipe').info('clip %d', number)\n"
        "        meter.advance()\n"
    )
    shown = run_on_terminal(program)
    assert "━━" in shown
    assert shown.rindex("3 of 3 clips") > shown.index("clip 2")
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is visible again
