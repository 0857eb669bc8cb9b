"""The `folder` dataset: one folder per class, or a CSV file of clips."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bmlpipe.manifests.datasets import read_manifest
from bmlpipe.manifests.locate import Locator
from bmlpipe.manifests.schema import ManifestError


def touch(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    return folder


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "clips.csv"
    path.write_text(text, encoding="utf-8")
    return path


# --- one folder per class


def test_one_folder_per_class_gives_labels_and_splits(tmp_path: Path) -> None:
    touch(tmp_path, *[f"{label}/{i}.mp4" for label in ("dog", "cat") for i in range(10)])
    touch(tmp_path, "cat/deep/er/x.MKV", "cat/notes.txt", ".git/y.mp4", "cat/._0.mp4", "empty/readme.md")
    manifest = read_manifest("folder", None, videos=tmp_path)
    assert manifest.classes == ("cat", "dog")
    assert manifest.counts() == {"train": 19, "val": 2, "test": 0}
    assert manifest.clips[0].id == "cat/0"
    assert "cat/deep/er/x" in {clip.id for clip in manifest.clips}
    assert any("2 of 21 training clips become the validation split" in note for note in manifest.notes)


def test_split_folders_contain_class_folders(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/a.mp4", "train/dog/a.mp4", "val/cat/b.mp4", "test/fox/c.avi", "train/loose.mp4")
    manifest = read_manifest("folder", None, videos=tmp_path)
    assert [(clip.id, clip.split, clip.label) for clip in manifest.clips] == [
        ("test/fox/c", "test", "fox"),
        ("train/cat/a", "train", "cat"),
        ("train/dog/a", "train", "dog"),
        ("val/cat/b", "val", "cat"),
    ]
    assert manifest.classes == ("cat", "dog", "fox")
    assert manifest.notes == ("1 video files outside of class folders were left out, the first is train/loose.mp4",)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.mp4", "plane/a.mp4")
    assert read_manifest("folder", None, videos=tmp_path).classes == ("plane", "train")


def test_a_mix_of_split_and_class_folders_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/a.mp4", "test/cat/a.mp4", "extra/a.mp4")
    with pytest.raises(ManifestError, match="test, train and extra, which is not a split"):
        read_manifest("folder", None, videos=tmp_path)


def test_same_stem_in_two_containers_gives_two_ids(tmp_path: Path) -> None:
    touch(tmp_path, "c/a.mp4", "c/a.avi", "c/a.mp4.avi", "c/b.mp4")
    manifest = read_manifest("folder", None, videos=tmp_path)
    assert [clip.id for clip in manifest.clips] == ["c/a.avi", "c/a.mp4", "c/a.mp4.avi", "c/b"]


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no video files .*and 1 outside"):
        read_manifest("folder", None, videos=touch(tmp_path, "a.mp4"))
    with pytest.raises(ManifestError, match="is not a folder"):
        read_manifest("folder", None, videos=tmp_path / "nothing")
    with pytest.raises(ManifestError, match="needs the folder of videos, or a CSV file"):
        read_manifest("folder", None)


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system accepts only UTF-8 names")
def test_a_file_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "c/a.mp4")
    (tmp_path / "c" / os.fsdecode(b"caf\xe9.mp4")).touch()
    with pytest.raises(ManifestError, match="is not UTF-8: rename"):
        read_manifest("folder", None, videos=tmp_path)


# --- CSV


def test_every_csv_column_is_read(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "\ufeffsplit,speaker,Label,path,duration,start,group,id\r\n"
        'train,ann,"cat, big",./a b/x.mp4,2.5,1.25,g1,first\r\n'
        "test,bob,dog,y.mp4,,,,\r\n",
    )
    first, second = read_manifest("folder", path).clips
    assert (first.id, first.split, first.label, first.path) == ("first", "train", "cat, big", "a b/x.mp4")
    assert (first.start, first.duration, first.group) == (1.25, 2.5, "g1")
    assert (second.id, second.path, second.start, second.duration) == ("y", "y.mp4", 0.0, None)
    assert "columns not used: speaker" in read_manifest("folder", path).notes


def test_csv_ids_are_as_short_as_possible(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "path,label,split,start,duration\n"
        "a.mp4,x,test,,\n"
        "b.mp4,x,test,0,\n"
        "b.mp4,x,test,2.5,\n"
        "c.mp4,x,test,,\n"
        "c.avi,x,test,,\n"
        "d.mp4,x,test,1,2\n"
        "d.mp4,x,test,1,3\n"
        "a.mp4,x,test,,\n",
    )
    manifest = read_manifest("folder", path)
    ids = [clip.id for clip in manifest.clips]
    assert ids == ["a", "b@0", "b@2.5", "c.mp4", "c.avi", "d.mp4@1+2", "d.mp4@1+3"]
    assert any("1 repeated rows dropped, the first at clips.csv, line 9" in note for note in manifest.notes)


def test_csv_numeric_classes_are_sorted_as_numbers(tmp_path: Path) -> None:
    rows = "".join(f"{i}.mp4,{i},test\n" for i in (10, 2, 0, 1))
    assert read_manifest("folder", table(tmp_path, "path,label,split\n" + rows)).classes == ("0", "1", "2", "10")


def test_csv_groups_are_kept_together(tmp_path: Path) -> None:
    rows = "".join(f"{i}.mp4,x,train,speaker{i % 5}\n" for i in range(50))
    clips = read_manifest("folder", table(tmp_path, "path,label,split,group\n" + rows)).clips
    val = {clip.group for clip in clips if clip.split == "val"}
    assert val
    assert not val & {clip.group for clip in clips if clip.split == "train"}


def test_csv_absolute_paths_must_be_inside_the_folder_of_videos(tmp_path: Path) -> None:
    path = table(tmp_path, f"path,label,split\n{tmp_path / 'videos' / 'c' / 'x.mp4'},x,test\n")
    touch(tmp_path / "videos", "c/x.mp4")
    clip = read_manifest("folder", path, videos=tmp_path / "videos").clips[0]
    assert (clip.id, clip.path) == ("c/x", "c/x.mp4")
    with pytest.raises(ManifestError, match=r"line 2: path .* must name a file inside"):
        read_manifest("folder", path, videos=touch(tmp_path / "other", "y.mp4"))


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.mp4", "a/../../x.mp4", "a/../x.mp4", "..", ".", '""'])
def test_csv_paths_must_not_leave_the_folder_of_videos(tmp_path: Path, name: str) -> None:
    path = table(tmp_path, f"path,label,split\na.mp4,x,train\n{name},x,train\n")
    with pytest.raises(ManifestError, match=r"clips.csv, line 3: path .* must name a file inside"):
        read_manifest("folder", path, videos=tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path;label;split\n", "line 1: .*lacks the columns path, label, split"),
        ("path,label,split,path\n", "line 1: a column occurs twice"),
        ("path,label,split\n", "a header and no clips"),
        ("", "line 1: .*lacks the columns"),
        ("path,label,split\na.mp4,x\n", "line 2: the row has 2 fields"),
        ("path,label,split\na.mp4,,train\n", "line 2: the label is empty"),
        ("path,label,split\na.mp4,x,dev\n", "line 2: split is 'dev'"),
        ("path,label,split,start\na.mp4,x,test,1:30\n", "line 2: start is '1:30': must be a number"),
        ("path,label,split,start\na.mp4,x,test,-1\n", "line 2: start is '-1': must be finite"),
        ("path,label,split,start\na.mp4,x,test,nan\n", "line 2: start is 'nan': must be finite"),
        ("path,label,split,duration\na.mp4,x,test,0\n", "line 2: duration is 0"),
        (
            "path,label,split\na.mp4,x,test\na.mp4,y,test\n",
            "line 3: clip 'a.mp4' contradicts .* line 2: label 'y' and 'x'",
        ),
        (
            "path,label,split,id\na.mp4,x,test,k\nb.mp4,x,test,k\n",
            "line 3: clip 'k' contradicts clips.csv, line 2: path",
        ),
    ],
)
def test_a_faulty_csv_file_is_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read_manifest("folder", table(tmp_path, text))


def test_every_scanned_clip_is_located(tmp_path: Path) -> None:
    touch(tmp_path / "v", "a/1.mp4", "a/b/1.mp4", "c/1.webm")
    touch(tmp_path / "elsewhere", "2.mp4")
    (tmp_path / "v" / "d").symlink_to(tmp_path / "elsewhere")
    clips = read_manifest("folder", None, videos=tmp_path / "v").clips
    locator = Locator("folder", tmp_path / "v")
    found = [locator.find(clip) for clip in clips]
    assert [source and source.video for source in found] == [tmp_path / "v" / clip.path for clip in clips]
    assert len(found) == 4
