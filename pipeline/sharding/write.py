"""Features → shards: the clips that the ledger calls ok, as samples in an order shuffled once."""

from __future__ import annotations

import io
import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bmlpipe.manifests.datasets import DATASETS
from bmlpipe.manifests.schema import SPLITS, Clip, read_clips
from bmlpipe.pipeline.extraction.run import DATASET_FILE, MANIFEST_FILE, ExtractionError
from bmlpipe.pipeline.front_ends.quality import MEASURED_IN
from bmlpipe.pipeline.sharding.statistics import Statistics
from bmlpipe.pipeline.store.feature_file import FeatureStore, Stored, StoreError
from bmlpipe.pipeline.store.ledger import LedgerError, Row, read_ledger
from bmlpipe.shards.kinds import KINDS, SPECTROGRAM_MEMBER, WAVEFORM_MEMBER, flow_member, frame_member, rgb_diff_member
from bmlpipe.shards.order import shuffled
from bmlpipe.shards.sample import Sample, key_of
from bmlpipe.shards.writer import ShardWriter

_logger = logging.getLogger(__name__)


def sample_of(stored: Stored, clip: Clip, label: int, kinds: Iterable[str]) -> Sample:
    """Turn one clip's features into a sample."""
    features, members = stored.features, dict[str, bytes]()
    meta: dict[str, Any] = {
        "id": clip.id,
        "label": clip.label,
        "split": clip.split,
        "start": clip.start,
        "duration": clip.duration,
        "flags": list(features.flags),
        "source": [source.name for source in stored.sources],
        "media": features.media,
        "source_sha256": [source.sha256 for source in stored.sources],
    }
    for kind in kinds:
        if kind == "frames" and features.frames is not None:
            frames = features.frames
            members.update((frame_member(i), jpeg) for i, jpeg in enumerate(frames.jpegs))
            meta["frames"] = {"times": frames.times, "height": frames.height, "width": frames.width}
        elif kind == "spectrogram" and features.spectrogram is not None:
            file = io.BytesIO()
            np.save(file, features.spectrogram.values, allow_pickle=False)
            members[SPECTROGRAM_MEMBER] = file.getvalue()
        elif kind == "flow" and features.flow is not None:
            flow = features.flow
            for i, fields in enumerate(flow.jpegs):
                for step, pair in enumerate(fields):
                    members.update((flow_member(i, step, axis), jpeg) for axis, jpeg in zip("xy", pair))
            meta["flow"] = {"times": flow.times, "height": flow.height, "width": flow.width, "bound": flow.bound}
        elif kind == "rgb_diff" and features.rgb_diff is not None:
            change = features.rgb_diff
            for i, steps in enumerate(change.jpegs):
                members.update((rgb_diff_member(i, step), jpeg) for step, jpeg in enumerate(steps))
            meta["rgb_diff"] = {"times": change.times, "height": change.height, "width": change.width}
        elif kind == "waveform" and features.waveform is not None:
            members[WAVEFORM_MEMBER] = features.waveform.flac
    return Sample(key_of(clip.id), label, members, meta)


def write_shards(
    dataset: str,
    features: Path,
    out: Path,
    *,
    kinds: Iterable[str] | None = None,
    drop_flags: Collection[str] = (),
    samples_per_shard: int = 1000,
    seed: int = 0,
    start: Callable[[int], None] = lambda total: None,
    progress: Callable[[], None] = lambda: None,
) -> Mapping[str, int]:
    """Write the shards of an extraction.

    Args:
        dataset: Data set name; must be that of the features, or a setting of it.
        features: Feature folder (`bmlpipe extract`).
        out: Folder of the shards; an old set there is replaced as a whole.
        kinds: Feature kinds to take, None for all that were extracted.
        drop_flags: Leave out clips that carry one of these flags (docs/reasons.md); the index says how many.
        samples_per_shard: Samples of a shard.
        seed: Seed of the written order.
        start: Called once with the number of samples to come.
        progress: Called after each sample.

    Returns:
        Number of samples of each split.

    Raises:
        ExtractionError: There is no finished extraction of this data set here, it lacks a kind, or no clip is ok.
        StoreError: A feature file that should be there is not, or is damaged.
    """
    try:
        rows = read_ledger(features)
        about = json.loads((features / DATASET_FILE).read_text(encoding="utf-8"))
    except (LedgerError, FileNotFoundError) as error:
        raise ExtractionError(str(error)) from error
    dataset = DATASETS[dataset].clips_of if dataset in DATASETS else dataset
    if about["dataset"] != dataset:
        raise ExtractionError(f"{features} holds features of {about['dataset']}, not of {dataset}: correct --dataset")
    parameters = {kind: about["features"][kind] for kind in KINDS if kind in about["features"]}
    if kinds is not None:
        if unknown := set(kinds) - set(parameters):
            raise ExtractionError(
                f"{features} has no {', '.join(sorted(unknown))}, only {', '.join(parameters)}: run bmlpipe extract "
                "with all kinds that are wanted first (what is there is kept)"
            )
        parameters = {kind: value for kind, value in parameters.items() if kind in set(kinds)}
    ready, dropped = _choose(rows, drop_flags)
    if not ready:
        raise ExtractionError(
            f"no clip of {features} is ok"
            + (" without a flag of --drop-flag" if any(dropped.values()) else "")
            + ": see the reasons in its ledger.csv"
        )
    unknown_of = Counter[str]()
    clips = {clip.id: clip for clip in read_clips(features / MANIFEST_FILE) if clip.id in ready}
    labels = {name: number for number, name in enumerate(about["classes"])}
    store, counts, statistics = FeatureStore(features), dict[str, int](), Statistics()
    start(len(clips))
    with ShardWriter(
        out,
        dataset=dataset,
        classes=about["classes"],
        features=parameters,
        samples_per_shard=samples_per_shard,
        seed=seed,
        dropped=dropped,
    ) as writer:
        for split in SPLITS:
            order = shuffled((clip.id for clip in clips.values() if clip.split == split), seed)
            counts[split] = len(order)
            for clip_id in order:
                stored = store.read(clip_id, parameters)
                for kind, wanted in parameters.items():
                    if stored.parameters[kind] != wanted:
                        raise StoreError(
                            f"{store.path(clip_id)}: {kind} was made with other parameters than the rest: "
                            "run bmlpipe extract again to its end"
                        )
                clip = clips[clip_id]
                unknown_of.update(
                    flag for flag in dropped if MEASURED_IN.get(flag, "") not in {"", *stored.features.media}
                )
                writer.write(split, sample_of(stored, clip, labels[clip.label], parameters))
                if split == "train":
                    statistics.add(stored.features)
                progress()
        writer.statistics = statistics.result()
    for flag, count in unknown_of.items():
        _logger.warning(
            "%s was never looked for in %d of these clips: their files in %s are older, or hold nothing that tells; "
            "delete these and extract again with %s",
            *(flag, count, features / "clips", "frames" if MEASURED_IN[flag] == "pictures" else "spectrogram"),
        )
    return counts


def _choose(rows: Iterable[Row], drop_flags: Collection[str]) -> tuple[set[str], dict[str, int]]:
    """Clips that are ok and carry none of these flags; and flag → clips left out for it."""
    ready, dropped, left_out = set[str](), dict.fromkeys(drop_flags, 0), 0
    for row in rows:
        if row.status == "ok":
            carried = dropped.keys() & row.flags.split()
            dropped.update((flag, dropped[flag] + 1) for flag in carried)
            if carried:
                left_out += 1
            else:
                ready.add(row.id)
    if dropped:
        counts = ", ".join(f"{flag} {count}" for flag, count in dropped.items())
        _logger.info("left out by their flags: %d of %d clips (%s)", left_out, left_out + len(ready), counts)
    return ready, dropped
