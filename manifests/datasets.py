"""The data sets that bmlpipe knows: what each is, the paper's setting for it, and reading its annotation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bmlpipe.manifests.readers import cremad, folder, kinetics_sounds, ucf101, vggsound
from bmlpipe.manifests.schema import Manifest, ManifestError
from bmlpipe.manifests.splits import add_validation


@dataclass(frozen=True)
class Dataset:
    """What a data set is, what its user supplies, and how the paper uses it.

    Attributes:
        name: The name that commands take.
        title: Its name in writing.
        summary: What it is, in one line.
        annotations: What to give as annotations.
        annotation_files: Official files, as glob patterns: one file, or several of one folder joined by ` + `.
        videos: Which layout and file names the folder of videos may have.
        kinds: Feature kinds that extraction makes by default (`frames`, `spectrogram`, `flow`, `rgb_diff`).
        modalities: Training modalities (`audio`, `visual`, `flow`, `rgb_diff`).
        seconds: Length in seconds that the front ends take of a clip; None: the whole clip.
        train_frames: Frames that a training sample sees.
        pretrained: The paper starts from ImageNet weights.
        setting_of: The data set that this is another setting of, with the same clips and feature folders; "": of none.
    """

    name: str
    title: str
    summary: str
    annotations: str
    videos: str
    kinds: tuple[str, ...] = ("frames", "spectrogram")
    modalities: tuple[str, ...] = ("audio", "visual")
    seconds: int | None = 10
    train_frames: int = 3
    pretrained: bool = False
    setting_of: str = ""
    annotation_files: tuple[str, ...] = ()

    @property
    def clips_of(self) -> str:
        """Name of the data set whose clips these are, its own or another's: what manifests and features are named."""
        return self.setting_of or self.name


_UCF101 = Dataset(
    name="ucf101",
    title="UCF-101",
    summary="13,320 clips of 101 actions, three official splits; RGB frames and optical flow",
    annotations="the folder of classInd.txt, trainlist0N.txt and testlist0N.txt (ucfTrainTestlist)",
    videos="<class>/v_<class>_gNN_cNN.avi, or the same base names in any container and sub-folder",
    annotation_files=("classInd.txt + trainlist0*.txt + testlist0*.txt",),
    kinds=("frames", "flow"),
    modalities=("visual", "flow"),
    seconds=None,
    pretrained=True,
)

_ALL = (
    Dataset(
        name="vggsound",
        title="VGGSound",
        summary="199,176 clips of 10 s from YouTube, 309 sound classes",
        annotations="vggsound.csv (youtube_id,start_seconds,label,split), or the folder of train.csv and test.csv",
        videos="<id>_<start, six digits or plain> or <id>_<start ms>_<end ms>, any video container, any sub-folder",
        annotation_files=("vggsound.csv", "train.csv + test.csv"),
    ),
    Dataset(
        name="kinetics-sounds",
        title="Kinetics-Sounds",
        summary="18,716 clips of 10 s from YouTube, 31 actions that are both seen and heard",
        annotations="the JSON file (labels, database), or the folder of my_train.txt and my_test.txt",
        videos="<id>_<start>_<end> or <id>_<start>, six digits or plain, or in ms, any video container, any sub-folder",
        annotation_files=("*.json", "my_train.txt + my_test.txt"),
    ),
    Dataset(
        name="cremad",
        title="CREMA-D",
        summary="7,442 clips of 91 actors speaking 12 sentences in 6 emotions",
        annotations="the folder of train.csv and test.csv (1088_IOM_NEU_XX,NEU)",
        videos="<id>.flv or another container, any sub-folder; sound from <id>.wav where there is one (AudioWAV/)",
        annotation_files=("train.csv + test.csv",),
        seconds=3,
        train_frames=1,
    ),
    _UCF101,
    replace(
        _UCF101,
        name="ucf101-three",
        title="UCF-101-Three",
        summary="UCF-101 with three modalities: RGB frames, optical flow and RGB differences",
        kinds=("frames", "flow", "rgb_diff"),
        modalities=("visual", "flow", "rgb_diff"),
        setting_of="ucf101",
    ),
    Dataset(
        name="folder",
        title="your own clips",
        summary="one folder a class, or a CSV file",
        annotations="none, or a CSV file with the columns path,label,split and, where wanted, id,start,duration,group",
        videos="<class>/… or train/<class>/…, val/…, test/…; with a CSV file, whatever its paths say",
        annotation_files=("*.csv",),
    ),
)

#: All data sets by name.
DATASETS: Mapping[str, Dataset] = {dataset.name: dataset for dataset in _ALL}


def read_manifest(
    dataset: str,
    annotations: Path | None,
    *,
    videos: Path | None = None,
    fold: int = 1,
    val_fraction: float = 0.1,
    group_val: bool = False,
    seed: int = 0,
) -> Manifest:
    """Read a data set's annotation; where it has no validation split, set a part of the training clips aside.

    Clips of one group (one recording, one YouTube video, a group of a CSV file) stay together. The actors of CREMA-D
    are groups only with `group_val`: validation then holds actors that training does not.

    Args:
        dataset: A name of `DATASETS`.
        annotations: What `Dataset.annotations` says; may be None for `folder` alone.
        videos: Folder of the videos; only `folder` reads it.
        fold: Official split of UCF-101, 1 to 3.
        val_fraction: Share of the training clips set aside for validation, between 0 and 1, both excluded.
        group_val: Keep the groups together where that is an option (CREMA-D).
        seed: Decides which clips are set aside.

    Returns:
        The clips with their notes; of a setting of another data set, that data set's own manifest.

    Raises:
        ManifestError: The data set is unknown, or its annotation is absent or wrong.
    """
    if dataset not in DATASETS:
        raise ManifestError(f"data set {dataset!r} must be one of {', '.join(DATASETS)}")
    if not 0 < val_fraction < 1:
        raise ManifestError(f"share of validation clips is {val_fraction}: must lie between 0 and 1, both excluded")
    if annotations is not None and not annotations.exists():
        raise ManifestError(
            f"annotations {annotations}: no such file or folder; {dataset} takes {DATASETS[dataset].annotations}"
        )
    dataset = DATASETS[dataset].clips_of
    manifest = _read(dataset, annotations, videos, fold)
    grouped = any(clip.group for clip in manifest.clips)
    if group_val and not grouped:
        raise ManifestError(f"validation by group: the clips of {dataset} have no groups")
    counts = manifest.counts()
    notes = [
        *manifest.notes,
        *(f"no {split} clips in the annotation" for split in ("train", "test") if not counts[split]),
    ]
    if counts["val"] or not counts["train"]:
        return replace(manifest, notes=tuple(notes))
    by_group = grouped and (group_val or dataset != "cremad")
    clips = add_validation(manifest.clips, fraction=val_fraction, seed=seed, by_group=by_group)
    aside = sum(clip.split == "val" for clip in clips)
    notes.append(
        f"no validation split in the annotation: {aside} of {counts['train']} training clips set aside "
        f"({val_fraction:.3g} of each class{', whole groups' if by_group else ''}; seed {seed})"
    )
    return replace(manifest, clips=clips, notes=tuple(notes))


def _read(dataset: str, annotations: Path | None, videos: Path | None, fold: int) -> Manifest:
    if dataset == "folder":
        return folder.read(annotations, videos)
    if annotations is None:
        raise ManifestError(f"{dataset} needs annotations: {DATASETS[dataset].annotations}")
    if dataset == "ucf101":
        return ucf101.read(annotations, fold)
    readers = {"vggsound": vggsound.read, "kinetics-sounds": kinetics_sounds.read, "cremad": cremad.read}
    return readers[dataset](annotations)
