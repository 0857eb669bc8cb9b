"""Estimate the time and disk space of a run by extracting a few of its clips into a temporary folder."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bmlpipe.pipeline.extraction.plan import ExtractionPlan
from bmlpipe.pipeline.extraction.worker import extract_batch
from bmlpipe.pipeline.store.errors import ExtractionError


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of a plan.

    Attributes:
        clips: Number of clips to extract.
        sampled: Number of clips that were extracted for the estimate.
        failures: Number of these that failed, per reason.
        bytes_per_clip: Mean size of the feature files, failed clips included.
        seconds_per_clip: Mean time in one process.
        free: Bytes free on the disk of the feature folder.
    """

    clips: int
    sampled: int
    failures: Counter[str]
    bytes_per_clip: float
    seconds_per_clip: float
    free: int

    @property
    def bytes(self) -> float:
        """Size of all features to be written."""
        return self.clips * self.bytes_per_clip

    def text(self, workers: int) -> str:
        """Format the estimate in one line.

        Args:
            workers: Number of processes.
        """
        processes = max(1, workers)
        minutes = self.clips * self.seconds_per_clip / processes / 60
        duration = f"{minutes / 60:.1f} h" if minutes >= 60 else f"{minutes:.1f} min"
        failed = "".join(f", {reason} {count}" for reason, count in self.failures.most_common())
        return (
            f"about {self.bytes / 1e9:.2f} GB and {duration} with {processes} processes, estimated from "
            f"{self.sampled} clips{failed}; {self.free / 1e9:.2f} GB are free"
        )

    def check(self, out: Path) -> None:
        """Check that the features fit on the disk.

        Args:
            out: Feature folder.

        Raises:
            ExtractionError: They do not.
        """
        if self.bytes > self.free:
            raise ExtractionError(
                f"the features need about {self.bytes / 1e9:.2f} GB ({self.clips} clips of "
                f"{self.bytes_per_clip / 1e6:.2f} MB), but {out} has only {self.free / 1e9:.2f} GB free: choose "
                "another --out, fewer --kinds or a smaller --short-side, or skip this check by --no-disk-check"
            )


def estimate(plan: ExtractionPlan, count: int = 8) -> Estimate:
    """Extract some clips of a plan into a temporary folder and extrapolate. Nothing is written to the plan's folder.

    Args:
        plan: The plan; see `make_plan`.
        count: Number of clips to extract, drawn at random with a fixed seed.
    """
    total = len(plan.tasks)
    chosen = [plan.tasks[number] for number in random.Random(0).sample(range(total), min(count, total))]
    with tempfile.TemporaryDirectory(prefix="bmlpipe-estimate-") as folder:
        before = time.perf_counter()
        rows = extract_batch(chosen, plan.request, Path(folder), plan.videos)
        seconds = time.perf_counter() - before
        written = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    existing = next(path for path in (plan.out, *plan.out.parents) if path.exists())
    return Estimate(
        clips=total,
        sampled=len(chosen),
        failures=Counter(row.reason for row in rows if row.reason),
        bytes_per_clip=written / max(1, len(chosen)),
        seconds_per_clip=seconds / max(1, len(chosen)),
        free=shutil.disk_usage(existing).free,
    )
