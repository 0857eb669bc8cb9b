"""Time and memory of an index of 10 million samples beside one of 100 thousand.

Only the size of the index itself should grow with the data set. The program makes the index of both sets. Their shards
of 1000 samples are links to one real shard, whose samples are the same clip. In alternating rounds, each in a new
process, it opens the set, loads the first batch with two workers, and then the first batch of a run that resumes in the
middle of an epoch. `open`, `first batch` and `resume` are in seconds, without the import of libraries. Memory is in
MiB, after batches from all over the set: USS is the memory that only this process has, PSS adds its share of the memory
that processes share, the index included. Ratios are 10 million over 100 thousand samples.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from _clips import RATE, SMALL, encode, spectrogram, texture
from _measure import ratios, show, write

from bmlpipe.shards.index import SAMPLE_DTYPE, Index, Shard, read_index, write_index
from bmlpipe.shards.sample import Sample
from bmlpipe.shards.writer import ShardWriter
from bmlpipe.train.config.options import TrainConfig
from bmlpipe.train.data.dataset import ClipDataset, make_loader
from bmlpipe.train.data.sampler import TrainBatches

SIZES = {"100 thousand": 100_000, "10 million": 10_000_000}
PER_SHARD, BATCH, WORKERS, SEED = 1000, 32, 2, 0


def make_real(folder: Path) -> Index:
    """Write a set of one shard that holds one small clip a thousand times."""
    rng = np.random.default_rng(0)
    buffer = folder / "sound.npy"
    np.save(buffer, spectrogram(rng.normal(size=RATE // 2).astype(np.float32)).astype(np.float16, order="C"))
    members = {"frame_000.jpg": encode(texture(rng, *SMALL)), "spectrogram.npy": buffer.read_bytes()}
    meta = {"id": "clip", "frames": {"times": [0.0], "height": SMALL[0], "width": SMALL[1]}}
    with ShardWriter(
        folder / "real", dataset="folder", classes=["a"], features={"frames": {}, "spectrogram": {}}
    ) as writer:
        for number in range(PER_SHARD):
            writer.write("train", Sample(f"{number:08d}", 0, members, meta))
    return read_index(folder / "real")


def make_set(folder: Path, real: Index, count: int) -> None:
    """Make a set of `count` samples whose shards are links to the real one."""
    folder.mkdir()
    shards = []
    for number in range(count // PER_SHARD):
        name = f"train-{number:06d}.tar"
        (folder / name).symlink_to(folder.parent / "real" / real.shards[0].file)
        shards.append(Shard(name, "train", PER_SHARD, real.shards[0].bytes, real.shards[0].sha256))
    samples = np.empty(count, SAMPLE_DTYPE)
    for field in ("offset", "length", "crc32", "label"):
        samples[field] = np.tile(real.samples[field], len(shards))
    samples["key"] = np.arange(count).astype("S")
    samples["shard"] = np.arange(count) // PER_SHARD
    write_index(folder, Index("folder", real.classes, real.features, tuple(shards), samples, SEED, {}))


def memory(process: int) -> dict[str, float]:
    """PSS and USS of a process in MiB, as the kernel counts them."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return {"PSS": kib["Pss"] / 1024, "USS": (kib["Private_Clean"] + kib["Private_Dirty"]) / 1024}


def measure(folder: Path) -> dict[str, float]:
    """Open a set and load from it, in this process."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    found: dict[str, float] = {}
    before, began = memory(os.getpid())["USS"], time.perf_counter()
    data = ClipDataset(folder, ("visual", "audio"), frames=1, image_size=224, augment=True, seed=SEED)
    sizes = [shard.samples for shard in data.reader.index.shards]
    found["open"] = time.perf_counter() - began
    found["opened: USS"] = memory(os.getpid())["USS"] - before
    for name, first in (("first batch", 0), ("resume", sum(sizes) // BATCH // 2)):
        began = time.perf_counter()
        batches = TrainBatches(sizes, TrainConfig(batch_size=BATCH, epochs=2, seed=SEED), first_step=first)
        loader = iter(make_loader(data, batches, workers=WORKERS))
        next(loader)
        found[name] = time.perf_counter() - began
        for _ in range(20):
            next(loader)
        if first:
            workers = [memory(child.pid) for child in multiprocessing.active_children() if child.pid]
            for kind in ("USS", "PSS"):
                found[f"worker: {kind}"] = max(worker[kind] for worker in workers)
        del loader
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the machine, the ratios and the measurements")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # run one round in this process
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.measure)))
        return
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in SIZES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        real = make_real(folder)
        for label, count in SIZES.items():
            make_set(folder / label, real, count)
        for _ in range(options.rounds):
            for label in SIZES:
                command = [sys.executable, __file__, "--measure", str(folder / label)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                rounds[label].append(json.loads(done.stdout))
    costs = {f"{label}, {key}": [one[key] for one in rounds[label]] for label in SIZES for key in rounds[label][0]}
    show("seconds or MiB", costs, digits=3)
    large, small = reversed(SIZES)
    pairs = {
        key.replace(": ", "_").replace(" ", "_"): (f"{large}, {key}", f"{small}, {key}") for key in rounds[small][0]
    }
    write(options.json, ratios(costs, pairs), "numpy", "torch", figures=costs)


if __name__ == "__main__":
    main()
