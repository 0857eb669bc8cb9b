"""Write shards from features: the clips whose ledger status is `ok`, as samples in an order that is shuffled once."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmlpipe.manifests.common.progress import ProgressMeter
from bmlpipe.manifests.datasets import DATASETS
from bmlpipe.manifests.schema import SPLITS, Clip, read_clips
from bmlpipe.pipeline.front_ends.quality import MEASURED_IN
from bmlpipe.pipeline.sharding.statistics import Statistics
from bmlpipe.pipeline.store.errors import ExtractionError, StoreError
from bmlpipe.pipeline.store.feature_file import FeatureStore, StoredClip
from bmlpipe.pipeline.store.folder import FeatureFolder
from bmlpipe.pipeline.store.ledger import LedgerRow, read_ledger
from bmlpipe.shards.kinds import KINDS
from bmlpipe.shards.order import shuffled
from bmlpipe.shards.sample import Sample, key_of
from bmlpipe.shards.writer import ShardWriter

_logger = logging.getLogger(__name__)


def sample_of(stored: StoredClip, clip: Clip, label: int, kinds: Iterable[str]) -> Sample:
    """Make a sample of one clip's features.

    Args:
        stored: The clip's features.
        clip: The clip's row of the manifest.
        label: Class id.
        kinds: Feature kinds to include, of those that are stored.
    """
    members = dict[str, bytes]()
    meta: dict[str, Any] = {
        "id": clip.id,
        "label": clip.label,
        "split": clip.split,
        "start": clip.start,
        "duration": clip.duration,
        "flags": list(stored.features.flags),
        "source": [source.name for source in stored.sources],
        "media": stored.features.media,
        "source_sha256": [source.sha256 for source in stored.sources],
    }
    for name in kinds:
        feature, kind = stored.features[name], KINDS[name]
        members |= feature.members(kind)
        if about := feature.meta(kind):
            meta[name] = about
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
    progress: ProgressMeter | None = None,
) -> Mapping[str, int]:
    """Write the shards of an extraction.

    Args:
        dataset: Data set name; must be that of the features, or a setting of it.
        features: Feature folder, written by `bmlpipe extract`.
        out: Folder of the shards; a set of shards that it already holds is replaced as a whole.
        kinds: Feature kinds to include; None: all that were extracted.
        drop_flags: Leave out clips that carry one of these flags (docs/reasons.md); the index says how many.
        samples_per_shard: Number of samples per shard.
        seed: Seed of the order in which samples are written.
        progress: Meter that gets the number of samples to be written and counts those written.

    Returns:
        Number of samples per split.

    Raises:
        ExtractionError: There is no finished extraction of this data set here, it lacks a kind, or no clip is ok.
        StoreError: A feature file is missing or damaged.
    """
    extraction = _Extraction.read(features, dataset)
    parameters = extraction.parameters_of(kinds)
    ready, dropped = _choose(extraction.rows, drop_flags)
    if not ready:
        raise ExtractionError(
            f"no clip of {features} is ok"
            + (" without a flag of --drop-flag" if any(dropped.values()) else "")
            + f": see the reasons in its {extraction.folder.ledger.name}"
        )
    clips = {clip.id: clip for clip in read_clips(extraction.folder.manifest) if clip.id in ready}
    labels = {name: number for number, name in enumerate(extraction.classes)}
    store, counts, statistics = FeatureStore(features), dict[str, int](), Statistics()
    unmeasured = Counter[str]()  # flag → clips in which its property was never measured
    if progress:
        progress.expect(len(clips))
    with ShardWriter(
        out,
        dataset=extraction.dataset,
        classes=extraction.classes,
        features=parameters,
        samples_per_shard=samples_per_shard,
        seed=seed,
        dropped=dropped,
    ) as writer:
        for split in SPLITS:
            order = shuffled((clip.id for clip in clips.values() if clip.split == split), seed)
            counts[split] = len(order)
            for clip_id in order:
                stored = _read(store, clip_id, parameters)
                clip = clips[clip_id]
                unmeasured.update(
                    flag for flag in dropped if MEASURED_IN.get(flag, "") not in {"", *stored.features.media}
                )
                writer.write(split, sample_of(stored, clip, labels[clip.label], parameters))
                if split == "train":
                    statistics.add(stored.features)
                if progress:
                    progress.advance()
        writer.statistics = statistics.result()
    for flag, count in unmeasured.items():
        _logger.warning(
            "%s was not looked for in %d of these clips: their files in %s are older, or hold no feature made of %s; "
            "delete these files and extract the clips again with such a feature",
            flag,
            count,
            extraction.folder.clips,
            MEASURED_IN[flag],
        )
    return counts


@dataclass(frozen=True)
class _Extraction:
    """A finished extraction.

    Attributes:
        folder: Its feature folder.
        dataset: Data set name.
        classes: Class names by class id.
        parameters: Feature kind → parameters, in the order of the table of kinds.
        rows: The ledger.
    """

    folder: FeatureFolder
    dataset: str
    classes: list[str]
    parameters: dict[str, dict[str, Any]]
    rows: list[LedgerRow]

    @classmethod
    def read(cls, path: Path, dataset: str) -> _Extraction:
        folder = FeatureFolder(path)
        try:
            rows = read_ledger(path)
            description = json.loads(folder.dataset.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ExtractionError(str(error)) from error
        name = DATASETS[dataset].clips_of if dataset in DATASETS else dataset
        if description["dataset"] != name:
            raise ExtractionError(
                f"{path} holds features of {description['dataset']}, not of {name}: correct --dataset"
            )
        parameters = {kind: description["features"][kind] for kind in KINDS if kind in description["features"]}
        return cls(folder, name, description["classes"], parameters, rows)

    def parameters_of(self, kinds: Iterable[str] | None) -> dict[str, dict[str, Any]]:
        """Return the parameters of these kinds; None: of all."""
        chosen = set(self.parameters if kinds is None else kinds)
        if absent := chosen - set(self.parameters):
            raise ExtractionError(
                f"{self.folder.path} has no {', '.join(sorted(absent))}, only {', '.join(self.parameters)}: run "
                "bmlpipe extract with these --kinds first (kinds that are stored are kept)"
            )
        return {kind: value for kind, value in self.parameters.items() if kind in chosen}


def _read(store: FeatureStore, clip_id: str, parameters: Mapping[str, Any]) -> StoredClip:
    """Read a clip's features of these kinds, all made with these parameters."""
    stored = store.read(clip_id, parameters)
    for kind, expected in parameters.items():
        if stored.parameters[kind] != expected:
            raise StoreError(
                f"{store.path(clip_id)}: {kind} was made with other parameters than in the other clips: run the same "
                "bmlpipe extract command again until it finishes"
            )
    return stored


def _choose(rows: Iterable[LedgerRow], drop_flags: Collection[str]) -> tuple[set[str], dict[str, int]]:
    """Choose the clips that are ok and carry none of these flags; count the clips left out for each flag."""
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
