"""What runs left, side by side: a table, a picture, and a page (`bmlpipe.train.report.page`)."""

from bmlpipe.train.report.experiments import experiments
from bmlpipe.train.report.picture import picture
from bmlpipe.train.report.tables import table
from bmlpipe.train.runs.read_run import Run, read_run

__all__ = ["Run", "experiments", "picture", "read_run", "table"]
