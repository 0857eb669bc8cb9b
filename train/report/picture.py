"""One picture that compares runs: ρ over the steps and accuracies over the epochs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bmlpipe.train.config.options import ConfigError
from bmlpipe.train.report.curves import balanced_ratio, over_epochs, over_steps
from bmlpipe.train.report.experiments import modalities_of, series_of
from bmlpipe.train.report.figure import write_panels
from bmlpipe.train.runs.run_reader import Run


def write_picture(runs: Sequence[Run], path: Path) -> None:
    """Draw ρ of the first modality over the steps, and the validation accuracies over the epochs.

    Args:
        runs: Runs. Those that differ in the seed only are drawn as one line, their mean.
        path: File to write; its suffix chooses the format (png, svg, pdf).

    Raises:
        ConfigError: The runs have written neither steps nor validation results.
    """
    groups, modalities = series_of(runs), modalities_of(runs)
    ratio = None
    if modalities:
        first, balanced = modalities[0], balanced_ratio(runs)
        ratio = over_steps(f"rho/{first}", f"ρ of {first}", groups, neutral=balanced, log=True)
    titles = {"accuracy": "validation accuracy, %"}
    titles |= {f"accuracy/{m}": f"{m} branch: validation accuracy, %" for m in modalities}
    epochs = [over_epochs(column, title, groups) for column, title in titles.items()]
    figures = [figure for figure in (ratio[0] if ratio else None, *epochs) if figure]
    if not figures:
        raise ConfigError("there is nothing to draw: these runs have no steps and no validation results yet")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_panels(figures, path)
