"""A validation split for data sets that have none."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from bmlpipe.manifests.schema import Clip, ManifestError

_Unit = tuple[bool, str]  # (is a group, its name or the clip's id): what moves as a whole


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
    units: dict[_Unit, list[str]] = {}
    for clip in clips:
        if clip.split == "train":
            units.setdefault(_unit(clip, by_group), []).append(clip.label)
    ranked = sorted(units, key=lambda unit: (_rank(seed, unit[1]), unit))
    chosen = _choose({unit: units[unit] for unit in ranked}, fraction)
    return [
        replace(clip, split="val") if clip.split == "train" and _unit(clip, by_group) in chosen else clip
        for clip in clips
    ]


def _unit(clip: Clip, by_group: bool) -> _Unit:
    grouped = by_group and bool(clip.group)
    return grouped, clip.group if grouped else clip.id


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).digest()


def _choose(units: dict[_Unit, list[str]], fraction: float) -> set[_Unit]:
    """Choose units, given with the labels of their clips, in the order in which they stand."""
    total = Counter(chain.from_iterable(units.values()))
    aim = {label: min(max(1, round(fraction * n)), n - 1) for label, n in total.items()}
    taken: Counter[str] = Counter()
    chosen: set[_Unit] = set()

    def take(unit: _Unit) -> None:
        chosen.add(unit)
        taken.update(units[unit])

    def spares_training(unit: _Unit) -> bool:
        return all(taken[label] + n < total[label] for label, n in Counter(units[unit]).items())

    for unit, labels in units.items():
        if all(taken[label] >= aim[label] for label in labels):
            continue
        missing = [(aim[label] - taken[label], n) for label, n in Counter(labels).items()]
        gain = sum(abs(short) - abs(short - n) for short, n in missing)
        if gain > 0 and spares_training(unit):
            take(unit)
    for label in sorted(label for label in aim if aim[label]):
        if not taken[label]:
            fitting = [unit for unit, labels in units.items() if label in labels and spares_training(unit)]
            if fitting:
                take(min(fitting, key=lambda unit: len(units[unit])))
    return chosen
