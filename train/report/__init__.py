"""Compare runs: the results table, one picture, and a self-contained page with all that the runs have written."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.train.report.experiments import group_runs
    from bmlpipe.train.report.page import write_page
    from bmlpipe.train.report.picture import write_picture
    from bmlpipe.train.report.tables import Table, results_table
    from bmlpipe.train.runs.read_run import Run, read_run

__all__ = ["Run", "Table", "group_runs", "read_run", "results_table", "write_page", "write_picture"]

__getattr__ = lazy_exports(
    "bmlpipe.train",
    {
        "report.experiments": ["group_runs"],
        "report.page": ["write_page"],
        "report.picture": ["write_picture"],
        "report.tables": ["Table", "results_table"],
        "runs.read_run": ["Run", "read_run"],
    },
)
