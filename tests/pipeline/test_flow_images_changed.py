"""Precomputed flow images that changed since the last run are imported again; the other features are kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from bmlpipe.manifests.common.locks import exclusive_folder
from bmlpipe.manifests.schema import Clip, Manifest
from bmlpipe.pipeline.extraction.plan import make_plan
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.extraction.run import run_extraction
from bmlpipe.pipeline.front_ends.features import ClipFeatures
from bmlpipe.pipeline.front_ends.flow import FlowOptions
from bmlpipe.pipeline.front_ends.flow_images import identity, quick_check
from bmlpipe.pipeline.front_ends.frames import FrameOptions
from bmlpipe.pipeline.store.feature_file import FeatureStore
from bmlpipe.pipeline.store.ledger import read_ledger

IMAGES = 24  # for a video of 25 frames


def jpeg(level: int) -> bytes:
    grey = np.full((24, 32, 1), level, np.uint8)
    return bytes(simplejpeg.encode_jpeg(grey, quality=95, colorspace="GRAY"))


def write(folder: Path, level: int, layout: str) -> None:
    for number in range(1, IMAGES + 1):
        for axis, letter in zip("xy", "uv"):
            name = f"one/flow_{axis}_{number:04d}.jpg" if layout == "xy" else f"{letter}/one/frame{number:06d}.jpg"
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(level))


class Runs:
    """Repeated extractions of one clip."""

    def __init__(self, folder: Path) -> None:
        self.videos, self.images, self.out = folder / "videos", folder / "flow", folder / "out"
        self.manifest = Manifest("folder", ("x",), [Clip("one", "train", "x", "one.mp4")])

    def planned(self, images: Path | None = None) -> int:
        """Number of clips that a run would extract."""
        return len(make_plan(self.manifest, self.videos, self.out, self.request(images)).tasks)

    def request(self, images: Path | None = None) -> ExtractionRequest:
        return ExtractionRequest((FrameOptions(short_side=80), FlowOptions(images=images or self.images)), 1)

    def run(self, images: Path | None = None) -> str:
        """Run an extraction and return the clip's reason."""
        with exclusive_folder(self.out, "extraction"):
            run_extraction(make_plan(self.manifest, self.videos, self.out, self.request(images)), workers=0)
        return read_ledger(self.out)[0].reason

    def features(self) -> ClipFeatures:
        return FeatureStore(self.out).read("one").features

    def level(self) -> int:
        """Grey level of the first stored flow image."""
        return int(simplejpeg.decode_jpeg(self.features()["flow"].jpegs[0], "GRAY").mean().round())

    def written(self) -> int:
        """Time at which the feature file was written, in ns."""
        return FeatureStore(self.out).path("one").stat().st_mtime_ns


@pytest.fixture(params=["xy", "uv"])
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def runs(tmp_path: Path, make_clip: Callable[..., Path], layout: str) -> Runs:
    found = Runs(tmp_path)
    found.videos.mkdir()
    make_clip(found.videos / "one.mp4", seconds=1, audio_codec=None)
    write(found.images, 60, layout)
    assert found.run() == ""
    assert (found.planned(), found.level()) == (0, 60)
    return found


def test_changed_images_are_imported_and_the_frames_are_kept(runs: Runs, layout: str) -> None:
    before = runs.features()
    write(runs.images, 180, layout)
    assert runs.planned() == 1
    assert runs.run() == ""
    assert (runs.planned(), runs.level()) == (0, 180)
    assert runs.features()["frames"] == before["frames"]


def test_a_changed_image_of_equal_size_is_noticed_by_its_time(runs: Runs) -> None:
    path = sorted(runs.images.rglob("*.jpg"))[0]
    data = bytearray(path.read_bytes())
    data[-3] ^= 1  # within the entropy-coded data: another image of the same size
    path.write_bytes(data)
    before = runs.written()
    assert runs.planned() == 1
    runs.run()
    assert runs.written() > before
    assert FeatureStore(runs.out).read("one").companions["flow"] == identity(runs.images, runs.videos / "one.mp4")


def test_copies_of_the_images_are_recognised_by_their_content(runs: Runs, tmp_path: Path) -> None:
    """Images with other times in another folder are hashed once, and nothing is extracted."""
    moved = tmp_path / "moved"
    shutil.copytree(runs.images, moved, copy_function=shutil.copyfile)
    for path in moved.rglob("*.jpg"):
        os.utime(path, (10**9, 10**9))
    before = runs.written()
    assert runs.planned(moved) == 1
    assert runs.run(moved) == ""
    assert runs.written() == before
    assert runs.planned(moved) == 0


def test_images_that_are_removed_or_added_later_are_noticed(runs: Runs, tmp_path: Path, layout: str) -> None:
    moved = tmp_path / "moved"
    runs.images.rename(moved)
    runs.images.mkdir()
    assert runs.run() == "missing_flow_images"
    assert runs.planned() == 0
    shutil.copytree(moved, runs.images, dirs_exist_ok=True)
    assert runs.planned() == 1  # even without --retry-failed, because the images changed
    assert runs.run() == ""


def test_features_without_the_identity_of_their_images_are_extracted_again(runs: Runs) -> None:
    """Computed flow has no such identity, nor have feature files of an older version."""
    store = FeatureStore(runs.out)
    stored = store.read("one")
    assert stored.companions["flow"].name == f"{2 * IMAGES} images"
    assert quick_check(runs.images, runs.videos / "one.mp4")[0] == 2 * IMAGES
    store.write(replace(stored, companions={}))
    (runs.out / "ledger.csv").unlink()
    before = runs.written()
    assert runs.run() == ""
    assert runs.written() > before
    assert store.read("one").companions == stored.companions
