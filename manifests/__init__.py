"""Which clips exist: data set definitions, and official annotations read into one table of clips."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.manifests.common.errors import BmlpipeError, OptionError
    from bmlpipe.manifests.datasets import DATASETS, Dataset, read_manifest
    from bmlpipe.manifests.locate import Locator, Source
    from bmlpipe.manifests.schema import SPLITS, Clip, Manifest, ManifestError, read_clips, write_clips
    from bmlpipe.manifests.splits import ValidationSplit
    from bmlpipe.manifests.video_files import CONTAINERS

__all__ = [
    "CONTAINERS",
    "DATASETS",
    "SPLITS",
    "BmlpipeError",
    "Clip",
    "Dataset",
    "Locator",
    "Manifest",
    "ManifestError",
    "OptionError",
    "Source",
    "ValidationSplit",
    "read_clips",
    "read_manifest",
    "write_clips",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "common.errors": ["BmlpipeError", "OptionError"],
        "datasets": ["DATASETS", "Dataset", "read_manifest"],
        "locate": ["Locator", "Source"],
        "schema": ["SPLITS", "Clip", "Manifest", "ManifestError", "read_clips", "write_clips"],
        "splits": ["ValidationSplit"],
        "video_files": ["CONTAINERS"],
    },
)
