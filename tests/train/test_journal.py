"""The journal: strict JSON, consistent with the checkpoint; rows arrive late and complete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bmlpipe.manifests.common.locks import LockError
from bmlpipe.train.engine.delayed_rows import DelayedRows
from bmlpipe.train.runs.journal import Journal
from bmlpipe.train.runs.journal_reader import read_rows


def test_rows_arrive_two_steps_late_in_order_and_complete() -> None:
    rows = DelayedRows(["loss", "rho/audio"])
    arrived = [rows.push({"step": n}, torch.tensor([n + 0.5, 2.0], dtype=torch.float64)) for n in range(5)]
    assert arrived == [None, None, *({"step": n, "loss": n + 0.5, "rho/audio": 2.0} for n in range(3))]
    assert [row["step"] for row in rows.flush()] == [3, 4]
    assert list(rows.flush()) == []


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    with Journal(tmp_path, tensorboard=False) as journal:
        journal.step({"step": 0, "loss": float("nan"), "k/audio": float("inf"), "lr": 0.1})
    assert json.loads((tmp_path / "steps.jsonl").read_text()) == {"step": 0, "loss": None, "k/audio": None, "lr": 0.1}


def test_resuming_deletes_rows_after_the_checkpoint_and_the_test_row(tmp_path: Path) -> None:
    with Journal(tmp_path, tensorboard=False) as journal:
        for step in range(6):
            journal.step({"step": step, "loss": 1.0})
        journal.metrics({"step": 3, "split": "val", "accuracy": 0.5})
        journal.metrics({"step": 6, "split": "val", "accuracy": 0.6})
        journal.metrics({"step": 3, "split": "test", "accuracy": 0.7})
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    with Journal(tmp_path, first_step=4, validated_step=3, tensorboard=False) as journal:
        journal.step({"step": 4, "loss": 2.0})
    assert [(row["step"], row["loss"]) for row in read_rows(tmp_path / "steps.jsonl")] == [
        *((step, 1.0) for step in range(4)),
        (4, 2.0),
    ]
    assert [row["accuracy"] for row in read_rows(tmp_path / "metrics.jsonl")] == [0.5]


def test_a_new_run_begins_with_empty_files(tmp_path: Path) -> None:
    (tmp_path / "steps.jsonl").write_text('{"step": 0}\n')
    with Journal(tmp_path, tensorboard=True):
        pass
    assert read_rows(tmp_path / "steps.jsonl") == []
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_an_evaluation_newer_than_the_checkpoint_is_not_written_twice(tmp_path: Path) -> None:
    """Killed between the evaluation's row and its checkpoint, at the end of an epoch of four steps."""
    with Journal(tmp_path, tensorboard=False) as journal:
        journal.metrics({"step": 4, "split": "val", "accuracy": 0.5})
    with Journal(tmp_path, first_step=4, validated_step=0, tensorboard=False) as journal:
        journal.metrics({"step": 4, "split": "val", "accuracy": 0.5})
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 1


def test_a_folder_belongs_to_one_training_at_a_time(tmp_path: Path) -> None:
    """The ranks of a killed torchrun may survive it; their rows must not mix with those of the next start."""
    with Journal(tmp_path, tensorboard=False) as journal:
        journal.step({"step": 0, "loss": 1.0})
        with pytest.raises(LockError, match=f"another training is writing into {tmp_path}"):
            Journal(tmp_path, tensorboard=False, lock_patience=0.1)
    assert len(read_rows(tmp_path / "steps.jsonl")) == 1
    Journal(tmp_path, first_step=1, tensorboard=False).close()
