"""The command `bmlpipe stats`: the contents of shards in numbers."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from bmlpipe.manifests.common.command import Program
from bmlpipe.manifests.common.help_texts import option
from bmlpipe.manifests.common.tables import print_table, write_csv_rows
from bmlpipe.pipeline.cli.options import log_next, shards_argument

_SHOWN = 10  # number of classes in the table


@click.command(cls=Program, examples=("bmlpipe stats", "bmlpipe stats --json shards/vggsound"))
@shards_argument
@option(
    "--samples",
    default=1000,
    type=click.IntRange(0),
    help="Number of samples to read, evenly spaced, for sizes and lengths; 0: all.",
)
@option("--json", "as_json", is_flag=True, help="Print all numbers as JSON.")
@option("--csv", "as_csv", is_flag=True, help="Print the number of samples per class and split as CSV.")
def stats(shards: Path | str, samples: int, as_json: bool, as_csv: bool) -> None:
    """Count samples, classes, bytes and flags of shards.

    SHARDS is a folder or an address (s3://, gs://, https://). Without it, the only shards in shards/ are taken.

    The tables also show the lengths of the clips, and the mean and standard deviation of each feature kind.
    """
    from bmlpipe.shards.reader import ShardReader
    from bmlpipe.shards.stats import describe

    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other.")
    reader = ShardReader(shards)
    summary = describe(reader, samples=samples)
    if as_json:
        click.echo(json.dumps(summary, indent=1, ensure_ascii=False))
    elif as_csv:
        rows = ([name, *map(str, counts)] for name, counts in _by_class(summary).items())
        write_csv_rows(sys.stdout, [["class", *summary["splits"]], *rows])
    else:
        _print(str(reader.folder), summary)
    log_next(f"bmlpipe inspect {shards}")


def _by_class(summary: Mapping[str, Any]) -> dict[str, list[int]]:
    """Map each class to its number of samples in each split, the most frequent class first."""
    splits = [split["classes"] for split in summary["splits"].values()]
    counts = {name: [split[name] for split in splits] for name in (splits[0] if splits else ())}
    return dict(sorted(counts.items(), key=lambda item: -sum(item[1])))


def _print(where: str, summary: Mapping[str, Any]) -> None:
    def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        print_table(columns, [list(map(str, row)) for row in rows], caption=title)

    classes, read = _by_class(summary), summary["read"]
    click.echo(
        f"{where}: {summary['dataset']}, format version {summary['version']}, {summary['samples']} samples of "
        f"{len(classes)} classes, {_size(summary['bytes'])}",
    )
    show(
        "splits",
        ["split", "shards", "samples", "bytes", "classes", "fewest of a class", "most"],
        [
            (name, s["shards"], s["samples"], _size(s["bytes"]), *_spread(s["classes"].values()))
            for name, s in summary["splits"].items()
        ],
    )
    mean_bytes = summary["bytes"] / max(1, summary["samples"])
    numbers = {kind: [_listed(made[name]) for name in ("mean", "std")] for kind, made in summary["statistics"].items()}
    show(
        f"a sample (mean of {read['samples']} of {summary['samples']})",
        ["kind", "members", "bytes", "share of the tar", "mean", "deviation"],
        [
            (
                kind,
                f"{m['members']:.4g}",
                _size(m["bytes"]),
                f"{m['bytes'] / mean_bytes:.1%}",
                *numbers.get(kind, ("", "")),
            )
            for kind, m in read["kinds"].items()
        ],
    )
    names = list(classes)
    shown = names if len(names) <= _SHOWN else [*names[: _SHOWN // 2], "…", *names[-_SHOWN // 2 :]]
    show(
        "classes",
        ["the most frequent first", *summary["splits"]],
        [(name, *classes.get(name, ["…"] * len(summary["splits"]))) for name in shown],
    )
    click.echo()
    if read["seconds"]:
        length = read["seconds"]
        span = f"{length['shortest']:.4g} to {length['longest']:.4g}, median {length['median']:.4g}"
        click.echo(f"seconds: {span}, about {length['mean'] * summary['samples'] / 3600:.3g} hours in all")
    counts = {name: split["flags"] for name, split in summary["splits"].items() if split["flags"] is not None}
    carried = Counter[str]()
    for of_split in counts.values():
        carried.update(of_split)
    total = summary["samples"] if counts else read["samples"]
    shares = Counter(carried if counts else read["flags"]).most_common()
    flags = ", ".join(f"{flag} {count / total:.1%}" for flag, count in shares)
    click.echo(f"flags: {flags or 'none'}{'' if counts else ', of the samples read'}")
    if carried:
        rows = [(flag, *(of_split.get(flag, 0) for of_split in counts.values())) for flag, _ in shares]
        show("samples that carry a flag", ["flag", *counts], rows)
    if summary["dropped"]:
        dropped = ", ".join(f"{flag} {count}" for flag, count in summary["dropped"].items())
        click.echo(f"clips left out by their flags when this was written: {dropped}")


def _spread(counts: Collection[int]) -> tuple[int, int, int]:
    """Count the classes that occur, and the samples of the rarest and of the most frequent class."""
    return sum(map(bool, counts)), min(counts, default=0), max(counts, default=0)


def _listed(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _size(count: float) -> str:
    """Format bytes with a decimal unit.

    Examples:
        >>> _size(36_200_000)
        '36.2 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
