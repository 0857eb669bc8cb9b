"""The command `bmlpipe inspect`: contact sheets of samples, and what failed in an extraction."""

from __future__ import annotations

import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bmlpipe.manifests.common.command import Program
from bmlpipe.manifests.common.tables import write_csv_rows
from bmlpipe.pipeline.cli.options import EXISTING_FOLDER, PICTURE, flags_option

if TYPE_CHECKING:
    from bmlpipe.pipeline.inspection.samples import InspectedSample, SampleSelection
    from bmlpipe.pipeline.store.ledger import Row

_logger = logging.getLogger(__name__)

_EXAMPLES = 3  # of each reason


def _place(context: click.Context, parameter: click.Parameter, value: str) -> Path | str:
    """A folder, or the address of shards."""
    from bmlpipe.shards.remote.shard_set import is_remote

    return value if is_remote(value) else Path(str(EXISTING_FOLDER.convert(value, parameter, context)))


@click.command(cls=Program)
@click.argument("place", metavar="SHARDS|FEATURES", callback=_place)
@click.option("--key", "--id", "names", metavar="NAME", multiple=True, help="This sample, by key or id; repeatable.")
@click.option("--random", "count", type=click.IntRange(1), help="So many samples by chance.  [12]")
@click.option("--seed", default=0, show_default=True, help="Of that chance.")
@click.option("--split", help="Samples of this split only.")
@click.option("--label", help="Samples of this class only.")
@flags_option("--flag", "flags", "Samples with this flag only (silent, still …); repeatable: any of them.")
@click.option("--out", type=PICTURE, help="Contact sheet to write: .png or .html.  [sheet.png]")
@click.option("--failed", is_flag=True, help="Of FEATURES: say what failed, and why.")
@click.option("--csv", "as_csv", is_flag=True, help="With --failed: a CSV row for each clip that failed or is absent.")
def inspect(
    place: Path | str,
    names: tuple[str, ...],
    count: int | None,
    seed: int,
    split: str | None,
    label: str | None,
    flags: tuple[str, ...],
    out: Path | None,
    failed: bool,
    as_csv: bool,
) -> None:
    """Look at samples of shards or of a feature folder: frames, flow, sound with axes; or at what failed."""
    from bmlpipe.pipeline.inspection.samples import SampleSelection

    chosen = {"--random": count, "--split": split, "--label": label, "--flag": flags}
    given = [option for option, value in chosen.items() if value]
    if names and given:
        raise click.UsageError(f"--key names the samples: leave out {', '.join(given)}")
    if as_csv and not failed:
        raise click.UsageError("--csv is for --failed: add it")
    if failed:
        if others := [*given, *(["--key"] if names else []), *(["--out"] if out else [])]:
            raise click.UsageError(f"--failed lists clips: leave out {', '.join(others)}")
        _failed(place, as_csv)
        return
    out = out or Path("sheet.png")
    if out.suffix.lower() not in (".png", ".html"):
        raise click.UsageError(f"--out {out}: must end in .png or .html")
    _sheet(place, SampleSelection(names, count or 12, seed, split, label, flags), out)


def _sheet(place: Path | str, selection: SampleSelection, out: Path) -> None:
    """Write a contact sheet."""
    from bmlpipe.manifests.common.progress import ProgressMeter
    from bmlpipe.pipeline.inspection.contact_sheet import write_contact_sheet

    with ProgressMeter("samples read") if selection.flags else nullcontext() as meter:
        found = _selected_samples(place, selection, meter.advance if meter else lambda: None)
        if out.suffix.lower() == ".html":
            from bmlpipe.pipeline.inspection.html import write_html_page

            count = write_html_page(found, out, f"bmlpipe inspect: {place}")
        else:
            count = write_contact_sheet(found, out)
    if not count:
        raise click.ClickException(f"no sample of {place} is of this split, class and flag")
    click.echo(f"{count} {'sample' if count == 1 else 'samples'}: {out}")


def _selected_samples(
    place: Path | str, selection: SampleSelection, on_read: Callable[[], None]
) -> Iterator[InspectedSample]:
    from bmlpipe.pipeline.inspection.samples import samples_from_features, samples_from_shards
    from bmlpipe.pipeline.store.ledger import LEDGER_FILE
    from bmlpipe.shards.index import INDEX_FILE
    from bmlpipe.shards.reader import ShardReader

    if isinstance(place, Path):
        if (place / LEDGER_FILE).is_file():
            return samples_from_features(place, selection)
        if not (place / INDEX_FILE).is_file():
            raise click.ClickException(
                f"{place} holds neither {INDEX_FILE} nor {LEDGER_FILE}: give a set of shards (bmlpipe shard) or a "
                "feature folder (bmlpipe extract)"
            )
    return samples_from_shards(ShardReader(place), selection, on_read)


# ----- what failed -----


def _failed(place: Path | str, as_csv: bool) -> None:
    """List the clips of a feature folder that have no features."""
    from bmlpipe.pipeline.store.ledger import LEDGER_FILE, LOG_FILE, known_rows

    if isinstance(place, str) or not (place / LEDGER_FILE).is_file():
        raise click.UsageError(f"{place} holds no {LEDGER_FILE}: --failed is for the feature folder of bmlpipe extract")
    rows = known_rows(place)
    if (place / LOG_FILE).exists():
        _logger.warning("the extraction into %s goes on or was interrupted: this is how things stand", place)
    bad = [row for row in rows.values() if row.status != "ok"]
    if as_csv:
        columns = ("id", "split", "status", "reason", "message", "source")
        write_csv_rows(sys.stdout, [columns, *([getattr(row, column) for column in columns] for row in bad)])
        return
    counts = Counter(row.status for row in rows.values())
    click.echo(f"{len(rows)} clips: " + ", ".join(f"{name} {counts[name]}" for name in ("ok", "failed", "absent")))
    by_reason: dict[str, list[Row]] = defaultdict(list)
    for row in bad:
        by_reason[row.reason].append(row)
    for reason, clips in sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0])):
        _print_reason(reason, clips, len(rows))


def _print_reason(reason: str, clips: Sequence[Row], total: int) -> None:
    from bmlpipe.pipeline.store.reasons import REASONS

    splits = ", ".join(f"{split} {count}" for split, count in Counter(row.split for row in clips).items())
    click.echo(f"\n{click.style(reason, bold=True)}: {len(clips)} ({len(clips) / total:.1%}; {splits})")
    if known := REASONS.get(reason):
        _wrap("why", known.happened)
        _wrap("remedy", known.remedy)
    for row in clips[:_EXAMPLES]:
        click.echo(f"  {row.id}" + (f"  {row.source}" if row.source else ""))
        _wrap("", row.message)
    if len(clips) > _EXAMPLES:
        click.echo(f"  … and {len(clips) - _EXAMPLES} more: --csv lists all")


def _wrap(head: str, text: str) -> None:
    from shutil import get_terminal_size

    indent = "      " if not head else "  "
    start = f"{indent}{head}: " if head else indent
    width = min(120, get_terminal_size((120, 0)).columns)
    click.echo(click.wrap_text(text, width=width, initial_indent=start, subsequent_indent=indent))
