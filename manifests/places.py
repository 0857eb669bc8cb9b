"""Default places of files: one layout under the current folder.

data/<dataset>/videos        clips, as they were downloaded
data/<dataset>/annotations   official annotation files
features/<dataset>           written by `bmlpipe extract`
shards/<dataset>             written by `bmlpipe shard`
runs/<dataset>/<modulation>-seed<seed>   written by training
"""

from __future__ import annotations

import re
from pathlib import Path

from bmlpipe.manifests.common.errors import BmlpipeError
from bmlpipe.manifests.datasets import DATASETS

DATA, FEATURES, SHARDS, RUNS = Path("data"), Path("features"), Path("shards"), Path("runs")

_LONGEST_NAME = 200  # bytes; file systems allow 255


class PlaceError(BmlpipeError):
    """A conventional folder does not exist, or it is not clear which of several is meant."""


def videos_folder(dataset: str) -> Path:
    """Return the default folder of videos, `data/<dataset>/videos`.

    Raises:
        PlaceError: The folder does not exist.
    """
    folder = DATA / DATASETS[dataset].clips_of / "videos"
    if not folder.is_dir():
        raise PlaceError(f"there is no folder {folder}. Put the videos of {dataset} there, or name them with --videos.")
    return folder


def find_annotations(dataset: str) -> Path | None:
    """Find the official annotation in `data/<dataset>/annotations`, or in a folder directly below it.

    Args:
        dataset: A name of `DATASETS`.

    Returns:
        The annotation file, or the folder of several official files. None for `folder` without annotations.

    Raises:
        PlaceError: There is no official file, or several that could be meant.
    """
    folder = DATA / DATASETS[dataset].clips_of / "annotations"
    official = DATASETS[dataset].annotation_files
    for names in official:
        for place in (folder, *sorted(path for path in folder.glob("*/") if path.is_dir())):
            matches = [sorted(place.glob(name)) for name in names.split(" + ")]
            if not all(matches):
                continue
            if len(matches) > 1:
                return place
            if len(matches[0]) > 1:
                raise PlaceError(f"{_listed(matches[0])} could be meant. Name the annotations with --annotations.")
            return matches[0][0]
    if dataset == "folder":
        return None
    raise PlaceError(
        f"there is no {' and no '.join(official)} in {folder}. Put the official annotations of {dataset} there, or "
        "name them with --annotations."
    )


def features_folder(dataset: str) -> Path:
    """Return the default feature folder, `features/<dataset>`."""
    return FEATURES / DATASETS[dataset].clips_of


def shards_folder(dataset: str) -> Path:
    """Return the default folder of shards, `shards/<dataset>`."""
    return SHARDS / DATASETS[dataset].clips_of


def run_folder(dataset: str, modulation: str, seed: int) -> Path:
    """Return the default folder of a run, `runs/<dataset>/<modulation>-seed<seed>`.

    Args:
        dataset: Name of the data set.
        modulation: The rule in the notation of `--modulation`; characters that file names should not have become `-`.
        seed: Seed of the run.

    Examples:
        >>> str(run_folder("cremad", "opm(p_exe=0.7)+ogm(epochs=0:50)", 1))
        'runs/cremad/opm-p_exe=0.7+ogm-epochs=0-50-seed1'
    """
    label = re.sub(r"[^\w.=+-]+", "-", re.sub(r"[\s)]", "", modulation))
    return RUNS / dataset / f"{label.encode()[:_LONGEST_NAME].decode(errors='ignore')}-seed{seed}"


def the_only(root: Path, holding: str, *, option: str, command: str) -> Path:
    """Find the only folder in `root` that holds a certain file.

    Args:
        root: Folder to search, such as `features` or `shards`.
        holding: Name of a file that every finished folder contains.
        option: Option that names a folder, for the message.
        command: Command that writes such a folder, for the message.

    Raises:
        PlaceError: There is no such folder, or there are several; the message lists them.
    """
    found = sorted(path.parent for path in root.glob(f"*/{holding}") if not path.parent.name.startswith("."))
    if not found:
        raise PlaceError(f"there is no data set in {root}/. Run {command} first, or name a folder with {option}.")
    if len(found) > 1:
        raise PlaceError(f"there are several data sets in {root}/: {_listed(found)}. Name one with {option}.")
    return found[0]


def _listed(paths: list[Path]) -> str:
    return ", ".join(map(str, paths))
