"""The command `bmlpipe demo`: the whole way on synthetic clips."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from bmlpipe.manifests.common.command import Program
from bmlpipe.pipeline.cli.options import FOLDER


@click.command(cls=Program)
@click.option("--out", default="demo", show_default=True, type=FOLDER, help="Folder for everything the demo makes.")
@click.option("--clips", default=800, show_default=True, type=click.IntRange(100, 1500), help="Clips to make.")
@click.option("--epochs", default=16, show_default=True, type=click.IntRange(1))
@click.option("--processes", default=2, show_default=True, type=click.IntRange(1), help="Training processes.")
def demo(out: Path, clips: int, epochs: int, processes: int) -> None:
    """Make a small synthetic data set of video files; extract, shard, train with and without OPM."""
    from bmlpipe.manifests.common.progress import ProgressMeter
    from bmlpipe.pipeline.demo.run import commands, make_clips, run_command, start_afresh

    part = clips // 6
    start_afresh(out)
    click.echo(
        f"Making {clips} short video files in {out / 'clips'}: handwritten digits that drift among clutter, "
        "and keypad tones in noise. The data is synthetic: on purpose, sound is easy here, but fainter in the "
        "test split, and pictures are hard."
    )
    with ProgressMeter("clips", clips) as meter:
        counts = {"train": clips - 2 * part, "val": part, "test": part}
        annotation = make_clips(out / "clips", counts, meter.advance)
    for words in commands(out, annotation, epochs=epochs, processes=processes):
        click.secho(f"\n$ {shlex.join(words)}", bold=True)
        run_command(words)
    click.echo(
        "\nρ of audio far above 1 means that sound dominates the joint training, and the visual branch learns little. "
        "OPM drops the dominant feature now and then, which brings ρ down and lets the visual branch learn: when the "
        "sound is faint, in the test split, that is what the model can fall back on. "
        "(Synthetic data: these numbers say nothing about any real task.)"
    )
