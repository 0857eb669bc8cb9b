"""Compatibility: the code reads files of version 1 of each format (tests/golden/) and writes the same shards."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bmlpipe.pipeline.sharding.write import write_shards
from bmlpipe.shards.index import read_index
from bmlpipe.shards.reader import ShardReader, StoredSample
from bmlpipe.shards.sample import JSON_MEMBER, Sample
from bmlpipe.shards.targets import CLASS
from bmlpipe.shards.verify.compare import verify
from bmlpipe.shards.writer import ShardWriter
from bmlpipe.train.runs.run_reader import read_run

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SHARDS = GOLDEN / "shards"


def _make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = _make()


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
    return content


def stored_samples() -> list[StoredSample]:
    reader = ShardReader(SHARDS)
    return [reader[number] for number in range(len(reader))]


def as_written(sample: StoredSample) -> Sample:
    """Return the sample as it was given to the writer."""
    members = {name: bytes(data) for name, data in sample.members.items() if name not in (CLASS.member, JSON_MEMBER)}
    return Sample(sample.key, sample.label, members, {k: v for k, v in sample.meta.items() if k != "members"})


def test_the_index_is_read_and_the_shards_are_valid(expected: dict[str, Any]) -> None:
    index = read_index(SHARDS)
    assert list(verify(SHARDS)) == []
    assert index.sha256 == expected["index"]["sha256"]
    assert list(index.classes) == expected["index"]["classes"]
    assert index.features == expected["index"]["features"]
    assert index.statistics == expected["index"]["statistics"]
    assert {split: list(index.split_range(split)) for split in make.SPLITS} == expected["index"]["splits"]


def test_the_samples_are_read_unchanged(expected: dict[str, Any]) -> None:
    found = [
        {
            "key": sample.key,
            "label": sample.label,
            "meta": sample.meta,
            "members": {name: make.sha256(data) for name, data in sample.members.items()},
        }
        for sample in stored_samples()
    ]
    assert found == expected["samples"]


def test_the_same_samples_are_written_as_the_same_bytes(tmp_path: Path, expected: dict[str, Any]) -> None:
    index = read_index(SHARDS)
    with ShardWriter(
        tmp_path / "shards",
        dataset=index.dataset,
        classes=index.classes,
        features=index.features,
        samples_per_shard=3,
        seed=index.seed,
        dropped=index.dropped,
    ) as writer:
        for split in dict.fromkeys(shard.split for shard in index.shards):
            samples = stored_samples()
            for number in index.split_range(split):
                writer.write(split, as_written(samples[number]))
        writer.statistics = index.statistics
    written = {path.name: make.sha256(path.read_bytes()) for path in (tmp_path / "shards").iterdir()}
    assert written == expected["files"]


def test_sharding_the_feature_file_gives_the_same_sample(tmp_path: Path) -> None:
    write_shards("folder", GOLDEN / "features", tmp_path / "shards")
    reader = ShardReader(tmp_path / "shards")
    assert len(reader) == 1
    sample = reader[0]
    original = next(other for other in stored_samples() if other.meta["id"] == sample.meta["id"])
    assert sample.members.keys() == original.members.keys()
    for name in sample.members.keys() - {CLASS.member}:  # the first clip alone has one class, numbered 0
        assert bytes(sample.members[name]) == bytes(original.members[name]), name


def test_the_journal_is_read() -> None:
    run = read_run(GOLDEN / "run")
    lines = [json.loads(line) for line in (GOLDEN / "run" / "steps.jsonl").read_text().splitlines()]
    assert run.finished
    assert run.epochs_done == 2
    assert len(lines) == 4


def numbers(value: Any, name: str = "") -> dict[str, float]:
    """Return all numbers in nested values by their path."""
    if isinstance(value, Mapping):
        return {k: v for key, inner in value.items() for k, v in numbers(inner, f"{name}.{key}").items()}
    if isinstance(value, list):
        return {k: v for at, inner in enumerate(value) for k, v in numbers(inner, f"{name}[{at}]").items()}
    return {name: float(value)} if isinstance(value, int | float) and not isinstance(value, bool) else {}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A writable copy of the golden set."""
    for name in ("shards", "run"):
        shutil.copytree(GOLDEN / name, tmp_path / name)
    return tmp_path


@pytest.mark.slow
def test_evaluating_the_checkpoint_gives_the_same_result(folder: Path, expected: dict[str, Any]) -> None:
    make.bmlpipe(make.EVALUATION, folder)
    for name, before in expected["evaluation"].items():
        now = json.loads((folder / "run" / "evaluation" / name).read_text())
        assert numbers(now).keys() >= numbers(before).keys()
        for place, number in numbers(before).items():
            if "seconds" not in place:
                assert numbers(now)[place] == pytest.approx(number, rel=1e-3, abs=1e-4), place


@pytest.mark.slow
def test_the_run_can_be_resumed(folder: Path) -> None:
    before = (folder / "run" / "steps.jsonl").read_bytes()
    make.train([*make.TRAINING, "--epochs", "3", "--resume"], folder)
    after = (folder / "run" / "steps.jsonl").read_bytes()
    assert after.startswith(before)
    assert len(after.splitlines()) == 6
    assert read_run(folder / "run").epochs_done == 3
