"""Errors of a training: one line for what the user can correct, a traceback for anything else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("both_cores")

RUN = Path(__file__).parents[2] / "train" / "run.py"

#: A rule of another package that raises the exception in $RAISED on rank 1, at its third step.
PLUGIN = """
import os
from dataclasses import dataclass
from bmlpipe.manifests.common.errors import BmlpipeError
from bmlpipe.train.modulation import Rule

calls = 0

@dataclass(frozen=True, kw_only=True)
class Broken(Rule):
    def forward(self, features, *_):
        global calls
        calls += 1
        if calls == 3 and os.environ.get("RANK", "1") == "1":
            raise {"BmlpipeError": BmlpipeError, "ValueError": ValueError}[os.environ["RAISED"]]("cause: it broke")
        return features
"""


def train_broken(shards: Path, folder: Path, raised: str, *, ranks: int, log: str = "text") -> str:
    """Train with the rule that breaks; returns stderr."""
    (folder / "broken_rule.py").write_text(PLUGIN)
    info = folder / "broken_rule-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-rule\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bmlpipe.modulations]\nbroken = broken_rule:Broken\n")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    options = (
        "--dataset folder --encoder cnn4 --image-size 32 --batch-size 24 --epochs 3 --workers 0 --device cpu "
        "--no-tensorboard --modulation broken --group-timeout 120"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, *launcher, str(RUN), "--shards", str(shards), "--out", str(folder / "run"), *options.split()],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder), "RAISED": raised, "BMLPIPE_LOG": log},
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert time.monotonic() - start < 110, "a rank waited for one that had ended"
    return done.stderr


@pytest.mark.slow
def test_an_unexpected_exception_shows_its_traceback_and_ends_every_rank(toy_shards: Path, tmp_path: Path) -> None:
    said = train_broken(toy_shards, tmp_path, "ValueError", ranks=2)
    assert "CRITICAL rank 1: unexpected error: ValueError: cause: it broke" in said
    trace = said[said.index("unexpected error: ValueError") :]
    assert 'broken_rule.py", line' in trace
    assert "in forward" in trace
    steps = (tmp_path / "run" / "steps.jsonl").read_text().splitlines()
    assert len(steps) < 4  # rank 0 has not trained on alone


@pytest.mark.slow
def test_an_error_that_the_user_can_correct_is_one_line_and_ends_every_rank(toy_shards: Path, tmp_path: Path) -> None:
    said = train_broken(toy_shards, tmp_path, "BmlpipeError", ranks=2)
    lines = [line for line in said.splitlines() if "cause: it broke" in line]
    assert len(lines) == 1
    assert "ERROR   rank 1: cause: it broke" in lines[0]
    assert "broken_rule.py" not in said


@pytest.mark.slow
@pytest.mark.parametrize("raised", ["ValueError", "BmlpipeError"])
def test_in_json_the_last_line_holds_the_error(toy_shards: Path, tmp_path: Path, raised: str) -> None:
    last = json.loads(train_broken(toy_shards, tmp_path, raised, ranks=1, log="json").splitlines()[-1])
    assert "cause: it broke" in last["message"]
    assert ("broken_rule.py" in last.get("traceback", "")) == (raised == "ValueError")
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["error"]) == ("failed", f"{raised}: cause: it broke")
