"""`bmlpipe inspect`: selection of samples, the image and the HTML page, and the report of failed clips."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from click.testing import Result
from PIL import Image

from bmlpipe.pipeline.front_ends.spectrogram import log_spectrogram
from bmlpipe.pipeline.front_ends.waveform import encode_waveform
from bmlpipe.pipeline.inspection.samples import (
    SampleSelection,
    samples_from_features,
    samples_from_shards,
)
from bmlpipe.pipeline.store.folder import FeatureFolder
from bmlpipe.pipeline.store.reasons import REASONS
from bmlpipe.shards.index import SAMPLES_FILE
from bmlpipe.shards.kinds import KINDS, kind_of
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.sample import Sample, key_of
from bmlpipe.shards.writer import ShardWriter

Command = Callable[..., Result]

SPECTROGRAM, WAVEFORM = KINDS["spectrogram"].member, KINDS["waveform"].member


def npy(values: npt.NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, values.astype(np.float16))
    return file.getvalue()


# ----- selection -----


def chosen(shards: Path | str, **selection: Any) -> list[str]:
    return [sample.key for sample in samples_from_shards(ShardReader(shards), SampleSelection(**selection))]


def test_samples_are_selected_by_name_split_class_or_at_random(toy_shards: Path) -> None:
    assert chosen(toy_shards, names=("test-004", "train-000")) == ["test-004", "train-000"]
    first = chosen(toy_shards, count=8)
    assert first == chosen(toy_shards, count=8)
    assert len(set(first)) == 8
    assert first != chosen(toy_shards, count=8, seed=1)
    assert {key.split("-")[0] for key in chosen(toy_shards, count=30)} == {"train", "val", "test"}
    val = chosen(toy_shards, count=1000, split="val")
    assert sorted(val) == [f"val-{number:03d}" for number in range(24)]
    wanted = chosen(toy_shards, count=1000, split="test", label="b")
    assert sorted(wanted) == [f"test-{number:03d}" for number in range(1, 25, 4)]


def flagged(out: Path, flags: Callable[[int], list[str]]) -> Path:
    """Shards of 60 samples without features; sample n has the flags `flags(n)`."""
    with ShardWriter(out, dataset="t", classes=["a"], features={}, samples_per_shard=10) as writer:
        for number in range(60):
            clip = f"clip.{number}"
            writer.write("train", Sample(key_of(clip), 0, {}, {"id": clip, "flags": flags(number)}))
    return out


def test_a_search_for_flags_stops_when_all_samples_are_found(tmp_path: Path) -> None:
    shards = flagged(tmp_path / "s", lambda n: ["silent_audio"] if n % 20 == 0 else ["still_video"] if n == 7 else [])
    reads: list[int] = []

    def found(*flags: str, **selection: Any) -> list[str]:
        reads.clear()
        choice = SampleSelection(flags=flags, **selection)
        return [str(s.meta["id"]) for s in samples_from_shards(ShardReader(shards), choice, lambda: reads.append(1))]

    assert sorted(found("silent_audio")) == ["clip.0", "clip.20", "clip.40"]
    assert len(reads) < 60  # the index counts three
    assert set(found("silent_audio", "still_video")) == {"clip.0", "clip.20", "clip.40", "clip.7"}
    assert len(found("silent_audio", count=1)) == 1
    assert found("black_video") == []
    assert not reads
    assert chosen(shards, names=("clip.7",)) == [key_of("clip.7")]  # by id


def test_few_remote_shards_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = flagged(tmp_path / "s", lambda n: [])
    monkeypatch.setenv("BMLPIPE_CACHE", str(tmp_path / "cache"))
    address = f"file://{shards}"
    reader = ShardReader(address)
    fetched: list[int] = []
    assert reader.remote is not None
    original = reader.remote.open

    def record(shard: int) -> Any:
        fetched.append(shard)
        return original(shard)

    monkeypatch.setattr(reader.remote, "open", record)
    keys = [sample.key for sample in samples_from_shards(reader, SampleSelection(count=6))]
    assert len(set(keys)) == 6
    assert len(set(fetched)) == 1
    assert len(list(samples_from_shards(reader, SampleSelection(count=25)))) == 25
    assert len(set(fetched)) == 3


# ----- image and page -----


def test_samples_of_shards_are_drawn_to_an_image_and_a_page(bmlpipe: Command, toy_shards: Path, tmp_path: Path) -> None:
    result = bmlpipe("inspect", toy_shards, "--random", 3, "--split", "val", "--out", tmp_path / "s.png")
    assert (result.exit_code, result.stdout) == (0, f"3 samples: {tmp_path / 's.png'}\n")
    picture = np.asarray(Image.open(tmp_path / "s.png").convert("RGB"))
    assert picture.shape[1] == 1920
    assert picture.shape[0] % 3 == 0
    for part in np.split(picture, 3):
        assert 0.05 < (part < 250).any(axis=2).mean() < 0.95
    result = bmlpipe("inspect", toy_shards, "--key", "val-003", "--out", tmp_path / "s.html")
    assert (result.exit_code, result.stdout) == (0, f"1 sample: {tmp_path / 's.html'}\n")
    page = Page.of(tmp_path / "s.html")
    sample = ShardReader(toy_shards)[int(np.flatnonzero(ShardReader(toy_shards).index.samples["key"] == b"val-003")[0])]
    jpegs = [base64.b64decode(source.split(",")[1]) for source in page.sources if source.startswith("data:image/jpeg")]
    assert jpegs == [bytes(sample.members[f"frame_{at:03d}.jpg"]) for at in range(4)]
    assert "d · val3" in page.text  # class and id
    assert re.findall(r"\d\.\d\d s", page.text)[:4] == ["0.00 s", "1.00 s", "2.00 s", "3.00 s"]


class Page(HTMLParser):
    """The tags, attributes and text of an HTML file."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""

    @classmethod
    def of(cls, path: Path) -> Page:
        page = cls()
        page.feed(path.read_text(encoding="utf-8"))
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != ["style"]:
            self.text += data


def test_a_page_executes_nothing_and_loads_nothing(bmlpipe: Command, tmp_path: Path) -> None:
    """Ids, classes, flags and sources may contain HTML, and formulas of matplotlib."""
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)> $\\frac{{{ 7*7 }}{% x %}$ 音'
    jpeg = simplejpeg.encode_jpeg(np.full((40, 48, 3), 90, np.uint8), colorspace="RGB")
    sound = 0.3 * np.sin(np.arange(16000) / 5).astype(np.float32)
    members = {"frame_000.jpg": jpeg, WAVEFORM: encode_waveform(sound)}
    members[SPECTROGRAM] = npy(log_spectrogram(sound))
    meta = {"id": evil, "label": evil, "split": "train", "flags": ["silent_audio", evil], "source": [evil]}
    meta |= {
        "frames": {"times": [0.0], "height": 40, "width": 48},
        "media": {"video_codec": evil, "width": 1, "height": 2},
    }
    out = tmp_path / "s"
    with ShardWriter(out, dataset="t", classes=[evil], features={"spectrogram": {"preset": evil}}) as writer:
        writer.write("train", Sample(key_of(evil), 0, members, meta))
    for name in ("sheet.html", "sheet.png"):
        assert bmlpipe("inspect", out, "--id", evil, "--out", tmp_path / name).exit_code == 0
    page = Page.of(tmp_path / "sheet.html")
    assert not {"script", "iframe", "link", "object"} & set(page.tags)
    assert not {name for name in page.attributes if name.startswith("on")}
    assert all(source.startswith(("data:image/", "data:audio/flac;", "#s1")) for source in page.sources)
    assert page.text.count(evil) >= 4
    assert "No sample reaches −60 dBFS" in page.text
    assert {"audio", "details"} <= set(page.tags)
    assert "default-src 'none'" in (tmp_path / "sheet.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--key", "nothing"], 1, "has no sample with the key or id 'nothing'"),
        (["--label", "e"], 1, "there is no class 'e'"),
        (["--split", "tset"], 1, "no samples of split 'tset'"),
        (["--flag", "silent"], 1, "no sample of"),
        (["--flag", "loud"], 2, "there is no flag 'loud'"),
        (["--key", "val-003", "--random", "2"], 2, "excludes --random"),
        (["--out", "sheet.pdf"], 2, "must end in .png or .html"),
        (["--csv"], 2, "--csv needs --failed"),
        (["--failed", "--split", "val"], 2, "excludes --split"),
        (["--failed"], 2, "holds no ledger.csv"),
    ],
)
def test_invalid_options_are_refused(
    bmlpipe: Command, toy_shards: Path, words: list[str], status: int, message: str
) -> None:
    result = bmlpipe("inspect", toy_shards, *words)
    assert (result.exit_code, message in result.stderr) == (status, True), result.stderr
    assert not Path("sheet.png").exists()


def test_a_folder_without_shards_or_features_is_refused(bmlpipe: Command, tmp_path: Path) -> None:
    result = bmlpipe("inspect", tmp_path)
    assert (result.exit_code, "holds neither index.json nor ledger.csv" in result.stderr) == (1, True)
    (tmp_path / SAMPLES_FILE).write_bytes(b"")
    assert bmlpipe("inspect", tmp_path).exit_code == 1


# ----- a feature folder -----


@pytest.fixture(scope="module")
def features(bmlpipe: Command, tmp_path_factory: pytest.TempPathFactory, make_clip: Callable[..., Path]) -> Path:
    """Features of nine clips: two good, one silent, four web pages, one empty file and one absent."""
    folder = tmp_path_factory.mktemp("inspect")
    videos, rows = folder / "videos", []
    (videos / "x").mkdir(parents=True)
    for name, tone in (("good0", 500.0), ("good1", 900.0), ("mute", 0.0)):
        make_clip(videos / "x" / f"{name}.mp4", seconds=1.2, size=(48, 32), tone=tone)
        rows.append((f"x/{name}.mp4", "x", "train"))
    for number in range(4):
        (videos / "x" / f"page{number}.mp4").write_text("<html>gone, and, <b>commas</b></html>")
        rows.append((f"x/page{number}.mp4", "x", ("train", "val")[number == 3]))
    (videos / "x" / "empty.mp4").touch()
    rows += [("x/empty.mp4", "x", "train"), ("x/absent.mp4", "x", "test")]
    with (folder / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    result = bmlpipe(
        *("extract", "--dataset", "folder", "--videos", videos, "--annotations", folder / "clips.csv"),
        *("--out", folder / "features", "--kinds", "frames,spectrogram,waveform,flow,rgb_diff", "--seconds", 1),
        *("--short-side", 32, "--workers", 0, "--max-failed", 1),
    )
    assert result.stdout.startswith("ok 3, failed 5, absent 1")
    return folder / "features"


def test_clips_of_a_feature_folder_are_inspected_like_samples(bmlpipe: Command, features: Path, tmp_path: Path) -> None:
    def selected(*names: str, **selection: Any) -> list[str]:
        found = samples_from_features(features, SampleSelection(names, **selection))
        return sorted(str(sample.meta["id"]) for sample in found)

    (one,) = samples_from_features(features, SampleSelection(("x/good1",)))
    assert (one.key, one.source) == (key_of("x/good1"), "x/good1.mp4")
    assert one.features["spectrogram"]["preset"] == "vggsound"
    assert {kind_of(member) for member in one.members} == set(KINDS)
    assert selected(one.key) == ["x/good1"]
    assert selected() == ["x/good0", "x/good1", "x/mute"]
    assert selected(flags=("silent_audio",)) == ["x/mute"]
    assert selected(split="val") == []
    result = bmlpipe("inspect", features, "--flag", "silent", "--out", tmp_path / "s.html")
    assert (result.exit_code, result.stdout.startswith("1 sample:")) == (0, True)
    assert "silent_audio" in Page.of(tmp_path / "s.html").text
    result = bmlpipe("inspect", features, "--id", "x/page1")
    assert (result.exit_code, "x/page1 has no features: failed, not_media" in result.stderr) == (1, True)
    assert "no clip with the id or key 'y'" in bmlpipe("inspect", features, "--id", "y").stderr


def test_failed_clips_are_counted_and_explained_with_examples(bmlpipe: Command, features: Path) -> None:
    result = bmlpipe("inspect", features, "--failed")
    assert result.exit_code == 0
    assert result.stdout.startswith("9 clips: ok 3, failed 5, absent 1\n")
    assert re.findall(r"^(\w+): (\d+) \((.*)\)$", result.stdout, re.MULTILINE) == [
        ("not_media", "4", "44.4%; train 3, val 1"),
        ("empty_file", "1", "11.1%; train 1"),
        ("not_found", "1", "11.1%; test 1"),
    ]
    text = " ".join(result.stdout.split())
    for reason in ("not_media", "empty_file", "not_found"):
        assert REASONS[reason].cause in text
        assert f"remedy: {REASONS[reason].remedy}" in text
    assert "x/page0 x/page0.mp4" in text
    assert "x/page3" not in text
    assert "… and 1 more" in text
    assert f"{features.parent}/videos/x/empty.mp4" in text


def test_failed_clips_are_listed_as_csv(bmlpipe: Command, features: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(bmlpipe("inspect", features, "--failed", "--csv").stdout)))
    assert [(row["id"], row["split"], row["status"], row["reason"]) for row in rows] == [
        *((f"x/page{n}", "val" if n == 3 else "train", "failed", "not_media") for n in range(4)),
        ("x/empty", "train", "failed", "empty_file"),
        ("x/absent", "test", "absent", "not_found"),
    ]
    assert rows[4]["source"] == "x/empty.mp4"
    assert all(row["message"] for row in rows)


def test_a_running_extraction_can_be_inspected(bmlpipe: Command, features: Path) -> None:
    row = ["x/page0", "train", "ok", "", "", "", "x/page0.mp4", "", ""]
    FeatureFolder(features).ledger_log.write_text(json.dumps(row) + "\n")
    try:
        result = bmlpipe("inspect", features, "--failed")
    finally:
        FeatureFolder(features).ledger_log.unlink()
    assert "running or was interrupted" in result.stderr
    assert result.stdout.startswith("9 clips: ok 4, failed 4, absent 1\n")
