"""Locating the video file of a clip: file-name variants, sub-folders and links."""

from __future__ import annotations

from pathlib import Path

import pytest

from bmlpipe.manifests.locate import Locator, Source
from bmlpipe.manifests.schema import Clip, ManifestError
from bmlpipe.manifests.video_files import split_name, walk


def touch(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    return folder


def found(dataset: str, videos: Path, id_: str, path: str = "") -> str | None:
    source = Locator(dataset, videos).find(Clip(id_, "train", "x", path))
    return str(source.video.relative_to(videos)) if source else None


@pytest.mark.parametrize(
    "name",
    [
        "-_owmc0_9ic_000034.mp4",
        "-_owmc0_9ic_34.mkv",
        "-_owmc0_9ic_34000_44000.webm",
        "-_owmc0_9ic_000034_000044.avi",
        "-_owmc0_9ic_34_44.FLV",
        "playing harp/a/-_owmc0_9ic_000034.Mov",
        "-_owmc0_9ic_000034.mpg",
    ],
)
def test_variants_of_vggsound_file_names_are_found(tmp_path: Path, name: str) -> None:
    assert found("vggsound", touch(tmp_path, name), "-_owmc0_9ic_000034") == name


@pytest.mark.parametrize(
    "name",
    [
        "-_owmc0_9ic_340.mp4",
        "-_owmc0_9ic_34000_45000.mp4",
        "-_owmc0_9ic_000035.mp4",
        "-_Owmc0_9ic_000034.mp4",  # YouTube ids are case-sensitive
        "x-_owmc0_9ic_000034.mp4",
        "-_owmc0_9ic_000034.wav",
        "-_owmc0_9ic_000034.mp4.part",
        "-_owmc0_9ic_000034.f137.mp4",
        ".hidden/-_owmc0_9ic_000034.mp4",
        "-_owmc0_9ic.mp4",
    ],
)
def test_other_vggsound_file_names_do_not_match(tmp_path: Path, name: str) -> None:
    assert found("vggsound", touch(tmp_path, name), "-_owmc0_9ic_000034") is None


def test_clips_of_one_video_do_not_take_each_others_files(tmp_path: Path) -> None:
    touch(tmp_path, "aaaaaaaaaaa_30000_40000.mp4", "aaaaaaaaaaa_30.avi", "aaaaaaaaaaa_000003.mp4")
    assert found("vggsound", tmp_path, "aaaaaaaaaaa_000030") == "aaaaaaaaaaa_30.avi"
    assert found("vggsound", tmp_path, "aaaaaaaaaaa_030000") is None
    assert found("vggsound", tmp_path, "aaaaaaaaaaa_000003") == "aaaaaaaaaaa_000003.mp4"
    assert found("vggsound", tmp_path, "aaaaaaaaaaa_000000") is None


def test_an_id_that_ends_in_digits_is_found(tmp_path: Path) -> None:
    touch(tmp_path, "aaaa_000001_3000_13000.mp4")
    assert found("vggsound", tmp_path, "aaaa_000001_000003") == "aaaa_000001_3000_13000.mp4"


def test_file_names_are_preferred_in_a_fixed_order(tmp_path: Path) -> None:
    names = [
        "z/aaaaaaaaaaa_000000.mp4",
        "y/aaaaaaaaaaa_000000.mkv",
        "a/aaaaaaaaaaa_0.mp4",
        "a/aaaaaaaaaaa_0_10000.mp4",
    ]
    touch(tmp_path, *names, "zz/aaaaaaaaaaa_000000.mp4")
    for name in names:  # each is preferred to the following ones
        assert found("vggsound", tmp_path, "aaaaaaaaaaa_000000") == name
        (tmp_path / name).unlink()
        (tmp_path / "zz/aaaaaaaaaaa_000000.mp4").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("--4-0ihtnBU_000058_000068", "dribbling/--4-0ihtnBU_000058_000068.mp4"),
        ("--4-0ihtnBU_000058_000068", "--4-0ihtnBU_58_68.mp4"),
        ("--4-0ihtnBU_000058_000068", "--4-0ihtnBU_000058.mp4"),
        ("--4-0ihtnBU_000058_000068", "--4-0ihtnBU_58.mp4"),
        ("--4-0ihtnBU_000058_000068", "--4-0ihtnBU_58000_68000.mp4"),
        ("--4-0ihtnBU_000058_000061", "--4-0ihtnBU_58_61.mp4"),
        ("-C52lVsuJvg_33", "-C52lVsuJvg_33.mp4"),
        ("-C52lVsuJvg_33", "-C52lVsuJvg_000033.mp4"),
        ("-C52lVsuJvg_33", "-C52lVsuJvg_000033_000043.mp4"),
        ("-C52lVsuJvg_33", "-C52lVsuJvg_33_43.mp4"),
    ],
)
def test_variants_of_kinetics_file_names_are_found(tmp_path: Path, key: str, name: str) -> None:
    assert found("kinetics-sounds", touch(tmp_path, name), key) == name


def test_a_kinetics_file_name_with_another_end_is_another_clip(tmp_path: Path) -> None:
    assert found("kinetics-sounds", touch(tmp_path, "--4-0ihtnBU_58_68.mp4"), "--4-0ihtnBU_000058_000061") is None


def test_cremad_clips_have_a_separate_audio_file(tmp_path: Path) -> None:
    touch(tmp_path, "VideoFlash/1001_IEO_NEU_XX.flv", "AudioWAV/1001_IEO_NEU_XX.wav", "VideoFlash/1001_IEO_HAP_LO.flv")
    touch(tmp_path, "AudioWAV/1001_IEO_SAD_LO.wav")
    locator = Locator("cremad", tmp_path)
    assert locator.find(Clip("1001_IEO_NEU_XX", "train", "NEU")) == Source(
        tmp_path / "VideoFlash/1001_IEO_NEU_XX.flv", tmp_path / "AudioWAV/1001_IEO_NEU_XX.wav"
    )
    assert locator.find(Clip("1001_IEO_HAP_LO", "train", "HAP")) == Source(tmp_path / "VideoFlash/1001_IEO_HAP_LO.flv")
    assert locator.find(Clip("1001_IEO_SAD_LO", "train", "SAD")) is None


@pytest.mark.parametrize(
    "name",
    [
        "HandstandPushups/v_HandStandPushups_g01_c01.avi",
        "UCF-101/HandstandPushups/v_HandStandPushups_g01_c01.avi",
        "HandStandPushups/v_HandstandPushups_g01_c01.mp4",
        "v_handstandpushups_g01_c01.avi",
    ],
)
def test_variants_of_ucf101_file_names_are_found(tmp_path: Path, name: str) -> None:
    path = "HandstandPushups/v_HandStandPushups_g01_c01.avi"
    assert found("ucf101", touch(tmp_path, name), "v_HandStandPushups_g01_c01", path) == name


def test_ucf101_prefers_the_path_in_the_list(tmp_path: Path) -> None:
    path = "Archery/v_Archery_g01_c01.avi"
    touch(tmp_path, "AA/v_Archery_g01_c01.avi", "Archery/v_Archery_g01_c01.mp4", path)
    assert found("ucf101", tmp_path, "v_Archery_g01_c01", path) == path


def test_a_folder_dataset_finds_only_the_given_path(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.mp4", "y.mp4")
    assert found("folder", tmp_path, "x", "a/x.mp4") == "a/x.mp4"
    assert found("folder", tmp_path, "y", "a/y.mp4") is None
    assert found("folder", tmp_path, "a", "a") is None


def test_links_are_followed_without_loops(tmp_path: Path) -> None:
    videos = touch(tmp_path / "videos", "b/aaaaaaaaaaa_000001.mp4")
    touch(tmp_path / "disk", "bbbbbbbbbbb_000001.mp4", "sub/ccccccccccc_000001.mp4")
    (videos / "a").symlink_to(videos / "b")  # visited before `b`, which must still be found
    (videos / "b" / "loop").symlink_to(videos)
    (videos / "self").symlink_to("self")
    (videos / "dead.mp4").symlink_to("nowhere.mp4")
    (videos / "disk").symlink_to(tmp_path / "disk")
    (videos / "disk2").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(videos / "b")
    (videos / "ddddddddddd_000001.mp4").symlink_to(tmp_path / "disk" / "bbbbbbbbbbb_000001.mp4")
    assert sorted(walk(videos)) == [
        "b/aaaaaaaaaaa_000001.mp4",
        "ddddddddddd_000001.mp4",
        "disk/bbbbbbbbbbb_000001.mp4",
        "disk/sub/ccccccccccc_000001.mp4",
    ]
    assert found("vggsound", videos, "ddddddddddd_000001") == "ddddddddddd_000001.mp4"


def test_deeply_nested_folders_are_searched(tmp_path: Path) -> None:
    deep = "/".join(["d"] * 500)
    assert list(walk(touch(tmp_path, f"{deep}/x.mp4"))) == [f"{deep}/x.mp4"]


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("a.b/x.MP4", ("x", ".mp4")),
        ("x.tar.gz", ("x.tar", ".gz")),
        ("a.b/x", ("x", "")),
        (".mp4", (".mp4", "")),
    ],
)
def test_split_name_separates_the_extension(path: str, parts: tuple[str, str]) -> None:
    assert split_name(path) == parts


def test_a_missing_folder_and_an_unknown_dataset_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="is not a folder"):
        Locator("vggsound", tmp_path / "nothing")
    with pytest.raises(ManifestError, match="'vgg': must be one of vggsound"):
        Locator("vgg", tmp_path)
