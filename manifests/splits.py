"""A validation split for data sets that have none."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.manifests.schema import Clip

#: What moves as a unit: the name of a group, or the id of a clip. With groups, a clip without one is a tuple of its id.
_Unit = str | tuple[str]


@dataclass(frozen=True)
class ValidationSplit:
    """The rule by which validation clips are chosen from the training clips.

    Attributes:
        fraction: Fraction of the training clips, in (0, 1).
        by_group: Keep the clips of a group together; a clip without a group stands for itself.
        seed: Seed of the choice.

    Raises:
        OptionError: The fraction is out of range.
    """

    fraction: float = 0.1
    by_group: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise OptionError(f"the fraction of validation clips is {self.fraction}: must be above 0 and below 1")


def add_validation(clips: Sequence[Clip], validation: ValidationSplit) -> list[Clip]:
    """Move a part of the training clips to `val`, stratified by label.

    The target of a label with n ≥ 2 training clips is round(fraction · n) of them, at least 1 and at most n − 1. Clips
    (with `by_group`: whole groups) are visited in the order of the SHA-256 of seed and name. Each is moved if that
    brings its labels nearer to their targets. If this leaves a label without validation clips, because all of its
    groups are large, its smallest group is moved. No label loses its last training clip.

    The result depends on the set of clips and the seed only, not on their order or the process.

    Args:
        clips: All clips. Those of other splits are returned unchanged.
        validation: How many clips to move, and which.

    Returns:
        All clips, in the given order.
    """
    fraction, seed, by_group = validation.fraction, validation.seed, validation.by_group
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
    moved = _choose(_ranked(units, seed), units, fraction)
    return [
        replace(clip, split="val") if clip.split == "train" and _unit(clip, by_group) in moved else clip
        for clip in clips
    ]


def _unit(clip: Clip, by_group: bool) -> _Unit:
    if not by_group:
        return clip.id
    return clip.group or (clip.id,)


def _ranked(units: Iterable[_Unit], seed: int) -> list[_Unit]:
    """Sort units by the first 16 bytes of their names' hashes, a clip before a group of the same name.

    The hashes are kept in an array, which takes a quarter of the memory of objects: there may be millions.
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
    """Choose units, in the order given."""

    def labels(unit: _Unit) -> Sequence[str]:
        found = labels_of[unit]
        return (found,) if isinstance(found, str) else found

    total = Counter(label for unit in ranked for label in labels(unit))
    target = {label: min(max(1, round(fraction * n)), n - 1) for label, n in total.items()}
    taken: Counter[str] = Counter()
    chosen: set[_Unit] = set()

    def take(unit: _Unit) -> None:
        chosen.add(unit)
        taken.update(labels(unit))

    def spares_training(unit: _Unit) -> bool:
        return all(taken[label] + n < total[label] for label, n in Counter(labels(unit)).items())

    for unit in ranked:
        if all(taken[label] >= target[label] for label in labels(unit)):
            continue
        missing = [(target[label] - taken[label], n) for label, n in Counter(labels(unit)).items()]
        gain = sum(abs(short) - abs(short - n) for short, n in missing)
        if gain > 0 and spares_training(unit):
            take(unit)
    for label in sorted(label for label in target if target[label]):
        if not taken[label]:
            fitting = [unit for unit in ranked if label in labels(unit) and spares_training(unit)]
            if fitting:
                take(min(fitting, key=lambda unit: len(labels(unit))))
    return chosen
