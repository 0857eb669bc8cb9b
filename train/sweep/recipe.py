"""A recipe: the runs that a comparison consists of, for a data set (its file: `bmlpipe.train.sweep.recipe_file`)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bmlpipe.manifests.datasets import DATASETS
from bmlpipe.train.config.options import ConfigError, TrainConfig
from bmlpipe.train.config.parsing import parse
from bmlpipe.train.config.places import located

Options = Mapping[str, Any]

#: In the name of a run: one run for each modality; in a list: one entry for each.
MODALITY = "$modality"

#: What a command of `then` may name, each with a $ before it.
PLACEHOLDERS = ("run", "modality", "out", "dataset", "shards")


@dataclass(frozen=True)
class Job:
    """One run of a recipe.

    Attributes:
        name: In the recipe, with its point of the grid: `ogm,alpha=0.5`.
        seed: Its seed.
        options: As its configuration file will hold them.
        config: The same, resolved.
        after: Folders of the runs that it refers to, which come first.
    """

    name: str
    seed: int
    options: Options
    config: TrainConfig
    after: tuple[Path, ...] = ()

    @property
    def folder(self) -> Path:
        """`OUT/<name>/seed-<seed>`."""
        return Path(self.config.out)

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"


@dataclass(frozen=True)
class _Point:
    """A run at a point of the grid: its name, where a message says that it stands, its own options."""

    name: str
    where: str
    options: Options


@dataclass(frozen=True)
class Recipe:
    """A recipe as it is written; `jobs` makes its runs.

    Attributes:
        path: Its file.
        about: What it is for, in one line.
        datasets: Data sets that it is for; empty: any.
        base: Options of every run.
        runs: Name → the options in which it differs; empty: the grid alone.
        grid: Option → values; each run is made at every point.
        seeds: Seeds.
        paper: Data set → name of a run → metric → the published number, in %.
        then: Commands to go on with, with placeholders.
    """

    path: Path
    about: str = ""
    datasets: Sequence[str] = ()
    base: Options = field(default_factory=dict)
    runs: Mapping[str, Options] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    seeds: Sequence[int] = (0,)
    paper: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    then: Sequence[str] = ()

    def jobs(
        self, out: Path, *, given: Options | None = None, base: Options | None = None, seeds: Sequence[int] = ()
    ) -> list[Job]:
        """The runs, in the recipe's order, seed by seed.

        Args:
            out: Folder of them all.
            given: Options above all others: `dataset`, `shards`.
            base: Options that replace those of the recipe's base; what a run says of itself stays.
            seeds: Instead of the recipe's.

        Raises:
            ConfigError: A run has an impossible option, two runs share a folder or all their options, or the recipe is
                not for this data set; says the file and the key.
        """
        given, base = given or {}, {**self.base, **(base or {})}
        common = located(parse({**base, **given}, f"{self.path}, base"))
        given = {**given, "dataset": common.dataset, "shards": list(common.shards)}
        if self.datasets and common.dataset not in self.datasets:
            raise ConfigError(
                f"{self.path} is for the data sets {', '.join(self.datasets)}, not for {common.dataset}: "
                "choose another --dataset"
            )
        points: dict[str, _Point] = {}
        for point in self._points(common.modalities or DATASETS[common.dataset].modalities):
            if (twin := points.setdefault(point.name.casefold(), point)) is not point:
                raise ConfigError(
                    f"{point.where}: two runs would be named {point.name!r} (the other: {twin.where}), and so share a "
                    "folder: choose other names or values"
                )
        names = {point.name: point for point in points.values()}
        jobs = [
            _job(point, {**base, **point.options, **given}, seed, out, names)
            for seed in seeds or self.seeds
            for point in names.values()
        ]
        self._check_different(jobs[: len(names)])
        return jobs

    def _points(self, modalities: Sequence[str]) -> Iterator[_Point]:
        """Each run at each point of the grid."""
        for name, options in (self.runs or {"": {}}).items():
            where = f"{self.path}, runs.{name}" if self.runs else f"{self.path}, grid"
            if twice := [option for option in self.grid if option in options]:
                raise ConfigError(f"{where}: {twice[0]} is an option of the run and of the grid: choose one")
            for values in itertools.product(*self.grid.values()):
                at = dict(zip(self.grid, values))
                title = ",".join([*([name] if name else []), *(f"{key}={_label(value)}" for key, value in at.items())])
                for modality in modalities if MODALITY in name else ("",):
                    filled = {key: _filled(value, modality, modalities) for key, value in {**options, **at}.items()}
                    yield _Point(title.replace(MODALITY, modality), where, filled)

    def _check_different(self, jobs: Sequence[Job]) -> None:
        seen: dict[str, Job] = {}
        for job in jobs:
            same = repr({**job.config.as_dict(), "out": ""})
            if (twin := seen.setdefault(same, job)) is not job:
                raise ConfigError(
                    f"{self.path}: {twin.name} and {job.name} have the same options, one of them is enough "
                    "(more seeds go into seeds)"
                )

    def numbers(self, jobs: Sequence[Job]) -> Mapping[str, Mapping[str, float]]:
        """The paper's numbers for the data set of these jobs: name of a run → metric → %.

        Raises:
            ConfigError: They are of a run that the recipe does not have.
        """
        dataset = jobs[0].config.dataset
        found, names = self.paper.get(dataset, {}), [job.name for job in jobs]
        if strange := [name for name in found if name not in names]:
            there = ", ".join(dict.fromkeys(names))
            raise ConfigError(f"{self.path}, paper.{dataset}.{strange[0]}: no run has this name; there are {there}")
        return found

    def commands(self, out: Path, jobs: Sequence[Job]) -> list[str]:
        """The commands to go on with; one with `$run` or `$modality` stands there once for each."""
        config = jobs[0].config
        values = {
            "run": [str(job.folder) for job in jobs],
            "modality": list(dict.fromkeys(modality for job in jobs for modality in job.config.resolved_modalities)),
            "out": [str(out)],
            "dataset": [config.dataset],
            "shards": [",".join(config.shards)],
        }
        lines = list(self.then)
        for word in PLACEHOLDERS:
            lines = [
                line.replace(f"${word}", value)
                for line in lines
                for value in (values[word] if f"${word}" in line else [""])
            ]
        return lines


def _job(point: _Point, options: dict[str, Any], seed: int, out: Path, names: Mapping[str, _Point]) -> Job:
    """A run with a seed; `references` that are names of runs become their folders."""
    options |= {"seed": seed, "out": _folder(out, point.name, seed)}
    after = []
    references = parse({"references": options.get("references", ())}, point.where).references
    for name in references:
        if name in names:
            if names[name].options.get("references"):
                raise ConfigError(f"{point.where}: references names {name}, which itself refers to other runs")
            after.append(Path(_folder(out, name, seed)))
    if references:
        options["references"] = [_folder(out, name, seed) if name in names else name for name in references]
    config = parse(options, point.where)
    try:
        return Job(point.name, seed, options, config.resolved(), tuple(after))
    except ConfigError as error:
        raise ConfigError(f"{point.where}: {error}") from error


def _folder(out: Path, name: str, seed: int) -> str:
    return str(out / name / f"seed-{seed}")


def _label(value: Any) -> str:
    """A value of the grid as a part of a folder's name."""
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^\w.+=-]+", "-", text.replace(",", "+"))


def _filled(value: Any, modality: str, modalities: Sequence[str]) -> Any:
    """A value with the run's modality in place of `$modality`; without one, a list gets an entry for each modality."""
    if isinstance(value, list):
        each = [modality] if modality else modalities
        return [
            part.replace(MODALITY, one) if isinstance(part, str) else part
            for part in value
            for one in (each if MODALITY in str(part) else [""])
        ]
    return value.replace(MODALITY, modality) if isinstance(value, str) and modality else value
