"""Run what a recipe lacks: each run in a process of its own, as many at a time as there are slots.

One that fails does not stop the others. However a sweep ends, the next one leaves finished runs alone and goes on with
cut ones from their last checkpoint.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import yaml

from bmlpipe.manifests.common.percent import percent
from bmlpipe.manifests.common.signals import SignalInterrupt
from bmlpipe.train.runs.folder import RunFolder
from bmlpipe.train.sweep.devices import Slot
from bmlpipe.train.sweep.folder import result_of, state_of
from bmlpipe.train.sweep.recipe import Job

_logger = logging.getLogger(__name__)

_SAVED = 143  # exit status of train/run.py after SIGTERM
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_jobs(jobs: Sequence[Job], slots: Sequence[Slot], *, inherit: Sequence[int] = ()) -> list[Job]:
    """Run what is not finished; call it inside `exclusive_folder`, in the main thread.

    On SIGINT, SIGTERM or SIGHUP the runs get SIGTERM, save and leave, and it waits for them.

    Args:
        jobs: From `Recipe.jobs`.
        slots: From `make_slots`.
        inherit: Descriptors from `exclusive_folder`; the runs hold the lock, too.

    Returns:
        The jobs that failed, or that refer to one that did; what they said is in their `log.txt`.

    Raises:
        SignalInterrupt: By one of these signals; every run has ended.
        ConfigError: A folder holds a run with other options; nothing was run.
    """
    queue = _Queue(jobs, inherit)
    with _signals() as caught:
        try:
            while (queue.waiting or queue.running) and not caught:
                queue.reap()
                queue.fill(slots)
                time.sleep(0.1)
        finally:
            queue.end()
    if caught:
        raise SignalInterrupt(caught[0])
    return queue.failed


class _Queue:
    """Jobs that wait, run and have ended."""

    def __init__(self, jobs: Sequence[Job], inherit: Sequence[int]) -> None:
        states = {job.folder: state_of(job) for job in jobs}
        self.waiting = [job for job in jobs if states[job.folder] != "finished"]
        self.running: dict[int, tuple[subprocess.Popen[bytes], Job, float]] = {}  # number of the slot → what runs there
        self.failed: list[Job] = []
        self._begun = {folder for folder, state in states.items() if state == "begun"}
        self._done = {folder for folder, state in states.items() if state == "finished"}
        self._inherit = inherit

    def fill(self, slots: Sequence[Slot]) -> None:
        """Start jobs in the free slots."""
        for number, slot in enumerate(slots):
            if number not in self.running and (job := self._next()) is not None:
                self._start(job, number, slot)

    def _next(self) -> Job | None:
        """The first job whose references are finished; one whose reference failed fails."""
        for job in list(self.waiting):
            if lost := [other for other in self.failed if other.folder in job.after]:
                self.waiting.remove(job)
                self.failed.append(job)
                _logger.error("%s: not run, since it refers to %s, which failed", job, lost[0])
            elif self._done.issuperset(job.after):
                self.waiting.remove(job)
                return job
        return None

    def _start(self, job: Job, number: int, slot: Slot) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        run = RunFolder(job.folder)
        options, log = run.options, run.log
        options.write_text(yaml.safe_dump(dict(job.options), sort_keys=False, allow_unicode=True), encoding="utf-8")
        self.running[number] = (slot.start(options, log, inherit=self._inherit), job, time.monotonic())
        _logger.info("%s: %s%s, log: %s", job, "goes on" if job.folder in self._begun else "begins", slot, log)

    def reap(self) -> None:
        """Take note of the runs that have ended."""
        for number, (process, job, began) in list(self.running.items()):
            status = process.poll()
            if status is None:
                continue
            del self.running[number]
            if status:
                self.failed.append(job)
                _logger.error("%s: %s", job, _why(status, RunFolder(job.folder).log))
                continue
            self._done.add(job.folder)
            row, (minutes, seconds) = result_of(job.folder), divmod(int(time.monotonic() - began), 60)
            found = f", test accuracy {percent(row['accuracy'])}" if row else ""
            _logger.info("%s: finished in %d min %02d s%s", job, minutes, seconds, found)

    def end(self) -> None:
        """Leave no run behind, whatever happened: they save, and are waited for."""
        if self.running:
            _logger.warning("waiting for %d run(s) to save: a step or an evaluation (Ctrl-\\ kills)", len(self.running))
        for process, _, _ in self.running.values():
            process.terminate()
        for process, _, _ in self.running.values():
            process.wait()


def _why(status: int, log: Path) -> str:
    """Why a run ended, from its exit status and the end of its log."""
    if status == _SAVED:
        return "stopped by SIGTERM from elsewhere, everything saved: the same sweep goes on with it"
    what = f"failed with status {status}" if status > 0 else f"killed by signal {-status}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{what}, see {log}" + (f": … {lines[-1].strip()}" if lines else "")


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the signals to stop by instead of being ended by them; ignored ones (nohup) stay so."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    before = {number: signal.getsignal(number) for number in _STOPPING}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        for number in heard:
            signal.signal(number, before[number])
