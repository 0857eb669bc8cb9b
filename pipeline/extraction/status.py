"""The status of a running extraction for other programs: `status.json` and, for Prometheus, `status.prom`."""

from __future__ import annotations

import calendar
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any

from bmlpipe.manifests.common.status_file import StatusFile
from bmlpipe.pipeline.extraction.plan import ExtractionPlan
from bmlpipe.pipeline.store.feature_file import FeatureStore
from bmlpipe.pipeline.store.folder import PROMETHEUS_FILE
from bmlpipe.pipeline.store.ledger import LedgerRow


class ExtractionStatus:
    """The published counts of the clips of a run; use `file` as a context manager around the run.

    Args:
        plan: The plan of the run.

    Attributes:
        file: The status file. In addition to the content of every `StatusFile` it holds: `clips` of the manifest, each
            of which is `ok`, `failed`, `absent` or `not_tried`; `failures` per reason, and `failed_before` for those
            that are not tried again; `planned` and `done` clips of this run; `clips_per_second`; `seconds_left` (None
            before the first clip); `bytes_written` (size of this run's feature files); `workers` alive (None without
            Dask); and the address of Dask's `dashboard`.
    """

    def __init__(self, plan: ExtractionPlan) -> None:
        self._plan, self._store = plan, FeatureStore(plan.out)
        self._start = time.monotonic()
        self._done: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._bytes = 0
        self.file = StatusFile(plan.out, self.content, {PROMETHEUS_FILE: prometheus})

    def add(self, rows: Sequence[LedgerRow]) -> None:
        """Count finished clips."""
        for row in rows:
            self._done[row.status] += 1
            if row.status == "ok":
                try:
                    self._bytes += self._store.path(row.id).stat().st_size
                except OSError:  # the file was deleted meanwhile: the next run notices
                    continue
            else:
                self._failures[row.reason] += 1

    def content(self) -> Mapping[str, Any]:
        """Compute the content of the file."""
        known, planned, done = self._plan.known, len(self._plan.tasks), self._done.total()
        rate = done / max(time.monotonic() - self._start, 1e-9)
        workers, dashboard = _cluster()
        return {
            "dataset": self._plan.manifest.dataset,
            "folder": str(self._plan.out),
            "clips": len(self._plan.manifest.clips),
            "ok": known["ok"] + self._done["ok"],
            "failed": known["failed"] + self._done["failed"],
            "absent": known["absent"] + self._done["absent"],
            "not_tried": planned - done,
            "failures": dict(self._failures),
            "failed_before": known["failed"],
            "planned": planned,
            "done": done,
            "clips_per_second": round(rate, 3),
            "seconds_left": round((planned - done) / rate) if done else None,
            "bytes_written": self._bytes,
            "workers": workers,
            "dashboard": dashboard,
        }


def _cluster() -> tuple[int | None, str | None]:
    """Return the number of Dask workers and the address of the dashboard of this process's client; None without one."""
    distributed = sys.modules.get("distributed")
    if distributed is None:  # a run without Dask does not import it
        return None, None
    try:
        client = distributed.default_client()
        return len(client.nthreads()), client.dashboard_link or None
    except (OSError, ValueError, KeyError, RuntimeError, TimeoutError, CancelledError):  # none, or it is being closed
        return None, None


def prometheus(content: Mapping[str, Any]) -> str:
    """Format a status for Prometheus: gauges labelled with the folder and, if it applies, status or reason."""
    folder = content["folder"].replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    updated = calendar.timegm(time.strptime(content["updated"], "%Y-%m-%dT%H:%M:%SZ"))
    gauges: list[tuple[str, str, Mapping[str, Any]]] = [
        (
            "running",
            "1 while the run is in progress and the timestamp is recent.",
            {"": int(content["state"] == "running")},
        ),
        ("updated_timestamp_seconds", "Time of this status.", {"": updated}),
        (
            "clips",
            "Clips of the manifest per status.",
            {f'status="{status}"': content[status] for status in ("ok", "failed", "absent", "not_tried")},
        ),
        (
            "failures",
            "Clips that failed in this run, per reason.",
            {f'reason="{reason}"': count for reason, count in content["failures"].items()},
        ),
        ("planned_clips", "Clips to be extracted by this run.", {"": content["planned"]}),
        ("done_clips", "Clips extracted by this run.", {"": content["done"]}),
        ("written_bytes", "Size of the feature files of this run.", {"": content["bytes_written"]}),
        ("workers", "Dask workers alive.", {"": content["workers"] or 0}),
    ]
    lines = []
    for name, description, values in gauges:
        lines += [f"# HELP bmlpipe_extract_{name} {description}", f"# TYPE bmlpipe_extract_{name} gauge"]
        for label, value in values.items():
            labels = ",".join(filter(None, [f'folder="{folder}"', label]))
            lines.append(f"bmlpipe_extract_{name}{{{labels}}} {value}")
    return "\n".join(lines) + "\n"
