"""A recipe: the runs that a comparison consists of (its file format: `bmlpipe.train.sweep.recipe_file`)."""

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

#: In the name of a run: one run per modality. In a list: one entry per modality.
MODALITY = "$modality"

#: Names of the placeholders in the commands of `then`; each is preceded by a $.
PLACEHOLDERS = ("run", "modality", "out", "dataset", "shards")


@dataclass(frozen=True)
class Job:
    """A run that a recipe asks for.

    Attributes:
        name: Name in the recipe, with its point of the grid: `ogm,fusion=sum`.
        seed: Seed.
        options: Options, as its configuration file will hold them.
        config: The same options, resolved.
        after: Folders of the runs that it refers to, which must be finished before.
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
    """A run at a point of the grid: its name, its key in the recipe for messages, and its own options."""

    name: str
    where: str
    options: Options


@dataclass(frozen=True)
class Recipe:
    """A recipe as it is written in its file.

    Attributes:
        path: File.
        about: Purpose, in one line.
        datasets: Data sets that the recipe is for; empty for any.
        base: Options of every run.
        runs: Name → options in which the run differs; empty if there is only a grid.
        grid: Option → values; each run is made at every point of the grid.
        seeds: Seeds.
        paper: Data set → name of a run → metric → published value, in %.
        then: Next commands, with placeholders.
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
        """Make the runs, in the order of the recipe, seed by seed.

        Args:
            out: Folder of all runs.
            given: Options that override those of every run, such as `dataset` and `shards`. Without them these are
                found as in training.
            base: Options that override those of `base`; the options of each run remain.
            seeds: Seeds; empty for those of the recipe.

        Raises:
            ConfigError: A run has an impossible option, two runs share a folder or all their options, or the recipe is
                not for this data set. The message names the file and the key.
            PlaceError: The shards cannot be found.
        """
        base = {**self.base, **(base or {})}
        common = located(parse({**base, **(given or {})}, f"{self.path}, base"))
        if self.datasets and common.dataset not in self.datasets:
            raise ConfigError(
                f"{self.path} is for {', '.join(self.datasets)}, not for {common.dataset}. Choose another --dataset."
            )
        given = {**(given or {}), "dataset": common.dataset, "shards": list(common.shards)}
        points: dict[str, _Point] = {}
        for point in self._points(common.modalities or DATASETS[common.dataset].modalities):
            if (twin := points.setdefault(point.name.casefold(), point)) is not point:
                raise ConfigError(
                    f"{point.where}: two runs would be named {point.name!r} (the other one by {twin.where}) and share "
                    "a folder. Choose other names or values."
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
        """Yield each run at each point of the grid."""
        for name, options in (self.runs or {"": {}}).items():
            where = f"{self.path}, runs.{name}" if self.runs else f"{self.path}, grid"
            if both := [option for option in self.grid if option in options]:
                raise ConfigError(f"{where}: {both[0]} is an option of the run and of the grid. Keep one of them.")
            for values in itertools.product(*self.grid.values()):
                at = dict(zip(self.grid, values))
                title = ",".join([*([name] if name else []), *(f"{key}={_label(value)}" for key, value in at.items())])
                for modality in modalities if MODALITY in name else ("",):
                    filled = {
                        key: fill_modality(value, modality, modalities) for key, value in {**options, **at}.items()
                    }
                    yield _Point(title.replace(MODALITY, modality), where, filled)

    def _check_different(self, jobs: Sequence[Job]) -> None:
        seen: dict[str, Job] = {}
        for job in jobs:
            same = repr({**job.config.as_dict(), "out": ""})
            if (twin := seen.setdefault(same, job)) is not job:
                raise ConfigError(
                    f"{self.path}: {twin.name} and {job.name} have the same options. Remove one of them; repetitions "
                    "belong into seeds."
                )

    def published(self, jobs: Sequence[Job]) -> Mapping[str, Mapping[str, float]]:
        """Return the published results for the data set of these runs: name of a run → metric → %.

        Raises:
            ConfigError: One is of a run that the recipe does not have.
        """
        dataset = jobs[0].config.dataset
        found, names = self.paper.get(dataset, {}), [job.name for job in jobs]
        if unknown := [name for name in found if name not in names]:
            listed = ", ".join(dict.fromkeys(names))
            raise ConfigError(
                f"{self.path}, paper.{dataset}.{unknown[0]}: there is no such run. The runs are {listed}."
            )
        return found

    def commands(self, out: Path, jobs: Sequence[Job]) -> list[str]:
        """Return the next commands. One with `$run` or `$modality` is repeated for each run or modality."""
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
    """Make a run with a seed. Names of runs among its `references` become their folders."""
    options |= {"seed": seed, "out": _folder(out, point.name, seed)}
    after = []
    references = parse({"references": options.get("references", ())}, point.where).references
    for name in references:
        if name in names:
            if names[name].options.get("references"):
                raise ConfigError(f"{point.where}: references names {name}, which refers to other runs itself")
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
    """Write a value of the grid as part of a folder's name."""
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^\w.+=-]+", "-", text.replace(",", "+"))


def fill_modality(value: Any, modality: str, modalities: Sequence[str]) -> Any:
    """Replace `$modality` by the modality of the run; if it has none, a list gets one entry per modality."""
    if isinstance(value, list):
        each = [modality] if modality else modalities
        return [
            part.replace(MODALITY, one) if isinstance(part, str) else part
            for part in value
            for one in (each if MODALITY in str(part) else [""])
        ]
    return value.replace(MODALITY, modality) if isinstance(value, str) and modality else value
