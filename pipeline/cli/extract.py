"""The command `bmlpipe extract`: compute features from clips."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bmlpipe.manifests import places
from bmlpipe.manifests.common.command import Program
from bmlpipe.manifests.common.help_texts import option
from bmlpipe.manifests.datasets import DATASETS
from bmlpipe.pipeline.cli.options import (
    DATASET,
    EXISTING,
    EXISTING_FOLDER,
    FOLDER,
    MAIN,
    kinds_option,
    log_next,
    log_places,
)
from bmlpipe.pipeline.front_ends.presets import PRESETS

if TYPE_CHECKING:
    from bmlpipe.manifests.schema import Manifest
    from bmlpipe.pipeline.extraction.request import ExtractionRequest
    from bmlpipe.pipeline.media.ffmpeg_program import FFmpeg
    from bmlpipe.pipeline.store.ledger import LedgerRow

_logger = logging.getLogger(__name__)

_FEATURES, _SPLITS, _WORKERS = "Features", "Splits", "Workers and decoding"
_FAILURES = "Failures and disk space"

#: An extraction of more clips than this measures a few of them first, to check the free space of the disk.
_MANY = 200


@click.command(
    cls=Program,
    on_interrupt="finished clips are kept; run the same command again to continue",
    examples=(
        "bmlpipe extract --dataset vggsound",
        "bmlpipe extract --dataset cremad --videos /data/cremad --annotations lists/ --out features/cremad --workers 8",
    ),
)
@option("--dataset", group=MAIN, required=True, type=DATASET, help="Data set; see bmlpipe datasets.")
@option("--videos", group=MAIN, type=EXISTING_FOLDER, help="Folder of the clips.", shown="data/<dataset>/videos")
@option(
    "--annotations",
    group=MAIN,
    type=EXISTING,
    help="Official annotation file or folder.",
    shown="the official file in data/<dataset>/annotations",
)
@option(
    "--out",
    group=MAIN,
    type=FOLDER,
    help="Feature folder; clips that it already holds are skipped.",
    shown="features/<dataset>",
)
@kinds_option("Feature kinds, separated by commas.", group=MAIN, shown="the paper's setting")
@option("--seconds", group=MAIN, type=click.IntRange(1), help="Seconds to take of each clip.", shown="the data set's")
@option(
    "--workers",
    group=MAIN,
    type=click.IntRange(0),
    help="Number of worker processes; 0: work in this process, without Dask.",
    shown="all cores",
)
@option("--dry-run", group=MAIN, is_flag=True, help="Report the work, time and disk space; write nothing.")
@option("--short-side", group=_FEATURES, type=int, default=256, help="Length of the short side of images, in pixels.")
@option(
    "--spectrogram-preset", group=_FEATURES, default="vggsound", type=click.Choice(list(PRESETS)), help="Spectrogram."
)
@option(
    "--flow-algorithm",
    group=_FEATURES,
    default="dis",
    type=click.Choice(["dis", "farneback", "tvl1", "tvl1-fast"]),
    help="Optical flow. tvl1 takes 400 times as long as dis, tvl1-fast 56 times.",
)
@option(
    "--flow-images", group=_FEATURES, type=EXISTING_FOLDER, help="Folder of precomputed flow images to use instead."
)
@option(
    "--flow-bound",
    group=_FEATURES,
    default=20.0,
    type=click.FloatRange(0, 1000, min_open=True),
    help="Largest flow in pixels; larger values are clipped. For precomputed images: their bound.",
)
@option(
    "--flow-stack",
    group=_FEATURES,
    default=1,
    type=click.IntRange(1, 10),
    help="Number of consecutive flow fields at each second.",
)
@option(
    "--rgb-diff-stack",
    group=_FEATURES,
    default=1,
    type=click.IntRange(1, 10),
    help="Number of consecutive RGB differences at each second.",
)
@option("--fold", group=_SPLITS, default=1, type=click.IntRange(1, 3), help="Official split of UCF-101.")
@option(
    "--val-fraction",
    group=_SPLITS,
    default=0.1,
    help="Fraction of the training clips for validation, for data sets without a validation split.",
)
@option("--val-by-group", group=_SPLITS, is_flag=True, help="Keep the clips of one CREMA-D actor in one split.")
@option(
    "--scheduler",
    group=_WORKERS,
    help="Dask scheduler of a cluster, tcp://… or file://…, in place of local worker processes.",
)
@option(
    "--clips-per-task",
    "batch",
    group=_WORKERS,
    default=8,
    type=click.IntRange(1),
    help="Number of clips per Dask task.",
)
@option(
    "--clip-timeout",
    group=_WORKERS,
    default=600.0,
    type=click.FloatRange(0),
    help="Seconds after which a worker gives up a clip; 0: never.",
)
@option(
    "--decoder",
    group=_WORKERS,
    default="pyav",
    type=click.Choice(["pyav", "ffmpeg"]),
    help="Decoder; ffmpeg: an ffmpeg program, for files that PyAV cannot decode and for hardware decoding.",
)
@option(
    "--ffmpeg",
    "program",
    group=_WORKERS,
    type=EXISTING,
    help="Path of the ffmpeg program.",
    shown="imageio-ffmpeg's, or the one on PATH",
)
@option("--hwaccel", group=_WORKERS, help="Hardware decoding by ffmpeg: cuda, vaapi, qsv, …")
@option(
    "--retry-failed",
    group=_FAILURES,
    is_flag=False,
    flag_value="all",
    help="Try failed clips again; with =REASON only those that failed for this reason.",
)
@option(
    "--max-failed",
    group=_FAILURES,
    default=0.05,
    type=click.FloatRange(0, 1),
    help="Largest accepted fraction of failed clips; above it the exit status is 1.",
)
@option(
    "--disk-check/--no-disk-check",
    group=_FAILURES,
    default=True,
    help="Measure a few clips first and stop if the disk is too small.",
)
def extract(
    dataset: str,
    videos: Path | None,
    annotations: Path | None,
    out: Path | None,
    kinds: tuple[str, ...] | None,
    dry_run: bool,
    max_failed: float,
    **options: Any,
) -> None:
    """Compute features from clips, with one decode per clip.

    The feature kinds are frames (one per second), spectrogram, flow, rgb_diff and waveform. The command continues
    where an earlier one has stopped.
    """
    from bmlpipe.pipeline.store.folder import FeatureFolder

    request = _request(kinds or DATASETS[dataset].kinds, options["seconds"] or DATASETS[dataset].seconds, options)
    if annotations is None and not (dataset == "folder" and videos):  # --videos alone: each folder is a class
        annotations = places.find_annotations(dataset)
    videos = videos or places.videos_folder(dataset)
    out = out or places.features_folder(dataset)
    log_places(videos=videos, annotations=annotations, features=out)
    counts = _run(_read_manifest(dataset, annotations, videos, options), videos, out, request, dry_run, options)
    if counts is None:
        log_next("the same command without --dry-run")
        return
    ledger, found = FeatureFolder(out).ledger, counts["ok"] + counts["failed"]
    click.echo(f"ok {counts['ok']}, failed {counts['failed']}, absent {counts['absent']}: see {ledger}")
    if not found:
        raise click.ClickException(f"no clip has a file below {videos}: see bmlpipe datasets for the file names")
    if counts["failed"] > max_failed * found:
        raise click.ClickException(
            f"{counts['failed']} of {found} clips failed, more than --max-failed {max_failed:g}: see the reasons in "
            f"{ledger}, or bmlpipe inspect --failed {out}"
        )
    log_next("bmlpipe shard" if out == places.features_folder(dataset) else f"bmlpipe shard --features {out}")


def _request(kinds: Sequence[str], seconds: int | None, options: Mapping[str, Any]) -> ExtractionRequest:
    """Make the extraction request of the command line."""
    from bmlpipe.pipeline.extraction.request import ExtractionRequest
    from bmlpipe.pipeline.front_ends.registry import FRONT_ENDS

    front_ends = tuple(FRONT_ENDS[kind].from_command_line(options) for kind in kinds)
    return ExtractionRequest(front_ends, seconds, _ffmpeg(options))


def _ffmpeg(options: Mapping[str, Any]) -> FFmpeg | None:
    """Return the ffmpeg program to decode with, or None for PyAV."""
    from bmlpipe.pipeline.media.ffmpeg_program import FFmpeg

    program, hwaccel = options["program"], options["hwaccel"]
    if options["decoder"] == "pyav":
        if program or hwaccel:
            raise click.UsageError("--ffmpeg and --hwaccel need --decoder ffmpeg.")
        return None
    ffmpeg = FFmpeg(str(program.absolute()) if program else None, hwaccel, math.ceil(options["clip_timeout"]))
    if options["scheduler"] is None:  # with a scheduler, the hosts of its workers must have the program
        ffmpeg.program()
    return ffmpeg


def _read_manifest(dataset: str, annotations: Path | None, videos: Path, options: Mapping[str, Any]) -> Manifest:
    from bmlpipe.manifests.datasets import read_manifest
    from bmlpipe.manifests.splits import ValidationSplit

    manifest = read_manifest(
        dataset,
        annotations,
        videos=videos,
        fold=options["fold"],
        validation=ValidationSplit(options["val_fraction"], by_group=options["val_by_group"]),
    )
    for note in manifest.notes:
        _logger.info("%s", note)
    return manifest


def _run(
    manifest: Manifest,
    videos: Path,
    out: Path,
    request: ExtractionRequest,
    dry_run: bool,
    options: Mapping[str, Any],
) -> Counter[str] | None:
    """Plan and run the extraction; return the number of clips per status, or None for a dry run."""
    from bmlpipe.manifests.common.locks import exclusive_folder
    from bmlpipe.manifests.common.progress import ProgressMeter
    from bmlpipe.pipeline.extraction.estimate import estimate
    from bmlpipe.pipeline.extraction.plan import make_plan
    from bmlpipe.pipeline.extraction.run import run_extraction
    from bmlpipe.pipeline.extraction.status import ExtractionStatus

    scheduler, workers = options["scheduler"], options["workers"]
    if scheduler is not None and workers is not None:
        raise click.UsageError("--workers is for processes on this machine and excludes --scheduler.")
    processes = _cores() if workers is None else workers
    with nullcontext() if dry_run else exclusive_folder(out, "extraction"):
        plan = make_plan(manifest, videos, out, request, retry_failed=options["retry_failed"])
        _logger.info("%s", plan)
        if dry_run or (options["disk_check"] and len(plan.tasks) > _MANY):
            needed = estimate(plan)
            _logger.info("%s", needed.text(processes))
            if dry_run:
                return None
            needed.check(out)
        status = ExtractionStatus(plan)

        def progress(rows: Sequence[LedgerRow]) -> None:
            meter.advance(len(rows), Counter(row.reason for row in rows if row.reason))
            status.add(rows)

        with status.file, ProgressMeter("clips", len(plan.tasks)) as meter:
            return run_extraction(
                plan,
                workers=processes,
                scheduler=scheduler,
                batch=options["batch"],
                clip_timeout=options["clip_timeout"] or None,
                progress=progress,
            )


def _cores() -> int:
    """Return the number of cores that this process may use, by its affinity and the quota of its container."""
    from dask.system import CPU_COUNT

    return int(CPU_COUNT)
