"""The progress line of a training: updated in place on a terminal, a log line elsewhere."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bmlpipe.train.runs import progress_line as progress
from bmlpipe.train.runs.progress_line import ProgressLine


def rows(count: int) -> Iterator[dict[str, Any]]:
    for step in range(count):
        yield {
            "step": step,
            "epoch": 0,
            "loss": 1.5,
            "rho/audio": 2.0,
            "rho/visual": 0.5,
            "step_s": 0.5,
            "data_s": 0.1,
            "samples_per_s": 64.0,
        }


LINE = (
    "step 3 of 10, epoch 0  loss 1.500  ρ audio 2.00  ρ visual 0.50  64 samples/s  waiting for data 20%  "
    "0 min 03 s left"
)


def test_without_a_terminal_the_progress_is_a_log_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress, "_IN_LOG", 0.0)
    with caplog.at_level(logging.INFO, "bmlpipe"), ProgressLine(10) as line:
        for row in rows(3):
            line.step(row, ["k/audio is 0: it learns nothing"])
    said = [record.getMessage() for record in caplog.records]
    assert said[-1] == LINE
    assert sum("k/audio is 0" in message for message in said) == 1
    assert not any("\x1b" in message for message in said)


@pytest.mark.slow
def test_on_a_terminal_the_line_is_updated_in_place_below_the_log(run_on_terminal: Callable[[str], str]) -> None:
    program = (
        "import logging\nfrom bmlpipe.manifests.common.logs import configure\n"
        "from bmlpipe.train.runs import progress_line as progress\n"
        f"rows = {list(rows(3))!r}\nprogress._ON_TERMINAL = 0.0\nconfigure()\n"
        "with progress.ProgressLine(10) as line:\n    for row in rows:\n        line.step(row, [])\n"
        "        logging.getLogger('bmlpipe').info('said at %d', row['step'])\n"
    )
    shown = run_on_terminal(program)
    assert LINE in shown
    assert shown.index("said at 0") < shown.index("step 2 of 10")
    assert shown.count("\x1b[2K") >= 3  # each line is erased before what follows
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is back
