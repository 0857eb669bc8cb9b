"""The files of a feature folder, which `bmlpipe extract` writes and all later commands read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bmlpipe.manifests.common.files import TEMPORARY_SUFFIX
from bmlpipe.manifests.common.status_file import STATUS_FILE
from bmlpipe.shards.sample import key_of

#: The status in Prometheus' text format, read by node_exporter's textfile collector.
PROMETHEUS_FILE = "status.prom"


@dataclass(frozen=True)
class FeatureFolder:
    """The places of the files of a feature folder.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def dataset(self) -> Path:
        """Description of the data set and of the features' parameters (JSON)."""
        return self.path / "dataset.json"

    @property
    def manifest(self) -> Path:
        """The manifest: one row per clip (CSV)."""
        return self.path / "manifest.csv"

    @property
    def ledger(self) -> Path:
        """The ledger: the outcome of each clip (CSV)."""
        return self.path / "ledger.csv"

    @property
    def ledger_log(self) -> Path:
        """Rows of the ledger that a run has appended (one JSON array per line). Removed when the run finishes."""
        return self.path / "ledger.log.jsonl"

    @property
    def clips(self) -> Path:
        """Folder of the clips' feature files."""
        return self.path / "clips"

    @property
    def status(self) -> Path:
        """Status of the running or last run (JSON)."""
        return self.path / STATUS_FILE

    @property
    def prometheus(self) -> Path:
        """The same status in Prometheus' text format."""
        return self.path / PROMETHEUS_FILE

    @property
    def hung(self) -> Path:
        """Folder of the tracebacks of clips that exceeded their time limit, while a run is in progress."""
        return self.path / ".hung"

    def clip(self, clip_id: str) -> Path:
        """Return the path of the feature file of a clip, in one of 256 sub-folders of `clips`."""
        sub_folder = hashlib.sha256(clip_id.encode("utf-8", "surrogatepass")).hexdigest()[:2]
        return self.clips / sub_folder / f"{key_of(clip_id)}.h5"

    def run_marker(self, token: str) -> Path:
        """Return the path of an empty file by which workers on other hosts recognise the folder of a run."""
        return self.path / f".run-{token}"

    def leftovers(self) -> Iterator[Path]:
        """Yield temporary files that killed runs left among the clips' feature files."""
        return self.clips.glob(f"??/*{TEMPORARY_SUFFIX}")
