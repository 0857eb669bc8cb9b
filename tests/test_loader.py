"""Batches: every sample once, the same for any number of ranks and workers, resumable at any step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bmlpipe.shards.spec import ShardError
from bmlpipe.train.inputs import Inputs
from bmlpipe.train.loader import ClipDataset, TrainBatches, evaluation_batches, make_loader

SIZES = [20, 20, 20, 20, 16]
OPTIONS = {"batch_size": 24, "epochs": 2, "seed": 5, "window": 2}


def dataset(shards: Path, *, augment: bool = True) -> ClipDataset:
    return ClipDataset(shards, ("audio", "visual", "flow"), frames=3, image_size=32, augment=augment, seed=5)


def test_an_epoch_has_each_sample_once_and_drops_only_the_last_batch() -> None:
    batches = list(TrainBatches(SIZES, **OPTIONS))
    assert len(batches) == 8
    for epoch in (0, 1):
        numbers = [number for batch in batches[4 * epoch : 4 * epoch + 4] for e, number in batch if e == epoch]
        assert sorted(numbers) == list(range(96))


@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_ranks_together_see_the_global_batch_in_its_order(world: int) -> None:
    alone = list(TrainBatches(SIZES, **OPTIONS))
    ranks = [list(TrainBatches(SIZES, **OPTIONS, rank=rank, world=world)) for rank in range(world)]
    assert [[item for rank in ranks for item in rank[step]] for step in range(8)] == alone


@pytest.mark.parametrize("first", [0, 1, 3, 4, 7, 8])
def test_the_rest_of_a_run_is_the_same_from_any_step(first: int) -> None:
    assert list(TrainBatches(SIZES, **OPTIONS, first_step=first)) == list(TrainBatches(SIZES, **OPTIONS))[first:]


def test_impossible_batches_are_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="choose a multiple of 5"):
        TrainBatches(SIZES, **OPTIONS, world=5)
    with pytest.raises(ValueError, match="only 96 training samples"):
        TrainBatches(SIZES, **{**OPTIONS, "batch_size": 97})


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_evaluation_sees_each_sample_once_on_uneven_ranks(world: int) -> None:
    split = range(120, 145)
    items = [
        item
        for rank in range(world)
        for b in evaluation_batches(split, batch_size=4, rank=rank, world=world)
        for item in b
    ]
    assert sorted(items) == [(-1, number) for number in split]


def test_a_batch_has_the_documented_shapes(toy_shards: Path) -> None:
    loader = make_loader(dataset(toy_shards), [[(0, 3), (0, 50)]], workers=0)
    batch = next(iter(loader))
    shapes = {m: (tuple(batch[m].shape), batch[m].dtype) for m in ("audio", "visual", "flow")}
    assert shapes == {
        "audio": ((2, 1, 257, 40), torch.float16),
        "visual": ((2, 3, 3, 32, 32), torch.uint8),
        "flow": ((2, 3, 2, 32, 32), torch.uint8),
    }
    assert batch["number"].tolist() == [3, 50]
    assert all(label in range(4) for label in batch["label"].tolist())
    inputs = Inputs(("audio", "visual", "flow"), dataset(toy_shards).reader.index.statistics)(batch)
    assert {m: tuple(value.shape) for m, value in inputs.items()} == {
        "audio": (2, 1, 1, 257, 40),
        "visual": (2, 3, 3, 32, 32),
        "flow": (2, 3, 2, 32, 32),
    }
    assert all(value.dtype == torch.float32 for value in inputs.values())


def test_inputs_are_normalised_by_the_index_or_as_torchvisions_weights_expect() -> None:
    grey = torch.full((1, 1, 3, 2, 2), 124, dtype=torch.uint8)
    own = Inputs(["visual"], {"frames": {"mean": [124.0, 100.0, 24.0], "std": [10.0, 12.0, 50.0]}})
    assert own({"visual": grey})["visual"][0, 0, :, 0, 0].tolist() == [0, 2, 2]
    imagenet = Inputs(["visual"], {}, imagenet=True)({"visual": grey})["visual"][0, 0, :, 0, 0]
    expected = [(124 / 255 - mean) / std for mean, std in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    torch.testing.assert_close(imagenet, torch.tensor(expected))
    stack = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 4, 1, 1)
    flow = Inputs(["flow"], {"flow": {"mean": [0.0, 1.0], "std": [1.0, 2.0]}})({"flow": stack})["flow"]
    assert flow.flatten().tolist() == [0, 0, 2, 1]
    with pytest.raises(ValueError, match="no statistics of flow"):
        Inputs(["flow"], {})


def test_views_change_with_the_epoch_and_not_in_evaluation(toy_shards: Path) -> None:
    data = dataset(toy_shards)
    assert torch.equal(data[(0, 7)]["visual"], data[(0, 7)]["visual"])
    assert not torch.equal(data[(0, 7)]["visual"], data[(1, 7)]["visual"])
    assert torch.equal(data[(-1, 7)]["visual"], dataset(toy_shards, augment=False)[(3, 7)]["visual"])


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "forkserver"])
def test_workers_change_nothing(toy_shards: Path, context: str) -> None:
    batches = [[(0, 1), (0, 90)], [(0, 5), (0, 33)], [(1, 2), (1, 71)]]
    alone = list(make_loader(dataset(toy_shards), batches, workers=0))
    loader = make_loader(dataset(toy_shards), batches, workers=3)
    loader.multiprocessing_context = context
    for one, other in zip(alone, loader, strict=True):
        for name in one:
            assert torch.equal(one[name], other[name]), name


def test_a_missing_feature_is_named_with_the_remedy(toy_shards: Path, tmp_path: Path) -> None:
    text = (toy_shards / "index.json").read_text(encoding="utf-8").replace('"flow"', '"depth"')
    for path in toy_shards.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "index.json").write_text(text, encoding="utf-8")
    with pytest.raises(ShardError, match="modality flow needs flow"):
        dataset(tmp_path)
