"""The command `bmlpipe evaluate`: what finished runs are good for, on any split."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bmlpipe.manifests.common.command import Program
from bmlpipe.manifests.schema import SPLITS
from bmlpipe.pipeline.cli.options import EXISTING

if TYPE_CHECKING:
    from bmlpipe.train.evaluation.load_run import LoadedRun
    from bmlpipe.train.evaluation.predict import Predictions

_FILE = click.Path(dir_okay=False, path_type=Path)
_PATIENCE = timedelta(days=1)  # the other ranks wait while the first one fits probes

_logger = logging.getLogger(__name__)

#: Measure → its title.
_MEASURES = {"accuracy": "accuracy", "mAP": "mAP", "f1": "F1"}


@dataclass(frozen=True)
class _Result:
    """What was found about one checkpoint; `bmlpipe.train.evaluation.results` says in which form."""

    run: str
    evaluation: Mapping[str, Any]
    probes: Sequence[Mapping[str, Any]]


@click.command(cls=Program, on_interrupt="what was written stays; run the same command again")
@click.argument("runs", nargs=-1, required=True, type=EXISTING)
@click.option(
    "--checkpoint",
    "wanted",
    multiple=True,
    default=["best"],
    show_default=True,
    help="best, last, epoch-003 (--keep-every), all, or a file; repeatable.",
)
@click.option("--split", default="test", show_default=True, type=click.Choice(SPLITS), help="Split to predict.")
@click.option(
    "--missing",
    multiple=True,
    metavar="SWEEP",
    help="Also with modalities missing at random: audio=0:1:0.1 (first:last:step), audio=0.1:0.3,visual=0.1 (every "
    "combination), audio+visual=0,0.5 (both at one rate); repeatable.",
)
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(1), help="Draws of what is missing.")
@click.option("--seed", default=0, show_default=True, help="Seed of the first draw; the others count up from it.")
@click.option("--probe", is_flag=True, help="Also a linear probe of each encoder, fitted on train, chosen on val.")
@click.option("--export", type=_FILE, help="Write every sample's prediction: .csv or .parquet.")
@click.option("--export-features", type=_FILE, help="Write every sample's features: .npz or .parquet.")
@click.option("--shards", help="Shards to read instead of the run's, separated by commas.")
@click.option("--batch-size", type=click.IntRange(1), help="Samples of a rank's batch.  [the run's]")
@click.option("--workers", type=click.IntRange(0), help="Loader processes a rank.  [the run's]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def evaluate(
    runs: tuple[Path, ...],
    wanted: tuple[str, ...],
    split: str,
    missing: tuple[str, ...],
    repeats: int,
    seed: int,
    export: Path | None,
    shards: str | None,
    device: str,
    **how: Any,
) -> None:
    """Evaluate runs, or checkpoint files, and write RUN/evaluation/ for the report.

    On several devices: torchrun --nproc-per-node N -m bmlpipe.pipeline.cli evaluate RUN …
    """
    from bmlpipe.manifests.common.logs import configure_for_rank
    from bmlpipe.train.distributed.process_group import process_group
    from bmlpipe.train.evaluation import export as files
    from bmlpipe.train.evaluation.load_run import find_checkpoints, load_run, options_of, run_folder
    from bmlpipe.train.evaluation.missing_modalities import parse_sweep

    sweeps = [parse_sweep(text) for text in missing]
    paths = [path for run in runs for path in find_checkpoints(run, wanted)]
    for file, endings in ((export, files.PREDICTIONS), (how["export_features"], files.FEATURES)):
        if file is not None:
            files.check_format(file, endings)
            if len(paths) > 1:
                raise click.UsageError(f"{file} can hold what one checkpoint says, these are {len(paths)}")
    if sweeps:
        _check_modalities(
            sweeps, [options_of(path).resolved_modalities for path in {run_folder(p): p for p in paths}.values()]
        )
    with process_group(device, timeout=_PATIENCE) as process:
        configure_for_rank(process.rank)
        results = []
        for path in paths:
            restored = load_run(path, process, shards=shards.split(",") if shards else ())
            results.append(_one(restored, split, sweeps, range(seed, seed + repeats), export, **how))
        if process.is_main:
            _show(results)


def _check_modalities(sweeps: Sequence[Sequence[Mapping[str, float]]], runs: Sequence[Sequence[str]]) -> None:
    """Refuse a sweep over a modality that no run has."""
    from bmlpipe.train.config.options import ConfigError

    there = {m for modalities in runs for m in modalities}
    for sweep in sweeps:
        if absent := [m for m in sweep[0] if m not in there]:
            raise ConfigError(f"--missing names {absent[0]}, which no run here has: {', '.join(sorted(there))}")


def _one(
    restored: LoadedRun,
    split: str,
    sweeps: Sequence[Sequence[Mapping[str, float]]],
    seeds: Sequence[int],
    export: Path | None,
    *,
    export_features: Path | None,
    probe: bool,
    batch_size: int | None,
    workers: int | None,
) -> _Result:
    """Evaluate one checkpoint and write its files; each split is predicted once."""
    from bmlpipe.manifests.common.progress import ProgressMeter
    from bmlpipe.train.evaluation import export as files
    from bmlpipe.train.evaluation import results as evaluation

    folder = _shown(restored.folder)
    about = f"{folder}, {restored.name}"
    if restored.other_samples and restored.process.is_main:
        _logger.warning("%s: not the samples of its training (%s)", about, restored.other_samples)
    fitting = [sweep for sweep in sweeps if set(sweep[0]) <= set(restored.config.resolved_modalities)]
    if len(fitting) < len(sweeps):
        _logger.info(
            "%s has %s only: other --missing are left out", about, " and ".join(restored.config.resolved_modalities)
        )
    rates = [one for sweep in fitting for one in sweep]

    @cache
    def predict(name: str) -> Predictions:
        absent = tuple(dict.fromkeys(m for one in rates for m in one if one[m] > 0)) if name == split else ()
        features = probe or (name == split and export_features is not None)
        count = math.ceil(len(restored.index.split_range(name)) / restored.process.world_size)
        with ProgressMeter("samples", count) if restored.process.is_main else nullcontext() as meter:
            return restored.predict(
                name,
                features=features,
                absent=absent,
                batch_size=batch_size,
                workers=workers,
                progress=meter.advance if meter else None,
            )

    found = predict(split)
    content = (
        evaluation.evaluate(restored, split, found, missing=rates, seeds=seeds) if restored.process.is_main else {}
    )
    probes = evaluation.linear_probes(restored, predict) if probe else []
    if restored.process.is_main:
        written = [evaluation.keep_evaluation(restored, content)]
        if probes:
            written.append(evaluation.keep_probes(restored, probes))
        if export or export_features:
            ids = files.sample_ids(restored.data.reader, found.numbers.tolist())
            if export:
                files.write(export, files.prediction_columns(ids, restored.classes, found))
            if export_features:
                files.write(export_features, files.feature_columns(ids, restored.classes, found))
            written += [file for file in (export, export_features) if file]
        _logger.info("written: %s", ", ".join(map(_shown, written)))
    return _Result(folder, content, probes)


def _shown(path: Path) -> str:
    """A path as one would write it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _show(results: Sequence[_Result]) -> None:
    """Print a table of the metrics, one of the sweeps and one of the probes, in %."""
    from bmlpipe.manifests.common.tables import print_table

    for caption, (header, rows) in {
        "": _metrics(results),
        "Missing modalities (mean ± standard deviation over draws)": _missing(results),
        "Linear probes of the frozen encoders": _probes(results),
    }.items():
        if rows:
            print_table(header, rows, caption=caption)


def _metrics(results: Sequence[_Result]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for one in results:
        about, metrics = one.evaluation, one.evaluation["metrics"]
        cells = [one.run, about["checkpoint"], str(about["epoch"] + 1), about["split"], str(about["samples"])]
        for name in about["confusion"] if len(about["confusion"]) > 2 else ["joint"]:  # one modality is its own branch
            branch = "" if name == "joint" else f"/{name}"
            rows.append([*cells, name, *(_percent([metrics[measure + branch]]) for measure in _MEASURES)])
    return ["run", "checkpoint", "epoch", "split", "samples", "prediction", *_MEASURES.values()], rows


def _missing(results: Sequence[_Result]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for one in results:
        for point in one.evaluation["missing"]:
            rates = ", ".join(f"{m} {100 * rate:g} %" for m, rate in point["rates"].items())
            cells = [one.run, one.evaluation["checkpoint"], rates]
            rows.append([*cells, *(_percent(point[measure]) for measure in _MEASURES)])
    return ["run", "checkpoint", "missing", *_MEASURES.values()], rows


def _probes(results: Sequence[_Result]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [one.run, row["checkpoint"], str(row["epoch"] + 1), row["modality"], f"{row['C']:g}"]
        + [_percent([row[split]] if row[split] is not None else []) for split in SPLITS]
        for one in results
        for row in one.probes
    ]
    return ["run", "checkpoint", "epoch", "modality", "C", *SPLITS], rows


def _percent(values: Sequence[float]) -> str:
    """Mean, and standard deviation of several values, in %."""
    if not values:
        return "-"
    mean = f"{100 * statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"
