"""Journals, also damaged ones, are read column by column and reduced without losing an extreme."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bmlpipe.train.runs.journal_reader import Faults, read_columns, read_rows
from bmlpipe.train.runs.traces import merge_traces, trace, width_for


def write(path: Path, *lines: bytes, end: bytes = b"\n") -> Path:
    path.write_bytes(b"\n".join(lines) + end)
    return path


def test_columns_equal_the_values_of_the_lines(tmp_path: Path) -> None:
    """Thousands of lines, more than are parsed at once; a column that starts late, values that are not numbers."""
    random = np.random.default_rng(0)
    rows = [{"step": n, "loss": float(random.normal()), "lr": 1e-3} for n in range(5000)]
    for row in rows[3000:]:
        row["k/audio"] = float(random.random())
    rows[10]["loss"] = None
    rows[11]["lr"] = "fast"
    faults = Faults()
    columns = read_columns(write(tmp_path / "a", *(json.dumps(row).encode() for row in rows)), faults)
    assert list(columns) == ["step", "loss", "lr", "k/audio"]
    for name, values in columns.items():
        expected = [v if isinstance(v := row.get(name), int | float) else np.nan for row in rows]
        np.testing.assert_array_equal(values, expected)
    assert faults == Faults()


DAMAGED = {
    "cut by a kill": (b'{"step": 2, "lo', b"", Faults(cut=3)),
    "cut inside a letter": ('{"step": 2, "ä'.encode()[:-1], b"", Faults(cut=3)),
    "whole, without an end": (b'{"step": 2}', b"", Faults()),
    "damaged": (b'{"step": 2, "lo{"step": 3}', b"\n", Faults(1, [3])),
    "a list": (b"[1, 2]", b"\n", Faults(1, [3])),
    "no UTF-8": (b'{"step": "\xff\xfe"}', b"\n", Faults(1, [3])),
    "a block of zeros": (b"\0" * 400, b"\n", Faults(1, [3])),
    "empty lines": (b"\n\n", b"\n", Faults()),
    "deep": (b"[" * 100_000, b"\n", Faults(1, [3])),
    "halves that join": (b'{"step": 2\n"loss": 3}, {"step": 4}', b"\n", Faults(2, [3, 4])),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_only_a_damaged_line_is_lost_and_it_is_reported(tmp_path: Path, name: str) -> None:
    line, end, expected = DAMAGED[name]
    lines = (b'{"step": 0, "loss": 0.5}', b'{"step": 1, "loss": 0.25}', line)
    after = (b'{"step": 9, "loss": 0.125}',) if end and "empty" not in name else ()
    path = write(tmp_path / "a", *lines, *after, end=end)
    for read in (read_columns, read_rows):
        faults = Faults()
        found = read(path, faults)
        assert (faults.lines, faults.first, faults.cut) == (expected.lines, expected.first, expected.cut)
        steps = list(found["step"]) if isinstance(found, dict) else [row["step"] for row in found]
        assert steps == [0, 1, *([2] if "whole" in name else []), *([9] if after else [])]


def test_nan_and_infinity_are_read_as_missing(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a", b'{"loss": NaN}', b'{"loss": Infinity}', b'{"loss": 1' + b"0" * 400 + b"}", b'{"loss": 2}'
    )
    np.testing.assert_array_equal(read_columns(path)["loss"], [np.nan, np.nan, np.nan, 2])


def test_an_empty_file_has_no_columns(tmp_path: Path) -> None:
    assert read_columns(write(tmp_path / "a", end=b"")) == {}


@given(st.integers(0, 10**7), st.integers(1, 5000))
def test_the_width_is_the_smallest_that_fits(last: int, buckets: int) -> None:
    width = width_for(last, buckets)
    assert width & (width - 1) == 0
    assert last // width + 1 <= buckets
    assert width == 1 or last // (width // 2) + 1 > buckets


@pytest.mark.parametrize("count", [1, 7, 1024, 1025, 30_000])
def test_no_extreme_is_lost_and_means_are_means(count: int) -> None:
    random = np.random.default_rng(count)
    values = random.standard_t(1.5, count)
    values[random.random(count) < 0.1] = np.nan
    values[count // 2] = 1e6
    steps = random.permutation(count)
    one = merge_traces([trace(steps, values)], 64)
    assert one is not None
    assert len(one.count) <= 64
    by_step = values[np.argsort(steps)]
    assert one.high.max() == 1e6
    assert one.low.min() == np.nanmin(values)
    for number in range(len(one.count)):
        own = by_step[number * one.width : (number + 1) * one.width]
        own = own[np.isfinite(own)]
        assert one.count[number] == len(own)
        np.testing.assert_allclose(one.means[number], own.mean() if len(own) else np.nan)
        np.testing.assert_array_equal(one.ranges[1][number], own.max() if len(own) else np.nan)


def test_runs_of_different_lengths_are_merged_step_by_step() -> None:
    long, short = (trace(np.arange(n), np.full(n, value)) for n, value in ((4000, 1.0), (1000, 3.0)))
    one = merge_traces([long, short], 8)
    assert one is not None
    assert one.width == 512
    np.testing.assert_allclose(one.means, [2, (512 + 3 * 488) / 1000, 1, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(one.ranges[1], [3, 3, 1, 1, 1, 1, 1, 1])
    assert merge_traces([trace(np.arange(3), np.full(3, np.nan))], 8) is None
    assert merge_traces([], 8) is None
