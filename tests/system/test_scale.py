"""Opening, the first batch and resuming cost no more for ten times the samples: calls and bytes are counted."""

from __future__ import annotations

import gc
import itertools
import sys
import tracemalloc
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import pytest
import simplejpeg
import torch

from bmlpipe.shards.index import SAMPLE_DTYPE, Index, Shard, read_index, write_index
from bmlpipe.shards.sample import Sample
from bmlpipe.shards.writer import ShardWriter
from bmlpipe.train.config.options import TrainConfig
from bmlpipe.train.data.dataset import ClipDataset, make_loader
from bmlpipe.train.data.sampler import BatchItem, TrainBatches

PER_SHARD, BATCH = 1000, 4


class Work(NamedTuple):
    """Number of calls of Python and C functions, and peak memory of Python and NumPy in bytes."""

    calls: int
    memory: int


def make_set(folder: Path, shards: int) -> Path:
    """Make shards of 1000 samples each; all are links to one shard, and all samples share the same bytes."""
    picture = simplejpeg.encode_jpeg(np.full((16, 16, 3), 99, np.uint8), 90, colorspace="RGB")
    meta = {"frames": {"times": [0.0], "height": 16, "width": 16}}
    with ShardWriter(folder / "real", dataset="folder", classes=["a"], features={"frames": {}}) as writer:
        writer.write("train", Sample("clip", 0, {"frame_000.jpg": picture}, meta))
    real = read_index(folder / "real")
    samples = np.tile(np.asarray(real.samples), shards * PER_SHARD)
    samples["shard"] = np.arange(len(samples)) // PER_SHARD
    out, names = folder / "many", [f"train-{number:06d}.tar" for number in range(shards)]
    out.mkdir()
    for name in names:
        (out / name).symlink_to(folder / "real" / real.shards[0].file)
    listed = tuple(Shard(name, "train", PER_SHARD, real.shards[0].bytes, real.shards[0].sha256) for name in names)
    write_index(out, Index("folder", real.classes, real.features, listed, samples.astype(SAMPLE_DTYPE), 0, {}))
    return out


def start(folder: Path, first_step: int) -> tuple[list[BatchItem], torch.Tensor]:
    """Open the set, and return the samples and the pictures of the first batch from a step on."""
    data = ClipDataset(folder, ["visual"], frames=1, image_size=16, augment=True, seed=0)
    sizes = [shard.samples for shard in data.reader.index.shards]
    batches = TrainBatches(sizes, TrainConfig(batch_size=BATCH, epochs=3, shuffle_shards=4), first_step=first_step)
    pictures = next(iter(make_loader(data, batches, workers=0)))["visual"]
    data.reader.close()
    return next(iter(batches)), pictures


def work_of(folder: Path, first_step: int) -> Work:
    start(folder, first_step)  # imports and caches
    calls = itertools.count()

    def count(frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            next(calls)

    gc.collect()
    sys.setprofile(count)
    try:
        start(folder, first_step)
    finally:
        sys.setprofile(None)
    tracemalloc.start()
    try:
        start(folder, first_step)
        memory = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return Work(next(calls), memory)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return {shards: make_set(tmp_path_factory.mktemp(f"shards{shards}"), shards) for shards in (20, 200)}


@pytest.mark.parametrize("epoch", [0, 1.5], ids=["from the first step", "resumed in mid-epoch"])
def test_work_depends_on_the_number_of_shards_and_not_of_samples(sets: dict[int, Path], epoch: float) -> None:
    small, large = (work_of(sets[shards], int(epoch * shards * PER_SHARD / BATCH)) for shards in (20, 200))
    more = 180  # shards, of 1000 samples each
    assert large.calls - small.calls < 10 * more
    assert large.memory - small.memory < 2048 * more


def test_the_first_batch_after_resuming_is_drawn_from_the_whole_set(sets: dict[int, Path]) -> None:
    items, pictures = start(sets[200], int(1.5 * 200 * PER_SHARD / BATCH))
    assert [item.epoch for item in items] == [1] * BATCH
    assert len({item.number for item in items}) == BATCH
    assert max(item.number for item in items) < 200 * PER_SHARD
    assert pictures.shape == (BATCH, 1, 3, 16, 16)
    assert pictures.float().mean().item() == pytest.approx(99, abs=1)
