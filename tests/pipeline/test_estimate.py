"""The estimated size agrees with the size written, and a disk that is too small is refused before the start."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from bmlpipe.manifests.common.locks import exclusive_folder
from bmlpipe.manifests.schema import Clip, Manifest
from bmlpipe.pipeline.extraction.estimate import estimate
from bmlpipe.pipeline.extraction.plan import ExtractionPlan, make_plan
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.extraction.run import run_extraction
from bmlpipe.pipeline.front_ends.frames import FrameOptions
from bmlpipe.pipeline.store.errors import ExtractionError


@pytest.fixture
def plan(tmp_path: Path, make_clip: Callable[..., Path]) -> ExtractionPlan:
    """Plan of twelve copies of one clip, and of one file that is not media."""
    videos = tmp_path / "videos"
    videos.mkdir()
    clip_file = make_clip(tmp_path / "clip.mp4")
    for number in range(12):
        shutil.copy(clip_file, videos / f"{number}.mp4")
    (videos / "12.mp4").write_text("no media")
    clips = [Clip(str(number), "train", "x", f"{number}.mp4") for number in range(13)]
    return make_plan(
        Manifest("folder", ("x",), clips), videos, tmp_path / "out", ExtractionRequest((FrameOptions(),), 2)
    )


def test_the_estimate_is_close_to_the_size_written_and_writes_nothing(plan: ExtractionPlan) -> None:
    estimated = estimate(plan, count=13)
    assert not plan.out.exists()
    assert (estimated.clips, estimated.sampled, estimated.failures) == (13, 13, {"not_media": 1})
    with exclusive_folder(plan.out, "extraction"):
        run_extraction(plan, workers=0)
    written = sum(path.stat().st_size for path in plan.out.rglob("*.h5"))
    assert estimated.bytes == pytest.approx(written, rel=0.01)
    assert 0 < estimate(plan, count=4).bytes < 1.5 * written
    assert estimated.seconds_per_clip > 0
    assert "estimated from 13 clips, not_media 1" in estimated.text(2)


def test_a_disk_without_enough_space_is_refused_with_both_sizes(
    plan: ExtractionPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 10_000))
    with pytest.raises(ExtractionError, match=r"about 0\.00 GB \(13 clips .*only 0\.00 GB free"):
        estimate(plan).check(plan.out)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 10**12))
    estimate(plan).check(plan.out)
