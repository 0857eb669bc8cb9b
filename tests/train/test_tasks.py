"""Tasks: one per kind of target, with the loss, metrics and exports of its predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from bmlpipe.shards.targets import TARGETS
from bmlpipe.train.tasks.classification import Classification
from bmlpipe.train.tasks.registry import TASKS, make_task

LABELS = np.array([0, 2, 1, 2])
LOGITS = np.array([[3, 0, 0], [0, 0, 2], [4, 1, 0], [0, 1, 5]], dtype=np.float32)


def test_every_kind_of_target_has_a_task() -> None:
    assert set(TASKS) == set(TARGETS)
    assert make_task(["a", "b"]) == Classification(("a", "b"))


def test_the_loss_of_a_sample_is_its_cross_entropy_in_float32() -> None:
    logits, labels = torch.from_numpy(LOGITS), torch.from_numpy(LABELS)
    losses = Classification(tuple("abc")).loss(logits.bfloat16(), labels)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, cross_entropy(logits, labels, reduction="none"))


def test_scores_are_the_probabilities_of_the_samples_classes() -> None:
    logits, labels = torch.from_numpy(LOGITS), torch.from_numpy(LABELS)
    found = Classification(tuple("abc")).scores({"audio": logits}, labels)["audio"]
    torch.testing.assert_close(found, logits.softmax(1)[torch.arange(4), labels])


def test_a_summary_holds_fractions_and_is_described_in_per_cent() -> None:
    task = Classification(tuple("abc"))
    summary = task.summary(LOGITS, {"audio": np.roll(LOGITS, 1, axis=1)}, LABELS)
    assert summary["accuracy"] == summary[task.selection_metric] == 0.75
    assert summary["accuracy/audio"] == 0.25
    text = task.describe({"epoch": 3, "split": "val", **summary})
    assert text.startswith("accuracy 75.0%  mAP ")
    assert text.endswith("accuracy/audio 25.0%")
    assert f"loss {summary['loss']:.3f}" in text


def test_class_ids_of_other_shards_are_found_by_name() -> None:
    task = Classification(("a", "b", "c"))
    assert task.target_ids(["c", "a"]).tolist() == [2, 0]
    with pytest.raises(KeyError, match="z"):
        task.target_ids(["z"])


def test_exported_columns_name_classes() -> None:
    columns = Classification(("cat", "dog", "owl")).prediction_columns(LOGITS, {"audio": -LOGITS}, LABELS)
    assert columns["label"].tolist() == ["cat", "owl", "dog", "owl"]
    assert columns["predicted"].tolist() == ["cat", "owl", "cat", "owl"]
    assert columns["logit/audio/owl"].tolist() == (-LOGITS[:, 2]).tolist()
    shares = sum(columns[f"probability/{name}"] for name in ("cat", "dog", "owl"))
    np.testing.assert_allclose(shares, 1, rtol=1e-6)
