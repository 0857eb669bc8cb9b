"""The command `bmlpipe demo`: the whole chain on synthetic clips."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from bmlpipe.manifests.common.command import Program
from bmlpipe.manifests.common.help_texts import option
from bmlpipe.pipeline.cli.options import FOLDER, log_next


@click.command(cls=Program, examples=("bmlpipe demo", "bmlpipe demo --out /tmp/demo --clips 200 --epochs 4"))
@option("--out", default="demo", type=FOLDER, help="Folder for all files of the demo.")
@option("--clips", default=800, type=click.IntRange(100, 1500), help="Number of clips to make.")
@option("--epochs", default=16, type=click.IntRange(1), help="Number of training epochs.")
@option("--processes", default=2, type=click.IntRange(1), help="Number of training processes.")
def demo(out: Path, clips: int, epochs: int, processes: int) -> None:
    """Make synthetic clips and run the whole chain on them.

    The chain is extract, shard, verify, train without and with OPM, and report.
    """
    from bmlpipe.manifests.common.progress import ProgressMeter
    from bmlpipe.pipeline.demo.run import demo_commands, prepare_folder, run_command
    from bmlpipe.pipeline.demo.synthetic_clips import write_clips

    part = clips // 6
    prepare_folder(out)
    click.echo(
        f"Making {clips} short video files in {out / 'clips'}: handwritten digits that drift among clutter, and keypad "
        "tones in noise. The data is synthetic. On purpose, sound is easy to learn and images are hard, and the sound "
        "of the test split is fainter."
    )
    with ProgressMeter("clips", clips) as meter:
        counts = {"train": clips - 2 * part, "val": part, "test": part}
        annotation = write_clips(out / "clips", counts, meter.advance)
    for command in demo_commands(out, annotation, epochs=epochs, processes=processes):
        click.secho(f"\n$ {shlex.join(command)}", bold=True)
        run_command(command)
    click.echo(
        "\nρ of audio far above 1 means that sound dominates the joint training, so that the visual branch learns "
        "little. OPM drops the dominant feature at random. That lowers ρ, and the visual branch learns: the model can "
        "rely on it where the sound is faint, as in the test split. "
        "(Synthetic data: these numbers say nothing about any real task.)"
    )
    log_next(f"open {out / 'report.png'}; for your own clips: bmlpipe datasets")
