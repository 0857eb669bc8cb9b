"""The command `bmlpipe extract`."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bmlpipe.manifests.common.command import Program
from bmlpipe.manifests.datasets import DATASETS
from bmlpipe.pipeline.cli.options import (
    EXISTING,
    EXISTING_FOLDER,
    FOLDER,
    dataset_option,
    kinds_option,
)
from bmlpipe.pipeline.front_ends.presets import PRESETS

if TYPE_CHECKING:
    from bmlpipe.pipeline.store.ledger import Row

_logger = logging.getLogger(__name__)

#: A run of more clips than this is judged by a few of them before it begins.
_MANY = 200


@click.command(cls=Program, on_interrupt="what is done stays done; the same command continues where it stopped")
@dataset_option
@click.option("--videos", required=True, type=EXISTING_FOLDER, help="Folder of the clips.")
@click.option("--annotations", type=EXISTING, help="Official annotation file or folder.")
@click.option("--out", required=True, type=FOLDER, help="Feature folder; a second run does only what is missing.")
@kinds_option("Feature kinds: frames,spectrogram,flow,rgb_diff,waveform.  [the paper's setting]")
@click.option("--seconds", type=click.IntRange(1), help="Length taken of each clip.  [the data set's]")
@click.option("--short-side", type=int, default=256, show_default=True, help="Short side of pictures, in pixels.")
@click.option(
    "--preset",
    default="vggsound",
    show_default=True,
    type=click.Choice(list(PRESETS)),
    help="Spectrogram.",
)
@click.option(
    "--flow-algorithm",
    default="dis",
    show_default=True,
    type=click.Choice(["dis", "farneback", "tvl1", "tvl1-fast"]),
    help="Optical flow; tvl1 takes 400 times, tvl1-fast 56 times as long as dis.",
)
@click.option("--flow-images", type=EXISTING_FOLDER, help="Take ready-made flow images from here instead.")
@click.option(
    "--flow-bound",
    default=20.0,
    show_default=True,
    type=click.FloatRange(0, 1000, min_open=True),
    help="Flow is cut to ± so many pixels; of images: what they were made with.",
)
@click.option(
    "--flow-stack", default=1, show_default=True, type=click.IntRange(1, 10), help="Consecutive fields an instant."
)
@click.option(
    "--rgb-diff-stack",
    default=1,
    show_default=True,
    type=click.IntRange(1, 10),
    help="Consecutive RGB differences an instant.",
)
@click.option("--fold", default=1, show_default=True, type=click.IntRange(1, 3), help="UCF-101's split.")
@click.option("--val-fraction", default=0.1, show_default=True, help="Share of train, for a set without val.")
@click.option("--val-by-group", is_flag=True, help="By group (CREMA-D: actors).")
@click.option("--workers", type=click.IntRange(0), help="Processes; 0: in this one, without Dask.  [all cores]")
@click.option("--scheduler", help="An existing Dask scheduler instead: tcp://…, or file:// and its file.")
@click.option("--batch", default=8, show_default=True, type=click.IntRange(1), help="Clips a task.")
@click.option(
    "--clip-timeout",
    default=600.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds after which a clip fails, with worker processes; 0: never.",
)
@click.option(
    "--decoder",
    default="pyav",
    show_default=True,
    type=click.Choice(["pyav", "ffmpeg"]),
    help="ffmpeg: by an ffmpeg program, for what PyAV cannot decode and for hardware; same pictures and sound.",
)
@click.option("--ffmpeg", "program", type=EXISTING, help="The ffmpeg program.  [imageio-ffmpeg's, or the one on PATH]")
@click.option("--hwaccel", help="Hardware decoding by ffmpeg: cuda, vaapi, qsv, …")
@click.option("--retry-failed", is_flag=False, flag_value="all", help="Take failed clips again: all, or one reason's.")
@click.option(
    "--max-failed",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Share of failed clips, among those found, above which the exit status is 1.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and what it would need; write nothing.")
@click.option(
    "--disk-check/--no-disk-check", default=True, help="Judge by a few clips first whether the disk has the room."
)
def extract(
    dataset: str,
    videos: Path,
    annotations: Path | None,
    out: Path,
    kinds: tuple[str, ...] | None,
    seconds: int | None,
    short_side: int,
    preset: str,
    flow_algorithm: str,
    flow_images: Path | None,
    flow_bound: float,
    flow_stack: int,
    rgb_diff_stack: int,
    fold: int,
    val_fraction: float,
    val_by_group: bool,
    workers: int | None,
    scheduler: str | None,
    batch: int,
    clip_timeout: float,
    decoder: str,
    program: Path | None,
    hwaccel: str | None,
    retry_failed: str | None,
    max_failed: float,
    dry_run: bool,
    disk_check: bool,
) -> None:
    """Clips → features: 1-fps frames, spectrograms, optical flow, RGB differences, from one decode of each clip."""
    from bmlpipe.manifests.common.locks import exclusive_folder
    from bmlpipe.manifests.common.progress import ProgressMeter
    from bmlpipe.manifests.datasets import read_manifest
    from bmlpipe.pipeline.extraction.estimate import estimate
    from bmlpipe.pipeline.extraction.run import make_plan, run
    from bmlpipe.pipeline.extraction.status import ExtractionStatus
    from bmlpipe.pipeline.extraction.worker import Recipe
    from bmlpipe.pipeline.front_ends.flow import FlowOptions
    from bmlpipe.pipeline.front_ends.frames import FrameOptions
    from bmlpipe.pipeline.front_ends.rgb_diff import RgbDiffOptions
    from bmlpipe.pipeline.front_ends.spectrogram import SpectrogramOptions
    from bmlpipe.pipeline.front_ends.waveform import WaveformOptions
    from bmlpipe.pipeline.media.ffmpeg_program import FFmpeg
    from bmlpipe.pipeline.store.ledger import LEDGER_FILE

    if scheduler is not None and workers is not None:
        raise click.UsageError("--workers is for a cluster on this machine: leave it out with --scheduler")
    if decoder == "pyav" and (program or hwaccel):
        raise click.UsageError("--ffmpeg and --hwaccel are for --decoder ffmpeg: add it")
    wanted = kinds or DATASETS[dataset].kinds
    ffmpeg = None
    if decoder == "ffmpeg":
        ffmpeg = FFmpeg(str(program.absolute()) if program else None, hwaccel, math.ceil(clip_timeout))
        if scheduler is None:  # else it is the workers' machines that must have it
            ffmpeg.program()
    frames = FrameOptions(short_side=short_side)
    images = flow_images and flow_images.absolute()
    flow = FlowOptions(flow_algorithm, flow_stack, flow_bound, short_side=short_side, images=images)
    rgb_diff = RgbDiffOptions(stack=rgb_diff_stack, short_side=short_side)
    recipe = Recipe(
        seconds or DATASETS[dataset].seconds,
        frames if "frames" in wanted else None,
        SpectrogramOptions(preset=preset) if "spectrogram" in wanted else None,
        flow if "flow" in wanted else None,
        rgb_diff if "rgb_diff" in wanted else None,
        WaveformOptions() if "waveform" in wanted else None,
        ffmpeg,
    )
    manifest = read_manifest(
        dataset, annotations, videos=videos, fold=fold, val_fraction=val_fraction, group_val=val_by_group
    )
    for note in manifest.notes:
        _logger.info("%s", note)
    with nullcontext() if dry_run else exclusive_folder(out, "extraction"):
        plan = make_plan(manifest, videos, out, recipe, retry_failed=retry_failed)
        _logger.info("%s", plan)
        processes = _cores() if workers is None else workers
        if dry_run or (disk_check and len(plan.tasks) > _MANY):
            needed = estimate(plan)
            _logger.info("%s", needed.text(processes))
            if dry_run:
                return
            needed.check(out)
        status = ExtractionStatus(plan)

        def progress(rows: Sequence[Row]) -> None:
            meter.advance(len(rows), Counter(row.reason for row in rows if row.reason))
            status.add(rows)

        with status.file, ProgressMeter("clips", len(plan.tasks)) as meter:
            counts = run(
                plan,
                workers=processes,
                scheduler=scheduler,
                batch=batch,
                time_limit=clip_timeout or None,
                progress=progress,
            )
    ledger, found = out / LEDGER_FILE, counts["ok"] + counts["failed"]
    click.echo(f"ok {counts['ok']}, failed {counts['failed']}, absent {counts['absent']}: see {ledger}")
    if not found:
        raise click.ClickException(f"no clip has a file below {videos}: see `bmlpipe datasets` for file names")
    if counts["failed"] > max_failed * found:
        raise click.ClickException(
            f"{counts['failed']} of {found} clips failed, more than --max-failed {max_failed:g}: "
            f"see the reasons in {ledger}"
        )


def _cores() -> int:
    """Cores that this process may use: its affinity and its container's quota."""
    from dask.system import CPU_COUNT

    return int(CPU_COUNT)
