"""Counts and statistics of a set of shards."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

import numpy as np

from bmlpipe.shards.kinds import kind_of
from bmlpipe.shards.reader import ShardReader, StoredSample
from bmlpipe.shards.sample import VERSION
from bmlpipe.shards.targets import CLASS

_CHUNK = 1 << 20  # records per step


def describe(reader: ShardReader, *, samples: int = 1000) -> dict[str, Any]:
    """Describe a set of shards in numbers.

    Samples, classes, bytes and flags per split, parameters and statistics come from the index. Sizes of members and
    lengths of clips come from samples, which are read whole, evenly spaced over the set.

    Args:
        reader: The set.
        samples: Number of samples to read; 0: all.

    Returns:
        JSON values: `dataset`, `version`, `samples` and `bytes`; `splits`: split → `shards`, `samples`, `bytes`,
        `classes` (name → samples) and `flags` (flag → samples; None if the index does not state them); `dropped`: flag
        → clips left out for it; `features` and `statistics` as in the index; `read`: number of `samples` read, `kinds`
        (feature kind → mean number of `members` and `bytes` per sample), `flags` (flag → samples) and `seconds` (the
        `shortest`, `median`, `mean` and `longest` clip; None if no sample states its length).
    """
    index, total = reader.index, len(reader)
    splits: dict[str, dict[str, Any]] = {}
    for split in dict.fromkeys(shard.split for shard in index.shards):
        shards, numbers = index.split_shards(split), index.split_range(split)
        counts = np.zeros(len(index.classes), np.int64)
        for at in range(numbers.start, numbers.stop, _CHUNK):
            labels = index.samples[CLASS.field][at : min(at + _CHUNK, numbers.stop)]
            counts += np.bincount(labels, minlength=len(counts))
        splits[split] = {
            "shards": len(shards),
            "samples": len(numbers),
            "bytes": sum(shard.bytes for shard in shards),
            "classes": dict(zip(index.classes, counts.tolist(), strict=True)),
            "flags": None if index.flags is None else dict(index.flags.get(split, {})),
        }
    count = min(samples or total, total)
    return {
        "dataset": index.dataset,
        "version": VERSION,
        "samples": total,
        "bytes": sum(shard.bytes for shard in index.shards),
        "splits": splits,
        "dropped": dict(index.dropped),
        "features": index.features,
        "statistics": index.statistics,
        "read": _read(reader, [place * total // count for place in range(count)]),
    }


def _read(reader: ShardReader, numbers: list[int]) -> dict[str, Any]:
    members, sizes, flags = Counter[str](), Counter[str](), Counter[str]()
    lengths: list[float] = []
    for number in numbers:
        sample = reader[number]
        for name, data in sample.members.items():
            kind = kind_of(name)
            members[kind] += 1
            sizes[kind] += len(data)
        flags.update(sample.meta.get("flags", ()))
        lengths += _seconds(sample)
    count = max(1, len(numbers))
    order = [*reader.index.features, *(kind for kind in sizes if kind not in reader.index.features)]
    return {
        "samples": len(numbers),
        "kinds": {kind: {"members": members[kind] / count, "bytes": sizes[kind] / count} for kind in order},
        "flags": dict(flags.most_common()),
        "seconds": {
            "shortest": min(lengths),
            "median": statistics.median(lengths),
            "mean": statistics.fmean(lengths),
            "longest": max(lengths),
        }
        if lengths
        else None,
    }


def _seconds(sample: StoredSample) -> list[float]:
    """Return the length of a sample's clip, if it is known: that of its annotation, or the rest of its file."""
    length, whole = sample.meta.get("duration"), (sample.meta.get("media") or {}).get("duration_s")
    if length is None and whole is not None:
        length = whole - sample.meta.get("start", 0.0)
    return [] if length is None else [float(length)]
