"""Whether anything but the index's own bytes grows with the data set: 10 million samples next to 100 thousand.

Makes the index of both sets (shards of 1000 samples; all are links to one real shard, whose samples are the same clip)
and, in a fresh process each, round after round in turn: opens the set, loads the first batch with two workers, then the
first batch of a run that is resumed in mid-epoch. `open` to `resume` are seconds, libraries imported already; memory is
in MiB, after some batches from all over the set: what only this process has (USS), and its share of what
it shares with the others (PSS), the index included. Ratios: 10 million ÷ 100 thousand.
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
from bmlpipe.train.data.dataset import ClipDataset, make_loader
from bmlpipe.train.data.sampler import TrainBatches

SIZES = {"100 thousand": 100_000, "10 million": 10_000_000}
PER_SHARD, BATCH, WORKERS, SEED = 1000, 32, 2, 0


def make_real(folder: Path) -> Index:
    """One shard of one small clip, a thousand times over."""
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
    """A set of `count` samples, whose shards are all the real one."""
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
    """MiB of a process, from the kernel's account."""
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
        batches = TrainBatches(sizes, batch_size=BATCH, epochs=2, seed=SEED, shuffle_shards=16, first_step=first)
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
    parser.add_argument("--json", type=Path, help="write machine, ratios and figures here")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # a round, in a process of its own
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
