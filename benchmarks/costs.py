"""The cost of a data set: disk space per feature kind and CPU time, scaled up from real clips.

Clips are extracted as a worker does it, one after the other in this process: once per kind to measure its size, and in
alternating rounds to measure the CPU time of the paper's kinds, and of these with one more kind. Clips of the same form
represent data sets whose own clips may not be redistributed (VAS for Kinetics-Sounds, GRID for CREMA-D). UCF-101 is
represented by one clip. So the results give the order of magnitude; `bmlpipe extract --dry-run` measures your own
clips.

The program needs a folder `clips` with the sub-folders `vggsound`, `vas`, `grid` and `ucf101`. A data set without clips
is not measured.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from _measure import cpu, ratios, write

from bmlpipe.manifests.datasets import DATASETS
from bmlpipe.manifests.locate import Source
from bmlpipe.manifests.schema import Clip
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.extraction.task import ClipTask
from bmlpipe.pipeline.extraction.worker import extract_batch
from bmlpipe.pipeline.front_ends.registry import FRONT_ENDS
from bmlpipe.pipeline.sharding.write import sample_of
from bmlpipe.pipeline.store.feature_file import FeatureStore

#: Data set → number of its clips, and the sub-folders of clips that represent it.
SETS = {
    "vggsound": (199_176, ("vggsound",)),
    "kinetics-sounds": (18_716, ("vas",)),
    "cremad": (7_442, ("grid",)),
    "ucf101": (13_320, ("ucf101",)),
}
CORES = (1, 16, 64)

Times = dict[str, list[float]]


def request_of(dataset: str, kinds: tuple[str, ...]) -> ExtractionRequest:
    """Make a request for these kinds with the defaults of `bmlpipe extract`."""
    return ExtractionRequest(tuple(FRONT_ENDS[kind]() for kind in kinds), DATASETS[dataset].seconds)


def extracted(clips: list[Path], request: ExtractionRequest, out: Path) -> float:
    """Extract clips; returns CPU seconds per clip."""
    tasks = [ClipTask(Clip(clip.stem, "train", "a"), Source(clip)) for clip in clips]
    before = cpu()
    rows = extract_batch(tasks, request, out, clips[0].parent)
    seconds = cpu() - before
    if failed := [row for row in rows if row.status != "ok"]:
        raise RuntimeError(f"{failed[0].id}: {failed[0].reason}: {failed[0].message}")
    return seconds / len(clips)


def feature_bytes(out: Path) -> int:
    """Size of all feature files below a folder."""
    return sum(path.stat().st_size for path in out.rglob("*.h5"))


def shard_bytes(clips: list[Path], out: Path, kinds: tuple[str, ...]) -> int:
    """Size in a tar of the samples made of these features: 512 bytes a member, and each filled up to 512."""
    total = 0
    for clip in clips:
        sample = sample_of(FeatureStore(out).read(clip.stem), Clip(clip.stem, "train", "a"), 0, kinds)
        total += sum(512 + -(-len(data) // 512) * 512 for _, data in sample.files())
    return total


def measure(dataset: str, clips: list[Path], rounds: int, folder: Path) -> tuple[dict[str, float], Times]:
    """Measure the bytes per clip by kind, and the CPU seconds per clip of each round by combination of kinds."""
    paper = DATASETS[dataset].kinds
    sound = ("spectrogram", "waveform") if DATASETS[dataset].seconds and dataset != "ucf101" else ()
    more = [kind for kind in ("frames", "flow", "rgb_diff", *sound) if kind not in paper]
    found: dict[str, float] = {}
    for kind in (*paper, *more):
        extracted(clips, request_of(dataset, (kind,)), folder / kind)
        found[f"bytes {kind}"] = feature_bytes(folder / kind) / len(clips)
    times: Times = {}
    for number in range(rounds):
        for extra in ("", *more):
            kinds = (*paper, extra) if extra else paper
            out = folder / f"{number}-{extra}"
            name = f"seconds with {extra}" if extra else "seconds"
            times.setdefault(name, []).append(extracted(clips, request_of(dataset, kinds), out))
            if not number and not extra:
                found["bytes features"] = feature_bytes(out) / len(clips)
                found["bytes shards"] = shard_bytes(clips, out, kinds) / len(clips)
    return found, times


def shown(hours: float) -> str:
    """Format hours; below one hour in minutes."""
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def tell(dataset: str, count: int, measured: int, sizes: dict[str, float], times: Times) -> None:
    """Print the results for a data set."""
    print(
        f"\n{DATASETS[dataset].title}: {count} clips, estimated from {measured}; {' + '.join(DATASETS[dataset].kinds)}"
    )
    for name, size in sizes.items():
        print(f"  {name.removeprefix('bytes '):14} {size / 1e3:6.0f} kB per clip {size * count / 1e9:8.1f} GB")
    for name, rounds in times.items():
        seconds = statistics.median(rounds)
        shared = ", ".join(f"{shown(seconds * count / 3600 / cores)} on {cores}" for cores in CORES)
        print(f"  {name.removeprefix('seconds '):14} {1e3 * seconds:6.0f} ms per clip; {shared}")


def main() -> None:
    """Measure, print and write."""
    named = os.environ.get("BMLPIPE_TEST_DATA")
    default = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--clips", type=Path, default=default / "clips", help="folder of the real clips")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    figures: Times = {}
    pairs: dict[str, tuple[str, str]] = {}
    for dataset, (count, folders) in SETS.items():
        clips = sorted(path for name in folders for path in (options.clips / name).glob("*.*"))
        if not clips:
            print(f"no clips for {dataset} in {options.clips}: not measured")
            continue
        with tempfile.TemporaryDirectory() as name:
            sizes, times = measure(dataset, clips, options.rounds, Path(name))
        tell(dataset, count, len(clips), sizes, times)
        figures |= {f"{dataset} {name}": [value] for name, value in sizes.items()}
        figures |= {f"{dataset} {name}": values for name, values in times.items()}
        pairs |= {
            f"{dataset}_{name.removeprefix('seconds ').replace(' ', '_')}": (f"{dataset} {name}", f"{dataset} seconds")
            for name in times
            if name != "seconds"
        }
    if figures:
        write(options.json, ratios(figures, pairs), "av", figures=figures)


if __name__ == "__main__":
    main()
