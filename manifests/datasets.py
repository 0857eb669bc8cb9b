"""The data sets that bmlpipe knows: files, annotation readers, and the settings of the paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bmlpipe.manifests.readers import cremad, folder, kinetics_sounds, ucf101, vggsound
from bmlpipe.manifests.schema import Manifest, ManifestError
from bmlpipe.manifests.splits import ValidationSplit, add_validation


@dataclass(frozen=True)
class ReaderInput:
    """The input of an annotation reader.

    Attributes:
        dataset: The data set to read.
        annotations: Official annotation file, or folder of several; None: not given.
        videos: Folder of the videos; None: not given.
        fold: Official split, for a data set that has several.
    """

    dataset: Dataset
    annotations: Path | None
    videos: Path | None
    fold: int

    @property
    def official(self) -> Path:
        """`annotations`, for a data set that cannot be read without them.

        Raises:
            ManifestError: They were not given.
        """
        if self.annotations is None:
            raise ManifestError(f"{self.dataset.name} needs annotations: give {self.dataset.annotations}")
        return self.annotations


@dataclass(frozen=True)
class Dataset:
    """A data set that bmlpipe knows: its files, and the setting in which the paper uses it.

    Attributes:
        name: Name in commands.
        title: Name in prose.
        summary: Description in one line.
        read: Reads its annotation.
        annotations: Description of the annotation files or folder to give.
        videos: Accepted layout and file names of the folder of videos.
        origin: Where to download the official annotation files; "": the user writes them.
        annotation_files: Official files, as glob patterns: one file, or several of one folder joined by ` + `.
        kinds: Feature kinds that extraction makes by default (`frames`, `spectrogram`, `flow`, `rgb_diff`).
        modalities: Modalities that training uses by default (`audio`, `visual`, `flow`, `rgb_diff`).
        seconds: Length that the front ends take of a clip, in seconds; None: the whole clip.
        train_frames: Number of frames per training sample.
        pretrained: Whether the paper starts from ImageNet weights.
        optional_groups: Whether the clips of a group may be divided between training and validation.
        setting_of: Name of the data set of which this is another setting, with the same annotation, clips and feature
            folders; "": none.
    """

    name: str
    title: str
    summary: str
    read: Callable[[ReaderInput], Manifest] = field(repr=False)
    annotations: str
    videos: str
    origin: str = ""
    annotation_files: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ("frames", "spectrogram")
    modalities: tuple[str, ...] = ("audio", "visual")
    seconds: int | None = 10
    train_frames: int = 3
    pretrained: bool = False
    optional_groups: bool = False
    setting_of: str = ""

    @property
    def clips_of(self) -> str:
        """Name of the data set whose clips these are; manifests and feature folders carry it."""
        return self.setting_of or self.name


_UCF101 = Dataset(
    name="ucf101",
    title="UCF-101",
    summary="13,320 clips of 101 actions, three official splits; RGB frames and optical flow",
    read=lambda given: ucf101.read(given.official, given.fold),
    annotations="the folder of classInd.txt, trainlist0N.txt and testlist0N.txt (ucfTrainTestlist)",
    videos="<class>/v_<class>_gNN_cNN.avi, or the same base names in any container and sub-folder",
    origin="https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip",
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
        read=lambda given: vggsound.read(given.official),
        annotations="vggsound.csv (youtube_id,start_seconds,label,split), or the folder of train.csv and test.csv",
        videos="<id>_<start, six digits or plain> or <id>_<start ms>_<end ms>, any video container, any sub-folder",
        origin="https://www.robots.ox.ac.uk/~vgg/data/vggsound/ (vggsound.csv); "
        "https://github.com/hche11/VGGSound, data/ (train.csv, test.csv)",
        annotation_files=("vggsound.csv", "train.csv + test.csv"),
    ),
    Dataset(
        name="kinetics-sounds",
        title="Kinetics-Sounds",
        summary="18,716 clips of 10 s from YouTube, 31 actions that are both seen and heard",
        read=lambda given: kinetics_sounds.read(given.official),
        annotations="the JSON file (labels, database), or the folder of my_train.txt and my_test.txt",
        videos="<id>_<start>_<end> or <id>_<start>, six digits or plain, or in ms, any video container, any sub-folder",
        origin="https://github.com/GeWu-Lab/BML_TPAMI2024, code/dataset/KS_train_val.json; "
        "https://github.com/GeWu-Lab/OGM-GE_CVPR2022, data/KineticSound/ (my_train.txt, my_test.txt)",
        annotation_files=("*.json", "my_train.txt + my_test.txt"),
    ),
    Dataset(
        name="cremad",
        title="CREMA-D",
        summary="7,442 clips of 91 actors speaking 12 sentences in 6 emotions",
        read=lambda given: cremad.read(given.official),
        annotations="the folder of train.csv and test.csv (1088_IOM_NEU_XX,NEU)",
        videos="<id>.flv or another container, any sub-folder; sound from <id>.wav where there is one (AudioWAV/)",
        origin="https://github.com/GeWu-Lab/OGM-GE_CVPR2022, data/CREMAD/ (train.csv, test.csv); "
        "clips: https://github.com/CheyneyComputerScience/CREMA-D",
        annotation_files=("train.csv + test.csv",),
        seconds=3,
        train_frames=1,
        optional_groups=True,
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
        summary="one folder per class, or a CSV file",
        read=lambda given: folder.read(given.annotations, given.videos),
        annotations="nothing, or a CSV file with the columns path,label,split and optionally id,start,duration,group",
        videos="<class>/…, or train/<class>/…, val/…, test/…; with a CSV file, the files that its paths name",
        annotation_files=("*.csv",),
    ),
)

DATASETS: Mapping[str, Dataset] = {dataset.name: dataset for dataset in _ALL}
"""All data sets by name."""


def read_manifest(
    dataset: str,
    annotations: Path | None = None,
    *,
    videos: Path | None = None,
    fold: int = 1,
    validation: ValidationSplit | None = None,
) -> Manifest:
    """Read a data set's annotation. If it has no validation split, move a part of the training clips into one.

    Clips of one group (one recording, one YouTube video, a group of a CSV file) stay together. The actors of CREMA-D
    are groups only with `validation.by_group`; validation then holds actors that training does not.

    Args:
        dataset: A name of `DATASETS`.
        annotations: Official annotation as `Dataset.annotations` describes it; optional for `folder` only.
        videos: Folder of the videos; only `folder` reads it.
        fold: Official split of UCF-101, 1 to 3.
        validation: How validation clips are chosen if the annotation names none. None: 10 % of the training clips.

    Returns:
        The clips, with notes on any changes. For another setting of a data set, that data set's own manifest.

    Raises:
        ManifestError: The data set is unknown, or its annotation is missing or malformed.
    """
    if dataset not in DATASETS:
        raise ManifestError(f"data set is {dataset!r}: must be one of {', '.join(DATASETS)}")
    given, known = DATASETS[dataset], DATASETS[DATASETS[dataset].clips_of]
    if annotations is not None and not annotations.exists():
        raise ManifestError(
            f"annotations is {annotations}, which does not exist: for {dataset}, give {given.annotations}"
        )
    manifest = known.read(ReaderInput(known, annotations, videos, fold))
    return _with_validation(manifest, known, validation or ValidationSplit())


def _with_validation(manifest: Manifest, dataset: Dataset, validation: ValidationSplit) -> Manifest:
    grouped = any(clip.group for clip in manifest.clips)
    if validation.by_group and not grouped:
        raise ManifestError(f"the clips of {dataset.name} have no groups: validation by group is not possible")
    counts = manifest.counts()
    notes = [
        *manifest.notes,
        *(f"no {split} clips in the annotation" for split in ("train", "test") if not counts[split]),
    ]
    if counts["val"] or not counts["train"]:
        return replace(manifest, notes=tuple(notes))
    by_group = grouped and (validation.by_group or not dataset.optional_groups)
    clips = add_validation(manifest.clips, replace(validation, by_group=by_group))
    moved = sum(clip.split == "val" for clip in clips)
    notes.append(
        f"no validation split in the annotation: {moved} of {counts['train']} training clips become the validation "
        f"split ({validation.fraction:.3g} of each class{', whole groups' if by_group else ''}; seed {validation.seed})"
    )
    return replace(manifest, clips=clips, notes=tuple(notes))
