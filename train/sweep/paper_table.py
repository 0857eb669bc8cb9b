"""The paper's numbers and one's own, side by side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from bmlpipe.train.runs.journal import Row

_NONE = "-"


def side_by_side(
    paper: Mapping[str, Mapping[str, float]], measured: Mapping[str, Sequence[Row]]
) -> tuple[list[str], list[list[str]]]:
    """A table with, for each metric, what was published, what was measured, and the difference.

    Args:
        paper: Name of a run → metric → the published number, in %.
        measured: Name of a run → the test rows of its seeds.

    Returns:
        Column titles and rows of text, a row for each run of either; measured numbers in %, mean ± standard deviation
        over seeds, and the mean's difference from the paper's.
    """
    metrics = list(dict.fromkeys(metric for numbers in paper.values() for metric in numbers))
    titles = ["run", "seeds", *(f"{metric}{what}" for metric in metrics for what in (", paper", "", ", difference"))]
    rows = []
    for name in dict.fromkeys([*measured, *paper]):
        found = measured.get(name, ())
        row = [name, str(len(found))]
        for metric in metrics:
            published = paper.get(name, {}).get(metric)
            own = [100 * test[metric] for test in found if test.get(metric) is not None]
            row += [_NONE if published is None else f"{published:.1f}", _spread(own)]
            row.append(f"{statistics.fmean(own) - published:+.1f}" if own and published is not None else _NONE)
        rows.append(row)
    return titles, rows


def _spread(values: Sequence[float]) -> str:
    if not values:
        return _NONE
    mean = f"{statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"
