"""Compare runs: the results table, one picture, and a self-contained page with all results of the runs."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.train.report.experiments import group_runs
    from bmlpipe.train.report.page import write_page
    from bmlpipe.train.report.picture import write_picture
    from bmlpipe.train.report.tables import Table, results_table

__all__ = ["Table", "group_runs", "results_table", "write_page", "write_picture"]

__getattr__ = lazy_exports(
    __name__,
    {
        "experiments": ["group_runs"],
        "page": ["write_page"],
        "picture": ["write_picture"],
        "tables": ["Table", "results_table"],
    },
)
