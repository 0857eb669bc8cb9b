"""Samples to be looked at: chosen from shards or from a feature folder, and read."""

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
from bmlpipe.pipeline.extraction.plan import DATASET_FILE, ExtractionError
from bmlpipe.pipeline.extraction.run import MANIFEST_FILE
from bmlpipe.pipeline.sharding.write import sample_of
from bmlpipe.pipeline.store.feature_file import FeatureStore
from bmlpipe.pipeline.store.ledger import Row, known_rows
from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.kinds import KINDS
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.sample import key_of


@dataclass(frozen=True)
class Specimen:
    """One sample to be looked at.

    Attributes:
        key: Sample key.
        members: Member suffix → contents (docs/format.md).
        meta: The sample's JSON.
        features: Feature kind → the parameters that it was made with.
        source: The file that it was made from, as far as is known.
    """

    key: str
    members: Mapping[str, bytes | memoryview]
    meta: Mapping[str, Any]
    features: Mapping[str, Mapping[str, Any]]
    source: str


@dataclass(frozen=True)
class Choice:
    """Which samples are wanted.

    Attributes:
        names: Keys or ids, in this order; empty: by chance.
        count: How many by chance.
        seed: Of that chance.
        split: Only of this split.
        label: Only of this class.
        flags: Only with at least one of these flags.
    """

    names: tuple[str, ...] = ()
    count: int = 12
    seed: int = 0
    split: str | None = None
    label: str | None = None
    flags: tuple[str, ...] = ()


def from_shards(reader: ShardReader, choice: Choice, looked: Callable[[], None] = lambda: None) -> Iterator[Specimen]:
    """Samples of a set of shards.

    Args:
        reader: The set.
        choice: Which ones. Flags are in the samples, which are read until enough are found.
        looked: Called after each sample that is read.

    Raises:
        ShardError: There is no such sample, split or class, or one cannot be read.
    """
    index, found = reader.index, 0
    if choice.names:
        numbers: Iterable[int] = _numbers(reader, choice.names)
        wanted = len(choice.names)
    else:
        candidates = _candidates(reader, choice)
        numbers, wanted = map(int, candidates), min(choice.count, len(candidates))
    if choice.flags and index.flags is not None and not choice.names:
        splits = [choice.split] if choice.split else list(index.flags)
        there = sum(index.flags.get(split, {}).get(flag, 0) for split in splits for flag in choice.flags)
        wanted = min(wanted, there)  # no more than these need be looked for
    for number in numbers:
        if found == wanted:
            return
        sample = reader[number]
        looked()
        if not choice.flags or set(choice.flags) & set(sample.meta.get("flags", ())):
            found += 1
            yield Specimen(sample.key, sample.members, sample.meta, index.features, _source(sample.meta))


def _candidates(reader: ShardReader, choice: Choice) -> npt.NDArray[np.int64]:
    """Numbers of the samples of a split and class, shuffled; at an address shard by shard, so that few are fetched.

    That is still a choice by chance: a split's samples were shuffled before they were cut into shards.
    """
    index = reader.index
    span = index.split_range(choice.split) if choice.split else range(len(index.samples))
    records = index.samples[span.start : span.stop]
    chosen = np.arange(len(records))
    if choice.label is not None:
        _check_label(choice.label, index.classes)
        chosen = np.flatnonzero(records["label"] == index.classes.index(choice.label))
    random = np.random.default_rng(choice.seed)
    random.shuffle(chosen)
    if reader.remote is not None:
        _, first, shard = np.unique(records["shard"][chosen], return_index=True, return_inverse=True)
        chosen = chosen[np.argsort(first[shard], kind="stable")]
    return chosen + span.start


def _numbers(reader: ShardReader, names: Sequence[str]) -> list[int]:
    """Sample numbers of keys or ids."""
    keys = np.asarray(reader.index.samples["key"])
    found = []
    for name in names:
        at = np.flatnonzero(keys == name.encode())
        if not at.size:
            at = np.flatnonzero(keys == key_of(name).encode())
        if not at.size:
            raise ShardError(f"{reader.folder} has no sample with the key or id {name!r}: see its samples.npy")
        found.append(int(at[0]))
    return found


def _check_label(label: str, classes: Sequence[str]) -> None:
    if label not in classes:
        near = " or ".join(map(repr, difflib.get_close_matches(label, classes)))
        raise ShardError(f"there is no class {label!r}" + (f": did you mean {near}?" if near else ""))


def _source(meta: Mapping[str, Any]) -> str:
    names = meta.get("source") or [f"SHA-256 {digest[:16]}…" for digest in meta.get("source_sha256", ())]
    return ", ".join(names)


def from_features(folder: Path, choice: Choice) -> Iterator[Specimen]:
    """Clips of a feature folder, of an extraction that goes on as well.

    Raises:
        ExtractionError: There is no such clip, or it has no features.
        FileNotFoundError: It is no feature folder.
        StoreError: A clip's features cannot be read.
    """
    rows, about = known_rows(folder), json.loads((folder / DATASET_FILE).read_text(encoding="utf-8"))
    clips = {clip.id: clip for clip in read_clips(folder / MANIFEST_FILE)}
    store = FeatureStore(folder)
    if choice.label is not None:
        _check_label(choice.label, about["classes"])
    for row in _named(rows, choice.names) if choice.names else _drawn(rows, choice, clips):
        stored = store.read(row.id)
        kinds = [kind for kind in KINDS if kind in stored.parameters]
        sample = sample_of(stored, clips[row.id], about["classes"].index(clips[row.id].label), kinds)
        yield Specimen(sample.key, sample.members, sample.meta, stored.parameters, row.source)


def _named(rows: Mapping[str, Row], names: Sequence[str]) -> list[Row]:
    by_key: dict[str, Row] = {}
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


def _drawn(rows: Mapping[str, Row], choice: Choice, clips: Mapping[str, Clip]) -> list[Row]:
    chosen = [
        row
        for row in rows.values()
        if row.status == "ok"
        and choice.split in (None, row.split)
        and choice.label in (None, clips[row.id].label)
        and (not choice.flags or set(choice.flags) & set(row.flags.split()))
    ]
    order = np.random.default_rng(choice.seed).permutation(len(chosen))
    return [chosen[place] for place in order[: choice.count]]
