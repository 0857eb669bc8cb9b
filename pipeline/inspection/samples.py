"""Select and read samples for inspection, from shards or from a feature folder."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bmlpipe.manifests.schema import Clip, read_clips
from bmlpipe.pipeline.sharding.write import sample_of
from bmlpipe.pipeline.store.errors import ExtractionError
from bmlpipe.pipeline.store.feature_file import FeatureStore
from bmlpipe.pipeline.store.folder import FeatureFolder
from bmlpipe.pipeline.store.ledger import LedgerRow, known_rows
from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.kinds import KINDS
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.sample import key_of


@dataclass(frozen=True)
class InspectedSample:
    """One sample, and how it was made.

    Attributes:
        key: Sample key.
        members: Member suffix → contents (docs/format.md).
        meta: The sample's JSON.
        features: Feature kind → the parameters it was computed with.
        source: Name or hash of the file it was made from; empty where unknown.
    """

    key: str
    members: Mapping[str, bytes | memoryview]
    meta: Mapping[str, Any]
    features: Mapping[str, Mapping[str, Any]]
    source: str


@dataclass(frozen=True)
class SampleSelection:
    """The samples to inspect.

    Attributes:
        names: Keys or ids, in order of appearance; empty: random samples.
        count: Number of random samples.
        seed: Seed of the random selection.
        split: Restrict the choice to this split.
        label: Restrict the choice to this class.
        flags: Restrict the choice to samples with at least one of these flags.
    """

    names: tuple[str, ...] = ()
    count: int = 12
    seed: int = 0
    split: str | None = None
    label: str | None = None
    flags: tuple[str, ...] = ()


def samples_from_shards(
    reader: ShardReader, selection: SampleSelection, on_read: Callable[[], None] = lambda: None
) -> Iterator[InspectedSample]:
    """Yield selected samples of a set of shards.

    Args:
        reader: The shards.
        selection: Which samples. Flags are stored in the samples only, so samples are read until enough are found.
        on_read: Called after each sample that is read.

    Raises:
        ShardError: There is no such sample, split or class, or a sample cannot be read.
    """
    index, found = reader.index, 0
    if selection.names:
        numbers: Iterable[int] = _named_numbers(reader, selection.names)
        needed = len(selection.names)
    else:
        candidates = _candidates(reader, selection)
        numbers, needed = map(int, candidates), min(selection.count, len(candidates))
    if selection.flags and index.flags is not None and not selection.names:
        splits = [selection.split] if selection.split else list(index.flags)
        total = sum(index.flags.get(split, {}).get(flag, 0) for split in splits for flag in selection.flags)
        needed = min(needed, total)  # once these are found, the search can stop
    for number in numbers:
        if found == needed:
            return
        sample = reader[number]
        on_read()
        if not selection.flags or set(selection.flags) & set(sample.meta.get("flags", ())):
            found += 1
            yield InspectedSample(sample.key, sample.members, sample.meta, index.features, _source(sample.meta))


def _candidates(reader: ShardReader, selection: SampleSelection) -> npt.NDArray[np.int64]:
    """Shuffle the numbers of the samples of a split and class.

    Remote shards are taken one by one, so that few are fetched. The choice is still random, because a split is shuffled
    before it is cut into shards.
    """
    index = reader.index
    span = index.split_range(selection.split) if selection.split else range(len(index.samples))
    records = index.samples[span.start : span.stop]
    chosen = np.arange(len(records))
    if selection.label is not None:
        _check_label(selection.label, index.classes)
        chosen = np.flatnonzero(records["label"] == index.classes.index(selection.label))
    random = np.random.default_rng(selection.seed)
    random.shuffle(chosen)
    if reader.remote is not None:
        _, first, shard = np.unique(records["shard"][chosen], return_index=True, return_inverse=True)
        chosen = chosen[np.argsort(first[shard], kind="stable")]
    return chosen + span.start


def _named_numbers(reader: ShardReader, names: Sequence[str]) -> list[int]:
    """Find the numbers of the samples with these keys or ids."""
    keys = np.asarray(reader.index.samples["key"])
    found = []
    for name in names:
        at = np.flatnonzero(keys == name.encode())
        if not at.size:
            at = np.flatnonzero(keys == key_of(name).encode())
        if not at.size:
            raise ShardError(
                f"{reader.folder} has no sample with the key or id {name!r}: its samples.npy lists the keys"
            )
        found.append(int(at[0]))
    return found


def _check_label(label: str, classes: Sequence[str]) -> None:
    if label not in classes:
        near = " or ".join(map(repr, difflib.get_close_matches(label, classes)))
        raise ShardError(f"there is no class {label!r}" + (f": did you mean {near}?" if near else ""))


def _source(meta: Mapping[str, Any]) -> str:
    names = meta.get("source") or [f"SHA-256 {digest[:16]}…" for digest in meta.get("source_sha256", ())]
    return ", ".join(names)


def samples_from_features(folder: Path, selection: SampleSelection) -> Iterator[InspectedSample]:
    """Yield selected clips of a feature folder, which may belong to a running extraction.

    Raises:
        ExtractionError: There is no such clip, or it has no features.
        FileNotFoundError: The folder is not a feature folder.
        StoreError: A clip's features cannot be read.
    """
    rows, description = known_rows(folder), json.loads(FeatureFolder(folder).dataset.read_text(encoding="utf-8"))
    clips = {clip.id: clip for clip in read_clips(FeatureFolder(folder).manifest)}
    store = FeatureStore(folder)
    if selection.label is not None:
        _check_label(selection.label, description["classes"])
    for row in _named_rows(rows, selection.names) if selection.names else _random_rows(rows, selection, clips):
        stored = store.read(row.id)
        kinds = [kind for kind in KINDS if kind in stored.parameters]
        sample = sample_of(stored, clips[row.id], description["classes"].index(clips[row.id].label), kinds)
        yield InspectedSample(sample.key, sample.members, sample.meta, stored.parameters, row.source)


def _named_rows(rows: Mapping[str, LedgerRow], names: Sequence[str]) -> list[LedgerRow]:
    by_key: dict[str, LedgerRow] = {}
    found = []
    for name in names:
        row = rows.get(name)
        if row is None:
            by_key = by_key or {key_of(row.id): row for row in rows.values()}
            row = by_key.get(name)
        if row is None:
            raise ExtractionError(f"the manifest has no clip with the id or key {name!r}")
        if row.status != "ok":
            raise ExtractionError(f"{row.id} has no features: {row.status}, {row.reason}: {row.message}")
        found.append(row)
    return found


def _random_rows(
    rows: Mapping[str, LedgerRow], selection: SampleSelection, clips: Mapping[str, Clip]
) -> list[LedgerRow]:
    chosen = [
        row
        for row in rows.values()
        if row.status == "ok"
        and selection.split in (None, row.split)
        and selection.label in (None, clips[row.id].label)
        and (not selection.flags or set(selection.flags) & set(row.flags.split()))
    ]
    order = np.random.default_rng(selection.seed).permutation(len(chosen))
    return [chosen[place] for place in order[: selection.count]]
