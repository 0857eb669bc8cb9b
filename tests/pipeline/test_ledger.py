"""The ledger: complete at every moment, in the order of the manifest, for any names of clips."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bmlpipe.pipeline.store.errors import ExtractionError, StoreWriteError
from bmlpipe.pipeline.store.folder import FeatureFolder
from bmlpipe.pipeline.store.ledger import NOT_TRIED, Ledger, LedgerRow, known_rows, read_ledger


def untried(*ids: str) -> list[LedgerRow]:
    return [LedgerRow(id_, "train", "failed", NOT_TRIED) for id_ in ids]


def ids_of(folder: Path) -> list[str]:
    with FeatureFolder(folder).ledger.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return [row["id"] for row in csv.DictReader(file)]


def test_rows_keep_the_order_of_the_manifest_in_any_order_of_completion(tmp_path: Path) -> None:
    with Ledger(tmp_path, untried("c", "a", "b")) as ledger:
        ledger.append(
            [LedgerRow("b", "train", "ok"), LedgerRow("c", "train", "failed", "empty_file", "x.mp4 holds no bytes")]
        )
        ledger.append([LedgerRow("a", "train", "ok", flags="short_video")])
    assert ledger.counts() == {"ok": 2, "failed": 1}
    assert [(row.id, row.status) for row in read_ledger(tmp_path)] == [("c", "failed"), ("a", "ok"), ("b", "ok")]
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.csv"]
    lines = FeatureFolder(tmp_path).ledger.read_text().splitlines()
    assert lines[0].startswith("id,split,status,reason,message,")
    assert lines[1].startswith("c,train,failed,empty_file,x.mp4 holds no bytes,")


def test_the_table_is_complete_from_the_start_but_marked_as_unfinished(tmp_path: Path) -> None:
    before = [LedgerRow("a", "train", "ok"), LedgerRow("b", "val", "absent", "not_found"), *untried("c", "d")]
    with Ledger(tmp_path, before) as ledger:
        assert ids_of(tmp_path) == ["a", "b", "c", "d"]
        ledger.append([LedgerRow("d", "train", "ok")])
        with pytest.raises(ExtractionError, match="running or was interrupted"):
            read_ledger(tmp_path)
        assert known_rows(tmp_path)["d"].status == "ok"
        assert known_rows(tmp_path)["c"].reason == NOT_TRIED


def test_an_interrupted_run_leaves_a_complete_table_marked_as_unfinished(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Ledger(tmp_path, untried("a", "b", "c")) as ledger:
        ledger.append([LedgerRow("b", "train", "ok")])
        raise KeyboardInterrupt
    assert ids_of(tmp_path) == ["a", "b", "c"]
    with pytest.raises(ExtractionError, match="interrupted"):
        read_ledger(tmp_path)
    assert [row.status for row in known_rows(tmp_path).values()] == ["failed", "ok", "failed"]


def test_a_new_run_starts_from_its_own_rows(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Ledger(tmp_path, untried("a", "gone")) as ledger:
        ledger.append([LedgerRow("a", "train", "ok"), LedgerRow("gone", "train", "ok")])
        raise RuntimeError("killed")
    with Ledger(tmp_path, [known_rows(tmp_path)["a"], *untried("new")]) as ledger:
        assert list(known_rows(tmp_path)) == ["a", "new"]
        ledger.append([LedgerRow("new", "train", "ok")])
    assert [row.id for row in read_ledger(tmp_path)] == ["a", "new"]


@pytest.mark.parametrize("cut", range(2, 42, 8))
def test_a_kill_in_the_middle_of_a_line_loses_only_that_line(tmp_path: Path, cut: int) -> None:
    with pytest.raises(RuntimeError), Ledger(tmp_path, untried("a", "b", "c")) as ledger:
        ledger.append([LedgerRow("a", "train", "ok"), LedgerRow("b", "train", "ok")])
        raise RuntimeError("killed")
    FeatureFolder(tmp_path).ledger.unlink()  # after a kill only the log is current
    log = FeatureFolder(tmp_path).ledger_log
    log.write_bytes(log.read_bytes()[:-cut])
    known = known_rows(tmp_path)
    assert known["a"] == LedgerRow("a", "train", "ok")
    assert "b" not in known
    log.write_bytes(log.read_bytes() + b'\xff\x00garbage\n[1]\n17\n["too", "few"]\n{}\n')
    assert known_rows(tmp_path) == known


def test_rows_survive_sigkill(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from bmlpipe.pipeline.store.ledger import Ledger, LedgerRow
with Ledger(Path(sys.argv[1]), [LedgerRow(str(n), "train", "failed", "not_tried") for n in range(1000)]) as ledger:
    for number in range(600):
        ledger.append([LedgerRow(str(number), "train", "ok")])
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert ids_of(tmp_path) == [str(number) for number in range(1000)]
    known = known_rows(tmp_path)
    assert sum(row.status == "ok" for row in known.values()) == 600
    assert list(known) == [str(number) for number in range(1000)]


#: Any file name: bytes that are not UTF-8 are decoded to lone surrogates.
_NAMES = st.binary(min_size=1, max_size=30).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"")) or "x")


@given(st.lists(st.tuples(_NAMES, st.text(max_size=60), _NAMES), min_size=1, unique_by=lambda item: item[0]))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_name_and_message_is_read_as_written(tmp_path: Path, items: list[tuple[str, str, str]]) -> None:
    rows = [
        LedgerRow(id_, "test", "failed", "internal_error", message, source=source) for id_, message, source in items
    ]
    with Ledger(tmp_path, untried(*(row.id for row in rows))) as ledger:
        ledger.append(rows)
        assert list(known_rows(tmp_path).values()) == rows  # through the log
    assert read_ledger(tmp_path) == rows  # through the table


def test_special_characters_are_quoted_and_messages_are_one_line(tmp_path: Path) -> None:
    row = LedgerRow(
        'a "quoted", name\r\nwith\rends', "train", "failed", "not_media", "first\nsecond\r\nthird\tand \0 last"
    )
    with Ledger(tmp_path, [row]):
        pass
    with FeatureFolder(tmp_path).ledger.open(newline="", encoding="utf-8") as file:
        (cells,) = list(csv.reader(file))[1:]
    assert cells[0] == 'a "quoted", name\r\nwith\rends'
    assert cells[4] == "first second third and last"
    assert len(LedgerRow("a", "train", "failed", "x", "long " * 1000).message) <= 500


def test_a_table_with_other_columns_is_ignored(tmp_path: Path) -> None:
    FeatureFolder(tmp_path).ledger.write_text("id,split,status\na,train,ok\n")
    assert known_rows(tmp_path) == {}


def test_a_folder_without_a_ledger_names_the_command_that_makes_one(tmp_path: Path) -> None:
    assert known_rows(tmp_path / "nothing") == {}
    with pytest.raises(ExtractionError, match="run bmlpipe extract first"):
        read_ledger(tmp_path)


def test_a_log_that_cannot_be_written_is_a_write_error(tmp_path: Path) -> None:
    FeatureFolder(tmp_path).ledger_log.mkdir()
    with pytest.raises(StoreWriteError, match="cannot be written"), Ledger(tmp_path, untried("a")):
        pass


def test_a_full_disk_at_the_end_is_a_write_error(tmp_path: Path) -> None:
    with pytest.raises(StoreWriteError, match="cannot be written"), Ledger(tmp_path, untried("a")) as ledger:
        ledger.append([LedgerRow("a", "train", "ok")])
        (tmp_path / "ledger.csv.writing").mkdir()  # stands in for a full disk: the temporary file cannot be created
    assert known_rows(tmp_path)["a"].status == "ok"
    with pytest.raises(ExtractionError, match="interrupted"):
        read_ledger(tmp_path)
