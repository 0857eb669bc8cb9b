"""Registries of components by name: bmlpipe's own, and those of other installed packages (entry points).

A package registers a component with one line of its metadata, here in its pyproject.toml:

    [project.entry-points."bmlpipe.modulations"]
    mine = "mypackage.balance:Mine"

The groups are `bmlpipe.encoders`, `bmlpipe.fusions`, `bmlpipe.intermediate_fusions` and `bmlpipe.modulations`. Once the
package is installed, `mine` is a name like those of bmlpipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from bmlpipe.manifests.common.errors import BmlpipeError

Factory = Callable[..., Any]


class PluginError(BmlpipeError):
    """An entry point of another package clashes with a name or cannot be loaded. The message names the package."""


class Registry(Mapping[str, Factory]):
    """A mapping from names of components to their factories. Listing names imports nothing; a look-up imports a module.

    Args:
        group: Entry-point group, such as `bmlpipe.modulations`.
        own: Name → `module:attribute` of bmlpipe's own components. They come first.

    Raises:
        PluginError: On listing: two components have the same name. On look-up: the package cannot be imported, or the
            object is missing or not callable.
    """

    def __init__(self, group: str, own: Mapping[str, str]) -> None:
        self.group, self._own = group, dict(own)

    def __getitem__(self, name: str) -> Factory:
        if name in self._own:
            module, _, attribute = self._own[name].partition(":")
            made: Factory = getattr(import_module(module), attribute)
            return made
        return _load(self.plugins()[name])

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self.plugins()

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from self.plugins()

    def __len__(self) -> int:
        return len(self._own) + len(self.plugins())

    @property
    def own(self) -> tuple[str, ...]:
        """Names of bmlpipe's own components."""
        return tuple(self._own)

    def plugins(self) -> dict[str, EntryPoint]:
        """List the components of other packages by name, without importing them."""
        found: dict[str, EntryPoint] = {}
        for entry in entry_points(group=self.group):
            if entry.name in self._own:
                raise PluginError(
                    f"{_origin(entry)} registers {entry.name!r} in {self.group}, a name that bmlpipe itself uses "
                    f"({self._own[entry.name]}). Rename it in that package."
                )
            before = found.setdefault(entry.name, entry)
            if (before.value, _package(before)) != (entry.value, _package(entry)):
                raise PluginError(
                    f"{_origin(before)} and {_origin(entry)} both register {entry.name!r} in {self.group}. "
                    "Uninstall one of the packages, or rename one of the entries."
                )
        return found


def _load(entry: EntryPoint) -> Factory:
    try:
        found = entry.load()
    except (ImportError, AttributeError) as error:
        raise PluginError(
            f"{entry.name!r} of {entry.group} is {_origin(entry)}, which cannot be imported "
            f"({type(error).__name__}: {error}). Repair or uninstall that package."
        ) from error
    if not callable(found):
        raise PluginError(
            f"{entry.name!r} of {entry.group} is {_origin(entry)}, which is not callable: {found!r}. "
            "Repair or uninstall that package."
        )
    made: Factory = found
    return made


def _package(entry: EntryPoint) -> str:
    return entry.dist.metadata["Name"] if entry.dist is not None else "an unknown package"


def _origin(entry: EntryPoint) -> str:
    return f"{entry.value} of {_package(entry)}"
