"""Properties of the validation split."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.manifests.schema import Clip
from bmlpipe.manifests.splits import ValidationSplit, add_validation

labels = st.sampled_from("abcd")
rows = st.lists(st.tuples(st.sampled_from(["train", "train", "train", "test"]), labels, st.integers(0, 6)), max_size=60)
fractions = st.floats(0.01, 0.99)


def clips_of(made: list[tuple[str, str, int]], *, groups: bool, class_wise: bool = False) -> list[Clip]:
    return [
        Clip(f"clip{i}", split, label, group=(f"{label}_{g}" if class_wise else f"g{g}") if groups else "")
        for i, (split, label, g) in enumerate(made)
    ]


def val_ids(clips: list[Clip]) -> set[str]:
    return {clip.id for clip in clips if clip.split == "val"}


@settings(deadline=None)
@given(rows, fractions, st.integers(0, 3), st.booleans(), st.randoms(use_true_random=False))
def test_the_order_of_clips_does_not_change_the_split(made, fraction, seed, by_group, random) -> None:
    clips = clips_of(made, groups=True)
    result = add_validation(clips, ValidationSplit(fraction, by_group=by_group, seed=seed))
    shuffled = random.sample(clips, len(clips))
    again = add_validation(shuffled, ValidationSplit(fraction, by_group=by_group, seed=seed))
    assert val_ids(again) == val_ids(result)
    assert [clip.id for clip in again] == [clip.id for clip in shuffled]


@settings(deadline=None)
@given(rows, fractions, st.booleans())
def test_only_the_split_of_training_clips_changes(made, fraction, by_group) -> None:
    clips = clips_of(made, groups=True)
    result = add_validation(clips, ValidationSplit(fraction, by_group=by_group, seed=0))
    for before, after in zip(clips, result, strict=True):
        if after.split == "val":
            assert before == replace(after, split="train")
        else:
            assert before == after


@settings(deadline=None)
@given(rows, fractions, st.integers(0, 3))
def test_each_label_contributes_its_share_of_the_first_ranked_clips(made, fraction, seed) -> None:
    clips = clips_of(made, groups=False)
    ranked = defaultdict(list)
    for clip in sorted(clips, key=lambda clip: hashlib.sha256(f"{seed}:{clip.id}".encode()).hexdigest()):
        if clip.split == "train":
            ranked[clip.label].append(clip.id)
    expected = set()
    for names in ranked.values():
        if len(names) >= 2:
            expected |= set(names[: min(max(1, round(fraction * len(names))), len(names) - 1)])
    assert val_ids(add_validation(clips, ValidationSplit(fraction, by_group=False, seed=seed))) == expected


@settings(deadline=None)
@given(rows, fractions)
def test_groups_stay_whole_and_every_label_keeps_training_clips(made, fraction) -> None:
    clips = clips_of(made, groups=True)
    result = add_validation(clips, ValidationSplit(fraction, by_group=True, seed=0))
    parts = {name: {clip.group for clip in result if clip.split == name} for name in ("train", "val")}
    assert not parts["train"] & parts["val"]
    trained = {clip.label for clip in clips if clip.split == "train"}
    assert {clip.label for clip in result if clip.split == "train"} == trained


@settings(deadline=None)
@given(rows, st.floats(0.01, 0.5))
def test_class_wise_groups_deviate_from_the_share_by_at_most_half_a_group(made, fraction) -> None:
    clips = clips_of(made, groups=True, class_wise=True)
    result = add_validation(clips, ValidationSplit(fraction, by_group=True, seed=0))
    total = Counter(clip.label for clip in clips if clip.split == "train")
    sizes = defaultdict(Counter)
    for clip in clips:
        if clip.split == "train":
            sizes[clip.label][clip.group] += 1
    taken = Counter(clip.label for clip in result if clip.split == "val")
    for label, n in total.items():
        aim = min(max(1, round(fraction * n)), n - 1)
        if len(sizes[label]) == 1:
            assert taken[label] == 0  # its only group stays in training
        else:
            smallest = min(sizes[label].values())
            assert abs(taken[label] - aim) <= max(max(sizes[label].values()) / 2, smallest - aim)
            assert taken[label] >= 1


def test_groups_across_labels_approximate_the_share() -> None:
    clips = [
        Clip(f"{actor}_{e}_{i}", "train", e, group=f"{actor}") for actor in range(50) for e in "xyz" for i in range(7)
    ]
    result = add_validation(clips, ValidationSplit(0.1, by_group=True, seed=0))
    assert Counter(clip.label for clip in result if clip.split == "val") == {"x": 35, "y": 35, "z": 35}


def test_few_large_groups_still_give_a_validation_split() -> None:
    clips = [Clip(f"{speaker}_{i}", "train", "xy"[i % 2], group=speaker) for speaker in "abcde" for i in range(20)]
    result = add_validation(clips, ValidationSplit(0.1, by_group=True, seed=0))
    assert len({clip.group for clip in result if clip.split == "val"}) == 1


def test_another_seed_gives_another_split() -> None:
    clips = [Clip(f"c{i}", "train", "x") for i in range(100)]
    splits = {frozenset(val_ids(add_validation(clips, ValidationSplit(0.1, by_group=False, seed=s)))) for s in range(5)}
    assert len(splits) == 5


def test_an_existing_validation_clip_is_kept() -> None:
    clips = [Clip("a", "val", "x"), *(Clip(f"c{i}", "train", "x") for i in range(4))]
    result = add_validation(clips, ValidationSplit(0.5, by_group=False, seed=0))
    assert result[0] == clips[0]
    assert len(val_ids(result)) == 3


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(OptionError, match="must be above 0 and below 1"):
        add_validation([], ValidationSplit(fraction, by_group=False, seed=0))


def test_the_split_is_the_same_in_every_process() -> None:
    code = (
        "from bmlpipe.manifests.schema import Clip\n"
        "from bmlpipe.manifests.splits import ValidationSplit, add_validation\n"
        "clips = [Clip(f'c{i}', 'train', 'xyz'[i % 3], group=f'g{i % 17}') for i in range(200)]\n"
        "found = add_validation(clips, ValidationSplit(0.1, by_group=True, seed=3))\n"
        "print(*[clip.id for clip in found if clip.split == 'val'])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert len(outputs.pop().split()) in range(10, 31)
