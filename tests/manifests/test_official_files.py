"""The official annotation files of each dataset, and the real clips."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from bmlpipe.manifests.datasets import read_manifest
from bmlpipe.manifests.locate import Locator
from bmlpipe.manifests.readers import kinetics_sounds
from bmlpipe.manifests.splits import ValidationSplit

pytestmark = pytest.mark.real


@pytest.fixture
def annotations(real_data: Path) -> Path:
    return real_data / "annotations"


def test_the_official_vggsound_annotation_is_read(annotations: Path) -> None:
    annotation = read_manifest("vggsound", annotations / "vggsound" / "vggsound_test_part.csv")
    assert annotation.counts() == {"train": 0, "val": 0, "test": 15_446}
    with (annotations / "vggsound" / "stat.csv").open(encoding="utf-8", newline="") as file:
        assert annotation.classes == tuple(sorted(row[0] for row in csv.reader(file)))
    lists = read_manifest("vggsound", annotations / "vggsound")
    assert list(lists.clips) == list(annotation.clips)
    assert "no train clips in the annotation" in lists.notes


def test_the_real_vggsound_clips_are_found(real_data: Path) -> None:
    manifest = read_manifest("vggsound", real_data / "annotations" / "vggsound" / "vggsound_test_part.csv")
    locator = Locator("vggsound", real_data / "clips")
    found = {clip.id: source.video for clip in manifest.clips if (source := locator.find(clip))}
    assert set(found.values()) == set((real_data / "clips" / "vggsound").iterdir())
    assert found["-Qowmc0P9ic_000034"].name == "-Qowmc0P9ic_34000_44000.mp4"
    with (real_data / "clips" / "manifest.csv").open(encoding="utf-8", newline="") as file:
        official = {row["official_id"].removesuffix(".mp4"): row["label"] for row in csv.DictReader(file)}
    assert {clip.id: clip.label for clip in manifest.clips if clip.id in found} == {id_: official[id_] for id_ in found}


def test_the_official_kinetics_sounds_annotation_is_read(annotations: Path) -> None:
    folder = annotations / "kinetics-sounds"
    document = read_manifest("kinetics-sounds", folder / "KS_train_val.json")
    assert document.counts() == {"train": 14_799, "val": 1_320, "test": 2_597}
    assert document.classes == kinetics_sounds.CLASSES
    lists = read_manifest("kinetics-sounds", folder)
    assert lists.classes == document.classes
    assert lists.counts()["test"] == 2_597
    assert lists.counts()["train"] + lists.counts()["val"] == 14_799
    labels = {clip.id: clip.label for clip in document.clips}
    assert all(labels[clip.id] == clip.label for clip in lists.clips)
    assert all(len(kinetics_sounds.parse_key(clip.id)[0]) == 11 for clip in document.clips)


def test_the_official_cremad_annotation_is_read(annotations: Path) -> None:
    manifest = read_manifest("cremad", annotations / "cremad")
    assert manifest.counts() == {"train": 6_028, "val": 670, "test": 744}
    order = (annotations / "cremad" / "stat.csv").read_text(encoding="utf-8-sig").split()
    assert manifest.classes == tuple(order)
    assert all(clip.id.split("_")[2] == clip.label for clip in manifest.clips)
    by_actor = read_manifest("cremad", annotations / "cremad", validation=ValidationSplit(by_group=True))
    val = {clip.group for clip in by_actor.clips if clip.split == "val"}
    assert not val & {clip.group for clip in by_actor.clips if clip.split == "train"}
    total = Counter(clip.label for clip in by_actor.clips if clip.split != "test")
    taken = Counter(clip.label for clip in by_actor.clips if clip.split == "val")
    assert all(0.09 < taken[label] / total[label] < 0.11 for label in total)


def test_the_official_ucf101_annotation_is_read(real_data: Path) -> None:
    manifest = read_manifest("ucf101", real_data / "annotations" / "ucf101")
    counts = manifest.counts()
    assert (counts["train"] + counts["val"], counts["test"]) == (9_537, 3_783)
    assert len(manifest.classes) == 101
    assert manifest.classes[36] == "HandstandPushups"
    total = Counter(clip.label for clip in manifest.clips if clip.split != "test")
    taken = Counter(clip.label for clip in manifest.clips if clip.split == "val")
    assert all(0.06 < taken[label] / total[label] < 0.15 for label in total)
    groups = {split: {clip.group for clip in manifest.clips if clip.split == split} for split in ("train", "val")}
    assert not groups["train"] & groups["val"]
    locator = Locator("ucf101", real_data / "clips")
    assert [clip.id for clip in manifest.clips if locator.find(clip)] == ["v_ApplyEyeMakeup_g01_c01"]


def test_a_custom_table_is_read(real_data: Path) -> None:
    manifest = read_manifest("folder", real_data / "avdigits.csv")
    assert len(manifest.clips) == 2_500
    assert manifest.classes == tuple("0123456789")
    assert "columns not used: speaker" in manifest.notes
    assert manifest.clips[0].id == "0/0_george_0"
