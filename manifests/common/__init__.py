"""What all four packages share: errors, files, locks, tables, logs, signals, progress and status files."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.manifests.common.errors import BmlpipeError, OptionError
    from bmlpipe.manifests.common.locks import LockError
    from bmlpipe.manifests.common.plugins import PluginError, Registry

__all__ = ["BmlpipeError", "LockError", "OptionError", "PluginError", "Registry"]

__getattr__ = lazy_exports(
    __name__,
    {
        "errors": ["BmlpipeError", "OptionError"],
        "locks": ["LockError"],
        "plugins": ["PluginError", "Registry"],
    },
)
