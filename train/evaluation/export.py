"""Export predictions and features for other programs, as CSV, Parquet or NumPy files."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bmlpipe.manifests.common.files import open_atomically
from bmlpipe.manifests.common.tables import write_csv_rows
from bmlpipe.shards.combined_reader import CombinedReader
from bmlpipe.shards.reader import ShardReader
from bmlpipe.train.config.options import ConfigError
from bmlpipe.train.evaluation.predict import Predictions
from bmlpipe.train.tasks.registry import Task

#: Name → numbers or text, (N,), or numbers, (N, D), of N samples.
Columns = dict[str, npt.NDArray[Any]]

PREDICTIONS, FEATURES = (".csv", ".parquet"), (".npz", ".parquet")
_ROWS = 1000  # rows of CSV that are converted to text at a time


def check_format(path: Path, endings: Sequence[str]) -> None:
    """Check that a file can be written, before its content is computed.

    Args:
        path: File to write later; its suffix names the format.
        endings: Suffixes that are supported.

    Raises:
        ConfigError: The suffix is another one, the folder does not exist, or pyarrow is not installed for Parquet.
    """
    if path.suffix not in endings:
        raise ConfigError(f"{path} must end with {' or '.join(endings)}: the ending chooses the format")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path} cannot be written: there is no folder {path.absolute().parent}; create it first")
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"{path}: Parquet needs pyarrow, which is not installed: pip install 'bmlpipe[parquet]', or choose "
                f"{endings[0]}"
            ) from error


def sample_ids(reader: ShardReader | CombinedReader, numbers: Sequence[int]) -> npt.NDArray[np.str_]:
    """Return the original ids of samples, (N,), from their JSON members; the key of a sample without an id."""
    samples = (reader[number] for number in numbers)
    return np.array([str(sample.meta.get("id", sample.key)) for sample in samples], dtype=np.str_)


def prediction_columns(ids: npt.NDArray[np.str_], task: Task, predictions: Predictions) -> Columns:
    """Collect one row per sample: `id` and the columns of the task (`Task.prediction_columns`)."""
    return {"id": ids, **task.prediction_columns(predictions.logits, predictions.branches, predictions.labels)}


def feature_columns(ids: npt.NDArray[np.str_], task: Task, predictions: Predictions) -> Columns:
    """Collect one row per sample: `id`, the target (`Task.target_columns`) and each modality's feature, (N, D_m)."""
    return {"id": ids, **task.target_columns(predictions.labels), **predictions.features}


def write(path: Path, columns: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write columns in the format of the file's suffix, whole or not at all.

    A number in CSV is the shortest decimal that reads back as the same float32. The arrays of an .npz file load without
    pickle.
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
