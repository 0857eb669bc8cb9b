"""Modules that all four packages share: errors, files, locks, tables, logs, signals, progress and status files."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.manifests.common.errors import BmlpipeError, OptionError
    from bmlpipe.manifests.common.locks import LockError, exclusive_folder
    from bmlpipe.manifests.common.plugins import PluginError, Registry
    from bmlpipe.manifests.common.progress import ProgressMeter

__all__ = ["BmlpipeError", "LockError", "OptionError", "PluginError", "ProgressMeter", "Registry", "exclusive_folder"]

__getattr__ = lazy_exports(
    __name__,
    {
        "errors": ["BmlpipeError", "OptionError"],
        "locks": ["LockError", "exclusive_folder"],
        "plugins": ["PluginError", "Registry"],
        "progress": ["ProgressMeter"],
    },
)
