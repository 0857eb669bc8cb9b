"""Plans and runs of an extraction: one row per clip in the ledger, and only missing features are extracted.

In most tests a stand-in for `extract_clip` derives features from the bytes of a file, without decoding.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bmlpipe.manifests.common.locks import exclusive_folder
from bmlpipe.manifests.schema import Clip, Manifest, read_clips
from bmlpipe.pipeline.extraction import worker as work
from bmlpipe.pipeline.extraction.plan import ExtractionPlan, make_plan
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.extraction.run import run_extraction
from bmlpipe.pipeline.front_ends.features import ArrayFeature, ClipFeatures, Feature, FlacSound, JpegSeries
from bmlpipe.pipeline.front_ends.flow import FlowOptions
from bmlpipe.pipeline.front_ends.frames import FrameOptions
from bmlpipe.pipeline.front_ends.rgb_diff import RgbDiffOptions
from bmlpipe.pipeline.front_ends.spectrogram import SpectrogramOptions
from bmlpipe.pipeline.front_ends.waveform import WaveformOptions
from bmlpipe.pipeline.media.errors import ClipError
from bmlpipe.pipeline.store.errors import ExtractionError, StoreWriteError
from bmlpipe.pipeline.store.feature_file import FeatureStore
from bmlpipe.pipeline.store.ledger import NOT_TRIED, known_rows, read_ledger

FRAMES = ExtractionRequest((FrameOptions(),), 3)
BOTH = ExtractionRequest((FrameOptions(), SpectrogramOptions()), 3)
ALL = replace(BOTH, front_ends=(*BOTH.front_ends, FlowOptions(), RgbDiffOptions(), WaveformOptions()))

CONTENTS = {
    "a/one.mp4": b"one",
    "a/two.mp4": b"two",
    "b/bad.mp4": b"bad: broken",
    "b/four.mp4": b"four",
    "b/bug.mp4": b"bug",
}


class Decoder:
    """Stand-in for `extract_clip` that records the file and the requested kinds of each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        self.before: Callable[[Path], None] = lambda path: None

    def __call__(
        self, video: Path, request: ExtractionRequest, *, audio: Path | None, start: float, duration: float | None
    ) -> ClipFeatures:
        self.calls.append((video.name, request.kinds))
        self.before(video)
        content = video.read_bytes()
        if content.startswith(b"bad"):
            raise ClipError("damaged_container", f"{video} is cut off\nor damaged")
        if content.startswith(b"bug"):
            raise IndexError("list index out of range")
        if content.startswith(b"big"):
            raise MemoryError
        seed = f"{content!r} {start} {duration}".encode()
        values = np.frombuffer(hashlib.sha512(seed).digest(), np.uint8).astype(np.float16)[None]
        side = request.parameters["frames"]["short_side"] if "frames" in request.kinds else 0
        made: dict[str, Feature] = {
            "frames": JpegSeries((seed + bytes(side),), (0.0,), 16, 16),
            "spectrogram": ArrayFeature(values),
            "flow": JpegSeries((seed, seed), (0.0,), 16, 16, {"stack": 1, "bound": 20.0}),
            "rgb_diff": JpegSeries((seed,), (0.0,), 16, 16, {"stack": 1}),
            "waveform": FlacSound(seed),
        }
        return ClipFeatures(
            {kind: made[kind] for kind in request.kinds},
            flags=("short_audio",) if "spectrogram" in request.kinds else (),
            media={"rotation": 0, "width": 16} if "frames" in request.kinds else {"width": 16},
        )

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> Decoder:
    stand_in = Decoder()
    monkeypatch.setattr(work, "extract_clip", stand_in)
    return stand_in


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    for name, content in CONTENTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        os.utime(folder / name, ns=(10**18, 10**18))
    return folder


def manifest_of(paths: list[str]) -> Manifest:
    splits = ("train", "test", "val")
    clips = [Clip(path[:-4], splits[i % 3], path[0], path) for i, path in enumerate(paths)]
    return Manifest("folder", ("a", "b"), clips)


#: One clip, `a/gone`, has no file.
MANIFEST = manifest_of(["b/four.mp4", "a/one.mp4", "a/gone.mp4", "b/bad.mp4", "a/two.mp4", "b/bug.mp4"])


def extract(
    videos: Path, out: Path, request: ExtractionRequest = BOTH, manifest: Manifest = MANIFEST, retry: str | None = None
) -> ExtractionPlan:
    with exclusive_folder(out, "extraction"):
        plan = make_plan(manifest, videos, out, request, retry_failed=retry)
        counts = run_extraction(plan, workers=0, batch=2)
    assert counts.total() == len(manifest.clips)
    assert [row.id for row in read_ledger(out)] == [clip.id for clip in manifest.clips]
    return plan


def test_every_row_of_the_manifest_is_ok_failed_or_absent(videos: Path, tmp_path: Path, decoder: Decoder) -> None:
    (videos / "a/two.mp4").write_bytes(b"big")
    extract(videos, tmp_path / "out")
    assert [(row.id, row.split, row.status, row.reason) for row in read_ledger(tmp_path / "out")] == [
        ("b/four", "train", "ok", ""),
        ("a/one", "test", "ok", ""),
        ("a/gone", "val", "absent", "not_found"),
        ("b/bad", "train", "failed", "damaged_container"),
        ("a/two", "test", "failed", "out_of_memory"),
        ("b/bug", "val", "failed", "internal_error"),
    ]
    by_id = known_rows(tmp_path / "out")
    assert by_id["b/bad"].message.endswith("is cut off or damaged")
    assert by_id["b/bug"].message.startswith("IndexError: list index out of range (test_extract.py:")
    assert by_id["a/one"].flags == "short_audio"
    assert by_id["a/one"].source == "a/one.mp4"
    assert decoder.names() == ["four.mp4", "one.mp4", "bad.mp4", "two.mp4", "bug.mp4"]


def test_the_feature_folder_describes_its_features(videos: Path, tmp_path: Path, decoder: Decoder) -> None:
    extract(videos, tmp_path / "out")
    about = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (about["dataset"], about["classes"]) == ("folder", ["a", "b"])
    assert about["clips"] == {"train": 2, "val": 2, "test": 2}
    assert about["features"] == BOTH.parameters
    assert read_clips(tmp_path / "out" / "manifest.csv") == list(MANIFEST.clips)
    stored = FeatureStore(tmp_path / "out").read("a/one")
    assert [source.sha256 for source in stored.sources] == [hashlib.sha256(b"one").hexdigest()]
    assert stored.software["frames"]["av"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".lock",
        "clips",
        "dataset.json",
        "ledger.csv",
        "manifest.csv",
    ]


def test_a_second_run_decodes_nothing(videos: Path, tmp_path: Path, decoder: Decoder) -> None:
    extract(videos, tmp_path / "out")
    ledger = (tmp_path / "out" / "ledger.csv").read_bytes()
    decoder.calls.clear()
    plan = extract(videos, tmp_path / "out")
    assert (decoder.calls, list(plan.tasks)) == ([], [])
    assert str(plan) == (
        "folder: 6 clips (train 2, val 2, test 2); 0 to do, 3 done before, 2 failed before, 1 without a file"
    )
    assert (tmp_path / "out" / "ledger.csv").read_bytes() == ledger


def test_only_changed_clips_are_extracted_again(videos: Path, tmp_path: Path, decoder: Decoder) -> None:
    out = tmp_path / "out"
    extract(videos, out)
    decoder.calls.clear()
    (videos / "a/two.mp4").write_bytes(b"TWO")  # changed
    os.utime(videos / "a/one.mp4")  # touched
    (videos / "b/bad.mp4").write_bytes(b"mended")
    (videos / "a/gone.mp4").write_bytes(b"found")
    FeatureStore(out).path("b/four").unlink()
    plan = extract(videos, out)
    assert len(plan.tasks) == 5
    assert sorted(decoder.names()) == ["bad.mp4", "four.mp4", "gone.mp4", "two.mp4"]
    stored = FeatureStore(out).read("a/two").features["frames"]
    assert stored is not None
    assert stored.jpegs[0].startswith(b"b'TWO'")
    assert [row.status for row in read_ledger(out)] == ["ok"] * 5 + ["failed"]
    assert not make_plan(MANIFEST, videos, out, BOTH).tasks  # the new time of the touched file is recorded


def test_a_clip_whose_file_was_removed_is_absent(videos: Path, tmp_path: Path, decoder: Decoder) -> None:
    extract(videos, tmp_path / "out")
    (videos / "a/one.mp4").unlink()
    extract(videos, tmp_path / "out")
    assert known_rows(tmp_path / "out")["a/one"].status == "absent"


def test_failed_clips_are_retried_only_on_request(videos: Path, tmp_path: Path, decoder: Decoder) -> None:
    extract(videos, tmp_path / "out")
    for retry, tried in (
        (None, []),
        ("no_such_reason", []),
        ("internal_error", ["bug.mp4"]),
        ("all", ["bad.mp4", "bug.mp4"]),
    ):
        decoder.calls.clear()
        extract(videos, tmp_path / "out", retry=retry)
        assert decoder.names() == tried


def test_other_parameters_extract_only_their_kind_again(videos: Path, tmp_path: Path, decoder: Decoder) -> None:
    out = tmp_path / "out"
    extract(videos, out, ALL)
    before = FeatureStore(out).read("a/one")
    decoder.calls.clear()
    extract(videos, out, replace(ALL, front_ends=(FrameOptions(short_side=128), *ALL.front_ends[1:])))
    assert set(decoder.calls) == {(name.rpartition("/")[2], ("frames",)) for name in CONTENTS} - {
        ("bad.mp4", ("frames",)),
        ("bug.mp4", ("frames",)),
    } | {("bad.mp4", ALL.kinds), ("bug.mp4", ALL.kinds)}
    after = FeatureStore(out).read("a/one")
    assert after.parameters["frames"]["short_side"] == 128
    assert after.features["frames"] != before.features["frames"]
    assert after.features["flow"] == before.features["flow"]
    assert after.parameters["spectrogram"] == before.parameters["spectrogram"]


def test_a_kind_added_later_gives_the_same_file_as_all_at_once(videos: Path, tmp_path: Path, decoder: Decoder) -> None:
    once, later = tmp_path / "once", tmp_path / "later"
    extract(videos, once, ALL)
    for request in (FRAMES, ExtractionRequest((SpectrogramOptions(),), 3), ALL):
        decoder.calls.clear()
        extract(videos, later, request)
    assert ("one.mp4", ALL.kinds[2:]) in decoder.calls
    for clip_id in ("a/one", "a/two", "b/four"):
        paths = [FeatureStore(folder).path(clip_id) for folder in (once, later)]
        assert paths[0].read_bytes() == paths[1].read_bytes()
    assert json.loads((later / "dataset.json").read_text())["features"] == ALL.parameters
    decoder.calls.clear()
    extract(videos, later, FRAMES)  # fewer kinds: no clip is decoded, and no feature is lost
    assert set(decoder.names()) == {"bad.mp4", "bug.mp4"}
    assert FeatureStore(later).read("a/one").parameters.keys() == ALL.parameters.keys()


def test_damaged_features_are_extracted_again(videos: Path, tmp_path: Path, decoder: Decoder) -> None:
    out = tmp_path / "out"
    extract(videos, out, FRAMES)
    path = FeatureStore(out).path("a/one")
    whole = path.read_bytes()
    at = whole.index(b"b'one'")
    path.write_bytes(whole[:at] + b"X" + whole[at + 1 :])
    decoder.calls.clear()
    extract(videos, out, ALL)
    assert ("one.mp4", ALL.kinds) in decoder.calls
    assert ("two.mp4", ALL.kinds[1:]) in decoder.calls
    assert known_rows(out)["a/one"].status == "ok"


def test_another_span_of_the_same_file_is_another_clip(videos: Path, tmp_path: Path, decoder: Decoder) -> None:
    def manifest(start: float, duration: float | None) -> Manifest:
        return Manifest("folder", ("a",), [Clip("x", "train", "a", "a/one.mp4", start, duration)])

    for start, duration, times in ((0.0, None, 1), (1.5, None, 1), (1.5, 2.0, 1), (1.5, 2.0, 0)):
        decoder.calls.clear()
        extract(videos, tmp_path / "out", manifest=manifest(start, duration))
        assert len(decoder.calls) == times
        assert FeatureStore(tmp_path / "out").read("x").clip == (start, duration)


def test_another_file_of_equal_size_and_time_is_noticed(videos: Path, tmp_path: Path, decoder: Decoder) -> None:
    """Archives often contain files without times."""
    for path in ("a/one.mp4", "a/two.mp4"):
        extract(videos, tmp_path / "out", manifest=Manifest("folder", ("a",), [Clip("x", "train", "a", path)]))
    assert decoder.names() == ["one.mp4", "two.mp4"]


def test_a_file_that_grows_while_it_is_read_is_extracted_again(videos: Path, tmp_path: Path, decoder: Decoder) -> None:
    def grow(path: Path) -> None:
        if path.name == "one.mp4":
            path.write_bytes(b"one, and the rest of the download")

    decoder.before = grow
    extract(videos, tmp_path / "out")
    decoder.calls.clear()
    extract(videos, tmp_path / "out")
    assert decoder.names() == ["one.mp4"]


def test_a_clip_that_moved_to_another_split_is_not_decoded_again(
    videos: Path, tmp_path: Path, decoder: Decoder
) -> None:
    extract(videos, tmp_path / "out")
    decoder.calls.clear()
    moved = replace(MANIFEST, clips=[replace(clip, split="test") for clip in MANIFEST.clips])
    extract(videos, tmp_path / "out", manifest=moved)
    assert "one.mp4" not in decoder.names()
    assert {row.split for row in read_ledger(tmp_path / "out")} == {"test"}


def test_the_ledger_follows_the_manifest_of_the_last_run(videos: Path, tmp_path: Path, decoder: Decoder) -> None:
    extract(videos, tmp_path / "out")
    fewer = replace(MANIFEST, clips=list(MANIFEST.clips)[3:0:-1])
    plan = extract(videos, tmp_path / "out", manifest=fewer)
    assert not plan.tasks
    extract(videos, tmp_path / "out")  # with all rows again


@pytest.mark.parametrize("stop", [KeyboardInterrupt, StoreWriteError])
def test_a_stopped_run_leaves_a_complete_ledger_and_is_resumed(
    videos: Path, tmp_path: Path, decoder: Decoder, stop: type[BaseException]
) -> None:
    out = tmp_path / "out"

    def stop_at_two(path: Path) -> None:
        if path.name == "two.mp4":
            raise stop("no space left on device")

    decoder.before = stop_at_two
    with pytest.raises(stop):
        extract(videos, out)
    with (out / "ledger.csv").open(newline="") as file:
        rows = [(row["id"], row["status"], row["reason"]) for row in csv.DictReader(file)]
    assert rows == [
        ("b/four", "ok", ""),
        ("a/one", "ok", ""),
        ("a/gone", "absent", "not_found"),
        ("b/bad", "failed", NOT_TRIED),  # its batch was not finished
        ("a/two", "failed", NOT_TRIED),
        ("b/bug", "failed", NOT_TRIED),
    ]
    with pytest.raises(ExtractionError, match="continues where it stopped"):
        read_ledger(out)
    decoder.before = lambda path: None
    decoder.calls.clear()
    extract(videos, out)
    assert decoder.names() == ["bad.mp4", "two.mp4", "bug.mp4"]


def test_temporary_files_of_a_killed_run_are_removed(videos: Path, tmp_path: Path, decoder: Decoder) -> None:
    out = tmp_path / "out"
    extract(videos, out)
    leftover = FeatureStore(out).path("a/one").with_suffix(".h5.0a1b2c3d.writing")
    leftover.write_bytes(b"half")
    extract(videos, out)
    assert not leftover.exists()


def test_a_plan_writes_no_files(videos: Path, tmp_path: Path) -> None:
    plan = make_plan(MANIFEST, videos, tmp_path / "out", BOTH)
    assert (len(plan.tasks), len(list(plan.rows))) == (5, 6)
    assert not (tmp_path / "out").exists()


def test_relative_folders_reach_the_workers_as_absolute_ones(
    videos: Path, tmp_path: Path, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = make_plan(MANIFEST, Path("videos"), Path("out"), BOTH)
    assert plan.out == tmp_path / "out"
    assert all(task.source.video.is_absolute() for task in plan.tasks)


def test_the_folder_of_another_data_set_is_refused(videos: Path, tmp_path: Path, decoder: Decoder) -> None:
    extract(videos, tmp_path / "out")
    other = Manifest("folder", ("a", "b", "c"), MANIFEST.clips)
    with pytest.raises(ExtractionError, match=r"with 2 classes.*these 3: choose another --out"):
        make_plan(other, videos, tmp_path / "out", BOTH)
    (tmp_path / "out" / "dataset.json").write_text('{"dataset": "folder"}')
    with pytest.raises(ExtractionError, match="is damaged"):
        make_plan(MANIFEST, videos, tmp_path / "out", BOTH)


def test_file_names_that_are_not_utf8_are_supported(tmp_path: Path, decoder: Decoder) -> None:
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/videos/caf\xe9"))
    folder.mkdir(parents=True)
    for name in ("1001_IEO_NEU_XX.flv", "1001_IEO_SAD_XX.flv"):
        (folder / name).write_bytes(b"bad" if "SAD" in name else b"good")
    clips = [Clip(id_, "train", "NEU") for id_ in ("1001_IEO_NEU_XX", "1001_IEO_SAD_XX")]
    manifest = Manifest("cremad", ("NEU",), clips)
    extract(tmp_path / "videos", tmp_path / "out", manifest=manifest)
    ok, failed = read_ledger(tmp_path / "out")
    assert (ok.status, os.fsencode(ok.source)) == ("ok", b"caf\xe9/1001_IEO_NEU_XX.flv")
    assert failed.reason == "damaged_container"
    decoder.calls.clear()
    extract(tmp_path / "videos", tmp_path / "out", manifest=manifest)
    assert not decoder.calls


def test_a_file_that_cannot_be_read_fails_only_its_clip(videos: Path, tmp_path: Path, decoder: Decoder) -> None:
    def refuse(path: Path) -> None:
        if path.name == "one.mp4":
            raise PermissionError(13, "Permission denied", str(path))

    decoder.before = refuse
    extract(videos, tmp_path / "out")
    row = known_rows(tmp_path / "out")["a/one"]
    assert (row.status, row.reason) == ("failed", "unreadable_file")
    assert "Permission denied" in row.message
