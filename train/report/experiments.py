"""Which runs are repetitions of each other, how experiments are named, in what they differ, what they compare with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bmlpipe.train.config.options import TrainConfig
from bmlpipe.train.runs.checkpoint import FREE
from bmlpipe.train.runs.read_run import Run

#: Options that do not make two runs different experiments.
_ASIDE = FREE - {"epochs"} | {"seed"}

_ABSENT = "–"

Options = tuple[tuple[str, Any], ...]


def experiments(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Group runs that differ by seed only; each group is named by the options in which the groups differ."""
    groups: dict[frozenset[tuple[str, Any]], list[Run]] = {}
    for run in runs:
        groups.setdefault(frozenset(_options(run)), []).append(run)
    options = [dict(_options(group[0])) for group in groups.values()]
    telling = _telling(options)
    named: dict[str, list[Run]] = {}
    for option, group in zip(options, groups.values(), strict=True):
        title = ", ".join(_shown(name, option[name]) for name in telling if name in option) or "all"
        if title in named:
            title = f"{title} ({group[0].folder})"
        named[title] = group
    return named


def differences(groups: Mapping[str, Sequence[Run]]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The experiments' options.

    Returns:
        Option → its value in each experiment, where they differ ("–": it has no meaning there); and option → value
        of those that are equal in all.
    """
    options = [dict(_options(group[0])) for group in groups.values()]
    telling = _telling(options)
    differing = {name: [written(option.get(name, _ABSENT)) for option in options] for name in telling}
    equal = {name: written(value) for name, value in options[0].items() if name not in differing} if options else {}
    return differing, equal


def references(groups: Mapping[str, Sequence[Run]], chosen: str | None = None) -> dict[str, str]:
    """Each experiment's reference: the same without modulation, or the chosen one for all.

    Args:
        groups: From `experiments`.
        chosen: Name of an experiment.

    Returns:
        Experiment → its reference; those that have none, and the references themselves, are left out.
    """
    if chosen is not None:
        return {name: chosen for name in groups if name != chosen}
    plain = {_unmodulated(group[0]): name for name, group in groups.items() if group[0].modulation == "none"}
    found = {name: plain.get(_unmodulated(group[0])) for name, group in groups.items()}
    return {name: reference for name, reference in found.items() if reference is not None and reference != name}


def _telling(options: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for option in options for name in option)
    return [name for name in names if len({option[name] for option in options if name in option}) > 1]


def _options(run: Run) -> Iterator[tuple[str, Any]]:
    """Options that make the experiment; those that a run of an older version lacks have today's defaults."""
    defaults = {name: option.default for name, option in TrainConfig.__dataclass_fields__.items()}
    for name, value in {**defaults, **run.config}.items():
        if name not in _ASIDE:
            yield name, _hashable(value)


def _hashable(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_hashable(part) for part in value)
    return str(value) if isinstance(value, dict) else value


def _unmodulated(run: Run) -> frozenset[tuple[str, Any]]:
    """What a run shares with the same one without modulation."""
    return frozenset((name, value) for name, value in _options(run) if name != "modulation")


def _shown(name: str, value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    return value if isinstance(value, str) else f"{name} {value}"


def written(value: Any) -> str:
    """An option's value as text."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or _ABSENT
    return _ABSENT if value is None else str(value)
