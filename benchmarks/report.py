"""Time and memory of reading a journal and of making the report: CPU seconds (user + system) and peak memory.

The program makes a journal of a million steps of two modalities (about 600 MB). Each measurement has its own process.
`json` reads the journal line by line with the standard library and keeps nothing. `columns` is bmlpipe's reader
(orjson), which keeps every column as float64. `page` is the whole command `bmlpipe report RUN --out report.html`, with
its start, all figures and all files.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _measure import cpu, ratios, show, write

STEPS = 1_000_000


def make(folder: Path, steps: int) -> None:
    """Write the configuration and the journals of a run of `steps` steps."""
    import yaml

    from bmlpipe.train.config.parsing import parse

    options = {"dataset": "folder", "shards": "s", "out": "o", "modulation": "opm", "epochs": 100}
    config = parse(options, "here").resolved()
    (folder / "config.yaml").write_text(yaml.safe_dump(config.as_dict()))
    random = np.random.default_rng(0)
    names = ["data_s", "step_s", "samples_per_s", "loss"]
    names += [f"{kind}/{m}" for kind in ("score", "rho", "q", "k", "dropped", "grad_norm") for m in ("audio", "visual")]
    with (folder / "steps.jsonl").open("w") as file:
        for step in range(steps):
            row = {"step": step, "epoch": 100 * step // steps, "lr": 0.001, "samples": 32}
            file.write(json.dumps(row | dict(zip(names, random.random(len(names)).tolist(), strict=True))) + "\n")
    rows = [{"epoch": e, "step": (e + 1) * steps // 100, "split": "val", "accuracy": e / 100} for e in range(100)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def measure(what: str, folder: Path) -> dict[str, float]:
    """Take one measurement in this process: `json`, `columns` or `page`; a number: make a run of this many steps."""
    began, before = time.perf_counter(), cpu()
    if what.isdigit():
        make(folder, int(what))
    elif what == "json":
        with (folder / "steps.jsonl").open() as file:
            for line in file:
                json.loads(line)
    elif what == "columns":
        from bmlpipe.train.runs.journal_reader import read_columns

        read_columns(folder / "steps.jsonl")
    else:
        command = [sys.executable, "-m", "bmlpipe.pipeline.cli", "report", str(folder), "--out", str(folder / "r.html")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"cpu": cpu() - before, "wall": time.perf_counter() - began, "MiB": peak / 1024}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the machine, the ratios and the measurements")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # take one measurement in this process
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]))))
        return
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for what in (str(options.steps), *options.rounds * ("json", "columns", "page")):
            command = [sys.executable, __file__, "--measure", what, name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            for key, value in json.loads(done.stdout).items() if not what.isdigit() else ():
                found.setdefault(f"{what}, {key}", []).append(value)
    show("seconds or MiB", found)
    pairs = {"columns_vs_json": ("columns, cpu", "json, cpu")}
    write(options.json, ratios(found, pairs), "numpy", "orjson", "matplotlib", figures=found)


if __name__ == "__main__":
    main()
