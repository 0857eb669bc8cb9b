"""Checkpoint files: other files are refused and never executed, and a run resumes only where it fits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from bmlpipe.train.config.options import ConfigError
from bmlpipe.train.runs import checkpoint

LAST = Path("last.pt")


def test_only_options_that_say_where_and_how_to_compute_may_change() -> None:
    old = {"config": {"lr": 1.0, "workers": 1}}
    checkpoint.check_same_options(old, {"lr": 1.0, "workers": 9}, LAST)
    with pytest.raises(ConfigError, match=r"lr: 1\.0 before, 2\.0 now"):
        checkpoint.check_same_options(old, {"lr": 2.0, "workers": 1}, LAST)


def test_other_files_are_refused_as_checkpoints_and_never_executed(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.system, (f"touch {tmp_path / 'executed'}",))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"model": 1}, tmp_path / "other.pt")
    for name in ("evil.pt", "other.pt"):
        with pytest.raises(ConfigError, match=name):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_shards_made_with_other_parameters_are_refused_by_name() -> None:
    made = {"frames": {"short_side": 256, "fps": 1}, "spectrogram": {"rate": 16000}}
    old = {"features": made}
    other = {"frames": {"short_side": 224, "fps": 1, "crop": 3}, "spectrogram": {"rate": 16000}, "flow": {"stack": 1}}
    checkpoint.check_same_features(old, made, ["frames", "spectrogram"], LAST)
    checkpoint.check_same_features(old, other, ["spectrogram"], LAST)  # what is not used may differ
    with pytest.raises(
        ConfigError, match=r"last.pt .*\(frames.crop: missing and 3; frames.short_side: 256 and 224\): use"
    ):
        checkpoint.check_same_features(old, other, ["spectrogram", "frames"], LAST)
    with pytest.raises(ConfigError, match=r"\(spectrogram: \{'rate': 16000\} and missing\)"):
        checkpoint.check_same_features(old, {"frames": made["frames"]}, ["spectrogram"], LAST)


def test_resuming_with_other_samples_is_refused() -> None:
    one, other = "a" * 64, "b" * 64
    checkpoint.check_same_samples({"samples_sha256": one}, one, LAST)
    with pytest.raises(ConfigError, match=f"other samples .*{one[:12]} before, {other[:12]} now"):
        checkpoint.check_same_samples({"samples_sha256": one}, other, LAST)
