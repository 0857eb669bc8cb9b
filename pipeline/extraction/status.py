"""How an extraction stands, for machines: `status.json` and, for Prometheus, `status.prom` in the feature folder."""

from __future__ import annotations

import calendar
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any

from bmlpipe.manifests.common.status_file import StatusFile
from bmlpipe.pipeline.extraction.plan import Plan
from bmlpipe.pipeline.store.feature_file import FeatureStore
from bmlpipe.pipeline.store.ledger import Row

#: Read by node_exporter's textfile collector.
PROMETHEUS_FILE = "status.prom"


class ExtractionStatus:
    """Counts what a run does, and tells it; use `file` as a context manager around the run.

    Args:
        plan: What the run will do.

    Attributes:
        file: The status file. Its content beside `StatusFile`'s: `clips` of the manifest, all of which are `ok`,
            `failed`, `absent` or `not_tried`; `failures` by reason and `failed_before`, those that are not tried again;
            `planned` for this run and `done` by it; `clips_per_second`, `seconds_left` (None before the first clip),
            `bytes_written` (feature files of this run's clips); `workers` alive (None without Dask) and `dashboard`.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan, self._store = plan, FeatureStore(plan.out)
        self._start = time.monotonic()
        self._done: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._bytes = 0
        self.file = StatusFile(plan.out, self.content, {PROMETHEUS_FILE: prometheus})

    def add(self, rows: Sequence[Row]) -> None:
        """Count finished clips."""
        for row in rows:
            self._done[row.status] += 1
            if row.status == "ok":
                try:
                    self._bytes += self._store.path(row.id).stat().st_size
                except OSError:  # deleted by somebody: the next run notices
                    continue
            else:
                self._failures[row.reason] += 1

    def content(self) -> Mapping[str, Any]:
        """What the file says."""
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
    """Number of Dask workers and the dashboard's address, of the client that this process has."""
    distributed = sys.modules.get("distributed")
    if distributed is None:  # a run in this process alone does without
        return None, None
    try:
        client = distributed.default_client()
        return len(client.nthreads()), client.dashboard_link or None
    except (OSError, ValueError, KeyError, RuntimeError, TimeoutError, CancelledError):  # none, or it is being closed
        return None, None


def prometheus(content: Mapping[str, Any]) -> str:
    """A status as Prometheus' text format: gauges labelled with the folder and, one a status or reason, with that."""
    folder = content["folder"].replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    updated = calendar.timegm(time.strptime(content["updated"], "%Y-%m-%dT%H:%M:%SZ"))
    gauges: list[tuple[str, str, Mapping[str, Any]]] = [
        ("running", "Whether the run goes on (while updated is young).", {"": int(content["state"] == "running")}),
        ("updated_timestamp_seconds", "When this was written.", {"": updated}),
        (
            "clips",
            "Clips of the manifest by status.",
            {f'status="{status}"': content[status] for status in ("ok", "failed", "absent", "not_tried")},
        ),
        (
            "failures",
            "Clips that failed in this run, by reason.",
            {f'reason="{reason}"': count for reason, count in content["failures"].items()},
        ),
        ("planned_clips", "Clips that this run will do.", {"": content["planned"]}),
        ("done_clips", "Clips that this run has done.", {"": content["done"]}),
        ("written_bytes", "Size of the feature files of this run.", {"": content["bytes_written"]}),
        ("workers", "Dask workers alive.", {"": content["workers"] or 0}),
    ]
    lines = []
    for name, about, values in gauges:
        lines += [f"# HELP bmlpipe_extract_{name} {about}", f"# TYPE bmlpipe_extract_{name} gauge"]
        for label, value in values.items():
            labels = ",".join(filter(None, [f'folder="{folder}"', label]))
            lines.append(f"bmlpipe_extract_{name}{{{labels}}} {value}")
    return "\n".join(lines) + "\n"
