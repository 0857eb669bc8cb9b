"""What `bmlpipe evaluate` left in RUN/evaluation: metrics, per class, confusion, missing modalities, linear probes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bmlpipe.train.runs.journal_reader import Values
from bmlpipe.train.runs.read_run import Note, Run

FOLDER = "evaluation"
PROBES_FILE = "probes.json"
_FORMAT = 1

#: The prediction from all modalities; every other name is of a modality's branch.
JOINT = "joint"

_T = TypeVar("_T")


@dataclass(frozen=True)
class Missing:
    """Metrics where modalities were zeroed at random.

    Attributes:
        rates: Modality → share of samples that lost it.
        metrics: Metric → its value for each seed, (S,).
    """

    rates: Mapping[str, float]
    metrics: Mapping[str, Values]


@dataclass(frozen=True)
class Probe:
    """Accuracies of a linear probe of a frozen encoder; NaN where a split was not read."""

    modality: str
    checkpoint: str
    epoch: int
    train: float
    val: float
    test: float


@dataclass(frozen=True)
class Evaluation:
    """One split, predicted by one checkpoint; parts that the file lacks are empty.

    Attributes:
        split: Of the data.
        checkpoint: best, last or epoch-003.
        samples: Number of samples.
        classes: Their names, K.
        metrics: Metric, or metric/branch, in [0, 1] (the loss aside).
        per_class: Branch → measure (support, precision, recall, f1, ap) → (K,).
        confusion: Branch → (K, K) counts, rows the true classes.
        missing: Sweeps over missing modalities.
    """

    split: str
    checkpoint: str
    samples: int
    classes: Sequence[str]
    metrics: Mapping[str, float] = field(default_factory=dict)
    per_class: Mapping[str, Mapping[str, Values]] = field(default_factory=dict)
    confusion: Mapping[str, Values] = field(default_factory=dict)
    missing: Sequence[Missing] = ()

    @property
    def name(self) -> str:
        """As its file is named, without the ending."""
        return f"{self.split}-{self.checkpoint}"


@dataclass(frozen=True)
class Evaluated:
    """All that `bmlpipe evaluate` found about a run."""

    evaluations: Mapping[str, Evaluation]
    probes: Sequence[Probe]
    notes: Sequence[Note]


def read_evaluated(run: Run) -> Evaluated:
    """Read RUN/evaluation; what has another form than expected is left out, with a note."""
    notes: list[Note] = []
    found = {}
    files = sorted((run.folder / FOLDER).glob("*.json"))
    for path in (path for path in files if path.name != PROBES_FILE):
        content = _content(path, run, notes)
        if content is not None and (evaluation := _evaluation(path, content, run, notes)):
            found[evaluation.name] = evaluation
    probes: list[Probe] = []
    path = run.folder / FOLDER / PROBES_FILE
    if path in files and (content := _content(path, run, notes)) is not None:
        probes = _part(path, run, notes, "probes", lambda: [_probe(one) for one in content["probes"]], [])
    return Evaluated(found, probes, notes)


def _content(path: Path, run: Run, notes: list[Note]) -> dict[str, Any] | None:
    def read() -> dict[str, Any]:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise TypeError("no JSON object")
        if content.get("format") != _FORMAT:
            raise ValueError(f"format {content.get('format')}, where this bmlpipe reads {_FORMAT}")
        return content

    return _part(path, run, notes, "the file", read, None)


def _part(path: Path, run: Run, notes: list[Note], name: str, read: Callable[[], _T], otherwise: _T) -> _T:
    """What `read` returns; where the file holds something else, a note and `otherwise`."""
    try:
        return read()
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        cause = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        text = f"{name} cannot be read ({cause}): left out; write it again with `bmlpipe evaluate {run.folder}`"
        notes.append(Note(str(path), text))
        return otherwise


def _evaluation(path: Path, content: dict[str, Any], run: Run, notes: list[Note]) -> Evaluation | None:
    def part(name: str, read: Callable[[Any], _T], otherwise: _T) -> _T:
        return _part(path, run, notes, name, lambda: read(content[name]), otherwise) if name in content else otherwise

    def about() -> Evaluation:
        classes = [str(name) for name in content["classes"]]
        return Evaluation(str(content["split"]), str(content["checkpoint"]), int(content["samples"]), classes)

    bare = _part(path, run, notes, "the file", about, None)
    if bare is None:
        return None
    size = len(bare.classes)
    return Evaluation(
        bare.split,
        bare.checkpoint,
        bare.samples,
        bare.classes,
        part("metrics", lambda found: {str(m): _float(value) for m, value in found.items()}, {}),
        part(
            "per_class",
            lambda found: {
                str(branch): {str(m): _values(values, size) for m, values in measures.items()}
                for branch, measures in found.items()
            },
            {},
        ),
        part("confusion", lambda found: {str(branch): _values(n, size, size) for branch, n in found.items()}, {}),
        part("missing", lambda found: [_missing(one) for one in found], []),
    )


def _missing(content: Mapping[str, Any]) -> Missing:
    seeds = len(content["seeds"])
    metrics = {str(m): _values(values, seeds) for m, values in content.items() if m not in ("rates", "seeds")}
    return Missing({str(m): _float(rate) for m, rate in content["rates"].items()}, metrics)


def _probe(content: Mapping[str, Any]) -> Probe:
    accuracies = (_float(content.get(split)) for split in ("train", "val", "test"))
    return Probe(str(content["modality"]), str(content["checkpoint"]), int(content["epoch"]), *accuracies)


def _float(value: Any) -> float:
    return np.nan if value is None else float(value)


def _values(content: Any, *shape: int) -> Values:
    """Nested lists of numbers and nulls, of this shape.

    Raises:
        ValueError, TypeError: They are something else.
    """
    values = np.array(content, dtype=np.float64)
    if values.shape != shape:
        raise ValueError(f"shape {values.shape}, where {shape} belongs")
    return values
