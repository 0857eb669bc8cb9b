"""Public names of a package, imported on first use.

`bmlpipe --help` must not import torch, and the modulation library must not need anything but torch and NumPy. So no
`__init__.py` of bmlpipe imports its modules. Each lists its public names in `__all__` and resolves them through
`lazy_exports` (PEP 562). Imports under `TYPE_CHECKING` tell type checkers and documentation tools the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_exports(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Make the `__getattr__` of a package that imports public names on first use.

    Args:
        package: `__name__` of the package.
        modules: Module of the package → names that it defines.

    Returns:
        A function for the package's `__getattr__`. It raises AttributeError for a name that no module defines.
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def getattr_(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{module_of[name]}"), name)

    return getattr_
