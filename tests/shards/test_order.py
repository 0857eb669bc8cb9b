"""The order of samples: a permutation per epoch, independent of how it is read."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bmlpipe.shards.order import EpochOrder, keyed_bits, keyed_uniform, shuffled

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=12)


@given(sizes=SIZES, seed=st.integers(0, 2**31), epoch=st.integers(0, 500), shuffle_shards=st.integers(1, 14))
def test_an_epoch_contains_each_sample_once(sizes: list[int], seed: int, epoch: int, shuffle_shards: int) -> None:
    order = EpochOrder(sizes, seed=seed, epoch=epoch, shuffle_shards=shuffle_shards)
    assert sorted(order.slice(0, len(order))) == list(range(sum(sizes)))


@given(sizes=SIZES, shuffle_shards=st.integers(1, 14), batch=st.integers(1, 40), data=st.data())
def test_any_slice_equals_that_part_of_the_whole(
    sizes: list[int], shuffle_shards: int, batch: int, data: st.DataObject
) -> None:
    whole = EpochOrder(sizes, seed=1, epoch=2, shuffle_shards=shuffle_shards).slice(0, sum(sizes))
    start = data.draw(st.integers(0, sum(sizes)))
    stop = min(start + batch, sum(sizes))
    part = EpochOrder(sizes, seed=1, epoch=2, shuffle_shards=shuffle_shards).slice(start, stop)
    np.testing.assert_array_equal(part, whole[start:stop])


def test_epochs_and_seeds_differ_and_windows_stay_local() -> None:
    sizes = [50] * 8
    orders = [
        EpochOrder(sizes, seed=s, epoch=e, shuffle_shards=2).slice(0, 400) for s, e in ((0, 0), (0, 1), (1, 0), (0, 0))
    ]
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])
    np.testing.assert_array_equal(orders[0], orders[3])
    for start in range(0, 400, 100):
        assert len(set(orders[0][start : start + 100] // 50)) == 2


def test_the_order_never_changes() -> None:
    """A resumed run must continue in the same order with any versions of the libraries."""
    assert EpochOrder([4, 3, 5], seed=7, epoch=1, shuffle_shards=2).slice(0, 12).tolist() == PINNED


PINNED = [5, 4, 1, 2, 3, 6, 0, 9, 7, 8, 11, 10]


def test_shuffling_ids_does_not_depend_on_their_order() -> None:
    ids = [f"clip-{n}" for n in range(200)]
    assert shuffled(ids, 1) == shuffled(reversed(ids), 1)
    assert shuffled(ids, 1) != shuffled(ids, 2)
    without = [id_ for id_ in shuffled(ids, 1) if id_ != "clip-7"]
    assert without == shuffled([id_ for id_ in ids if id_ != "clip-7"], 1)


def test_keyed_uniform_numbers_are_uniform_and_independent() -> None:
    samples = np.arange(20000)
    one, other = keyed_uniform(0, 1, samples), keyed_uniform(0, 2, samples)
    assert one.min() >= 0
    assert one.max() < 1
    # tolerances of five standard deviations: 0.002 for the mean of 20,000 numbers, 0.007 for a correlation
    assert abs(one.mean() - 0.5) < 0.0103
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.036
    assert len(np.unique(keyed_bits(0, 1, samples))) == len(samples)
