"""The webdataset pipeline yields the samples that ShardReader reads, or reports the damage."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import webdataset as wds
from torch.utils.data import DataLoader

from bmlpipe.manifests.common.errors import BmlpipeError
from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.reader import ShardReader, StoredSample
from bmlpipe.shards.remote.shard_set import open_cache
from bmlpipe.shards.sample import Sample
from bmlpipe.shards.stream import decode_member, webdataset_pipeline
from bmlpipe.shards.writer import ShardWriter

KINDS = ("frames", "spectrogram", "flow", "waveform", "text")
SIZES = {"train": 23, "val": 5}


def make_sample(number: int) -> Sample:
    """Make a sample that has members of every type."""
    import soundfile

    random = np.random.default_rng(number)
    npy, flac = io.BytesIO(), io.BytesIO()
    np.save(npy, random.normal(size=(9, 4 + number)).astype(np.float16))
    soundfile.write(flac, random.integers(-999, 999, 400 + number).astype(np.int16), 16000, format="FLAC")
    pictures = random.integers(0, 255, (3, 16, 24, 3)).astype(np.uint8)
    members = {
        "frame_000.jpg": simplejpeg.encode_jpeg(pictures[0], colorspace="RGB"),
        "frame_001.jpg": simplejpeg.encode_jpeg(pictures[1], colorspace="RGB"),
        "flow_000_00_x.jpg": simplejpeg.encode_jpeg(np.ascontiguousarray(pictures[2][..., :1]), colorspace="GRAY"),
        "spectrogram.npy": npy.getvalue(),
        "waveform.flac": flac.getvalue(),
        "text.txt": f"clip {number} ∎".encode(),
    }
    return Sample(f"k{number:03d}", number % 3, members, {"id": f"clip.{number}", "flags": []})


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stream") / "set"
    with ShardWriter(
        out, dataset="d", classes="abc", features={kind: {"version": 1} for kind in KINDS}, samples_per_shard=4
    ) as writer:
        number = 0
        for split, count in SIZES.items():
            for _ in range(count):
                writer.write(split, make_sample(number))
                number += 1
    return out


def expected(reader: ShardReader, split: str) -> dict[str, StoredSample]:
    samples = [reader[number] for number in reader.index.split_range(split)]
    return {sample.key: sample for sample in samples}


def assert_same(streamed: dict[str, Any], stored: StoredSample) -> None:
    """Compare all members of a sample, decoded without the pipeline."""
    import soundfile

    assert set(streamed) - {"__key__", "__url__"} == set(stored.members)
    assert (streamed["__key__"], streamed["cls"]) == (stored.key, stored.label)
    assert streamed["json"] == stored.meta
    for name, data in stored.members.items():
        if name.startswith("frame_"):
            assert np.array_equal(streamed[name], simplejpeg.decode_jpeg(bytes(data), "RGB"))
            assert (streamed[name].shape, streamed[name].dtype) == ((16, 24, 3), np.uint8)
        elif name.startswith("flow_"):
            assert np.array_equal(streamed[name], simplejpeg.decode_jpeg(bytes(data), "GRAY")[..., 0])
    values = np.load(io.BytesIO(stored.members["spectrogram.npy"]))
    assert streamed["spectrogram.npy"].dtype == np.float16
    assert np.array_equal(streamed["spectrogram.npy"], values)
    sound = soundfile.read(io.BytesIO(stored.members["waveform.flac"]), dtype="int16")[0]
    assert streamed["waveform.flac"].dtype == np.int16
    assert np.array_equal(streamed["waveform.flac"], sound)
    assert streamed["text.txt"] == bytes(stored.members["text.txt"]).decode()


def unchanged(sample: Any) -> Any:
    return sample  # not collated into tensors


def loaded(pipeline: Any, workers: int) -> list[dict[str, Any]]:
    return list(DataLoader(pipeline, batch_size=None, num_workers=workers, collate_fn=unchanged))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("shuffle", [0, 8])
def test_the_pipeline_yields_the_samples_of_the_reader(shards: Path, workers: int, shuffle: int) -> None:
    reader = ShardReader(shards)
    remaining = expected(reader, "train")
    streamed = loaded(webdataset_pipeline(shards, "train", shuffle=shuffle), workers)
    assert len(streamed) == SIZES["train"]
    if not shuffle and workers < 2:
        assert [sample["__key__"] for sample in streamed] == list(remaining)
    for sample in streamed:
        assert_same(sample, remaining.pop(sample["__key__"]))
    assert not remaining


def test_webdataset_stages_can_follow_and_kinds_can_be_chosen(shards: Path) -> None:
    pipeline = webdataset_pipeline(shards, "train", kinds=("spectrogram", "flow"))
    assert {name for sample in pipeline for name in sample} == {
        *("__key__", "__url__", "cls", "json", "flow_000_00_x.jpg", "spectrogram.npy")
    }
    batches = pipeline.to_tuple("flow_000_00_x.jpg", "cls").batched(4)
    sizes = [len(pictures) for pictures, labels in wds.WebLoader(batches, batch_size=None) if len(labels)]
    assert sizes == [4, 4, 4, 4, 4, 3]
    assert batches.sizes == (4, 4, 4, 4, 4, 3)
    raw = next(iter(webdataset_pipeline(shards, "val", decode=False)))
    assert raw["frame_000.jpg"] == bytes(ShardReader(shards)[23].members["frame_000.jpg"])
    assert json.loads(raw["json"])["id"] == "clip.23"


def keys(samples: Iterable[dict[str, Any]]) -> list[str]:
    return [sample["__key__"] for sample in samples]


def test_the_order_depends_on_seed_and_epoch_alone(shards: Path) -> None:
    orders = [
        keys(webdataset_pipeline(shards, "train", shuffle=8, seed=seed, epoch=epoch))
        for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0))
    ]
    assert orders[0] == orders[3]
    pipeline = webdataset_pipeline(shards, "train", shuffle=8)
    assert keys(pipeline) == keys(pipeline) == orders[0]
    assert len({tuple(order) for order in orders}) == 3
    assert len({tuple(sorted(order)) for order in orders}) == 1


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))


@pytest.mark.parametrize("equal", [False, True])
def test_ranks_and_workers_share_the_shards(shards: Path, monkeypatch: pytest.MonkeyPatch, equal: bool) -> None:
    found = []
    for rank in range(2):
        as_rank(monkeypatch, rank, 2)
        pipeline = webdataset_pipeline(shards, "train", shuffle=4, seed=5, equal=equal)
        found.append(keys(loaded(pipeline, 2)))
    shares = pipeline.shares(ranks=2, workers=2)
    assert sum(map(sum, shares)) == SIZES["train"]
    assert not set(found[0]) & set(found[1])
    if equal:
        assert [len(mine) for mine in found] == [2 * min(map(min, shares))] * 2
    else:
        assert [len(mine) for mine in found] == [sum(share) for share in shares]
        assert sorted(found[0] + found[1]) == sorted(expected(ShardReader(shards), "train"))


@pytest.mark.slow
def test_too_few_shards_are_refused(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = webdataset_pipeline(shards, "val")
    assert len(loaded(pipeline, 2)) == SIZES["val"]
    with pytest.raises(BmlpipeError, match="2 shards"):
        loaded(pipeline, 3)
    as_rank(monkeypatch, 0, 3)
    with pytest.raises(BmlpipeError, match="3 ranks"):
        list(pipeline)


def test_unknown_splits_and_kinds_are_refused(shards: Path) -> None:
    with pytest.raises(ShardError, match="test"):
        webdataset_pipeline(shards, "test")
    with pytest.raises(ShardError, match="rgb_diff"):
        webdataset_pipeline(shards, "val", kinds=("rgb_diff",))


def copied(shards: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in shards.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data, end, start: data[:end], id="cut between two samples"),
        pytest.param(lambda data, end, start: data[: end + 700], id="cut in a member"),
        pytest.param(lambda data, end, start: data[:end] + b"\1" * 512 + data[end + 512 :], id="header damaged"),
        pytest.param(lambda data, end, start: data[: end - 600] + b"\1\2\3" + data[end - 597 :], id="member damaged"),
        pytest.param(lambda data, end, start: data[start:], id="a sample is missing"),
    ],
)
def test_damage_is_always_reported(shards: Path, tmp_path: Path, damage: Any) -> None:
    """Webdataset itself does not detect four of these: it ends early or yields the remaining samples."""
    folder = copied(shards, tmp_path / "set")
    record = ShardReader(folder).index.samples[1]
    start, end = int(record["offset"]), int(record["offset"]) + int(record["length"])
    path = folder / "train-000000.tar"
    path.write_bytes(damage(path.read_bytes(), end, start))
    if path.stat().st_size != end + 700:
        assert list(wds.WebDataset(str(path), shardshuffle=False))
    with pytest.raises(ShardError, match=r"train-000000\.tar.*bmlpipe verify"):
        list(webdataset_pipeline(folder, "train"))


def test_a_remote_set_is_read_through_the_cache(shards: Path, tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "cache", 10**8)
    reader = ShardReader(f"file://{shards}", cache=cache)
    remaining = expected(ShardReader(shards), "train")
    pipeline = pickle.loads(pickle.dumps(webdataset_pipeline(reader, "train")))
    for sample in loaded(pipeline, 2):
        assert sample["__url__"].startswith("file://")
        assert_same(sample, remaining.pop(sample["__key__"]))
    assert not remaining


def test_members_of_unknown_type_stay_bytes() -> None:
    assert decode_member("thing.bin", b"12") == b"12"
    assert decode_member("cls", b"12") == 12
