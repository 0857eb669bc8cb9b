"""A validation split for data sets that have none."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from bmlpipe.manifests.schema import Clip, ManifestError

#: What moves as a whole: a group's name; where clips stand for themselves, a clip's id; in a tuple, a clip's id beside
#: groups.
_Unit = str | tuple[str]


def add_validation(clips: Sequence[Clip], *, fraction: float, seed: int, by_group: bool) -> list[Clip]:
    """Move a part of the training clips to `val`, stratified by label.

    A label with n ≥ 2 training clips aims at round(fraction · n) of them, at least 1 and at most n − 1. Clips (with
    `by_group`: whole groups) are visited in the order of the SHA-256 of seed and name, and each is taken where that
    brings the labels that it holds nearer to their aims. Where this leaves a label without validation clips (all of
    its groups are large), the smallest of its groups is taken after all. No label loses its last training clip.

    The result depends on the set of clips and the seed only, neither on their order nor on the process.

    Args:
        clips: All clips; those of other splits are passed on untouched.
        fraction: Share of the training clips, between 0 and 1, both excluded.
        seed: Any integer; another one gives another split.
        by_group: Keep clips of one group together; a clip without a group stands for itself.

    Returns:
        All clips in their order.

    Raises:
        ManifestError: The fraction is out of range.
    """
    if not 0 < fraction < 1:
        raise ManifestError(f"share of validation clips is {fraction}: must lie between 0 and 1, both excluded")
    units: dict[_Unit, str | list[str]] = {}  # unit → its clip's label, or its clips' labels
    for clip in clips:
        if clip.split == "train":
            unit = _unit(clip, by_group)
            before = units.get(unit)
            if before is None:
                units[unit] = clip.label
            elif isinstance(before, list):
                before.append(clip.label)
            else:
                units[unit] = [before, clip.label]
    chosen = _choose(_ranked(units, seed), units, fraction)
    return [
        replace(clip, split="val") if clip.split == "train" and _unit(clip, by_group) in chosen else clip
        for clip in clips
    ]


def _unit(clip: Clip, by_group: bool) -> _Unit:
    if not by_group:
        return clip.id
    return clip.group or (clip.id,)


def _ranked(units: Iterable[_Unit], seed: int) -> list[_Unit]:
    """Units in the order of their names' hashes (of 16 bytes), a clip before a group of the same name.

    An array of numbers takes a quarter of the memory of the hashes as objects: there may be millions.
    """
    import numpy as np

    def keys() -> Iterator[tuple[int, int, int]]:
        for unit in units:
            name = unit if isinstance(unit, str) else unit[0]
            digest = hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).digest()
            yield isinstance(unit, str), int.from_bytes(digest[8:16], "big"), int.from_bytes(digest[:8], "big")

    table = np.fromiter(keys(), np.dtype([("kind", "u1"), ("low", "u8"), ("high", "u8")]))
    listed = list(units)
    return [listed[number] for number in np.lexsort((table["kind"], table["low"], table["high"]))]


def _choose(ranked: Sequence[_Unit], labels_of: Mapping[_Unit, str | list[str]], fraction: float) -> set[_Unit]:
    """Choose units in the order in which they stand."""

    def labels(unit: _Unit) -> Sequence[str]:
        found = labels_of[unit]
        return (found,) if isinstance(found, str) else found

    total = Counter(label for unit in ranked for label in labels(unit))
    aim = {label: min(max(1, round(fraction * n)), n - 1) for label, n in total.items()}
    taken: Counter[str] = Counter()
    chosen: set[_Unit] = set()

    def take(unit: _Unit) -> None:
        chosen.add(unit)
        taken.update(labels(unit))

    def spares_training(unit: _Unit) -> bool:
        return all(taken[label] + n < total[label] for label, n in Counter(labels(unit)).items())

    for unit in ranked:
        if all(taken[label] >= aim[label] for label in labels(unit)):
            continue
        missing = [(aim[label] - taken[label], n) for label, n in Counter(labels(unit)).items()]
        gain = sum(abs(short) - abs(short - n) for short, n in missing)
        if gain > 0 and spares_training(unit):
            take(unit)
    for label in sorted(label for label in aim if aim[label]):
        if not taken[label]:
            fitting = [unit for unit in ranked if label in labels(unit) and spares_training(unit)]
            if fitting:
                take(min(fitting, key=lambda unit: len(labels(unit))))
    return chosen
