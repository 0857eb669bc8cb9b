"""Data set definitions, and official annotations read into one table of clips.

Examples:
    >>> from bmlpipe.manifests import read_manifest
    >>> manifest = read_manifest("vggsound", Path("data/vggsound/annotations/vggsound.csv"))  # doctest: +SKIP
    >>> manifest.counts()  # doctest: +SKIP
"""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.manifests.common.errors import BmlpipeError, OptionError
    from bmlpipe.manifests.datasets import DATASETS, Dataset, read_manifest
    from bmlpipe.manifests.locate import Locator, Source
    from bmlpipe.manifests.places import PlaceError, find_annotations, run_folder
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
    "PlaceError",
    "Source",
    "ValidationSplit",
    "find_annotations",
    "read_clips",
    "read_manifest",
    "run_folder",
    "write_clips",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "common.errors": ["BmlpipeError", "OptionError"],
        "datasets": ["DATASETS", "Dataset", "read_manifest"],
        "locate": ["Locator", "Source"],
        "places": ["PlaceError", "find_annotations", "run_folder"],
        "schema": ["SPLITS", "Clip", "Manifest", "ManifestError", "read_clips", "write_clips"],
        "splits": ["ValidationSplit"],
        "video_files": ["CONTAINERS"],
    },
)
