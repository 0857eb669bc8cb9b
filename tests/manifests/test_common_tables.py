"""Tables: CSV files read back exactly; printed tables are Markdown unless the output is a terminal."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bmlpipe.manifests.common.tables import markdown_table, print_table, write_csv, write_csv_rows

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(st.lists(st.lists(TEXT, min_size=2, max_size=2)))
def test_any_text_reads_back(rows: list[list[str]]) -> None:
    file = io.StringIO(newline="")
    write_csv_rows(file, rows)
    file.seek(0)
    assert list(csv.reader(file)) == rows


def test_a_csv_file_keeps_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [["path"], ["caf\udce9"]], sync=True)
    assert (tmp_path / "a.csv").read_bytes() == b"path\ncaf\xe9\n"


def test_markdown_escapes_bars(capsys: pytest.CaptureFixture[str]) -> None:
    table = markdown_table(["class", "n"], [["a|b", "1"]])
    assert table == "| class | n |\n| --- | --- |\n| a\\|b | 1 |\n"
    print_table(["class", "n"], [["a|b", "1"]], caption="Classes")
    assert capsys.readouterr().out == f"\nClasses\n\n{table}"


def test_a_terminal_gets_a_drawn_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    print_table(["class", "n"], [["[red]", "1"], ["b", "10"]])
    out = capsys.readouterr().out
    assert "[red]" in out
    assert "│  1 │" in out
