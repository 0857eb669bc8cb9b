"""The options of a training run: their defaults, their checks, and where they come from."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.train.config.options import ConfigError, TrainConfig
    from bmlpipe.train.config.parsing import parse, read_file

__all__ = ["ConfigError", "TrainConfig", "parse", "read_file"]

__getattr__ = lazy_exports(
    __name__,
    {
        "options": ["ConfigError", "TrainConfig"],
        "parsing": ["parse", "read_file"],
    },
)
