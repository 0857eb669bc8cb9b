"""Train the unfinished runs of a recipe: each in a process of its own, one per group of devices at a time.

A run that fails does not stop the others. However a sweep ends, the next one skips finished runs and continues
unfinished ones from their last checkpoint.
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
from bmlpipe.train.sweep.devices import DeviceGroup
from bmlpipe.train.sweep.folder import final_metrics, state_of
from bmlpipe.train.sweep.recipe import Job

_logger = logging.getLogger(__name__)

_SAVED = 143  # exit status of train/run.py after SIGTERM
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_jobs(jobs: Sequence[Job], devices: Sequence[DeviceGroup], *, inherit: Sequence[int] = ()) -> list[Job]:
    """Train the runs that are not finished. Call it inside `exclusive_folder`, in the main thread.

    On SIGINT, SIGTERM or SIGHUP the runs receive SIGTERM, save and end; the function waits for them.

    Args:
        jobs: Runs, from `Recipe.jobs`.
        devices: Groups of devices, from `share_devices`.
        inherit: File descriptors of `exclusive_folder`, so that the runs hold its lock, too.

    Returns:
        The runs that failed, and those that refer to one that failed. Their output is in `log.txt` in their folders.

    Raises:
        SignalInterrupt: One of these signals arrived; every run has ended.
        ConfigError: A folder holds a run with other options; nothing was started.
    """
    queue = _Queue(jobs, inherit)
    with _collected_signals() as caught:
        try:
            while (queue.waiting or queue.running) and not caught:
                queue.collect_ended()
                queue.start_waiting(devices)
                time.sleep(0.1)
        finally:
            queue.terminate()
    if caught:
        raise SignalInterrupt(caught[0])
    return queue.failed


class _Queue:
    """Runs that wait, train and have ended."""

    def __init__(self, jobs: Sequence[Job], inherit: Sequence[int]) -> None:
        states = {job.folder: state_of(job) for job in jobs}
        self.waiting = [job for job in jobs if states[job.folder] != "finished"]
        #: Number of the group of devices → process, run, start time.
        self.running: dict[int, tuple[subprocess.Popen[bytes], Job, float]] = {}
        self.failed: list[Job] = []
        self._unfinished = {folder for folder, state in states.items() if state == "unfinished"}
        self._finished = {folder for folder, state in states.items() if state == "finished"}
        self._inherit = inherit

    def start_waiting(self, devices: Sequence[DeviceGroup]) -> None:
        """Start runs on the free groups of devices."""
        for number, group in enumerate(devices):
            if number not in self.running and (job := self._next()) is not None:
                self._start(job, number, group)

    def _next(self) -> Job | None:
        """Take the first run whose references are finished. A run whose reference failed counts as failed, too."""
        for job in list(self.waiting):
            if lost := [other for other in self.failed if other.folder in job.after]:
                self.waiting.remove(job)
                self.failed.append(job)
                _logger.error("%s was not started, since it refers to %s, which failed", job, lost[0])
            elif self._finished.issuperset(job.after):
                self.waiting.remove(job)
                return job
        return None

    def _start(self, job: Job, number: int, group: DeviceGroup) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        run = RunFolder(job.folder)
        options = yaml.safe_dump(dict(job.options), sort_keys=False, allow_unicode=True)
        run.options.write_text(options, encoding="utf-8")
        process = group.start(run.options, run.log, inherit=self._inherit)
        self.running[number] = (process, job, time.monotonic())
        what = "continues" if job.folder in self._unfinished else "starts"
        _logger.info("%s %s%s, log: %s", job, what, group, run.log)

    def collect_ended(self) -> None:
        """Record the runs that have ended."""
        for number, (process, job, started) in list(self.running.items()):
            status = process.poll()
            if status is None:
                continue
            del self.running[number]
            if status:
                self.failed.append(job)
                _logger.error("%s %s", job, _cause(status, RunFolder(job.folder).log))
                continue
            self._finished.add(job.folder)
            row, (minutes, seconds) = final_metrics(job.folder), divmod(int(time.monotonic() - started), 60)
            accuracy = f", test accuracy {percent(row['accuracy'])}" if row else ""
            _logger.info("%s finished in %d min %02d s%s", job, minutes, seconds, accuracy)

    def terminate(self) -> None:
        """Ask all runs to save and end, and wait for them."""
        if self.running:
            _logger.warning(
                "waiting for %d runs to save, after their present step or evaluation (Ctrl-\\ kills them)",
                len(self.running),
            )
        for process, _, _ in self.running.values():
            process.terminate()
        for process, _, _ in self.running.values():
            process.wait()


def _cause(status: int, log: Path) -> str:
    """Explain why a run ended, from its exit status and the last line of its log."""
    if status == _SAVED:
        return "was stopped by SIGTERM and has saved; the same sweep continues it"
    what = f"failed with status {status}" if status > 0 else f"was killed by signal {-status}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{what}, see {log}" + (f": … {lines[-1].strip()}" if lines else "")


@contextmanager
def _collected_signals() -> Iterator[list[int]]:
    """Collect the signals that stop a sweep, instead of dying of them. Ignored signals (nohup) stay ignored."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
    handled = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in handled:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        for number in handled:
            signal.signal(number, before[number])
