"""Evaluate a loaded run on a split, and keep the results beside the run, for people and for the report.

    RUN/evaluation/<split>-<checkpoint>.json    metrics, per class, confusion, missing modalities (docs/evaluation.md)
    RUN/evaluation/probes.json                  linear probes of all checkpoints

Results on other samples than those of the training go to a sub-folder named by the first 12 digits of the samples'
SHA-256. The journals of the run are never written.
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
from bmlpipe.train.evaluation.linear_probe import fit_probe
from bmlpipe.train.evaluation.loaded_run import LoadedRun
from bmlpipe.train.evaluation.missing_modalities import Rates, missing_metrics
from bmlpipe.train.evaluation.predict import Predictions
from bmlpipe.train.runs.folder import PROBES_FILE

FORMAT = 1

Content = dict[str, Any]


def evaluate(
    run: LoadedRun, split: str, predictions: Predictions, *, missing: Sequence[Rates] = (), seeds: Sequence[int] = (0,)
) -> Content:
    """Compute the results of one split, in the form of the result file (docs/evaluation.md).

    Args:
        run: The run.
        split: Name of the split.
        predictions: Predictions of the split.
        missing: Combinations of rates at which modalities are missing.
        seeds: Seeds of the draws of each combination.
    """
    return {
        **_source(run),
        "split": split,
        "samples": len(predictions.labels),
        **run.task.report(predictions.logits, predictions.branches, predictions.labels),
        "missing": missing_metrics(run.task, predictions, missing, seeds),
    }


def linear_probes(run: LoadedRun, predict: Callable[[str], Predictions]) -> list[Content]:
    """Fit a linear probe of every encoder.

    Args:
        run: The run.
        predict: Split → its predictions, with features.

    Returns:
        One row per modality on rank 0; an empty list on the other ranks, which fit nothing.
    """
    splits = [split for split in ("train", "val", "test") if split != "test" or run.index.has_split(split)]
    found = {split: predict(split) for split in splits}
    rows = []
    for m in run.config.resolved_modalities if run.process.is_main else ():
        probe = fit_probe(run.task, {split: (each.features[m], each.labels) for split, each in found.items()})
        accuracies = {split: probe.accuracy.get(split) for split in ("train", "val", "test")}
        rows.append({**_source(run), "modality": m, "C": probe.C, **accuracies})
    return rows


def _source(run: LoadedRun) -> Content:
    """Describe which parameters and which samples a result comes from."""
    return {
        "checkpoint": run.checkpoint,
        "epoch": run.epoch,
        "step": run.step,
        "model_sha256": run.model_sha256,
        "samples_sha256": run.index.samples_sha256,
        "shards": list(run.config.shards),
    }


def result_folder(run: LoadedRun) -> Path:
    """Return the folder of the results on the samples that the run reads."""
    folder = run.folder.evaluation
    return folder / run.index.samples_sha256[:12] if run.other_samples else folder


def keep_evaluation(run: LoadedRun, content: Content) -> Path:
    """Write the results of a split.

    Rows of missing modalities that an earlier evaluation of the same parameters and samples wrote are kept, unless
    `content` has the same rates. They are sorted by rates.
    """
    path = result_folder(run) / f"{content['split']}-{run.checkpoint}.json"
    with _locked_folder(path):
        before = _read(path)
        same = all(before.get(key) == content[key] for key in ("model_sha256", "samples_sha256"))
        rows = [*(before.get("missing", ()) if same else ()), *content["missing"]]
        by_rates = {tuple(sorted(row["rates"].items())): row for row in rows}
        _write(path, {**content, "missing": [by_rates[rates] for rates in sorted(by_rates)]})
    return path


def keep_probes(run: LoadedRun, rows: Sequence[Content]) -> Path:
    """Write the probes of a checkpoint beside those of other checkpoints, sorted by modality and step."""
    path = result_folder(run) / PROBES_FILE
    with _locked_folder(path):
        every = [*_read(path).get("probes", ()), *rows]
        by_name = {(row["modality"], row["checkpoint"]): row for row in every}
        order = sorted(by_name, key=lambda name: (name[0], by_name[name]["step"], name[1]))
        _write(path, {"probes": [by_name[name] for name in order]})
    return path


def _read(path: Path) -> Content:
    """Read a result file; empty if there is no file of this format."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) and content.get("format") == FORMAT else {}


def _write(path: Path, content: Content) -> None:
    """Write JSON atomically, one line per key; NaN becomes null."""
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
def _locked_folder(path: Path) -> Iterator[None]:
    """Keep other processes from changing the results of a folder between reading and writing them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(FOLDER_LOCK)):
        yield
