"""The demo: its synthetic data and its run from clips to report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_digits

from bmlpipe.pipeline.cli import main
from bmlpipe.pipeline.demo.run import prepare_folder
from bmlpipe.pipeline.demo.synthetic_clips import RATE, SECONDS, SIZE, assign_clips, render_audio, render_frames

pytestmark = pytest.mark.xdist_group("both_cores")


def test_no_handwritten_image_is_in_two_splits() -> None:
    digits = load_digits()
    clips = assign_clips(digits.target.tolist(), {"train": 400, "val": 100, "test": 100})
    assert len({clip.image for clip in clips}) == len(clips) == 600
    assert all(digits.target[clip.image] == clip.digit for clip in clips)
    assert [sum(clip.split == split for clip in clips) for split in ("train", "val", "test")] == [400, 100, 100]


@pytest.mark.parametrize(("digit", "low", "high"), [(1, 697, 1209), (5, 770, 1336), (9, 852, 1477), (0, 941, 1336)])
def test_the_audio_has_the_two_frequencies_of_the_key(digit: int, low: int, high: int) -> None:
    spectrum = np.abs(np.fft.rfft(render_audio(digit, "train", np.random.default_rng(1))))
    strongest = np.argsort(spectrum)[-2:] / SECONDS
    np.testing.assert_allclose(sorted(strongest), [low, high], atol=1)
    assert len(render_audio(digit, "train", np.random.default_rng(1))) == SECONDS * RATE


def test_the_digit_moves_and_stays_inside_the_frame() -> None:
    pictures = render_frames(load_digits().images, 3, np.random.default_rng(0))
    assert pictures.shape == (30, SIZE, SIZE)
    assert pictures.dtype == np.uint8
    near, far = (np.abs(pictures[0].astype(int) - pictures[later]).mean() for later in (1, -1))
    assert far > near


@pytest.mark.slow
def test_the_whole_demo_runs(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["demo", "--out", str(tmp_path / "demo"), "--clips", "100", "--epochs", "1"])
    assert result.exit_code == 0, result.output
    assert "synthetic" in result.output
    for name in ("none", "opm"):
        rows = (tmp_path / "demo" / "runs" / name / "steps.jsonl").read_text(encoding="utf-8").splitlines()
        assert all(json.loads(row)["rho/audio"] > 0 for row in rows)
        assert rows
    assert Image.open(tmp_path / "demo" / "report.png").size[0] > 1000


def test_an_earlier_demo_is_replaced_but_other_folders_are_kept(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "demo")
    (tmp_path / "demo" / "old").write_text("old")
    prepare_folder(tmp_path / "demo")
    assert not (tmp_path / "demo" / "old").exists()
    (tmp_path / "thesis.tex").write_text("important")
    result = CliRunner().invoke(main, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "Nothing was changed" in " ".join(result.output.split())
    assert (tmp_path / "thesis.tex").read_text() == "important"
