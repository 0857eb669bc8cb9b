"""A table that compares measured results with published ones."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from bmlpipe.train.report.tables import Table, mean_and_deviation
from bmlpipe.train.runs.journal_reader import Row

_NONE = "-"


def paper_table(paper: Mapping[str, Mapping[str, float]], measured: Mapping[str, Sequence[Row]]) -> Table:
    """List the published value, the measured value and their difference, for each metric.

    Args:
        paper: Run → metric → published value, in %.
        measured: Run → metrics on the test split of its seeds, as fractions.

    Returns:
        One row per run. Measured values are means ± standard deviations over seeds, in %; differences are the mean
        minus the published value, in percentage points.
    """
    metrics = list(dict.fromkeys(metric for values in paper.values() for metric in values))
    header = ["run", "seeds"]
    for metric in metrics:
        header += [f"{metric} in the paper, %", f"{metric}, %", f"{metric} difference, points"]
    rows = []
    for name in dict.fromkeys([*measured, *paper]):
        found = measured.get(name, ())
        row = [name, str(len(found))]
        for metric in metrics:
            published = paper.get(name, {}).get(metric)
            own = [100 * test[metric] for test in found if test.get(metric) is not None]
            row += [_NONE if published is None else f"{published:.1f}", mean_and_deviation(own, ".1f")]
            row.append(f"{statistics.fmean(own) - published:+.1f}" if own and published is not None else _NONE)
        rows.append(row)
    caption = "Published results and these runs, test split: mean ± standard deviation over seeds."
    return Table("paper", caption, header, rows)
