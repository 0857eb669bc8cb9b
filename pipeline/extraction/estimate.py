"""What a run will need, from a few of its clips: they are really extracted, and thrown away."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bmlpipe.pipeline.extraction.plan import ExtractionError, Plan
from bmlpipe.pipeline.extraction.worker import extract_batch


@dataclass(frozen=True)
class Estimate:
    """What a plan will cost.

    Attributes:
        clips: Clips to do.
        sampled: How many of them were tried.
        failures: How many of these failed, by reason.
        bytes_a_clip: Mean size of what was written, failed clips included.
        seconds_a_clip: Mean time in one process.
        free: Bytes free where the features will lie.
    """

    clips: int
    sampled: int
    failures: Counter[str]
    bytes_a_clip: float
    seconds_a_clip: float
    free: int

    @property
    def bytes(self) -> float:
        """Size of all features to be written."""
        return self.clips * self.bytes_a_clip

    def text(self, workers: int) -> str:
        """One line for people."""
        minutes = self.clips * self.seconds_a_clip / max(1, workers) / 60
        time_ = f"{minutes / 60:.1f} h" if minutes >= 60 else f"{minutes:.1f} min"
        failed = "".join(f", {reason} {count}" for reason, count in self.failures.most_common())
        return (
            f"about {self.bytes / 1e9:.2f} GB and {time_} with {max(1, workers)} processes, judged by {self.sampled} "
            f"clips{failed}; {self.free / 1e9:.2f} GB are free"
        )

    def check(self, out: Path) -> None:
        """Refuse to begin what cannot end.

        Raises:
            ExtractionError: The disk has not the room.
        """
        if self.bytes > self.free:
            raise ExtractionError(
                f"the features will need about {self.bytes / 1e9:.2f} GB ({self.clips} clips of "
                f"{self.bytes_a_clip / 1e6:.2f} MB), and {out} has {self.free / 1e9:.2f} GB free: choose another "
                "--out, fewer --modalities, a smaller --short-side, or --no-disk-check"
            )


def estimate(plan: Plan, sample: int = 8) -> Estimate:
    """Extract some clips of a plan into a temporary folder and scale up; nothing is written to the plan's folder.

    Args:
        plan: From `make_plan`.
        sample: Clips to try, drawn at random, the same in every call.
    """
    total = len(plan.tasks)
    chosen = [plan.tasks[number] for number in random.Random(0).sample(range(total), min(sample, total))]
    with tempfile.TemporaryDirectory(prefix="bmlpipe-estimate-") as folder:
        before = time.perf_counter()
        rows = extract_batch(chosen, plan.recipe, Path(folder), plan.videos)
        seconds = time.perf_counter() - before
        written = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    there = next(path for path in (plan.out, *plan.out.parents) if path.exists())
    count = max(1, len(chosen))
    failures = Counter(row.reason for row in rows if row.reason)
    return Estimate(
        len(plan.tasks), len(chosen), failures, written / count, seconds / count, shutil.disk_usage(there).free
    )
