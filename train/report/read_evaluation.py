"""Read the results of `bmlpipe evaluate` in RUN/evaluation, with a note on everything that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bmlpipe.train.runs.folder import PROBES_FILE, RunFolder
from bmlpipe.train.runs.journal_reader import Values
from bmlpipe.train.runs.run_reader import Note, Run

_FORMAT = 1

_T = TypeVar("_T")


@dataclass(frozen=True)
class MissingRow:
    """Metrics of samples that lack modalities at random.

    Attributes:
        rates: Modality → fraction of the samples that lack it.
        metrics: Metric → its value for each seed of the draws, (S,).
    """

    rates: Mapping[str, float]
    metrics: Mapping[str, Values]


@dataclass(frozen=True)
class Probe:
    """Accuracies of a linear probe of a frozen encoder, as fractions; NaN for a split that was not read.

    Attributes:
        modality: Modality of the encoder.
        checkpoint: best, last or epoch-003.
        epoch: Last epoch that the checkpoint was trained in, from 0.
        train: Accuracy on the training split.
        val: Accuracy on the validation split.
        test: Accuracy on the test split.
    """

    modality: str
    checkpoint: str
    epoch: int
    train: float
    val: float
    test: float


@dataclass(frozen=True)
class Evaluation:
    """Predictions of one split by one checkpoint; parts that the file lacks are empty.

    Attributes:
        split: Split of the data.
        checkpoint: best, last or epoch-003.
        samples: Number of samples.
        classes: Names of the K classes.
        metrics: Metric, or metric/branch → value; fractions, except for the loss.
        per_class: Branch → measure (support, precision, recall, f1, ap) → value of each class, (K,).
        confusion: Branch → counts, (K, K); rows are the true classes.
        missing: Metrics where modalities are missing.
    """

    split: str
    checkpoint: str
    samples: int
    classes: Sequence[str]
    metrics: Mapping[str, float] = field(default_factory=dict)
    per_class: Mapping[str, Mapping[str, Values]] = field(default_factory=dict)
    confusion: Mapping[str, Values] = field(default_factory=dict)
    missing: Sequence[MissingRow] = ()

    @property
    def name(self) -> str:
        """Stem of the file's name."""
        return f"{self.split}-{self.checkpoint}"


@dataclass(frozen=True)
class RunEvaluations:
    """All evaluations of a run.

    Attributes:
        splits: Name of the evaluation, such as test-best → evaluation.
        probes: Linear probes.
        notes: Problems of the files.
    """

    splits: Mapping[str, Evaluation]
    probes: Sequence[Probe]
    notes: Sequence[Note]


def read_evaluations(run: Run) -> RunEvaluations:
    """Read RUN/evaluation; anything of an unexpected form is left out, with a note."""
    folder, notes = RunFolder(run.folder).evaluation, list[Note]()
    found, probes = {}, list[Probe]()
    for path in sorted(folder.glob("*.json")):
        file = _File(path, run, notes)
        if path.name == PROBES_FILE:
            probes = file.part("probes", lambda rows: [_probe(row) for row in rows], [])
        elif evaluation := file.evaluation():
            found[evaluation.name] = evaluation
    return RunEvaluations(found, probes, notes)


class _File:
    """A result file, read part by part; a part in another form is replaced and noted."""

    def __init__(self, path: Path, run: Run, notes: list[Note]) -> None:
        self._path, self._run, self._notes = path, run, notes
        self._content: dict[str, Any] = self._read("the file", self._load, {})

    def part(self, name: str, read: Callable[[Any], _T], default: _T) -> _T:
        """Read a part of the file; `default` if the file lacks it or it has another form."""
        if name not in self._content:
            return default
        return self._read(name, lambda: read(self._content[name]), default)

    def evaluation(self) -> Evaluation | None:
        """Read the evaluation; None if even its split, checkpoint or classes cannot be read."""
        head = self._read("the file", self._head, None) if self._content else None
        if head is None:
            return None
        size = len(head.classes)
        return Evaluation(
            head.split,
            head.checkpoint,
            head.samples,
            head.classes,
            self.part("metrics", lambda found: {str(m): _float(value) for m, value in found.items()}, {}),
            self.part(
                "per_class",
                lambda found: {
                    str(branch): {str(m): _values(values, size) for m, values in measures.items()}
                    for branch, measures in found.items()
                },
                {},
            ),
            self.part("confusion", lambda found: {str(b): _values(n, size, size) for b, n in found.items()}, {}),
            self.part("missing", lambda found: [_missing_row(row) for row in found], []),
        )

    def _load(self) -> dict[str, Any]:
        content = json.loads(self._path.read_bytes())
        if not isinstance(content, dict):
            raise TypeError("it is not a JSON object")
        if content.get("format") != _FORMAT:
            raise ValueError(f"its format is {content.get('format')}, but this version of bmlpipe reads {_FORMAT}")
        return content

    def _head(self) -> Evaluation:
        content = self._content
        classes = [str(name) for name in content["classes"]]
        return Evaluation(str(content["split"]), str(content["checkpoint"]), int(content["samples"]), classes)

    def _read(self, name: str, read: Callable[[], _T], default: _T) -> _T:
        try:
            return read()
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            cause = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            text = (
                f"{name} cannot be read ({cause}) and is left out. Write it again: bmlpipe evaluate {self._run.folder}"
            )
            self._notes.append(Note(str(self._path), text))
            return default


def _missing_row(content: Mapping[str, Any]) -> MissingRow:
    seeds = len(content["seeds"])
    metrics = {str(m): _values(values, seeds) for m, values in content.items() if m not in ("rates", "seeds")}
    return MissingRow({str(m): _float(rate) for m, rate in content["rates"].items()}, metrics)


def _probe(content: Mapping[str, Any]) -> Probe:
    accuracies = (_float(content.get(split)) for split in ("train", "val", "test"))
    return Probe(str(content["modality"]), str(content["checkpoint"]), int(content["epoch"]), *accuracies)


def _float(value: Any) -> float:
    return np.nan if value is None else float(value)


def _values(content: Any, *shape: int) -> Values:
    """Make an array from nested lists of numbers and nulls.

    Raises:
        ValueError, TypeError: They are something else, or of another shape.
    """
    values = np.array(content, dtype=np.float64)
    if values.shape != shape:
        raise ValueError(f"its shape is {values.shape}, expected {shape}")
    return values
