"""Whole runs on small shards: equal on any number of ranks, resumable, stoppable, and honest on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.spec import Sample
from bmlpipe.shards.writer import ShardWriter
from bmlpipe.train import checkpoint
from bmlpipe.train.config import ConfigError

RUN = Path(__file__).parents[1] / "train" / "run.py"
SMALL = (
    "--dataset folder --encoder cnn4 --image-size 32 --batch-size 24 --lr 0.01 --workers 0 --device cpu "
    "--no-tensorboard"
)


#: One thread: the order of float additions, and so the last bits, depend on the number of threads.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(shards: Path, out: Path, *flags: str, ranks: int = 1) -> list[str]:
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*start, str(RUN), "--shards", str(shards), "--out", str(out), *SMALL.split(), *flags]


def run(shards: Path, out: Path, *flags: str, ranks: int = 1, status: int = 0) -> str:
    done = subprocess.run(
        command(shards, out, *flags, ranks=ranks),
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stderr


def rows(out: Path, name: str = "steps.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text(encoding="utf-8").splitlines()]


def numbers(out: Path) -> list[dict[str, Any]]:
    """The journal without what a clock measured."""
    return [{k: v for k, v in row.items() if k not in ("data_s", "step_s", "samples_per_s")} for row in rows(out)]


def weights(out: Path, name: str = "last.pt") -> dict[str, torch.Tensor]:
    return checkpoint.load(out / "checkpoints" / name)["model"]


@pytest.fixture(scope="module")
def finished(toy_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs in one process with OPM and OGM."""
    out = tmp_path_factory.mktemp("run") / "whole"
    run(toy_shards, out, "--epochs", "3", "--modulation", "opm+ogm")
    return out


@pytest.mark.slow
def test_a_run_leaves_its_journal_metrics_configuration_and_checkpoints(finished: Path) -> None:
    steps = rows(finished)
    assert [row["step"] for row in steps] == list(range(12))
    assert [row["epoch"] for row in steps] == [0] * 4 + [1] * 4 + [2] * 4
    per_modality = {f"{k}/{m}" for k in ("score", "rho", "q", "k", "dropped", "grad_norm") for m in ("audio", "visual")}
    assert set(steps[0]) == {"step", "epoch", "loss", "lr", "data_s", "step_s", "samples_per_s"} | per_modality
    for row, later in pairwise(steps):
        assert row["rho/audio"] == pytest.approx(row["score/audio"] / row["score/visual"], rel=1e-9)
        expected = min(1, 0.5 * (1 + 0.5 * torch.tanh(torch.tensor(row["rho/audio"] - 1)).item()))
        assert later["q/audio"] == pytest.approx(expected if row["rho/audio"] > 1 else 0, abs=1e-6)
    metrics = rows(finished, "metrics.jsonl")
    assert [row["split"] for row in metrics] == ["val", "val", "val", "test"]
    assert set(metrics[0]) == {"epoch", "step", "split", "accuracy", "mAP", "accuracy/audio", "accuracy/visual"}
    validation = [row["accuracy"] for row in metrics[:3]]
    assert metrics[3]["epoch"] == validation.index(max(validation))
    config = yaml.safe_load((finished / "config.yaml").read_text(encoding="utf-8"))
    assert (config["modulation"], config["frames"], config["modalities"]) == ("opm+ogm", 3, ["audio", "visual"])
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["best.pt", "last.pt"]


@pytest.mark.slow
@pytest.mark.parametrize("modulation", ["none", "opm", "ogm", "opm+ogm"])
def test_two_ranks_are_one_rank_at_the_same_global_batch(toy_shards: Path, tmp_path: Path, modulation: str) -> None:
    """Batch norm is frozen, since local batch statistics are of a rank's own samples.

    Both runs differ by the order of float32 additions only.
    """
    flags = ("--epochs", "2", "--modulation", modulation, "--batch-norm", "frozen")
    for ranks in (1, 2):
        run(toy_shards, tmp_path / str(ranks), *flags, ranks=ranks)
    one, two = (numbers(tmp_path / str(ranks)) for ranks in (1, 2))
    assert len(one) == len(two) == 8
    for a, b in zip(one, two):
        for name in a:
            relative = 1e-5 if name.startswith(("rho", "score", "q/", "k/", "dropped")) else 1e-4
            assert b[name] == pytest.approx(a[name], rel=relative, abs=1e-7), name
    for name, tensor in weights(tmp_path / "1").items():
        torch.testing.assert_close(weights(tmp_path / "2")[name], tensor, rtol=1e-3, atol=1e-5)
    a, b = rows(tmp_path / "1", "metrics.jsonl"), rows(tmp_path / "2", "metrics.jsonl")
    assert [row["accuracy"] for row in a] == [row["accuracy"] for row in b]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_stopped_by_sigterm_goes_on_as_if_nothing_had_been(
    toy_shards: Path, tmp_path: Path, finished: Path, ranks: int
) -> None:
    flags = ("--epochs", "40", "--modulation", "opm+ogm")
    whole, stopped = finished if ranks == 1 else tmp_path / "whole", tmp_path / "stopped"
    if ranks == 2:
        run(toy_shards, whole, "--epochs", "3", "--modulation", "opm+ogm", ranks=2)
    with subprocess.Popen(
        command(toy_shards, stopped, *flags, ranks=ranks),
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        deadline = time.monotonic() + 120
        while not (stopped / "steps.jsonl").exists() or not rows(stopped):
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        error = process.stderr.read()
    assert process.returncode != 0
    if ranks == 1:
        assert process.returncode == 143
        assert "--resume" in error
    state = checkpoint.load(stopped / "checkpoints" / "last.pt")
    assert 0 < state["progress"]["step"] < 160
    epochs = str(max(3, 1 + state["progress"]["step"] // 4))
    run(toy_shards, stopped, "--epochs", epochs, "--modulation", "opm+ogm", "--resume", ranks=ranks)
    if epochs != "3":
        run(toy_shards, whole, "--epochs", epochs, "--modulation", "opm+ogm", "--resume", ranks=ranks)
    assert numbers(stopped) == numbers(whole)
    assert rows(stopped, "metrics.jsonl") == rows(whole, "metrics.jsonl")
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(stopped)[name], tensor), name


@pytest.mark.slow
def test_a_run_killed_in_mid_epoch_resumes_from_its_last_checkpoint_bitwise(
    toy_shards: Path, tmp_path: Path, finished: Path
) -> None:
    """What a kill leaves: a checkpoint of step 6 and a journal that went on to step 8, its last line cut."""
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "checkpoints").mkdir()
    code = (
        "import sys; from bmlpipe.train import checkpoint, loop; save = checkpoint.save\n"
        "def stop(path, content):\n"
        "    save(path, content)\n"
        "    if content['progress']['step'] == 6: sys.exit(9)\n"
        "checkpoint.save = stop\n"
        "from bmlpipe.train.run import main; main()"
    )
    arguments = command(
        toy_shards, cut, "--epochs", "3", "--modulation", "opm+ogm", "--checkpoint-every", "6", "--resume"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, *arguments[2:]],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
        check=False,
    )
    assert killed.returncode == 9, killed.stderr
    with (cut / "steps.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 6, "loss": 99.0}) + "\n" + '{"step": 7, "lo')
    run(toy_shards, cut, "--epochs", "3", "--modulation", "opm+ogm", "--resume")
    assert numbers(cut) == numbers(finished)
    for name, tensor in weights(finished).items():
        assert torch.equal(weights(cut)[name], tensor), name


@pytest.mark.slow
def test_one_modality_trains_alone(toy_shards: Path, tmp_path: Path) -> None:
    run(toy_shards, tmp_path / "audio", "--epochs", "6", "--modalities", "audio")
    metrics = rows(tmp_path / "audio", "metrics.jsonl")
    assert metrics[-1]["accuracy"] == metrics[-1]["accuracy/audio"] > 0.5
    assert "rho/audio" not in rows(tmp_path / "audio")[0]


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["sum", "film", "gated"])
def test_every_fusion_trains_with_both_modulations(toy_shards: Path, tmp_path: Path, fusion: str) -> None:
    run(toy_shards, tmp_path / fusion, "--epochs", "1", "--fusion", fusion, "--modulation", "opm+ogm")
    assert all(row["rho/audio"] > 0 for row in rows(tmp_path / fusion))


@pytest.mark.slow
def test_the_paper_setting_of_resnet18_and_flow_trains(toy_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "resnet"
    run(toy_shards, out, "--epochs", "1", "--encoder", "resnet18", "--modalities", "visual,flow", "--weights", "none")
    assert weights(out)["encoders.flow.conv1.weight"].shape == (64, 2, 7, 7)


@pytest.mark.slow
def test_a_second_run_does_not_overwrite_the_first(toy_shards: Path, finished: Path) -> None:
    before = (finished / "steps.jsonl").read_bytes()
    error = run(toy_shards, finished, "--epochs", "3", status=1)
    assert "go on with --resume, or choose another --out" in error
    assert (finished / "steps.jsonl").read_bytes() == before


@pytest.mark.slow
def test_resuming_with_other_options_is_refused(toy_shards: Path, finished: Path) -> None:
    error = run(toy_shards, finished, "--epochs", "4", "--modulation", "opm", "--resume", status=1)
    assert "modulation: 'opm+ogm' before, 'opm' now" in error


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_ends_the_run_with_a_remedy(toy_shards: Path, tmp_path: Path) -> None:
    error = run(toy_shards, tmp_path / "run", "--epochs", "3", "--lr", "1e30", status=1)
    assert "lower --lr" in error
    assert all(row["loss"] is None or row["loss"] >= 0 for row in rows(tmp_path / "run"))


def test_checkpoints_of_other_features_are_refused() -> None:
    old = {"config": {"lr": 1.0, "workers": 1}, "features_sha256": "a" * 64}
    checkpoint.check_same_run(old, {"lr": 1.0, "workers": 9}, "a" * 64, Path("last.pt"))
    with pytest.raises(ConfigError, match="other front-end parameters"):
        checkpoint.check_same_run(old, {"lr": 1.0}, "b" * 64, Path("last.pt"))


def test_what_is_no_checkpoint_is_refused_and_never_executed(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.system, (f"touch {tmp_path / 'executed'}",))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"model": 1}, tmp_path / "other.pt")
    for name in ("evil.pt", "other.pt"):
        with pytest.raises(ConfigError, match=name):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "executed").exists()


@pytest.mark.slow
def test_resuming_a_finished_run_without_a_test_split_finds_nothing_to_do(toy_shards: Path, tmp_path: Path) -> None:
    shards, out = tmp_path / "shards", tmp_path / "run"
    reader = ShardReader(toy_shards)
    index = reader.index
    with ShardWriter(shards, dataset="folder", classes=index.classes, features=index.features) as writer:
        for split in ("train", "val"):
            for number in index.split_range(split):
                old = reader[number]
                members = {name: bytes(data) for name, data in old.members.items() if name not in ("cls", "json")}
                writer.write(split, Sample(old.key, old.label, members, old.meta))
        writer.statistics = index.statistics
    run(shards, out, "--epochs", "1")
    assert [row["split"] for row in rows(out, "metrics.jsonl")] == ["val"]
    assert "nothing was left to do" in run(shards, out, "--epochs", "1", "--resume")
    assert [row["split"] for row in rows(out, "metrics.jsonl")] == ["val"]
