"""Recipes: run what a comparison lacks, resumably.

A recipe is a YAML file:

    base:  {encoder: cnn4, epochs: 15}     # options of every run (docs: `python -m bmlpipe.train.run --help`)
    runs:                                  # name → the options in which it differs
      concatenation: {}
      opm: {modulation: opm}
    seeds: [0, 1, 2]
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bmlpipe.train.config import ConfigError
from bmlpipe.train.journal import METRICS_FILE, read_rows
from bmlpipe.train.options import parse, read_file


@dataclass(frozen=True)
class Job:
    """One run of a recipe: its name, folder and options."""

    name: str
    folder: Path
    options: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        """Whether its test row is written; a run on shards without test split is resumed, which finds nothing to do."""
        path = self.folder / METRICS_FILE
        return path.is_file() and any(row["split"] == "test" for row in read_rows(path))


def read_recipe(path: Path, out: Path, **given: Any) -> list[Job]:
    """The runs of a recipe, in its order, seed by seed.

    Args:
        path: The recipe.
        out: Folder of all its runs: `OUT/<name>/seed-<seed>`.
        given: Options that replace the recipe's (dataset, shards, …); those that are None do not.

    Raises:
        ConfigError: The recipe has another form, or a run has an unknown or impossible option.
    """
    recipe = read_file(path)
    if unknown := set(recipe) - {"base", "runs", "seeds"}:
        raise ConfigError(f"{path}: unknown part {sorted(unknown)[0]!r}: a recipe has base, runs and seeds")
    base, runs, seeds = recipe.get("base") or {}, recipe.get("runs"), recipe.get("seeds", [0])
    if not isinstance(runs, dict) or not runs or not isinstance(base, dict) or not isinstance(seeds, list):
        raise ConfigError(f"{path}: expected base (options), runs (name → options) and seeds (a list)")
    jobs = []
    for seed in seeds:
        for name, options in runs.items():
            folder = out / str(name) / f"seed-{seed}"
            chosen = {key: value for key, value in given.items() if value is not None}
            whole = {**base, **(options or {}), **chosen, "seed": seed, "out": str(folder)}
            parse(whole, f"{path}, run {name}").resolved()
            jobs.append(Job(f"{name}, seed {seed}", folder, whole))
    return jobs


def run_jobs(jobs: Sequence[Job], *, parallel: int, say: Callable[[str], None]) -> list[Job]:
    """Run what is not finished, several at a time, each in a process of its own; runs that were cut go on.

    Args:
        jobs: From `read_recipe`.
        parallel: Runs at a time; the machine's cores are shared out among them.
        say: Told what begins and ends.

    Returns:
        The jobs that failed; what they said is in their `log.txt`.
    """
    cores = max(1, (os.cpu_count() or 1) // parallel)
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cores))}

    def run(job: Job) -> bool:
        job.folder.mkdir(parents=True, exist_ok=True)
        recipe = job.folder / "options.yaml"
        recipe.write_text(yaml.safe_dump(dict(job.options), sort_keys=False, allow_unicode=True), encoding="utf-8")
        say(f"{job.name}: begins")
        with (job.folder / "log.txt").open("a", encoding="utf-8") as log:
            arguments = [sys.executable, "-m", "bmlpipe.train.run", "--config", str(recipe), "--resume"]
            status = subprocess.run(arguments, stdout=log, stderr=log, env=environment, check=False).returncode
        say(f"{job.name}: {'finished' if status == 0 else f'failed with status {status}, see {job.folder}/log.txt'}")
        return status == 0

    waiting = [job for job in jobs if not job.finished]
    with ThreadPoolExecutor(parallel) as pool:
        succeeded = list(pool.map(run, waiting))
    return [job for job, well in zip(waiting, succeeded) if not well]
