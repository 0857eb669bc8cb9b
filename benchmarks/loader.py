"""What loading a sample costs, next to the least it can cost and to what others pay: CPU seconds (user + system).

Makes its own data set, as shards and as loose files, all in the page cache: ten JPEGs of 340×256 and ten seconds of
sound a clip; pictures with the spectrum of photographs, about 28 kB each at quality 95, as frames of real clips are.
A training sample is three random crops of 224×224 and the spectrogram, 257×1004. Runs, interleaved, one thread each:

- the limit: a loop over one `pread` a sample, in the order of the file and into a buffer, the decoding of three JPEGs,
  crop, resize and flip, and one copy of the spectrogram, all into memory that is used again and again. It is told
  beforehand where everything is. No order, index, check of the bytes, JSON, batches or worker. Its output is compared
  with bmlpipe's, bit by bit;
- bmlpipe's DataLoader: shuffled, checked, in batches. As in the limit, pictures are handed over as uint8, spectrograms
  as float16, and the model normalises them on its device;
- stock webdataset: `decode("pil")` (all ten frames), crop, resize, to float, normalise, batch;
- loose files: a folder of JPEGs in the video's own size, here 640×360, and a stereo WAV file a clip; three frames by
  PIL, crop, resize, to float, normalise; librosa's `load` at 16 kHz, STFT and logarithm; batch. With WAV files of
  16 kHz, as OGM-GE's scripts for VGGSound leave them (`ffmpeg -ar 16000`), and once more with JPEGs of 340×256, the
  same as in the shards; and with WAV files of 44.1 kHz, the sound as it is in the video, which `load` resamples
  (soxr_hq, its default).

A ratio is another's cost ÷ bmlpipe's in one round, so that `vs_limit` is below 1; median and range of rounds.
`two_workers_vs_one` compares wall-clock times and means something on a machine with two idle cores only; what two
processes with nothing in common gain there, each of them the limit's loop, is `two_loops_vs_one`.
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
from bmlpipe.train.data import decode as views
from bmlpipe.train.data.dataset import ClipDataset, make_loader
from bmlpipe.train.data.sampler import BatchItem, TrainBatches

HEIGHT, WIDTH = SMALL
TAKEN, SIZE, BATCH, SEED = 3, 224, 32, 0
EPOCHS = 10  # of a run with workers, so that their start counts for little
MEAN, STD = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]


# ----- the limit -----


class Limit:
    """The loop; what it needs to know of each sample is found out when it is made."""

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
        drawn = views.uniform_numbers(SEED, np.array([0]), np.array([number]), 5 + TAKEN)[0].tolist()
        view, pictures = views.random_view(HEIGHT, WIDTH, drawn), []
        spare = min(round(view.height * HEIGHT), round(view.width * WIDTH)) / SIZE
        reduction = 1 if spare < 2 else 2 if spare < 4 else 4
        rows, columns = HEIGHT // reduction, -(-WIDTH // reduction)
        top, left = round(view.top * rows), round(view.left * columns)
        tall, wide = round(view.height * rows), round(view.width * columns)
        part = np.s_[top : top + tall, left : left + wide]
        method = cv2.INTER_AREA if max(tall, wide) > 2 * SIZE else cv2.INTER_LINEAR
        for instant in views.choose_instants(FRAMES, TAKEN, drawn[5:]):
            jpeg = bytes(sample.members[f"frame_{instant:03d}.jpg"])
            start = whole.index(jpeg)
            pictures.append((start, start + len(jpeg), rows, columns, part, method, view.flip))
        start = whole.index(bytes(sample.members["spectrogram.npy"])) + 128  # the header of a .npy file
        return int(record["shard"]), offset, length, pictures, start

    def run(self, count: int, epochs: int = 1) -> None:
        """Load the first samples into the memory of one batch, over and over."""
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
        """The loop does the work that bmlpipe does."""
        self.run(BATCH)
        batch = data.__getitems__([BatchItem(0, number) for number in range(BATCH)])
        same = np.array_equal(batch["visual"].permute(0, 1, 3, 4, 2).numpy(), self.visual)
        if not same or not np.array_equal(batch["audio"][:, 0].numpy(), self.audio):
            raise RuntimeError("the limit's output is not bmlpipe's")


# ----- what others do -----


def seen(image: Image.Image, view: views.View) -> torch.Tensor:
    """Crop, resize, flip, to float and normalise: what torchvision's transforms do, by the same calls of PIL."""
    width, height = image.size
    left, top = view.left * width, view.top * height
    part = image.crop((round(left), round(top), round(left + view.width * width), round(top + view.height * height)))
    part = part.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    if view.flip:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return (torch.from_numpy(np.array(part)).permute(2, 0, 1).contiguous().float().div(255)).sub_(MEAN).div_(STD)


def drawn(height: int, width: int) -> tuple[views.View, list[int]]:
    """A random view and three random frames of ten."""
    numbers = [random.random() for _ in range(5 + TAKEN)]
    return views.random_view(height, width, numbers), views.choose_instants(FRAMES, TAKEN, numbers[5:])


def from_webdataset(stored: dict[str, Any]) -> dict[str, Any]:
    """A decoded sample → tensors."""
    view, instants = drawn(HEIGHT, WIDTH)
    return {
        "visual": torch.stack([seen(stored[f"frame_{i:03d}.jpg"], view) for i in instants]),
        "audio": (torch.from_numpy(stored["spectrogram.npy"]).float()[None] + 3.0) / 2.0,
        "label": int(stored["cls"]),
    }


class Files(torch.utils.data.Dataset[dict[str, Any]]):
    """Loose files; `sound` is the name of the WAV file in a clip's folder."""

    def __init__(self, folder: Path, sound: str) -> None:
        self._clips, self._sound = sorted(folder.iterdir()), sound

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, number: int) -> dict[str, Any]:
        clip = self._clips[number]
        images = [Image.open(path).convert("RGB") for path in self._chosen(clip)]
        view, _ = drawn(images[0].height, images[0].width)
        sound, _ = librosa.load(clip / self._sound, sr=RATE)
        return {
            "visual": torch.stack([seen(image, view) for image in images]),
            "audio": (torch.from_numpy(spectrogram(sound))[None] + 3.0) / 2.0,
            "label": number % 2,
        }

    def _chosen(self, clip: Path) -> list[Path]:
        frames = sorted(clip.glob("*.jpg"))
        return [frames[i] for i in sorted(random.sample(range(len(frames)), TAKEN))]


# ----- measuring -----


def exhaust(batches: Iterable[Any]) -> None:
    """Take everything, as a training loop would: the last batch is held while the next one is made."""
    for _batch in batches:
        pass


def stages(load: Callable[[], None], clips: int) -> Iterator[tuple[str, float]]:
    """Microseconds a sample that bmlpipe's loader spends in each of the calls that matter, and in the rest."""
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
        ("random numbers", views, "uniform_numbers"),
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
    parser.add_argument("--json", type=Path, help="write machine and ratios here")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clips", type=int, default=256)
    options = parser.parse_args()
    if options.rounds < 1 or options.clips < 2 * BATCH or options.clips % BATCH:
        parser.error(f"--rounds must be 1 or more, --clips a multiple of {BATCH} and two of them or more")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_set(folder, options.clips, loose=BATCH)
        measure(folder, options.clips, options.rounds, options.json)


def measure(folder: Path, clips: int, rounds: int, to: Path | None) -> None:
    """All ways, round by round; the peers, which take long, over a part of the clips."""
    shards, fewer = folder / "shards", BATCH
    limit = Limit(shards)
    data = ClipDataset(shards, ("visual", "audio"), frames=TAKEN, image_size=SIZE, augment=True, seed=SEED)
    limit.check(data)
    sizes = [shard.samples for shard in data.reader.index.shards]

    def ours(workers: int, epochs: int) -> None:
        batches = TrainBatches(sizes, batch_size=BATCH, epochs=epochs, seed=SEED, shuffle_shards=4)
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
    show("CPU milliseconds a sample", costs, scale=1e3)
    rows = [dict(stages(lambda: ours(0, 1), clips)) for _ in range(rounds)]
    whole = statistics.median(sum(row.values()) for row in rows)
    show("per cent of bmlpipe's time", {stage: [row[stage] for row in rows] for stage in rows[0]}, 100 / whole, 1)
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
    write(
        to,
        found,
        "isal",
        "librosa",
        "numpy",
        "opencv-contrib-python-headless",
        "pillow",
        "simplejpeg",
        "torch",
        "webdataset",
    )


if __name__ == "__main__":
    main()
