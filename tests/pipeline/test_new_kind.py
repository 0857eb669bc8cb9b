"""A new feature kind needs only a row in the table of kinds and a front end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from click.testing import CliRunner

from bmlpipe.pipeline.cli import main
from bmlpipe.pipeline.front_ends import registry
from bmlpipe.pipeline.front_ends.features import ArrayFeature, JpegSeries
from bmlpipe.pipeline.front_ends.frames import Scaler
from bmlpipe.pipeline.front_ends.front_end import PictureFrontEnd, PictureOptions, SoundOptions
from bmlpipe.pipeline.media.video import ClipSpan, SelectedFrames, VideoDecoder
from bmlpipe.shards import kinds
from bmlpipe.shards.kinds import FeatureKind, Storage
from bmlpipe.shards.reader import ShardReader
from bmlpipe.train.data.dataset import ClipDataset
from bmlpipe.train.data.normalise import Normaliser
from bmlpipe.train.data.sampler import BatchItem

LOUDNESS = FeatureKind(
    name="loudness",
    summary="loudness per tenth of a second",
    modality="audio",
    source="sound",
    storage=Storage.NPY,
    member="loudness.npy",
    channels=1,
    fixed_length=True,
    default=False,
)
THUMBNAIL = FeatureKind(
    name="thumbnail",
    summary="small grey images",
    modality="visual",
    source="pictures",
    storage=Storage.JPEG,
    member="thumbnail_{instant:03d}.jpg",
    channels=1,
    fixed_length=False,
    default=False,
    meta=("times", "height", "width"),
)


@dataclass(frozen=True)
class LoudnessOptions(SoundOptions):
    kind: ClassVar[str] = "loudness"

    @property
    def rate(self) -> int:
        return 8000

    def parameters(self, seconds: int | None) -> dict[str, Any]:
        return {"version": 1, "seconds": seconds}

    def make(self, samples: npt.NDArray[np.float32]) -> ArrayFeature:
        return ArrayFeature(np.abs(samples.reshape(-1, 800)).max(axis=1)[None].astype(np.float16))


@dataclass(frozen=True)
class ThumbnailOptions(PictureOptions):
    kind: ClassVar[str] = "thumbnail"

    def parameters(self, seconds: int | None) -> dict[str, Any]:
        return {"version": 1, "seconds": seconds}

    def start(self, decoder: VideoDecoder, span: ClipSpan, path: Path) -> PictureFrontEnd:
        return Thumbnails(decoder, span)


class Thumbnails(PictureFrontEnd):
    def __init__(self, decoder: VideoDecoder, span: ClipSpan) -> None:
        super().__init__(decoder, span)
        self._scaler = Scaler(32)

    def add(self, selected: SelectedFrames) -> None:
        luma = self._scaler.luma(selected.shown.image)
        self._size = luma.shape
        self._jpegs.append(simplejpeg.encode_jpeg(luma[..., None], quality=90, colorspace="GRAY"))
        self._times.append(self._seconds(selected.shown))

    def finish(self) -> JpegSeries:
        return JpegSeries(tuple(self._jpegs), tuple(self._times), *self._size)


@pytest.fixture
def new_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add two kinds as a change of the source would: there is no registration at run time."""
    for row, options in ((LOUDNESS, LoudnessOptions), (THUMBNAIL, ThumbnailOptions)):
        monkeypatch.setitem(kinds._TABLE, row.name, row)
        monkeypatch.setitem(registry._TABLE, row.name, options)


@pytest.mark.usefixtures("new_kinds")
def test_a_new_kind_is_extracted_sharded_checked_and_loaded(make_clip: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("train/a/one", "train/b/two", "test/a/three", "val/b/four"):
        path = tmp_path / "videos" / f"{name}.mp4"
        path.parent.mkdir(parents=True)
        make_clip(path, seconds=2)
    shards = tmp_path / "shards"
    extract = ["extract", "--dataset", "folder", "--videos", tmp_path / "videos", "--out", tmp_path / "features"]
    extract += ["--kinds", "thumbnail,loudness,frames", "--seconds", "2", "--short-side", "48", "--workers", "0"]
    commands = [
        extract,
        ["shard", "--dataset", "folder", "--features", tmp_path / "features", "--out", shards],
        ["verify", shards],
        ["stats", shards],
        ["inspect", shards, "--out", tmp_path / "sheet.html"],
    ]
    for words in commands:
        result = CliRunner().invoke(main, list(map(str, words)), catch_exceptions=False)
        assert result.exit_code == 0, result.output
    reader = ShardReader(shards)
    assert list(reader.index.features) == ["frames", "loudness", "thumbnail"]
    assert set(reader.index.statistics) == {"frames", "loudness", "thumbnail"}
    assert {*LOUDNESS.members(), *THUMBNAIL.members(2)} < reader[0].members.keys()
    modalities = {"audio": "loudness", "visual": "thumbnail"}
    dataset = ClipDataset(shards, list(modalities), kinds=modalities, frames=2, image_size=16, augment=False, seed=0)
    batch = dataset.__getitems__([BatchItem(-1, number, False) for number in (0, 1)])
    assert batch["audio"].shape == (2, 1, 1, 20)
    assert batch["visual"].shape == (2, 2, 1, 16, 16)
    inputs = Normaliser(list(modalities), reader.index.statistics, kinds=modalities)(batch)
    assert inputs["audio"].shape == (2, 1, 1, 1, 20)
    assert inputs["visual"].shape == (2, 2, 1, 16, 16)
