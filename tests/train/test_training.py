"""Whole runs on small shards: equal on any number of ranks, resumable, stoppable, complete on disk."""

from __future__ import annotations

import json
import math
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
from bmlpipe.shards.sample import Sample
from bmlpipe.shards.writer import ShardWriter
from bmlpipe.train.config.options import ConfigError
from bmlpipe.train.config.parsing import parse
from bmlpipe.train.run import train
from bmlpipe.train.runs import checkpoint

pytestmark = pytest.mark.xdist_group("both_cores")

RUN = Path(__file__).parents[2] / "train" / "run.py"
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
    common = {"step", "epoch", "loss", "lr", "samples", "data_s", "step_s", "samples_per_s"}
    assert set(steps[0]) == common | per_modality
    for row, later in pairwise(steps):
        assert row["rho/audio"] == pytest.approx(row["score/audio"] / row["score/visual"], rel=1e-9)
        expected = min(1, 0.5 * (1 + 0.5 * torch.tanh(torch.tensor(row["rho/audio"] - 1)).item()))
        assert later["q/audio"] == pytest.approx(expected if row["rho/audio"] > 1 else 0, abs=1e-6)
    metrics = rows(finished, "metrics.jsonl")
    assert [row["split"] for row in metrics] == ["val", "val", "val", "test"]
    common = {"epoch", "step", "split", "loss", "accuracy", "mAP", "accuracy/audio", "accuracy/visual"}
    assert set(metrics[0]) == common | {"left_out", "padded"}
    assert set(metrics[3]) == common
    assert (metrics[0]["left_out"], metrics[0]["padded"]) == (0, 0)
    validation = [row["accuracy"] for row in metrics[:3]]
    assert metrics[3]["epoch"] == validation.index(max(validation))
    config = yaml.safe_load((finished / "config.yaml").read_text(encoding="utf-8"))
    assert (config["modulation"], config["frames"], config["modalities"]) == ("opm+ogm", 3, ["audio", "visual"])
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["best.pt", "last.pt"]


@pytest.mark.slow
def test_ranks_and_micro_batches_do_not_change_a_run(toy_shards: Path, tmp_path: Path) -> None:
    """Batch norm is frozen, since local batch statistics are of a rank's own samples.

    The runs differ by the order of float32 additions only. Which modulation acts matters little here: all are compared
    by test_parallel.
    """
    flags = ("--epochs", "2", "--modulation", "opm+ogm", "--batch-norm", "frozen", "--last-batch", "pad")
    run(toy_shards, tmp_path / "one", *flags)
    one = numbers(tmp_path / "one")
    assert [row["samples"] for row in one[:5]] == [24, 24, 24, 24, 24]
    for ranks, micro in ((2, 1), (4, 1), (1, 4), (2, 2)):
        out = tmp_path / f"{ranks}x{micro}"
        run(toy_shards, out, *flags, "--accumulate", str(micro), ranks=ranks)
        other = numbers(out)
        assert len(one) == len(other)
        for a, b in zip(one, other):
            for name in a:
                relative = 1e-5 if name.startswith(("rho", "score", "q/", "k/", "dropped")) else 1e-4
                assert b[name] == pytest.approx(a[name], rel=relative, abs=1e-7), (name, ranks, micro)
        for name, tensor in weights(tmp_path / "one").items():
            torch.testing.assert_close(weights(out)[name], tensor, rtol=1e-3, atol=1e-5)
        a, b = rows(tmp_path / "one", "metrics.jsonl"), rows(out, "metrics.jsonl")
        assert [row["accuracy"] for row in a] == [row["accuracy"] for row in b]


@pytest.mark.slow
def test_a_run_resumes_with_other_ranks_and_micro_batches(toy_shards: Path, tmp_path: Path) -> None:
    """The same global batch, so the same samples in the same steps: one rank, then two with two micro-batches each."""
    flags = ("--modulation", "opm+ogm", "--batch-norm", "frozen")
    run(toy_shards, tmp_path / "one", *flags, "--epochs", "2")
    run(toy_shards, tmp_path / "moved", *flags, "--epochs", "1")
    run(toy_shards, tmp_path / "moved", *flags, "--epochs", "2", "--accumulate", "2", "--resume", ranks=2)
    for a, b in zip(numbers(tmp_path / "one"), numbers(tmp_path / "moved"), strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-7)
    for name, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "moved")[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_stopped_by_sigterm_resumes_bit_for_bit(
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
    assert 0 < state["step"] < 160
    epochs = str(max(3, 1 + state["step"] // 4))
    run(toy_shards, stopped, "--epochs", epochs, "--modulation", "opm+ogm", "--resume", ranks=ranks)
    if epochs != "3":
        run(toy_shards, whole, "--epochs", epochs, "--modulation", "opm+ogm", "--resume", ranks=ranks)
    assert numbers(stopped) == numbers(whole)
    assert rows(stopped, "metrics.jsonl") == rows(whole, "metrics.jsonl")
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(stopped)[name], tensor), name


@pytest.mark.slow
def test_a_run_killed_in_mid_epoch_resumes_bit_for_bit(toy_shards: Path, tmp_path: Path, finished: Path) -> None:
    """What a kill leaves: a checkpoint of step 6 and a journal that went on to step 8, its last line cut."""
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "checkpoints").mkdir()
    code = (
        "import sys; from bmlpipe.train.engine import trainer\n"
        "from bmlpipe.train.runs import checkpoint; save = checkpoint.save\n"
        "def stop(path, content):\n"
        "    save(path, content)\n"
        "    if content['step'] == 6: sys.exit(9)\n"
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


def trained(shards: Path, out: Path, **options: object) -> Path:
    """A run of one epoch in this process."""
    given = {"encoder": "cnn4", "image_size": 32, "batch_size": 24, "lr": 0.01, "workers": 0, "device": "cpu"}
    whole = {**given, "epochs": 1, "tensorboard": False, "shards": str(shards), "out": str(out), **options}
    assert train(parse(whole, "test").resolved()) == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"fusion": name} for name in ("sum", "film", "gated", "lowrank", "centralnet")]
    + [{"intermediate": "mmtm"}, {"intermediate": "attention"}, {"classifier_layers": 2}, {"encoder": "tsm18"}]
    + [{"discrepancy": "difference"}, {"preset": "tpami-release"}, {"preset": "cvpr2022-release", "fusion": "sum"}],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_every_model_and_preset_trains_with_both_modulations(
    toy_shards: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    steps = rows(trained(toy_shards, tmp_path / "run", modulation="opm+ogm", **options))
    assert all(math.isfinite(row["rho/audio"]) and math.isfinite(row["loss"]) for row in steps)
    assert len(steps) >= 4 or options.get("preset")


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["concat", "film"])
def test_three_modalities_train_together(toy_shards: Path, tmp_path: Path, fusion: str) -> None:
    """The setting of UCF-101-Three."""
    three = {"dataset": "ucf101-three", "weights": "none", "fusion": fusion}
    steps = rows(trained(toy_shards, tmp_path / "run", modulation="opm+ogm", **three))
    names = ("visual", "flow", "rgb_diff")
    for row in steps:
        s = [row[f"score/{m}"] for m in names]
        for i, m in enumerate(names):
            others = [s[i] / s[j] for j in range(3) if j != i]
            assert row[f"rho/{m}"] == pytest.approx(sum(others) / 2, rel=1e-9)
    assert set(rows(tmp_path / "run", "metrics.jsonl")[0]) >= {f"accuracy/{m}" for m in names}


@pytest.mark.slow
@pytest.mark.parametrize(
    "modulation",
    [
        *("ogm-star", "ogm-ge", "ogm(apply=lr)", "opm(target=input)+ogm", "opm(same_step=true)", "moddrop"),
        *("dropout+opm", "annealed-dropout", "curriculum-dropout+ogm", "evolutional-dropout"),
    ],
)
def test_every_modulation_trains(toy_shards: Path, tmp_path: Path, modulation: str) -> None:
    steps = rows(trained(toy_shards, tmp_path / "run", modulation=modulation))
    plain = rows(trained(toy_shards, tmp_path / "plain"))
    assert [row["loss"] for row in steps] != [row["loss"] for row in plain]


@pytest.mark.slow
def test_greedy_and_gblending_train(toy_shards: Path, tmp_path: Path) -> None:
    steps = rows(trained(toy_shards, tmp_path / "greedy", modulation="greedy", intermediate="mmtm", epochs=3))
    assert all(math.isfinite(row["loss"]) for row in steps)
    references = [trained(toy_shards, tmp_path / m, modalities=m, epochs=2) for m in ("audio", "visual")]
    references.append(trained(toy_shards, tmp_path / "joint", epochs=2))
    given = {"modulation": "gblending", "references": ",".join(map(str, references))}
    trained(toy_shards, tmp_path / "blend", **given)
    saved = weights(tmp_path / "blend")
    shares = next(value for name, value in saved.items() if name.endswith("weights"))
    assert shares.sum().item() == pytest.approx(1)
    trained(toy_shards, tmp_path / "blend", **given, epochs=2, resume=True)
    assert len(rows(tmp_path / "blend")) == 8


@pytest.mark.slow
def test_everything_at_once_resumes_bit_for_bit(toy_shards: Path, tmp_path: Path) -> None:
    options = {
        "precision": "fp16",
        "optimizer": "adamw",
        "lr": 1e-3,
        "max_grad_norm": 1.0,
        "accumulate": 2,
        "last_batch": "pad",
    }
    options |= {"channels_last": True, "modulation": "dropout+opm+ogm(apply=lr)", "intermediate": "mmtm"}
    torch.set_num_threads(1)
    whole = trained(toy_shards, tmp_path / "whole", **options, epochs=2)
    trained(toy_shards, tmp_path / "parted", **options)
    parted = trained(toy_shards, tmp_path / "parted", **options, epochs=2, resume=True)
    assert numbers(whole) == numbers(parted)
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(parted)[name], tensor), name


@pytest.mark.slow
def test_the_paper_setting_of_resnet18_and_flow_trains(toy_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "resnet"
    run(toy_shards, out, "--epochs", "1", "--encoder", "resnet18", "--modalities", "visual,flow", "--weights", "none")
    assert weights(out)["encoders.flow.conv1.weight"].shape == (64, 2, 7, 7)


@pytest.mark.slow
def test_a_second_run_does_not_overwrite_the_first(toy_shards: Path, finished: Path) -> None:
    before = (finished / "steps.jsonl").read_bytes()
    error = run(toy_shards, finished, "--epochs", "3", status=1)
    assert "continue it with --resume, or choose another --out" in error
    assert (finished / "steps.jsonl").read_bytes() == before


@pytest.mark.slow
def test_resuming_with_other_options_is_refused(toy_shards: Path, finished: Path) -> None:
    error = run(toy_shards, finished, "--epochs", "4", "--modulation", "opm", "--resume", status=1)
    assert "modulation: 'opm+ogm' before, 'opm' now" in error


@pytest.mark.slow
def test_resuming_without_the_checkpoint_of_the_best_epoch_is_refused_before_training(
    toy_shards: Path, tmp_path: Path
) -> None:
    out = trained(toy_shards, tmp_path / "run")
    (out / "checkpoints" / "best.pt").unlink()
    before = numbers(out)
    with pytest.raises(ConfigError, match=r"best\.pt is missing"):
        trained(toy_shards, out, epochs=2, resume=True)
    assert numbers(out) == before


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_ends_the_run_with_a_remedy(toy_shards: Path, tmp_path: Path) -> None:
    error = run(toy_shards, tmp_path / "run", "--epochs", "3", "--lr", "1e30", status=1)
    assert "lower --lr" in error
    assert all(row["loss"] is None or row["loss"] >= 0 for row in rows(tmp_path / "run"))


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
    assert "nothing is left to do" in run(shards, out, "--epochs", "1", "--resume")
    assert [row["split"] for row in rows(out, "metrics.jsonl")] == ["val"]
