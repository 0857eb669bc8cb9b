"""What runs left, side by side: a table, a picture, and a page (`bmlpipe.train.report.page`)."""

from bmlpipe.train.report.experiments import experiments
from bmlpipe.train.report.picture import picture
from bmlpipe.train.report.runs import Run, read_run
from bmlpipe.train.report.tables import markdown, table

__all__ = ["Run", "experiments", "markdown", "picture", "read_run", "table"]
