"""The table of clips reads back exactly, and inconsistent tables are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from bmlpipe.manifests.schema import Clip, Manifest, ManifestError, read_clips, write_clips


def test_clips_with_unusual_names_read_back_exactly(tmp_path: Path) -> None:
    clips = [
        Clip("-a_b", "train", "x, y", "d/-a_b.mp4", 0.1, None, "g"),
        Clip('q"uote\rd\n', "val", "ö", "caf\udce9.mp4", 1 / 3, 2.5),
    ]
    write_clips(clips, tmp_path / "manifest.csv")
    assert read_clips(tmp_path / "manifest.csv") == clips


@pytest.mark.parametrize("text", ["", "id,split\n", "id,split,label,path,start,duration,group\na,train,x,p,zero,,\n"])
def test_a_malformed_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError, match=r"manifest\.csv"):
        read_clips(tmp_path / "manifest.csv")


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([Clip("a", "train", "x"), Clip("a", "test", "x")], "'a' occurs twice"),
        ([Clip("a", "train", "y")], "label 'y'"),
        ([Clip("a", "dev", "x")], "split 'dev'"),
    ],
)
def test_an_inconsistent_manifest_is_refused(clips: list[Clip], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        Manifest("folder", ("x",), clips)
