"""Mixtures: several sets of shards, drawn in proportion to their weights and read as one set."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bmlpipe.shards.combined_reader import CombinedReader, merged_statistics
from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.mixture_order import Mixture, interleave
from bmlpipe.shards.order import EpochOrder
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.sample import Sample
from bmlpipe.shards.writer import ShardWriter
from bmlpipe.train.config.options import TrainConfig
from bmlpipe.train.data.dataset import ClipDataset, make_loader
from bmlpipe.train.data.sampler import BatchItem, TrainBatches

SHARES = st.lists(st.integers(1, 50), min_size=1, max_size=6)
SETS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=4)


@given(shares=SHARES, start=st.integers(0, 10**12), length=st.integers(0, 300))
def test_any_range_of_positions_equals_that_part_of_the_whole(shares: list[int], start: int, length: int) -> None:
    sets, counts = interleave(start, start + length, shares)
    cut = length // 3
    for part, at in (
        (interleave(start, start + cut, shares), 0),
        (interleave(start + cut, start + length, shares), cut),
    ):
        np.testing.assert_array_equal(part[0], sets[at : at + len(part[0])])
        np.testing.assert_array_equal(part[1], counts[at : at + len(part[1])])
    for number in range(len(shares)):  # the counts of a set rise by one: no sample is skipped or repeated
        mine = counts[sets == number]
        np.testing.assert_array_equal(mine, np.arange(len(mine)) + (mine[0] if len(mine) else 0))


@given(shares=SHARES)
def test_counts_stay_near_the_exact_proportion_and_meet_it_at_the_period(shares: list[int]) -> None:
    period = sum(shares)
    sets, counts = interleave(0, 3 * period, shares)
    bound = math.ceil(math.log2(len(shares))) if len(shares) > 1 else 0
    for number, share in enumerate(shares):
        mine = np.cumsum(sets == number)
        exact = np.arange(1, len(sets) + 1) * share / period
        assert np.abs(mine - exact).max() < max(bound, 1e-9) + 1e-9
        assert mine[period - 1 :: period].tolist() == [share, 2 * share, 3 * share]
        assert counts[sets == number].tolist() == list(range(3 * share))


def test_large_weights_and_far_positions_do_not_overflow() -> None:
    shares = [10**9, 10**9 - 7, 3]
    start = 10**14
    sets, counts = interleave(start, start + 1000, shares)
    exact = [start * share // sum(shares) for share in shares]
    for number in (0, 1):
        assert abs(int(counts[sets == number][0]) - exact[number]) <= 2
        assert abs((sets == number).sum() - 500) <= 2


@given(sizes=SETS, seed=st.integers(0, 99), shuffle_shards=st.integers(1, 4))
@settings(deadline=None)
def test_without_weights_each_sample_occurs_once_per_epoch(
    sizes: list[list[int]], seed: int, shuffle_shards: int
) -> None:
    mixture = Mixture.of(sizes)
    order, total = mixture.order(seed=seed, shuffle_shards=shuffle_shards), len(mixture)
    for epoch in range(3):
        epochs, numbers = order.slice(epoch * total, (epoch + 1) * total)
        assert sorted(numbers) == list(range(total))
        assert set(epochs) == {epoch}


@given(sizes=SETS, data=st.data())
@settings(deadline=None)
def test_with_weights_each_set_has_consecutive_epochs_of_its_own(sizes: list[list[int]], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(1, 20), min_size=len(sizes), max_size=len(sizes)))
    mixture = Mixture.of(sizes, weights=weights)
    total, stop = len(mixture), 4 * len(mixture)
    epochs, numbers = mixture.order(seed=5, shuffle_shards=2).slice(0, stop)
    ends = np.cumsum([sum(part) for part in sizes])
    for part, (end, size) in enumerate(zip(ends, np.diff([0, *ends]), strict=True)):
        mine = [(e, n) for e, n in zip(epochs.tolist(), numbers.tolist(), strict=True) if end - size <= n < end]
        assert abs(len(mine) - stop * weights[part] / sum(weights)) <= max(1, math.ceil(math.log2(len(sizes))))
        for epoch in range(len(mine) // size):
            whole = mine[epoch * size : (epoch + 1) * size]
            assert sorted(whole) == [(epoch, n) for n in range(end - size, end)]
    start = data.draw(st.integers(0, stop))  # any position can be computed without the preceding ones
    again = mixture.order(seed=5, shuffle_shards=2).slice(start, min(start + total, stop))
    np.testing.assert_array_equal(again, [epochs[start : start + total], numbers[start : start + total]])


def test_the_first_set_keeps_its_own_order_and_other_sets_differ() -> None:
    mixture = Mixture.of([[10, 10], [10, 10]], weights=[1, 1])
    _, numbers = mixture.order(seed=3, shuffle_shards=2).slice(0, 40)
    alone = EpochOrder([10, 10], seed=3, epoch=0, shuffle_shards=2).slice(0, 20)
    np.testing.assert_array_equal(numbers[numbers < 20], alone)
    assert not np.array_equal(numbers[numbers >= 20] - 20, alone)


def test_the_order_of_a_mixture_never_changes() -> None:
    mixture = Mixture.of([[2, 2], [3]], weights=[2, 1])
    _, numbers = mixture.order(seed=7, shuffle_shards=2).slice(0, 14)
    assert numbers.tolist() == PINNED


PINNED = [6, 3, 0, 4, 1, 2, 5, 1, 2, 6, 3, 0, 5, 0]


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ([[3], []], None, r"\[3, 0\] training samples: leave out the empty ones"),
        ([[3], [4]], [1.0], r"1 weights \(1\) for 2 sets"),
        ([[3], [4]], [1.0, 0.0], "weights are 1, 0: each must be above 0"),
        ([[3], [4]], [1.0, float("nan")], "each must be above 0"),
        ([[3], [4]], [1.0, 1e-10], "give fewer digits"),
    ],
)
def test_impossible_mixtures_are_refused(sizes: list[list[int]], weights: list[float] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixture.of(sizes, weights=weights)


def test_weights_are_decimals_reduced_to_lowest_terms() -> None:
    assert Mixture.of([[3], [4]], weights=[0.7, 0.3]).shares == (7, 3)
    assert Mixture.of([[3], [4]], weights=[20, 10]).shares == (2, 1)
    assert Mixture.of([[6], [4]]).shares == (3, 2)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("last_batch", ["drop", "pad"])
def test_a_mixture_resumes_at_any_step_and_on_any_number_of_ranks(world: int, last_batch: str) -> None:
    mixture = Mixture.of([[5, 4], [3], [8, 2, 1]], weights=[1, 3, 2])
    config = TrainConfig(batch_size=8, epochs=3, seed=1, shuffle_shards=2, last_batch=last_batch)
    whole = [item for batch in TrainBatches(mixture, config) for item in batch]
    steps = TrainBatches(mixture, config).steps
    assert steps == (9 if last_batch == "pad" else 6)
    for first in range(steps + 1):
        ranks = [list(TrainBatches(mixture, config, rank=r, world_size=world, first_step=first)) for r in range(world)]
        assert [item for step in zip(*ranks, strict=True) for part in step for item in part] == whole[8 * first :]
    for at in range(0, len(whole), 8):
        counts = Counter(0 if n < 9 else 1 if n < 12 else 2 for _, n, padding in whole[at : at + 8] if not padding)
        real = sum(counts.values())
        assert all(abs(counts[part] - real * share / 6) <= 2 for part, share in enumerate([1, 3, 2]))


# ----- reading -----

FEATURES = {"frames": {"short_side": 8}, "spectrogram": {"preset": "test"}}


def write(out: Path, prefix: str, classes: str, counts: dict[str, int], **changed: object) -> ShardReader:
    features = changed.get("features", FEATURES)
    with ShardWriter(out, dataset=prefix, classes=list(classes), features=features, samples_per_shard=3) as writer:  # type: ignore[arg-type]
        for split, count in counts.items():
            for n in range(count):
                members = {"frame_000.jpg": f"{prefix}{split}{n}".encode(), "spectrogram.npy": b"s"}
                label = n % len(classes)
                writer.write(split, Sample(f"{prefix}-{split}-{n}", label, members, {"label": classes[label]}))
        writer.statistics = changed.get("statistics", {"spectrogram": {"mean": [0.0], "std": [1.0]}})  # type: ignore[assignment]
    return ShardReader(out)


@pytest.fixture
def two(tmp_path: Path) -> list[ShardReader]:
    one = write(tmp_path / "one", "a", "xyz", {"train": 7, "val": 2, "test": 4})
    other = write(tmp_path / "two", "b", "zxy", {"train": 5, "test": 3})
    return [one, other]


def test_samples_are_numbered_split_by_split_and_labels_are_mapped(two: list[ShardReader]) -> None:
    mixed = CombinedReader(two)
    keys = [mixed[number].key for number in range(len(mixed))]
    expected = [f"a-train-{n}" for n in range(7)] + [f"b-train-{n}" for n in range(5)]
    expected += [f"a-val-{n}" for n in range(2)]
    expected += [f"a-test-{n}" for n in range(4)] + [f"b-test-{n}" for n in range(3)]
    assert keys == expected
    assert mixed.index.split_range("train") == range(12)
    assert mixed.index.split_range("val") == range(12, 14)
    assert mixed.index.split_range("test") == range(14, 21)
    for number in range(len(mixed)):
        sample = mixed[number]
        assert mixed.index.classes[sample.label] == sample.meta["label"]
    assert mixed.mixture == Mixture.of([[3, 3, 1], [3, 2]])
    assert (mixed.index.dataset, mixed.index.features) == ("a+b", FEATURES)
    copy = pickle.loads(pickle.dumps(mixed))
    assert [copy[number].key for number in range(len(copy))] == expected
    with pytest.raises(IndexError):
        mixed[21]
    mixed.close()


def test_a_mixture_of_one_set_equals_the_set(two: list[ShardReader]) -> None:
    mixed = CombinedReader(two[:1])
    assert mixed.index is two[0].index
    assert [mixed[n].key for n in range(len(mixed))] == [two[0][n].key for n in range(len(two[0]))]
    assert mixed.mixture == Mixture.of([[3, 3, 1]])


def test_a_set_for_evaluation_only_adds_nothing_to_training(two: list[ShardReader], tmp_path: Path) -> None:
    tests = write(tmp_path / "three", "c", "xyz", {"test": 2})
    mixed = CombinedReader([tests, *two])
    assert mixed.mixture == Mixture.of([[3, 3, 1], [3, 2]], firsts=[2 + 4 + 3, 2 + 4 + 3 + 7])
    assert mixed.mixture is not None
    _, numbers = mixed.mixture.order(seed=0, shuffle_shards=1).slice(0, 12)
    assert {mixed[int(n)].key for n in numbers} == {f"a-train-{n}" for n in range(7)} | {
        f"b-train-{n}" for n in range(5)
    }
    assert CombinedReader([tests]).mixture is None


def test_incompatible_sets_are_refused_with_the_difference(two: list[ShardReader], tmp_path: Path) -> None:
    other = write(tmp_path / "classes", "c", "xyw", {"train": 2})
    with pytest.raises(ShardError, match=r"different classes .* only .*one has z; only .*classes has w"):
        CombinedReader([two[0], other])
    changed = {"frames": {"short_side": 9}, "spectrogram": {"preset": "test"}}
    other = write(tmp_path / "features", "c", "xyz", {"train": 2}, features=changed)
    with pytest.raises(ShardError, match=r"different front-end parameters .*\(frames.short_side: 8 and 9\)"):
        CombinedReader([two[0], other])
    mixed = CombinedReader([two[0], other], kinds=["spectrogram"])
    assert mixed.index.features == {"spectrogram": {"preset": "test"}}  # frames cannot be loaded from it
    with pytest.raises(ShardError, match="one has no flow, only frames, spectrogram"):
        CombinedReader(two, kinds=["flow"])
    with pytest.raises(ValueError, match="for 2 sets"):
        CombinedReader(two, weights=[1])


def test_merged_statistics_equal_those_of_all_values() -> None:
    random = np.random.default_rng(0)
    values = [random.normal(3, 2, (400, 3)), random.normal(-1, 5, (100, 3))]
    parts = [{"frames": {"mean": v.mean(0).tolist(), "std": v.std(0).tolist()}} for v in values]
    merged = merged_statistics(parts, [4, 1])
    together = np.concatenate(values)
    np.testing.assert_allclose(merged["frames"]["mean"], together.mean(0))
    np.testing.assert_allclose(merged["frames"]["std"], together.std(0))
    assert merged_statistics([parts[0], {}], [1, 1]) == {}


def test_statistics_of_a_mixture_follow_its_weights(two: list[ShardReader], tmp_path: Path) -> None:
    far = write(tmp_path / "far", "f", "xyz", {"train": 2}, statistics={"spectrogram": {"mean": [6.0], "std": [1.0]}})
    assert CombinedReader([two[0], far], weights=[2, 1]).index.statistics["spectrogram"]["mean"] == [2.0]
    bysize = CombinedReader([two[0], far]).index.statistics["spectrogram"]
    assert bysize["mean"][0] == pytest.approx(6 * 2 / 9)
    index = CombinedReader([two[0], far]).index
    assert index.samples_sha256 != dataclasses.replace(two[0].index).samples_sha256


def test_the_loader_reads_a_mixture_like_one_set(toy_shards: Path) -> None:
    """Two sets have 96 training samples each, and one is drawn three times as often as the other."""
    mixed = CombinedReader([ShardReader(toy_shards), ShardReader(toy_shards)], kinds=["spectrogram"], weights=[3, 1])
    data = ClipDataset(mixed, ("audio",), frames=1, image_size=32, augment=True, seed=0)
    assert mixed.mixture is not None
    batches = TrainBatches(mixed.mixture, TrainConfig(batch_size=16, epochs=1, shuffle_shards=2), first_step=10)
    alone = ClipDataset(toy_shards, ("audio",), frames=1, image_size=32, augment=True, seed=0)
    for items, batch in zip(batches, make_loader(data, batches, workers=0), strict=True):
        assert batch["number"].tolist() == [number for _, number, _ in items]
        assert abs(sum(item.number < 96 for item in items) - 12) <= 1
        for row, (epoch, number, _) in enumerate(items):
            assert torch.equal(batch["audio"][row], alone[BatchItem(epoch, number % 96)]["audio"])
    assert {item.epoch for item in list(batches)[1] if item.number < 96} == {1}  # the epoch of the set, not of the run
