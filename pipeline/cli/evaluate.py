"""The command `bmlpipe evaluate`: metrics of checkpoints on any split."""

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
from bmlpipe.manifests.common.help_texts import option
from bmlpipe.manifests.common.percent import percent
from bmlpipe.manifests.schema import SPLITS
from bmlpipe.pipeline.cli.options import EXISTING, MAIN, log_next
from bmlpipe.train.modulation.names import JOINT
from bmlpipe.train.tasks.metric_names import FRACTIONS

if TYPE_CHECKING:
    from bmlpipe.train.evaluation.loaded_run import LoadedRun
    from bmlpipe.train.evaluation.predict import Predictions

_MISSING, _FILES, _HARDWARE = "Missing modalities", "Files", "Hardware"

_FILE = click.Path(dir_okay=False, path_type=Path)
_PATIENCE = timedelta(days=1)  # the other processes wait while the first one fits probes

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Request:
    """What to compute of each checkpoint.

    Attributes:
        split: Split to predict.
        combinations: For each `--missing`, its combinations of rates: modality → rate.
        seeds: Seed of each random draw.
        probe: Fit linear probes.
        export: File for the predictions.
        export_features: File for the features.
        batch_size: Number of samples per batch and process; None: the run's.
        workers: Number of loader processes per process; None: the run's.
    """

    split: str
    combinations: Sequence[Sequence[Mapping[str, float]]]
    seeds: Sequence[int]
    probe: bool
    export: Path | None
    export_features: Path | None
    batch_size: int | None
    workers: int | None


@dataclass(frozen=True)
class _Result:
    """The results of one checkpoint; `bmlpipe.train.evaluation.results` describes their form."""

    run: str
    evaluation: Mapping[str, Any]
    probes: Sequence[Mapping[str, Any]]


@click.command(
    cls=Program,
    on_interrupt="written results are kept; run the same command again",
    examples=(
        "bmlpipe evaluate runs/cremad/opm-seed0",
        "bmlpipe evaluate runs/cremad/* --missing audio=0:1:0.1 --probe",
        "torchrun --nproc-per-node 2 -m bmlpipe.pipeline.cli evaluate runs/vggsound/opm-seed0",
    ),
)
@click.argument("runs", nargs=-1, required=True, type=EXISTING)
@option(
    "--checkpoint",
    "checkpoints",
    group=MAIN,
    multiple=True,
    default=["best"],
    help="Checkpoint: best, last, one of --keep-every such as epoch-003, all, or a file; repeatable.",
)
@option("--split", group=MAIN, default="test", type=click.Choice(SPLITS), help="Split to predict.")
@option("--shards", group=MAIN, metavar="LIST", help="Shards to read, separated by commas.", shown="the run's")
@option("--probe", group=MAIN, is_flag=True, help="Fit a linear probe on each frozen encoder: on train, chosen by val.")
@option(
    "--missing",
    group=_MISSING,
    multiple=True,
    metavar="RATES",
    help="Rates of missing modalities: audio=0:1:0.1 (first:last:step), audio=0.1:0.3,visual=0.1 (all combinations), "
    "audio+visual=0,0.5 (both at the same rate); repeatable.",
)
@option("--repeats", group=_MISSING, default=5, type=click.IntRange(1), help="Number of random draws per rate.")
@option("--seed", group=_MISSING, default=0, help="Seed of the first draw; each further draw adds 1.")
@option("--export", group=_FILES, type=_FILE, help="File for the predictions, .csv or .parquet.")
@option("--export-features", group=_FILES, type=_FILE, help="File for the features, .npz or .parquet.")
@option("--device", group=_HARDWARE, default="auto", help="Device: auto, cpu, cuda or cuda:N.")
@option(
    "--batch-size",
    group=_HARDWARE,
    type=click.IntRange(1),
    help="Number of samples per batch and process.",
    shown="the run's",
)
@option(
    "--workers",
    group=_HARDWARE,
    type=click.IntRange(0),
    help="Number of loader processes per process.",
    shown="the run's",
)
def evaluate(
    runs: tuple[Path, ...],
    checkpoints: tuple[str, ...],
    missing: tuple[str, ...],
    repeats: int,
    seed: int,
    shards: str | None,
    device: str,
    **options: Any,
) -> None:
    """Evaluate checkpoints on a split.

    RUNS are folders of runs, or checkpoint files. The results are printed, and written to RUN/evaluation/ for bmlpipe
    report.
    """
    from bmlpipe.manifests.common.logs import configure_for_rank
    from bmlpipe.train.distributed.group import process_group
    from bmlpipe.train.evaluation import export as files
    from bmlpipe.train.evaluation.loaded_run import checkpoint_config, find_checkpoints, load_run
    from bmlpipe.train.evaluation.missing_modalities import parse_missing
    from bmlpipe.train.runs.folder import folder_of_checkpoint

    combinations = [parse_missing(text) for text in missing]
    request = _Request(combinations=combinations, seeds=range(seed, seed + repeats), **options)
    paths = [path for run in runs for path in find_checkpoints(run, checkpoints)]
    for file, endings in ((request.export, files.PREDICTIONS), (request.export_features, files.FEATURES)):
        if file is not None:
            files.check_format(file, endings)
            if len(paths) > 1:
                raise click.UsageError(f"{file} can hold the results of one checkpoint, but there are {len(paths)}.")
    if combinations:
        one_per_run = {folder_of_checkpoint(path): path for path in paths}.values()
        _check_modalities(combinations, [checkpoint_config(path).resolved_modalities for path in one_per_run])
    with process_group(device, timeout=_PATIENCE) as process:
        configure_for_rank(process.rank)
        results = []
        for path in paths:
            run = load_run(path, process, shards=shards.split(",") if shards else ())
            results.append(_evaluate(run, request))
        if process.is_main:
            _show(results)
            log_next(f"bmlpipe report {' '.join(dict.fromkeys(one.run for one in results))} --out report.html")


def _check_modalities(combinations: Sequence[Sequence[Mapping[str, float]]], runs: Sequence[Sequence[str]]) -> None:
    """Refuse rates of a modality that no run has."""
    from bmlpipe.train.config.options import ConfigError

    known = {m for modalities in runs for m in modalities}
    for rates in combinations:
        if absent := [m for m in rates[0] if m not in known]:
            raise ConfigError(f"--missing names {absent[0]}, but the runs have {', '.join(sorted(known))} only")


def _evaluate(run: LoadedRun, request: _Request) -> _Result:
    """Evaluate one checkpoint and write its files; each split is predicted once."""
    from bmlpipe.manifests.common.progress import ProgressMeter
    from bmlpipe.train.evaluation import export as files
    from bmlpipe.train.evaluation import results as evaluation
    from bmlpipe.train.evaluation.predict import PredictOptions

    folder = _shown(run.folder.path)
    about = f"{folder}, {run.checkpoint}"
    if run.other_samples and run.process.is_main:
        _logger.warning("%s: these are not the samples of its training (%s)", about, run.other_samples)
    applicable = [rates for rates in request.combinations if set(rates[0]) <= set(run.config.resolved_modalities)]
    if len(applicable) < len(request.combinations):
        _logger.info(
            "%s has %s only; --missing of other modalities is skipped",
            about,
            " and ".join(run.config.resolved_modalities),
        )
    rates = [one for rates in applicable for one in rates]

    @cache
    def predict(name: str) -> Predictions:
        absent = tuple(dict.fromkeys(m for one in rates for m in one if one[m] > 0)) if name == request.split else ()
        features = request.probe or (name == request.split and request.export_features is not None)
        count = math.ceil(len(run.index.split_range(name)) / run.process.world_size)
        with ProgressMeter("samples", count) if run.process.is_main else nullcontext() as meter:
            progress = meter.advance if meter else None
            return run.predict(name, PredictOptions(features, absent, request.batch_size, request.workers, progress))

    found, content = predict(request.split), {}
    if run.process.is_main:
        content = evaluation.evaluate(run, request.split, found, missing=rates, seeds=request.seeds)
    probes = evaluation.linear_probes(run, predict) if request.probe else []
    if run.process.is_main:
        written = [evaluation.keep_evaluation(run, content)]
        if probes:
            written.append(evaluation.keep_probes(run, probes))
        for file, columns in (
            (request.export, files.prediction_columns),
            (request.export_features, files.feature_columns),
        ):
            if file:
                ids = files.sample_ids(run.predictor.data.reader, found.numbers.tolist())
                files.write(file, columns(ids, run.task, found))
                written.append(file)
        _logger.info("written: %s", ", ".join(map(_shown, written)))
    return _Result(folder, content, probes)


def _shown(path: Path) -> str:
    """Shorten a path below the current folder to its relative form."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _show(results: Sequence[_Result]) -> None:
    """Print a table of the metrics, one of the missing modalities and one of the probes, in %."""
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
        cells = [one.run, about["checkpoint"], str(about["epoch"]), about["split"], str(about["samples"])]
        for name in about["confusion"] if len(about["confusion"]) > 2 else [JOINT]:  # one modality is its own branch
            branch = "" if name == JOINT else f"/{name}"
            rows.append([*cells, name, *(_percent([metrics[metric + branch]]) for metric in FRACTIONS)])
    return ["run", "checkpoint", "epoch", "split", "samples", "prediction", *FRACTIONS.values()], rows


def _missing(results: Sequence[_Result]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for one in results:
        for point in one.evaluation["missing"]:
            rates = ", ".join(f"{m} {100 * rate:g}%" for m, rate in point["rates"].items())
            cells = [one.run, one.evaluation["checkpoint"], rates]
            rows.append([*cells, *(_percent(point[metric]) for metric in FRACTIONS)])
    return ["run", "checkpoint", "missing", *FRACTIONS.values()], rows


def _probes(results: Sequence[_Result]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [one.run, row["checkpoint"], str(row["epoch"]), row["modality"], f"{row['C']:g}"]
        + [_percent([row[split]] if row[split] is not None else []) for split in SPLITS]
        for one in results
        for row in one.probes
    ]
    return ["run", "checkpoint", "epoch", "modality", "C", *SPLITS], rows


def _percent(values: Sequence[float]) -> str:
    """Format the mean in %, with the standard deviation if there are several values."""
    if not values:
        return "-"
    mean = percent(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ± {percent(statistics.stdev(values))}"
