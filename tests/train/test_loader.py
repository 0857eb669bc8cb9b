"""Batches of bytes: the same as sample by sample, in any worker, one crop for all pictures, padding, errors."""

from __future__ import annotations

import io
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
from torch.utils.data import default_collate

from bmlpipe.shards.combined_reader import CombinedReader
from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.kinds import KINDS
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.sample import Sample
from bmlpipe.shards.writer import ShardWriter
from bmlpipe.train.data.dataset import ClipDataset, make_loader, reading
from bmlpipe.train.data.decode import Crop, centre_crop, choose_instants, random_crop, uniform_numbers
from bmlpipe.train.data.normalise import Normaliser
from bmlpipe.train.data.sampler import BatchItem

MODALITIES = ("audio", "visual", "flow", "rgb_diff")
HEIGHT, WIDTH, TIMES, FLOWS, CHANGES = 96, 128, 6, 2, 2  # of the samples that `stacks` writes


def dataset(shards: Path, *, augment: bool = True) -> ClipDataset:
    return ClipDataset(shards, ("audio", "visual", "flow"), frames=3, image_size=32, augment=augment, seed=5)


def textured(random: np.random.Generator) -> np.ndarray:
    coarse = random.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    return cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


def sample(number: int, *, windows: int = 20, same: bool = False) -> Sample:
    """A sample of every kind; `same`: all its colour pictures are one."""
    random = np.random.default_rng(number)
    pictures = [textured(random) for _ in range(TIMES * (1 + FLOWS * 2 + CHANGES))]
    names = [f"frame_{i:03d}.jpg" for i in range(TIMES)]
    names += KINDS["rgb_diff"].members(TIMES, CHANGES)
    members = {
        name: simplejpeg.encode_jpeg(pictures[0 if same else i], 90, colorspace="RGB") for i, name in enumerate(names)
    }
    flows = [f"flow_{i:03d}_{step:02d}_{axis}.jpg" for i in range(TIMES) for step in range(FLOWS) for axis in "xy"]
    for name, image in zip(flows, pictures[len(names) :], strict=True):
        members[name] = simplejpeg.encode_jpeg(np.ascontiguousarray(image[..., :1]), 90, colorspace="GRAY")
    file = io.BytesIO()
    np.save(file, random.normal(size=(257, windows)).astype(np.float16))
    members["spectrogram.npy"] = file.getvalue()
    size = {"times": [float(i) for i in range(TIMES)], "height": HEIGHT, "width": WIDTH}
    meta = {"id": f"clip{number}", "frames": size, "flow": size, "rgb_diff": size}
    return Sample(f"clip{number}", number % 3, members, meta)


def write(out: Path, samples: Sequence[Sample]) -> Path:
    features: dict[str, dict[str, int]] = {
        "frames": {},
        "spectrogram": {},
        "flow": {"stack": FLOWS},
        "rgb_diff": {"stack": CHANGES},
    }
    with ShardWriter(out, dataset="folder", classes=list("abc"), features=features, samples_per_shard=3) as writer:
        for one in samples:
            writer.write("train", one)
    return out


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("stacks") / "shards", [sample(number) for number in range(7)])


def reference_picture(jpeg: memoryview, crop: Crop, size: int, *, grey: bool) -> np.ndarray:
    """(H, W, C): decoded with its own call, cropped, resized, mirrored."""
    spare = min(round(crop.height * HEIGHT), round(crop.width * WIDTH)) / size
    halvings = max(0, min(3, math.floor(math.log2(spare))))
    wanted = {"min_height": math.ceil(HEIGHT / 2**halvings), "min_width": math.ceil(WIDTH / 2**halvings)}
    image = simplejpeg.decode_jpeg(bytes(jpeg), "GRAY" if grey else "RGB", **wanted, min_factor=1)
    rows, columns = image.shape[:2]
    assert rows == HEIGHT // 2**halvings
    top, left = round(crop.top * rows), round(crop.left * columns)
    tall, wide = round(crop.height * rows), round(crop.width * columns)
    method = cv2.INTER_AREA if max(tall, wide) > 2 * size else cv2.INTER_LINEAR
    shown = cv2.resize(image[top : top + tall, left : left + wide].copy(), (size, size), interpolation=method)
    shown = shown.reshape(size, size, -1)
    return shown[:, ::-1] if crop.flip else shown


def reference_sample(reader: ShardReader, item: BatchItem, size: int, frames: int) -> dict[str, Any]:
    """Load one sample alone, member by member, with as many copies as needed."""
    epoch, number, padding = item
    stored = reader[number]
    drawn = uniform_numbers(5, np.array([epoch]), np.array([number]), 5 + frames)[0].tolist() if epoch >= 0 else None
    crop = random_crop(HEIGHT, WIDTH, drawn) if drawn else centre_crop(HEIGHT, WIDTH)
    chosen = choose_instants(TIMES, frames, drawn[5:] if drawn else None)

    def shown(name: str, *, grey: bool = False) -> np.ndarray:
        picture = reference_picture(stored.members[name], crop, size, grey=grey)
        if crop.flip and "_x" in name:
            picture = np.clip(256 - picture.astype(int), 0, 255).astype(np.uint8)
        return picture.transpose(2, 0, 1)

    flows = [[f"flow_{i:03d}_{step:02d}_{axis}.jpg" for step in range(FLOWS) for axis in "xy"] for i in chosen]
    changes = [KINDS["rgb_diff"].members_at(i, CHANGES) for i in chosen]
    return {
        "label": stored.label,
        "number": number,
        "weight": torch.tensor(0.0 if padding else 1.0),
        "audio": torch.from_numpy(np.load(io.BytesIO(stored.members["spectrogram.npy"])))[None],
        "visual": torch.from_numpy(np.stack([shown(f"frame_{i:03d}.jpg") for i in chosen])),
        "flow": torch.from_numpy(np.stack([np.concatenate([shown(n, grey=True) for n in names]) for names in flows])),
        "rgb_diff": torch.from_numpy(np.stack([np.concatenate([shown(n) for n in names]) for names in changes])),
    }


ITEMS: list[BatchItem] = [
    BatchItem(0, 3),
    BatchItem(-1, 3),
    BatchItem(4, 0),
    BatchItem(0, 3, True),
    BatchItem(2, 6),
    BatchItem(-1, 5),
    BatchItem(1, 0, True),
    BatchItem(7, 4),
]


@pytest.mark.parametrize(("size", "frames"), [(16, 3), (24, 1), (40, 6), (80, 2), (144, 2)])
def test_a_batch_equals_its_samples_loaded_one_by_one(stacks: Path, size: int, frames: int) -> None:
    data = ClipDataset(stacks, MODALITIES, frames=frames, image_size=size, augment=True, seed=5)
    (batch,) = make_loader(data, [ITEMS], workers=0)
    singly = [reference_sample(data.reader, item, size, frames) for item in ITEMS]
    expected = default_collate(singly)
    assert list(batch) == list(expected)
    for name, values in expected.items():
        assert batch[name].dtype == values.dtype, name
        assert torch.equal(batch[name], values), name
    for item, one in zip(ITEMS, singly):
        assert all(torch.equal(value, torch.as_tensor(one[name])) for name, value in data[item].items())


def test_all_pictures_of_a_sample_have_the_same_crop(tmp_path: Path) -> None:
    shards = write(tmp_path / "shards", [sample(number, same=True) for number in range(3)])
    data = ClipDataset(shards, MODALITIES, frames=2, image_size=32, augment=True, seed=5)
    (batch,) = make_loader(data, [[BatchItem(epoch, number) for epoch in range(4) for number in range(3)]], workers=0)
    for change in batch["rgb_diff"].split(3, dim=2):
        assert torch.equal(change, batch["visual"])
    assert len(batch["visual"].flatten(1).unique(dim=0)) == 12


def test_a_modality_does_not_depend_on_which_others_are_loaded(stacks: Path) -> None:
    whole = ClipDataset(stacks, MODALITIES, frames=2, image_size=32, augment=True, seed=5)
    for modality in MODALITIES:
        alone = ClipDataset(stacks, [modality], frames=2, image_size=32, augment=True, seed=5)
        assert torch.equal(alone[BatchItem(0, 4)][modality], whole[BatchItem(0, 4)][modality])


def test_padding_loads_the_sample_at_weight_0(stacks: Path) -> None:
    data = ClipDataset(stacks, MODALITIES, frames=2, image_size=32, augment=True, seed=5)
    (batch,) = make_loader(data, [[BatchItem(3, 6), BatchItem(3, 6, True), BatchItem(3, 0, True)]], workers=0)
    assert batch["weight"].tolist() == [1, 0, 0]
    assert batch["number"].tolist() == [6, 6, 0]
    assert batch["label"].tolist() == [0, 0, 0]
    assert all(torch.equal(batch[m][0], batch[m][1]) for m in MODALITIES)


def test_a_mixture_of_sets_is_loaded_like_one(stacks: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", [sample(number) for number in range(10, 14)])
    mixed = CombinedReader([ShardReader(stacks), ShardReader(other)])
    data = ClipDataset(mixed, MODALITIES, frames=2, image_size=32, augment=False, seed=5)
    batch = data.__getitems__([BatchItem(0, 6), BatchItem(0, 7)])
    assert torch.equal(batch["audio"][0], dataset(stacks)[BatchItem(0, 6)]["audio"])
    assert torch.equal(batch["audio"][1], dataset(other)[BatchItem(0, 0)]["audio"])


def test_a_batch_has_the_documented_shapes(toy_shards: Path) -> None:
    (batch,) = make_loader(dataset(toy_shards), [[BatchItem(0, 3), BatchItem(0, 50)]], workers=0)
    shapes = {m: (tuple(batch[m].shape), batch[m].dtype) for m in ("audio", "visual", "flow")}
    assert shapes == {
        "audio": ((2, 1, 257, 40), torch.float16),
        "visual": ((2, 3, 3, 32, 32), torch.uint8),
        "flow": ((2, 3, 2, 32, 32), torch.uint8),
    }
    assert batch["number"].tolist() == [3, 50]
    assert all(label in range(4) for label in batch["label"].tolist())
    inputs = Normaliser(("audio", "visual", "flow"), dataset(toy_shards).reader.index.statistics)(batch)
    assert {m: tuple(value.shape) for m, value in inputs.items()} == {
        "audio": (2, 1, 1, 257, 40),
        "visual": (2, 3, 3, 32, 32),
        "flow": (2, 3, 2, 32, 32),
    }
    assert all(value.dtype == torch.float32 for value in inputs.values())


def test_inputs_are_normalised_by_the_index_or_as_torchvisions_weights_expect() -> None:
    grey = torch.full((1, 1, 3, 2, 2), 124, dtype=torch.uint8)
    own = Normaliser(["visual"], {"frames": {"mean": [124.0, 100.0, 24.0], "std": [10.0, 12.0, 50.0]}})
    assert own({"visual": grey})["visual"][0, 0, :, 0, 0].tolist() == [0, 2, 2]
    imagenet = Normaliser(["visual"], {}, imagenet=True)({"visual": grey})["visual"][0, 0, :, 0, 0]
    expected = [(124 / 255 - mean) / std for mean, std in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    torch.testing.assert_close(imagenet, torch.tensor(expected))
    stack = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 4, 1, 1)
    flow = Normaliser(["flow"], {"flow": {"mean": [0.0, 1.0], "std": [1.0, 2.0]}})({"flow": stack})["flow"]
    assert flow.flatten().tolist() == [0, 0, 2, 1]
    with pytest.raises(ShardError, match="no statistics of flow"):
        Normaliser(["flow"], {})


def test_crops_change_with_the_epoch_and_not_in_evaluation(toy_shards: Path) -> None:
    data = dataset(toy_shards)
    assert torch.equal(data[BatchItem(0, 7)]["visual"], data[BatchItem(0, 7)]["visual"])
    assert not torch.equal(data[BatchItem(0, 7)]["visual"], data[BatchItem(1, 7)]["visual"])
    assert torch.equal(data[BatchItem(-1, 7)]["visual"], dataset(toy_shards, augment=False)[BatchItem(3, 7)]["visual"])


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "forkserver", "spawn"])
def test_workers_change_nothing(stacks: Path, context: str) -> None:
    data = ClipDataset(stacks, MODALITIES, frames=2, image_size=32, augment=True, seed=5)
    batches = [
        [BatchItem(0, 1), BatchItem(0, 6)],
        [BatchItem(0, 5), BatchItem(0, 3, True)],
        [BatchItem(1, 2), BatchItem(1, 1)],
    ]
    alone = list(make_loader(data, batches, workers=0))
    loader = make_loader(data, batches, workers=2)
    loader.multiprocessing_context = context
    for one, other in zip(alone, loader, strict=True):
        assert list(one) == list(other)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_sigterm_to_starting_workers_changes_nothing(toy_shards: Path) -> None:
    batches = [[BatchItem(0, number), BatchItem(0, number + 1)] for number in range(0, 20, 2)]
    others = multiprocessing.active_children()
    with reading(make_loader(dataset(toy_shards), batches, workers=2)) as coming:
        workers = [child for child in multiprocessing.active_children() if child not in others]
        for worker in workers:
            os.kill(worker.pid or 0, signal.SIGTERM)
        numbers = [batch["number"].tolist() for batch in coming]
    assert numbers == [[item.number for item in batch] for batch in batches]
    assert len(workers) == 2
    assert not any(worker.is_alive() for worker in workers)


ENDS_WITH_AN_ERROR = """
import sys
from bmlpipe.train.data.dataset import ClipDataset, make_loader, reading
from bmlpipe.train.data.sampler import BatchItem
data = ClipDataset(sys.argv[1], ["audio"], frames=1, image_size=32, augment=False, seed=0)
with reading(make_loader(data, [[BatchItem(0, number)] for number in range(40)], workers=2)) as batches:
    next(batches)
    raise ValueError("so it ends")
"""


@pytest.mark.slow
def test_an_error_in_the_loop_ends_the_workers_and_the_program(toy_shards: Path) -> None:
    command = [sys.executable, "-c", ENDS_WITH_AN_ERROR, str(toy_shards)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert ended.stderr.endswith("ValueError: so it ends\n")


def test_spectrograms_of_unequal_length_are_refused(tmp_path: Path) -> None:
    shards = write(tmp_path / "shards", [sample(0), sample(1, windows=1)])  # 1 could be broadcast
    with pytest.raises(ShardError, match=r"clip1: its spectrogram .*\(257, 1\), .* \(257, 20\)"):
        dataset(shards).__getitems__([BatchItem(0, 0), BatchItem(0, 1)])


def test_an_incomplete_sample_is_named(tmp_path: Path) -> None:
    whole = sample(0)
    members = {name: data for name, data in whole.members.items() if name != "flow_003_01_y.jpg"}
    meta = {kind: about for kind, about in whole.meta.items() if kind != "rgb_diff"}
    shards = write(tmp_path / "shards", [Sample("clip0", 0, members, meta)])
    for modality, lacking in (("flow", "flow_003_01_y.jpg"), ("rgb_diff", "rgb_diff")):
        data = ClipDataset(shards, [modality], frames=6, image_size=32, augment=False, seed=5)
        with pytest.raises(ShardError, match=f"sample clip0: it has no {lacking}: run bmlpipe verify"):
            data[BatchItem(0, 0)]


def test_a_missing_feature_is_named_with_the_remedy(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "shards", dataset="d", classes=["a"], features={"frames": {}}) as writer:
        writer.write("train", Sample("a", 0, {}))
    with pytest.raises(ShardError, match=r"modality flow needs flow.* with --kinds frames,flow"):
        ClipDataset(tmp_path / "shards", ["flow"], frames=1, image_size=32, augment=False, seed=0)
