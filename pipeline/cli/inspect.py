"""The command `bmlpipe inspect`: contact sheets of samples, and the failed clips of an extraction."""

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
from bmlpipe.manifests.common.help_texts import option
from bmlpipe.manifests.common.tables import write_csv_rows
from bmlpipe.pipeline.cli.options import PICTURE, flags_option, folder_or_address, log_next

if TYPE_CHECKING:
    from bmlpipe.pipeline.inspection.samples import InspectedSample, SampleSelection
    from bmlpipe.pipeline.store.ledger import LedgerRow

_logger = logging.getLogger(__name__)

_EXAMPLES = 3  # number of clips printed per reason


@click.command(
    cls=Program,
    examples=(
        "bmlpipe inspect shards/vggsound --split val --random 20 --out sheet.html",
        "bmlpipe inspect features/vggsound --failed",
    ),
)
@click.argument("place", metavar="SHARDS|FEATURES", callback=folder_or_address)
@option("--key", "--id", "names", metavar="NAME", multiple=True, help="Key or id of a sample; repeatable.")
@option("--random", "count", type=click.IntRange(1), help="Number of random samples.", shown="12")
@option("--seed", default=0, help="Seed of the random choice.")
@option("--split", help="Choose among the samples of this split.")
@option("--label", help="Choose among the samples of this class.")
@flags_option(
    "--flag", "flags", "Choose among samples with this flag, such as silent or still; repeatable: any of them."
)
@option("--out", type=PICTURE, help="Contact sheet to write, .png or .html.", shown="sheet.png")
@option("--failed", is_flag=True, help="List the failed clips of FEATURES by reason, in place of a contact sheet.")
@option("--csv", "as_csv", is_flag=True, help="With --failed: print one CSV row per failed or absent clip.")
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
    """Draw samples as a contact sheet, or list failed clips.

    The sheet shows frames, flow and sound of samples of SHARDS (a folder or an address) or of FEATURES (a feature
    folder).
    """
    from bmlpipe.pipeline.inspection.samples import SampleSelection

    choices = {"--random": count, "--split": split, "--label": label, "--flag": flags}
    given = [name for name, value in choices.items() if value]
    if names and given:
        raise click.UsageError(f"--key names the samples and excludes {', '.join(given)}.")
    if as_csv and not failed:
        raise click.UsageError("--csv needs --failed.")
    if failed:
        if others := [*given, *(["--key"] if names else []), *(["--out"] if out else [])]:
            raise click.UsageError(f"--failed lists clips and excludes {', '.join(others)}.")
        _failed(place, as_csv)
        return
    out = out or Path("sheet.png")
    if out.suffix.lower() not in (".png", ".html"):
        raise click.UsageError(f"--out is {out}: the name must end in .png or .html.")
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
        raise click.ClickException(f"{place} has no sample of this split, class and flag")
    click.echo(f"{count} {'sample' if count == 1 else 'samples'}: {out}")
    log_next(f"open {out}")


def _selected_samples(
    place: Path | str, selection: SampleSelection, on_read: Callable[[], None]
) -> Iterator[InspectedSample]:
    from bmlpipe.pipeline.inspection.samples import samples_from_features, samples_from_shards
    from bmlpipe.pipeline.store.folder import FeatureFolder
    from bmlpipe.shards.index import INDEX_FILE
    from bmlpipe.shards.reader import ShardReader

    if isinstance(place, Path):
        ledger = FeatureFolder(place).ledger
        if ledger.is_file():
            return samples_from_features(place, selection)
        if not (place / INDEX_FILE).is_file():
            raise click.ClickException(
                f"{place} holds neither {INDEX_FILE} nor {ledger.name}: give a set of shards (bmlpipe shard) or a "
                "feature folder (bmlpipe extract)"
            )
    return samples_from_shards(ShardReader(place), selection, on_read)


def _failed(place: Path | str, as_csv: bool) -> None:
    """List the clips of a feature folder that failed or are absent."""
    from bmlpipe.pipeline.store.folder import FeatureFolder
    from bmlpipe.pipeline.store.ledger import known_rows

    folder = FeatureFolder(Path(place))
    if isinstance(place, str) or not folder.ledger.is_file():
        raise click.UsageError(
            f"{place} holds no {folder.ledger.name}: --failed needs a feature folder of bmlpipe extract."
        )
    rows = known_rows(place)
    if folder.ledger_log.exists():
        _logger.warning("the extraction into %s is running or was interrupted; this is the present state", place)
    bad = [row for row in rows.values() if row.status != "ok"]
    if as_csv:
        columns = ("id", "split", "status", "reason", "message", "source")
        write_csv_rows(sys.stdout, [columns, *([getattr(row, column) for column in columns] for row in bad)])
        return
    counts = Counter(row.status for row in rows.values())
    click.echo(f"{len(rows)} clips: " + ", ".join(f"{name} {counts[name]}" for name in ("ok", "failed", "absent")))
    by_reason: dict[str, list[LedgerRow]] = defaultdict(list)
    for row in bad:
        by_reason[row.reason].append(row)
    for reason, clips in sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0])):
        _print_reason(reason, clips, len(rows))
    log_next("bmlpipe extract --retry-failed, after the remedy" if counts["failed"] else "bmlpipe shard")


def _print_reason(reason: str, clips: Sequence[LedgerRow], total: int) -> None:
    from bmlpipe.pipeline.store.reasons import REASONS

    splits = ", ".join(f"{split} {count}" for split, count in Counter(row.split for row in clips).items())
    click.echo(f"\n{click.style(reason, bold=True)}: {len(clips)} ({len(clips) / total:.1%}; {splits})")
    if known := REASONS.get(reason):
        _wrap("why", known.cause)
        _wrap("remedy", known.remedy)
    for row in clips[:_EXAMPLES]:
        click.echo(f"  {row.id}" + (f"  {row.source}" if row.source else ""))
        _wrap("", row.message)
    if len(clips) > _EXAMPLES:
        click.echo(f"  … and {len(clips) - _EXAMPLES} more; --csv lists them all")


def _wrap(head: str, text: str) -> None:
    from shutil import get_terminal_size

    indent = "      " if not head else "  "
    start = f"{indent}{head}: " if head else indent
    width = min(120, get_terminal_size((120, 0)).columns)
    click.echo(click.wrap_text(text, width=width, initial_indent=start, subsequent_indent=indent))
