"""CPU time of loading a training sample (user + system), beside a lower limit and other loaders.

The program makes its own data set, as shards and as loose files, all in the page cache: ten JPEGs of 340 × 256 and ten
seconds of sound per clip. The images have the spectrum of photographs and about 28 kB each at quality 95, like frames
of real clips. A training sample consists of three random crops of 224 × 224 and the spectrogram, 257 × 1004. These
loaders run in alternating rounds, with one thread each:

- The limit is a loop: one `pread` per sample into a buffer, in the order of the file, the decoding of three JPEGs,
  crop, resize and flip, and one copy of the spectrogram, all into memory that is used again. All positions are known
  beforehand. There is no order, index, checksum, JSON, batch or worker. Its output is compared with that of bmlpipe bit
  by bit.
- bmlpipe's DataLoader gives shuffled batches with checksums compared. As in the limit, images are uint8 and
  spectrograms are float16; the model normalises them on its device.
- Stock webdataset: `decode("pil")` (all ten frames), crop, resize, conversion to float, normalisation, batch.
- Loose files: per clip a folder of JPEGs of the size of the video, here 640 × 360, and a stereo WAV file. Three frames
  by PIL, crop, resize, conversion to float, normalisation; librosa's `load` at 16 kHz, STFT and logarithm; batch. This
  is measured with WAV files of 16 kHz, as OGM-GE's scripts for VGGSound write them (`ffmpeg -ar 16000`); again with the
  340 × 256 JPEGs of the shards; and with WAV files of 44.1 kHz, the rate of the video, which `load` resamples (soxr_hq,
  its default).

A ratio is the cost of the other loader over that of bmlpipe in the same round, so `vs_limit` is below 1; median and
range over the rounds are printed. `two_workers_vs_one` compares wall-clock times and is meaningful only on a machine
with two idle cores. `two_loops_vs_one` is the gain of two independent processes there, each with the loop of the limit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import librosa
import numpy as np
import simplejpeg
import torch
import webdataset
from _clips import FRAMES, RATE, SMALL, make_set, spectrogram
from _measure import cpu, ratios, show, write
from PIL import Image

from bmlpipe.shards import reader
from bmlpipe.train.config.options import TrainConfig
from bmlpipe.train.data import decode
from bmlpipe.train.data.dataset import ClipDataset, make_loader
from bmlpipe.train.data.sampler import BatchItem, TrainBatches

HEIGHT, WIDTH = SMALL
TAKEN, SIZE, BATCH, SEED = 3, 224, 32, 0
EPOCHS = 10  # number of epochs with workers, so that their start weighs little
MEAN, STD = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]


# ----- the limit -----


class Limit:
    """The bare loop. The positions and crops of all samples are found beforehand, by the constructor."""

    def __init__(self, shards: Path) -> None:
        stored = reader.ShardReader(shards)
        self._files = [os.open(shards / shard.file, os.O_RDONLY) for shard in stored.index.shards]
        self._plan = [self._planned(stored, number) for number in range(len(stored))]
        self._buffer = np.empty(max(length for _, _, length, _, _ in self._plan), np.uint8)
        self._pixels, self._flipped = np.empty(HEIGHT * WIDTH * 3, np.uint8), np.empty((SIZE, SIZE, 3), np.uint8)
        self.visual = np.empty((BATCH, TAKEN, SIZE, SIZE, 3), np.uint8)
        self.audio = np.empty((BATCH, 257, 1004), np.float16)

    def _planned(self, stored: reader.ShardReader, number: int) -> tuple[int, int, int, list[Any], int]:
        record, sample = stored.index.samples[number], stored[number]
        offset, length = int(record["offset"]), int(record["length"])
        whole = os.pread(self._files[record["shard"]], length, offset)
        drawn = decode.uniform_numbers(SEED, np.array([0]), np.array([number]), 5 + TAKEN)[0].tolist()
        crop, pictures = decode.random_crop(HEIGHT, WIDTH, drawn), []
        spare = min(round(crop.height * HEIGHT), round(crop.width * WIDTH)) / SIZE
        reduction = 1 if spare < 2 else 2 if spare < 4 else 4
        rows, columns = HEIGHT // reduction, -(-WIDTH // reduction)
        top, left = round(crop.top * rows), round(crop.left * columns)
        tall, wide = round(crop.height * rows), round(crop.width * columns)
        part = np.s_[top : top + tall, left : left + wide]
        method = cv2.INTER_AREA if max(tall, wide) > 2 * SIZE else cv2.INTER_LINEAR
        for instant in decode.choose_instants(FRAMES, TAKEN, drawn[5:]):
            jpeg = bytes(sample.members[f"frame_{instant:03d}.jpg"])
            start = whole.index(jpeg)
            pictures.append((start, start + len(jpeg), rows, columns, part, method, crop.flip))
        start = whole.index(bytes(sample.members["spectrogram.npy"])) + 128  # the header of a .npy file
        return int(record["shard"]), offset, length, pictures, start

    def run(self, count: int, epochs: int = 1) -> None:
        """Load the first `count` samples `epochs` times, into the memory of one batch."""
        for number, (shard, offset, length, pictures, start) in enumerate(self._plan[:count] * epochs):
            os.preadv(self._files[shard], [self._buffer[:length]], offset)
            row = number % BATCH
            for out, (begin, end, rows, columns, part, method, flip) in zip(self.visual[row], pictures):
                image = simplejpeg.decode_jpeg(
                    self._buffer[begin:end], "RGB", min_height=rows, min_width=columns, buffer=self._pixels
                )
                if flip:
                    cv2.resize(image[part], (SIZE, SIZE), dst=self._flipped, interpolation=method)
                    cv2.flip(self._flipped, 1, dst=out)
                else:
                    cv2.resize(image[part], (SIZE, SIZE), dst=out, interpolation=method)
            self.audio[row] = np.frombuffer(self._buffer, np.float16, 257 * 1004, start).reshape(257, 1004)

    def check(self, data: ClipDataset) -> None:
        """Check that the output of the loop is that of bmlpipe."""
        self.run(BATCH)
        batch = data.__getitems__([BatchItem(0, number) for number in range(BATCH)])
        same = np.array_equal(batch["visual"].permute(0, 1, 3, 4, 2).numpy(), self.visual)
        if not same or not np.array_equal(batch["audio"][:, 0].numpy(), self.audio):
            raise RuntimeError("the limit's output is not bmlpipe's")


# ----- other loaders -----


def seen(image: Image.Image, crop: decode.Crop) -> torch.Tensor:
    """Crop, resize, flip, convert to float and normalise, by the calls of PIL that torchvision's transforms use."""
    width, height = image.size
    left, top = crop.left * width, crop.top * height
    part = image.crop((round(left), round(top), round(left + crop.width * width), round(top + crop.height * height)))
    part = part.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    if crop.flip:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return (torch.from_numpy(np.array(part)).permute(2, 0, 1).contiguous().float().div(255)).sub_(MEAN).div_(STD)


def drawn(height: int, width: int) -> tuple[decode.Crop, list[int]]:
    """A random crop and three random frames of ten."""
    numbers = [random.random() for _ in range(5 + TAKEN)]
    return decode.random_crop(height, width, numbers), decode.choose_instants(FRAMES, TAKEN, numbers[5:])


def from_webdataset(stored: dict[str, Any]) -> dict[str, Any]:
    """Convert a decoded sample to tensors."""
    crop, instants = drawn(HEIGHT, WIDTH)
    return {
        "visual": torch.stack([seen(stored[f"frame_{i:03d}.jpg"], crop) for i in instants]),
        "audio": (torch.from_numpy(stored["spectrogram.npy"]).float()[None] + 3.0) / 2.0,
        "label": int(stored["cls"]),
    }


class Files(torch.utils.data.Dataset[dict[str, Any]]):
    """A data set of loose files; `sound` is the name of the WAV file in the folder of a clip."""

    def __init__(self, folder: Path, sound: str) -> None:
        self._clips, self._sound = sorted(folder.iterdir()), sound

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, number: int) -> dict[str, Any]:
        clip = self._clips[number]
        images = [Image.open(path).convert("RGB") for path in self._chosen(clip)]
        crop, _ = drawn(images[0].height, images[0].width)
        sound, _ = librosa.load(clip / self._sound, sr=RATE)
        return {
            "visual": torch.stack([seen(image, crop) for image in images]),
            "audio": (torch.from_numpy(spectrogram(sound))[None] + 3.0) / 2.0,
            "label": number % 2,
        }

    def _chosen(self, clip: Path) -> list[Path]:
        frames = sorted(clip.glob("*.jpg"))
        return [frames[i] for i in sorted(random.sample(range(len(frames)), TAKEN))]


# ----- measuring -----


def exhaust(batches: Iterable[Any]) -> None:
    """Iterate as a training loop does: each batch is held while the next one is made."""
    for _batch in batches:
        pass


def stages(load: Callable[[], None], clips: int) -> Iterator[tuple[str, float]]:
    """Microseconds per sample that bmlpipe's loader spends in each of the expensive calls, and in the rest."""
    spent = dict[str, float]()

    def timed(stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            before = time.perf_counter()
            result = call(*args, **options)
            spent[stage] = spent.get(stage, 0.0) + time.perf_counter() - before
            return result

        return run

    calls: list[tuple[str, Any, str]] = [
        ("read", os, "pread"),
        ("CRC-32", reader, "crc32"),
        ("tar headers", reader, "members_of"),
        ("JSON", json, "loads"),
        ("random numbers", decode, "uniform_numbers"),
        ("JPEG", simplejpeg, "decode_jpeg"),
        ("resize", cv2, "resize"),
        ("flip", cv2, "flip"),
    ]
    with contextlib.ExitStack() as patches:
        for stage, owner, name in calls:
            patches.enter_context(mock.patch.object(owner, name, timed(stage, getattr(owner, name))))
        before = time.perf_counter()
        load()
        whole = time.perf_counter() - before
    for stage, seconds in [*spent.items(), ("rest", whole - sum(spent.values()))]:
        yield stage, 1e6 * seconds / clips


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the machine and the ratios")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clips", type=int, default=256)
    options = parser.parse_args()
    if options.rounds < 1 or options.clips < 2 * BATCH or options.clips % BATCH:
        parser.error(f"--rounds must be 1 or more, and --clips a multiple of {BATCH} from {2 * BATCH} on")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_set(folder, options.clips, loose=BATCH)
        measure(folder, options.clips, options.rounds, options.json)


def measure(folder: Path, clips: int, rounds: int, to: Path | None) -> None:
    """Run all loaders in alternating rounds; the slow ones load a part of the clips only."""
    shards, fewer = folder / "shards", BATCH
    limit = Limit(shards)
    data = ClipDataset(shards, ("visual", "audio"), frames=TAKEN, image_size=SIZE, augment=True, seed=SEED)
    limit.check(data)
    sizes = [shard.samples for shard in data.reader.index.shards]

    def ours(workers: int, epochs: int) -> None:
        batches = TrainBatches(sizes, TrainConfig(batch_size=BATCH, epochs=epochs, seed=SEED, shuffle_shards=4))
        exhaust(make_loader(data, batches, workers=workers))

    def stock() -> None:
        urls = [str(shards / shard.file) for shard in data.reader.index.shards[: fewer // sizes[0]]]
        pipeline = webdataset.WebDataset(urls, shardshuffle=False).decode("pil").map(from_webdataset).batched(BATCH)
        exhaust(webdataset.WebLoader(pipeline, batch_size=None, num_workers=0))

    def files(name: str, sound: str) -> None:
        loose = Files(folder / name, sound)
        exhaust(torch.utils.data.DataLoader(loose, batch_size=BATCH, shuffle=True, num_workers=0))

    def loops(processes: int) -> None:
        fork = multiprocessing.get_context("fork")
        children = [fork.Process(target=limit.run, args=(clips, EPOCHS)) for _ in range(processes)]
        for child in children:
            child.start()
        for child in children:
            child.join()

    ways: dict[str, tuple[Callable[[], None], int]] = {
        "the limit": (lambda: limit.run(clips), clips),
        "bmlpipe": (lambda: ours(0, 1), clips),
        "webdataset": (stock, fewer),
        "loose files": (lambda: files("large", "16k.wav"), fewer),
        "loose files, 340×256": (lambda: files("small", "16k.wav"), fewer),
        "loose files, 44.1 kHz": (lambda: files("large", "own.wav"), fewer),
        "bmlpipe, 1 worker": (lambda: ours(1, EPOCHS), EPOCHS * clips),
        "bmlpipe, 2 workers": (lambda: ours(2, EPOCHS), EPOCHS * clips),
        "the limit, 1 process": (lambda: loops(1), EPOCHS * clips),
        "the limit, 2 processes": (lambda: loops(2), 2 * EPOCHS * clips),
    }
    costs: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for way, (work, samples) in ways.items():
            used, began = cpu(), time.perf_counter()
            work()
            if number:  # the first round warms up: imports, caches
                costs.setdefault(way, []).append((cpu() - used) / samples)
                seconds.setdefault(way, []).append((time.perf_counter() - began) / samples)
    show("CPU milliseconds per sample", costs, scale=1e3)
    rows = [dict(stages(lambda: ours(0, 1), clips)) for _ in range(rounds)]
    whole = statistics.median(sum(row.values()) for row in rows)
    show("% of bmlpipe's time", {stage: [row[stage] for row in rows] for stage in rows[0]}, 100 / whole, 1)
    found = ratios(
        costs,
        {
            "vs_limit": ("the limit", "bmlpipe"),
            "vs_webdataset": ("webdataset", "bmlpipe"),
            "vs_files": ("loose files", "bmlpipe"),
            "vs_files_of_the_same_size": ("loose files, 340×256", "bmlpipe"),
            "vs_files_resampled": ("loose files, 44.1 kHz", "bmlpipe"),
            "with_1_worker_vs_without": ("bmlpipe, 1 worker", "bmlpipe"),
            "with_2_workers_vs_without": ("bmlpipe, 2 workers", "bmlpipe"),
        },
    )
    found |= ratios(
        seconds,
        {
            "two_workers_vs_one": ("bmlpipe, 1 worker", "bmlpipe, 2 workers"),
            "two_loops_vs_one": ("the limit, 1 process", "the limit, 2 processes"),
        },
    )
    packages = "isal librosa numpy opencv-contrib-python-headless pillow simplejpeg torch webdataset"
    write(to, found, *packages.split())


if __name__ == "__main__":
    main()
