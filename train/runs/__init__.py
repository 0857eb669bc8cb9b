"""The folder of a run: its files, and how they are written and read."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.train.runs.folder import RunFolder
    from bmlpipe.train.runs.journal import Journal
    from bmlpipe.train.runs.journal_reader import read_columns, read_rows
    from bmlpipe.train.runs.run_reader import Run, read_run

__all__ = ["Journal", "Run", "RunFolder", "read_columns", "read_rows", "read_run"]

__getattr__ = lazy_exports(
    __name__,
    {
        "folder": ["RunFolder"],
        "journal": ["Journal"],
        "journal_reader": ["read_columns", "read_rows"],
        "run_reader": ["Run", "read_run"],
    },
)
