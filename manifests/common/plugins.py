"""Encoders, fusions and modulations from other installed packages, by entry points.

A package of one's own brings one in with a line of its metadata, here in its pyproject.toml:

    [project.entry-points."bmlpipe.modulations"]
    mine = "mypackage.balance:Mine"

Groups: `bmlpipe.encoders`, `bmlpipe.fusions`, `bmlpipe.exchanges`, `bmlpipe.modulations`. After its installation
`mine` is a name like ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from bmlpipe.manifests.common.errors import BmlpipeError

Factory = Callable[..., Any]


class PluginError(BmlpipeError):
    """Another package's entry point clashes with a name or cannot be used; the message says which and why."""


class _Known(Mapping[str, Factory]):
    """Names → what makes them. A package is imported when its name is looked up, not before."""

    def __init__(self, own: Mapping[str, Factory], others: Mapping[str, EntryPoint]) -> None:
        self._own, self._others = own, others

    def __getitem__(self, name: str) -> Factory:
        return self._own[name] if name in self._own else _load(self._others[name])

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._others

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from self._others

    def __len__(self) -> int:
        return len(self._own) + len(self._others)


def known(group: str, own: Mapping[str, Factory]) -> Mapping[str, Factory]:
    """Our own names and those of installed packages.

    Args:
        group: Of the entry points, such as `bmlpipe.modulations`.
        own: Our names; they come first.

    Returns:
        A mapping; looking up a name of another package imports it.

    Raises:
        PluginError: Two of them have one name. On look-up: the package cannot be imported, or has no such object.
    """
    others: dict[str, EntryPoint] = {}
    for entry in entry_points(group=group):
        if entry.name in own:
            raise PluginError(
                f"{_where(entry)} brings {entry.name!r} into {group}, a name that bmlpipe itself has "
                f"({getattr(own[entry.name], '__qualname__', own[entry.name])}): give it another name"
            )
        before = others.setdefault(entry.name, entry)
        if (before.value, _package(before)) != (entry.value, _package(entry)):
            raise PluginError(
                f"{_where(before)} and {_where(entry)} both bring {entry.name!r} into {group}: uninstall one, or "
                "rename it"
            )
    return _Known(own, others)


def _load(entry: EntryPoint) -> Factory:
    try:
        found = entry.load()
    except (ImportError, AttributeError) as error:
        raise PluginError(
            f"{entry.name!r} of {entry.group} is {_where(entry)}, which cannot be imported "
            f"({type(error).__name__}: {error}): repair or uninstall that package"
        ) from error
    if not callable(found):
        raise PluginError(f"{entry.name!r} of {entry.group} is {_where(entry)}, which cannot be called: {found!r}")
    made: Factory = found
    return made


def _package(entry: EntryPoint) -> str:
    return entry.dist.metadata["Name"] if entry.dist is not None else "an unknown package"


def _where(entry: EntryPoint) -> str:
    return f"{entry.value} of {_package(entry)}"
