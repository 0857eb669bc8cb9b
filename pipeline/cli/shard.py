"""The commands about shards: shard, verify and stats."""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bmlpipe.manifests.common.command import Program
from bmlpipe.manifests.common.tables import print_table, write_csv_rows
from bmlpipe.pipeline.cli.options import (
    EXISTING_FOLDER,
    FOLDER,
    dataset_option,
    flags_option,
    kinds_option,
)

if TYPE_CHECKING:
    from bmlpipe.shards.index import Index

_logger = logging.getLogger(__name__)

_SHOWN = 10  # classes in the table


@click.command(cls=Program, on_interrupt="nothing was changed; run the same command again")
@dataset_option
@click.option("--features", required=True, type=EXISTING_FOLDER, help="Feature folder (bmlpipe extract).")
@click.option("--out", required=True, type=FOLDER, help="Folder of the shards; an old set is replaced as a whole.")
@kinds_option("Feature kinds to take.  [all that were extracted]")
@click.option(
    "--samples-per-shard", default=1000, show_default=True, type=click.IntRange(1), help="Samples of one tar file."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the written order.")
@flags_option("--drop-flag", "drop_flags", "Leave out clips with this flag (silent, clipped, still …); repeatable.")
def shard(
    dataset: str,
    features: Path,
    out: Path,
    kinds: tuple[str, ...] | None,
    samples_per_shard: int,
    seed: int,
    drop_flags: tuple[str, ...],
) -> None:
    """Features → WebDataset tar shards with an index."""
    from bmlpipe.manifests.common.progress import ProgressMeter
    from bmlpipe.pipeline.sharding.write import write_shards

    with ProgressMeter("samples") as meter:
        counts = write_shards(
            dataset,
            features,
            out,
            kinds=kinds,
            drop_flags=drop_flags,
            samples_per_shard=samples_per_shard,
            seed=seed,
            start=meter.expect,
            progress=meter.advance,
        )
    click.echo(f"{sum(counts.values())} samples ({', '.join(f'{s} {n}' for s, n in counts.items())}) in {out}")


def _set(context: click.Context, parameter: click.Parameter, value: str) -> Path | str:
    """A folder of shards, or the address of one."""
    from bmlpipe.shards.remote.shard_set import is_remote

    return value if is_remote(value) else Path(str(EXISTING_FOLDER.convert(value, parameter, context)))


@click.command(cls=Program)
@click.argument("shards", callback=_set)
@click.option("--workers", type=click.IntRange(1), help="Shards read at a time.  [all cores]")
def verify(shards: Path | str, workers: int | None) -> None:
    """Reread shards, in a folder or at an address, and compare every byte with the index.

    A row on stdout for each fault: shard, key, member, message, separated by tabs. Exit status: 0 sound, 1 faults or no
    index to compare with, 2 wrong usage, 130 interrupted.
    """
    from dask.system import CPU_COUNT  # this process's affinity and its container's quota

    from bmlpipe.manifests.common.progress import ProgressMeter
    from bmlpipe.shards.verify.compare import verify as compare

    faults, about = 0, ""
    with ProgressMeter("samples") as meter:

        def start(index: Index) -> None:
            nonlocal about
            about = f"{len(index.shards)} shards, {len(index.samples)} samples, "
            meter.expect(len(index.samples))

        for fault in compare(shards, meter.advance, start=start, workers=workers or int(CPU_COUNT)):
            faults += 1
            click.echo("\t".join([fault.shard, fault.key or "-", fault.member or "-", fault.message]))
    _logger.info("%s%d faults", about, faults)
    sys.exit(1 if faults else 0)


@click.command(cls=Program)
@click.argument("shards", callback=_set)
@click.option(
    "--samples",
    default=1000,
    show_default=True,
    type=click.IntRange(0),
    help="Samples read for bytes of members and lengths, evenly spread; 0: all. The rest is in the index.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the classes' samples in each split as CSV.")
def stats(shards: Path | str, samples: int, as_json: bool, as_csv: bool) -> None:
    """What is in shards: samples, classes, bytes, flags, lengths, mean and deviation of each feature kind."""
    from bmlpipe.shards.reader import ShardReader
    from bmlpipe.shards.stats import describe

    if as_json and as_csv:
        raise click.UsageError("--json and --csv: choose one")
    reader = ShardReader(shards)
    about = describe(reader, samples=samples)
    if as_json:
        click.echo(json.dumps(about, indent=1, ensure_ascii=False))
    elif as_csv:
        rows = ([name, *map(str, counts)] for name, counts in _by_class(about).items())
        write_csv_rows(sys.stdout, [["class", *about["splits"]], *rows])
    else:
        _print(str(reader.folder), about)


def _by_class(about: Mapping[str, Any]) -> dict[str, list[int]]:
    """Class → its samples in each split, the most frequent class first."""
    splits = [split["classes"] for split in about["splits"].values()]
    counts = {name: [split[name] for split in splits] for name in (splits[0] if splits else ())}
    return dict(sorted(counts.items(), key=lambda item: -sum(item[1])))


def _print(where: str, about: Mapping[str, Any]) -> None:
    def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        print_table(columns, [list(map(str, row)) for row in rows], caption=title)

    classes, read = _by_class(about), about["read"]
    click.echo(
        f"{where}: {about['dataset']}, format version {about['version']}, {about['samples']} samples of "
        f"{len(classes)} classes, {_size(about['bytes'])}",
    )
    show(
        "splits",
        ["split", "shards", "samples", "bytes", "classes", "fewest of a class", "most"],
        [
            (name, s["shards"], s["samples"], _size(s["bytes"]), *_spread(s["classes"].values()))
            for name, s in about["splits"].items()
        ],
    )
    whole = about["bytes"] / max(1, about["samples"])
    numbers = {kind: [_listed(made[name]) for name in ("mean", "std")] for kind, made in about["statistics"].items()}
    show(
        f"a sample (mean of {read['samples']} of {about['samples']})",
        ["kind", "members", "bytes", "share of the tar", "mean", "deviation"],
        [
            (kind, f"{m['members']:.4g}", _size(m["bytes"]), f"{m['bytes'] / whole:.1%}", *numbers.get(kind, ("", "")))
            for kind, m in read["kinds"].items()
        ],
    )
    names = list(classes)
    shown = names if len(names) <= _SHOWN else [*names[: _SHOWN // 2], "…", *names[-_SHOWN // 2 :]]
    show(
        "classes",
        ["the most frequent first", *about["splits"]],
        [(name, *classes.get(name, ["…"] * len(about["splits"]))) for name in shown],
    )
    if read["seconds"]:
        length = read["seconds"]
        told = f"seconds: {length['shortest']:.4g} to {length['longest']:.4g}, median {length['median']:.4g}"
        click.echo(f"{told}, about {length['mean'] * about['samples'] / 3600:.3g} hours in all")
    counts = {name: split["flags"] for name, split in about["splits"].items() if split["flags"] is not None}
    carried = Counter[str]()
    for of_split in counts.values():
        carried.update(of_split)
    many = about["samples"] if counts else read["samples"]
    shares = Counter(carried if counts else read["flags"]).most_common()
    flags = ", ".join(f"{flag} {count / many:.1%}" for flag, count in shares)
    click.echo(f"flags: {flags or 'none'}{'' if counts else ', of the samples read'}")
    if carried:
        rows = [(flag, *(of_split.get(flag, 0) for of_split in counts.values())) for flag, _ in shares]
        show("samples that carry a flag", ["flag", *counts], rows)
    if about["dropped"]:
        dropped = ", ".join(f"{flag} {count}" for flag, count in about["dropped"].items())
        click.echo(f"clips left out by their flags when this was written: {dropped}")


def _spread(counts: Collection[int]) -> tuple[int, int, int]:
    """Classes that occur, and samples of the rarest and of the most frequent class."""
    return sum(map(bool, counts)), min(counts, default=0), max(counts, default=0)


def _listed(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _size(count: float) -> str:
    """Bytes with a decimal unit.

    >>> _size(36_200_000)
    '36.2 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
