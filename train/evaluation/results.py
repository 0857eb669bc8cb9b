"""Evaluate a restored checkpoint on a split, and keep what was found beside the run, for people and the report.

    RUN/evaluation/<split>-<checkpoint>.json    metrics, per class, confusion, missing modalities (docs/evaluation.md)
    RUN/evaluation/probes.json                  linear probes of all checkpoints

What is found on samples other than the training's goes to a folder of its own, named by the first digits of their
SHA-256. The run's journals are never written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bmlpipe.manifests.common.files import write_atomically
from bmlpipe.manifests.common.locks import FOLDER_LOCK, locked
from bmlpipe.train.evaluation import linear_probe as probe
from bmlpipe.train.evaluation.class_metrics import confusion, per_class
from bmlpipe.train.evaluation.load_run import LoadedRun
from bmlpipe.train.evaluation.metrics import accuracy, joint_metrics, macro_f1, mean_average_precision
from bmlpipe.train.evaluation.missing_modalities import Rates, sweep
from bmlpipe.train.evaluation.predict import Predictions

FORMAT = 1
FOLDER, PROBES = "evaluation", "probes.json"

#: The name of the prediction of all modalities together.
JOINT = "joint"

Content = dict[str, Any]
Predict = Callable[[str], Predictions]


def evaluate(
    restored: LoadedRun, split: str, found: Predictions, *, missing: Sequence[Rates] = (), seeds: Sequence[int] = (0,)
) -> Content:
    """What is said of one split's predictions; see docs/evaluation.md.

    Args:
        restored: The checkpoint.
        split: Predicted.
        found: Its predictions.
        missing: Combinations of rates at which modalities are lost.
        seeds: Of each one's draws.
    """
    metrics = joint_metrics(found.logits, found.labels)
    for m, logits in found.branches.items():
        metrics[f"accuracy/{m}"] = accuracy(logits, found.labels)
        metrics[f"mAP/{m}"] = mean_average_precision(logits, found.labels)
        metrics[f"f1/{m}"] = macro_f1(logits, found.labels)
    every = {JOINT: found.logits, **found.branches}
    return {
        **_about(restored),
        "split": split,
        "samples": len(found.labels),
        "classes": list(restored.classes),
        "metrics": metrics,
        "per_class": {name: per_class(logits, found.labels) for name, logits in every.items()},
        "confusion": {name: confusion(logits, found.labels).tolist() for name, logits in every.items()},
        "missing": sweep(found, missing, seeds),
    }


def linear_probes(restored: LoadedRun, predict: Predict) -> list[Content]:
    """Probe every encoder of a checkpoint.

    Args:
        restored: The checkpoint.
        predict: A split → its predictions with features.

    Returns:
        A row a modality, on the first rank; empty on the others, which have nothing to fit.
    """
    found = {
        split: predict(split) for split in ("train", "val", "test") if split != "test" or restored.has_split(split)
    }
    rows = []
    for m in restored.config.resolved_modalities if restored.process.is_main else ():
        one = probe.fit({split: (each.features[m], each.labels) for split, each in found.items()})
        reached = {split: one.accuracy.get(split) for split in ("train", "val", "test")}
        rows.append({**_about(restored), "modality": m, "C": one.C, **reached})
    return rows


def _about(restored: LoadedRun) -> Content:
    """Which numbers of which samples these are."""
    return {
        "checkpoint": restored.name,
        "epoch": restored.epoch,
        "step": restored.step,
        "model_sha256": restored.model_sha256,
        "samples_sha256": restored.index.samples_sha256,
        "shards": list(restored.config.shards),
    }


def result_folder(restored: LoadedRun) -> Path:
    """Where results about these samples belong."""
    folder = restored.folder / FOLDER
    return folder / restored.index.samples_sha256[:12] if restored.other_samples else folder


def keep_evaluation(restored: LoadedRun, content: Content) -> Path:
    """Write an evaluation; sweeps of the same model that it does not repeat stay, sorted by rates."""
    path = result_folder(restored) / f"{content['split']}-{restored.name}.json"
    with _alone(path):
        before = _read(path)
        same = all(before.get(key) == content[key] for key in ("model_sha256", "samples_sha256"))
        rows = [*(before.get("missing", ()) if same else ()), *content["missing"]]
        by_rates = {tuple(sorted(row["rates"].items())): row for row in rows}
        _write(path, {**content, "missing": [by_rates[rates] for rates in sorted(by_rates)]})
    return path


def keep_probes(restored: LoadedRun, rows: Sequence[Content]) -> Path:
    """Write probes; those of other checkpoints stay, sorted by modality and step."""
    path = result_folder(restored) / PROBES
    with _alone(path):
        every = [*_read(path).get("probes", ()), *rows]
        by_name = {(row["modality"], row["checkpoint"]): row for row in every}
        order = sorted(by_name, key=lambda name: (name[0], by_name[name]["step"], name[1]))
        _write(path, {"probes": [by_name[name] for name in order]})
    return path


def _read(path: Path) -> Content:
    """A result file's content; nothing where there is none of this format."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) and content.get("format") == FORMAT else {}


def _write(path: Path, content: Content) -> None:
    """As JSON, in which NaN is null, a line for each part; under a temporary name first."""
    parts = _without_nan({"format": FORMAT, **content}).items()
    lines = (f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False, allow_nan=False)}" for k, v in parts)
    write_atomically(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes from changing the results in a folder between their reading and their writing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(FOLDER_LOCK)):
        yield
