"""Predictions and features as files for other programs: CSV, Parquet, NumPy."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bmlpipe.manifests.common.files import open_atomically
from bmlpipe.manifests.common.tables import write_csv_rows
from bmlpipe.shards.combined_reader import MixedReader
from bmlpipe.shards.reader import ShardReader
from bmlpipe.train.config.options import ConfigError
from bmlpipe.train.evaluation.metrics import probabilities
from bmlpipe.train.evaluation.predict import Predictions

#: Name → (N,) of numbers or text, or (N, D) of numbers.
Columns = dict[str, npt.NDArray[Any]]

PREDICTIONS, FEATURES = (".csv", ".parquet"), (".npz", ".parquet")
_ROWS = 1000  # of CSV that are turned into text at a time


def check_format(path: Path, endings: Sequence[str]) -> None:
    """Refuse a file that cannot be written later, before anything is computed for it.

    Raises:
        ConfigError: Another ending, no such folder, or Parquet without pyarrow.
    """
    if path.suffix not in endings:
        raise ConfigError(f"{path} must end with {' or '.join(endings)}, which says in which format it is written")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path} cannot be written: there is no folder {path.absolute().parent}")
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"{path}: Parquet needs pyarrow, which is not installed: pip install 'bmlpipe[parquet]', or choose "
                f"{endings[0]}"
            ) from error


def sample_ids(reader: ShardReader | MixedReader, numbers: Sequence[int]) -> npt.NDArray[np.str_]:
    """The original ids of samples, from their JSON members; their keys where these hold none."""
    samples = (reader[number] for number in numbers)
    return np.array([str(sample.meta.get("id", sample.key)) for sample in samples], dtype=np.str_)


def prediction_columns(ids: npt.NDArray[np.str_], classes: Sequence[str], found: Predictions) -> Columns:
    """A row a sample: its `id`, its `label`, and what the joint prediction and each branch say.

    Columns of the joint prediction are `predicted`, `logit/<class>` and `probability/<class>`, those of a branch
    `predicted/<modality>`, `logit/<modality>/<class>` and `probability/<modality>/<class>`.
    """
    names = np.array(classes, dtype=np.str_)
    columns: Columns = {"id": ids, "label": names[found.labels]}
    for where, logits in {"": found.logits, **{f"/{m}": branch for m, branch in found.branches.items()}}.items():
        shares = probabilities(logits).astype(np.float32)
        columns[f"predicted{where}"] = names[logits.argmax(axis=1)]
        columns |= {f"logit{where}/{name}": logits[:, i] for i, name in enumerate(classes)}
        columns |= {f"probability{where}/{name}": shares[:, i] for i, name in enumerate(classes)}
    return columns


def feature_columns(ids: npt.NDArray[np.str_], classes: Sequence[str], found: Predictions) -> Columns:
    """A row a sample: `id`, `label` (class name), `label_id` and each modality's feature (N, D_m)."""
    names = np.array(classes, dtype=np.str_)
    return {"id": ids, "label": names[found.labels], "label_id": found.labels, **found.features}


def write(path: Path, columns: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write columns in the format that the ending says, whole or not at all.

    CSV holds the shortest numbers that are read back as the same float32. The arrays of an .npz need no pickle.
    """
    writers: dict[str, Callable[[IO[bytes], Mapping[str, npt.NDArray[Any]]], None]]
    writers = {".csv": _csv, ".npz": _npz, ".parquet": _parquet}
    with open_atomically(path) as file:
        writers[path.suffix](file, columns)


def _csv(file: IO[bytes], columns: Mapping[str, npt.NDArray[Any]]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    write_csv_rows(text, [list(columns)])
    for start in range(0, len(next(iter(columns.values()))), _ROWS):
        write_csv_rows(text, zip(*(values[start : start + _ROWS].astype(np.str_) for values in columns.values())))
    text.flush()
    text.detach()


def _npz(file: IO[bytes], columns: Mapping[str, npt.NDArray[Any]]) -> None:
    arrays: dict[str, Any] = dict(columns)
    np.savez(file, **arrays)


def _parquet(file: IO[bytes], columns: Mapping[str, npt.NDArray[Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    def column(values: npt.NDArray[Any]) -> Any:
        if values.ndim == 1:
            return pyarrow.array(values)
        return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.ravel()), values.shape[1])

    parquet.write_table(pyarrow.table({name: column(values) for name, values in columns.items()}), file)
