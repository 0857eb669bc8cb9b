"""Batches: every sample once, the same for any number of ranks, micro-batches and workers, resumable at any step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from bmlpipe.manifests.common.errors import BmlpipeError
from bmlpipe.shards.index import read_index
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.sample import Sample
from bmlpipe.shards.writer import ShardWriter
from bmlpipe.train.config.options import TrainConfig
from bmlpipe.train.data.dataset import ClipDataset, make_loader
from bmlpipe.train.data.sampler import BatchItem, TrainBatches, evaluation_batches

WORLDS, WORKERS, SHARDS = (1, 2, 3, 4, 8), (0, 1, 3), (1, 2, 10, 37)
BATCH = 24  # a multiple of every world size, and of 2 micro-batches each but for 8 ranks of 3 micro-batches
OPTIONS: dict[str, Any] = {"batch_size": BATCH, "epochs": 2, "seed": 5, "shuffle_shards": 4}


def sizes(shards: int) -> list[int]:
    """Sizes of shards that hold about 100 samples together; the last shard is smaller."""
    each = -(-100 // shards)
    return [each] * (shards - 1) + [max(1, each - 2)]


def train_batches(samples: list[int], **given: Any) -> TrainBatches:
    """Batches with the arguments of `TrainBatches`, or options of a run, in `given`."""
    arguments = {name: given.pop(name) for name in ("rank", "world_size", "first_step") if name in given}
    return TrainBatches(samples, TrainConfig(**given), **arguments)


def together(ranks: list[TrainBatches], accumulate: int = 1) -> Iterator[list[BatchItem]]:
    """Global batches, put together from what the ranks load, micro-batch by micro-batch."""
    parts = [list(rank) for rank in ranks]
    assert len({len(part) for part in parts}) == 1, "ranks take unequal steps"
    assert [len(rank) for rank in ranks] == [len(part) for part in parts]
    for at in range(0, len(parts[0]), accumulate):
        yield [item for micro in range(at, at + accumulate) for part in parts for item in part[micro]]


@pytest.mark.parametrize("last_batch", ["drop", "pad"])
@pytest.mark.parametrize("shards", SHARDS)
def test_each_sample_comes_once_per_epoch(shards: int, last_batch: str) -> None:
    samples = sizes(shards)
    total = sum(samples)
    batches = train_batches(samples, **OPTIONS, last_batch=last_batch)
    steps = list(batches)
    assert (batches.steps, len(steps)) == (2 * batches.steps_per_epoch,) * 2
    assert (batches.dropped, batches.padded) == {
        "drop": (total % BATCH, 0),
        "pad": (0, (BATCH - total % BATCH) % BATCH),
    }[last_batch]
    left_out = []
    for epoch in (0, 1):
        items = [
            item for batch in steps[epoch * batches.steps_per_epoch :][: batches.steps_per_epoch] for item in batch
        ]
        assert {item.epoch for item in items} == {epoch}
        real = [item.number for item in items if not item.padding]
        assert len(set(real)) == len(real) == total - batches.dropped
        assert set(real) <= set(range(total))
        assert len(items) - len(real) == batches.padded
        left_out.append(set(range(total)) - set(real))
    assert not batches.dropped or left_out[0] != left_out[1]
    assert sum(map(batches.samples_in, range(batches.steps))) == 2 * (total - batches.dropped)


def test_padding_repeats_samples_of_the_batch_at_weight_0() -> None:
    batches = train_batches([5, 5], **{**OPTIONS, "batch_size": 8}, last_batch="pad")
    first, second = list(batches)[:2]
    assert not any(item.padding for item in first)
    real, padding = second[:2], second[2:]
    assert not any(item.padding for item in real)
    assert padding == [item._replace(padding=True) for item in real * 3]
    assert [batches.samples_in(step) for step in range(4)] == [8, 2, 8, 2]
    assert (batches.steps_per_epoch, batches.padded, batches.dropped) == (2, 6, 0)


def test_fewer_samples_than_a_batch_can_be_padded_but_not_dropped() -> None:
    batches = train_batches([3], **OPTIONS, last_batch="pad")
    assert [len(batch) for batch in batches] == [BATCH] * 2
    assert {item.number for item in next(iter(batches))} == {0, 1, 2}
    assert batches.samples_in(0) == 3
    with pytest.raises(ValueError, match="only 3 training samples: choose a smaller batch, or pad the last batch"):
        train_batches([3], **OPTIONS)


@pytest.mark.parametrize("last_batch", ["drop", "pad"])
@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("world", WORLDS)
def test_ranks_together_see_the_global_batch_in_its_order(world: int, shards: int, last_batch: str) -> None:
    options = {**OPTIONS, "last_batch": last_batch}
    alone = list(train_batches(sizes(shards), **options))
    for accumulate in (a for a in (1, 2, 3) if BATCH % (world * a) == 0):
        ranks = [
            train_batches(sizes(shards), **options, rank=r, world_size=world, accumulate=accumulate)
            for r in range(world)
        ]
        assert list(together(ranks, accumulate)) == alone


@pytest.mark.parametrize("last_batch", ["drop", "pad"])
@pytest.mark.parametrize("shards", SHARDS)
def test_a_run_resumes_at_any_step_with_any_world_size(shards: int, last_batch: str) -> None:
    options = {**OPTIONS, "last_batch": last_batch}
    alone = list(train_batches(sizes(shards), **options))
    for first, world in itertools.product(range(len(alone) + 1), WORLDS):
        accumulate = 1 + (first + world) % 2 if world != 8 else 1
        more = {"world_size": world, "first_step": first, "accumulate": accumulate}
        ranks = [train_batches(sizes(shards), **options, rank=r, **more) for r in range(world)]
        assert list(together(ranks, accumulate)) == alone[first:]


@given(
    samples=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    share=st.integers(1, 4),
    world=st.integers(1, 5),
    accumulate=st.integers(1, 3),
    shuffle_shards=st.integers(1, 9),
    last_batch=st.sampled_from(["drop", "pad"]),
    data=st.data(),
)
@settings(deadline=None, max_examples=60)
def test_the_ranks_together_cover_one_order_for_any_sizes(
    samples: list[int],
    share: int,
    world: int,
    accumulate: int,
    shuffle_shards: int,
    last_batch: str,
    data: st.DataObject,
) -> None:
    batch = share * world * accumulate
    if last_batch == "drop" and batch > sum(samples):
        return
    options: dict[str, Any] = {
        "batch_size": batch,
        "epochs": 3,
        "seed": 1,
        "shuffle_shards": shuffle_shards,
        "last_batch": last_batch,
    }
    alone = list(train_batches(samples, **options))
    first = data.draw(st.integers(0, len(alone)))
    more = {"world_size": world, "first_step": first, "accumulate": accumulate}
    assert (
        list(together([train_batches(samples, **options, rank=r, **more) for r in range(world)], accumulate))
        == (alone[first:])
    )
    real = [item for step in alone for item in step if not item.padding]
    assert len(set(real)) == len(real)


@given(count=st.integers(0, 60), world=st.integers(1, 8), batch=st.integers(1, 9), first=st.integers(0, 1000))
def test_evaluation_sees_each_sample_once_on_uneven_ranks(count: int, world: int, batch: int, first: int) -> None:
    split = range(first, first + count)
    ranks = [evaluation_batches(split, batch_size=batch, rank=r, world_size=world) for r in range(world)]
    items = [item for rank in ranks for part in rank for item in part]
    assert sorted(items) == [BatchItem(-1, number) for number in split]
    assert all(0 < len(part) <= batch for rank in ranks for part in rank)
    shares = [sum(map(len, rank)) for rank in ranks]
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"world_size": 5}, "evenly among 5 ranks with 1 micro-batches each: choose a multiple of 5 .20 or 25"),
        ({"world_size": 8, "accumulate": 2}, "choose a multiple of 16 .16 or 32"),
        ({"world_size": 32}, "choose a multiple of 32 .32"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"accumulate": 0}, "accumulate is 0: must be at least 1"),
        ({"last_batch": "keep"}, "last_batch is 'keep': must be one of drop, pad"),
        ({"batch_size": 120}, "only 98 training samples"),
    ],
)
def test_impossible_batches_are_refused_with_a_remedy(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BmlpipeError, match=message):
        train_batches(sizes(1), **{**OPTIONS, **change})


def test_a_finished_training_yields_nothing() -> None:
    steps = train_batches(sizes(2), **OPTIONS).steps
    for first in (steps, steps + 5):
        batches = train_batches(sizes(2), **OPTIONS, first_step=first)
        assert (len(batches), list(batches)) == (0, [])


# ----- through torch's own DataLoader -----


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Sets of about 100 samples in 1, 2, 10 and 37 shards, of a few bytes each."""
    folder = tmp_path_factory.mktemp("tiny")
    for shards in SHARDS:
        with ShardWriter(
            folder / str(shards), dataset="t", classes=["a", "b"], features={}, samples_per_shard=sizes(shards)[0]
        ) as writer:
            for number in range(sum(sizes(shards))):
                writer.write("train", Sample(f"k{number}", number % 2, {"frame_000.jpg": b"%d" % number}))
    return {shards: folder / str(shards) for shards in SHARDS}


class Echo(Dataset[tuple[BatchItem, int]]):
    """Reads a sample: the item, and the number that the sample's bytes state."""

    def __init__(self, shards: Path) -> None:
        self.reader = ShardReader(shards)

    def __getitem__(self, item: BatchItem) -> tuple[BatchItem, int]:
        stored = self.reader[item.number]
        return (item, int(bytes(stored.members["frame_000.jpg"])))


def loaded(shards: Path, batches: TrainBatches, workers: int) -> list[list[BatchItem]]:
    loader: DataLoader[Any] = DataLoader(
        Echo(shards),
        batch_sampler=batches,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        collate_fn=list,
    )
    found = list(loader)
    assert len(loader) == len(found)
    assert all(item.number == stored for batch in found for item, stored in batch)
    return [[item for item, _ in batch] for batch in found]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("world", WORLDS)
def test_worker_processes_load_the_global_order(tiny: dict[int, Path], world: int, shards: int, workers: int) -> None:
    """On the last rank, from the middle of a padded epoch, with two micro-batches where they can be shared out."""
    sizes_there = [shard.samples for shard in read_index(tiny[shards]).shards]
    assert len(sizes_there) == shards
    accumulate = 1 if world == 8 else 2
    options = {**OPTIONS, "last_batch": "pad", "accumulate": accumulate}
    first = 3
    alone = list(train_batches(sizes_there, **{**options, "accumulate": 1}))[first:]
    batches = train_batches(sizes_there, **options, rank=world - 1, world_size=world, first_step=first)
    found = loaded(tiny[shards], batches, workers)
    share = BATCH // (world * accumulate)
    expected = [step[(micro * world + world - 1) * share :][:share] for step in alone for micro in range(accumulate)]
    assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_weights_and_numbers_are_right_in_any_kind_of_worker(toy_shards: Path, context: str) -> None:
    data = ClipDataset(toy_shards, ("audio",), frames=1, image_size=32, augment=True, seed=0)
    options = {**OPTIONS, "batch_size": 40, "last_batch": "pad", "accumulate": 2}
    batches = train_batches([20, 20, 20, 20, 16], **options, first_step=2)
    loader = make_loader(data, batches, workers=1)
    loader.multiprocessing_context = context
    for expected, batch in zip(batches, loader, strict=True):
        assert batch["number"].tolist() == [item.number for item in expected]
        assert batch["weight"].tolist() == [float(not item.padding) for item in expected]
    assert batch["weight"].tolist() == [0.0] * 20
