"""`bmlpipe evaluate` on finished runs: its numbers equal scikit-learn's, and the run stays unchanged."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner, Result
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, classification_report, confusion_matrix

from bmlpipe.pipeline.cli import main
from bmlpipe.shards.index import SAMPLES_FILE, read_index
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.sample import Sample
from bmlpipe.shards.writer import ShardWriter
from bmlpipe.train.config.options import ConfigError
from bmlpipe.train.config.parsing import parse
from bmlpipe.train.data.normalise import Normaliser
from bmlpipe.train.distributed.group import ProcessInfo
from bmlpipe.train.evaluation.export import write
from bmlpipe.train.evaluation.linear_probe import STRENGTHS
from bmlpipe.train.evaluation.loaded_run import load_run
from bmlpipe.train.models.build import build_model
from bmlpipe.train.run import train
from bmlpipe.train.runs import checkpoint

CLASSES = list("abcd")
HERE = ProcessInfo(0, 1, 0, torch.device("cpu"))


def bmlpipe(*words: object, status: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result


def evaluate(*words: object, status: int = 0) -> Result:
    return bmlpipe("evaluate", *words, "--device", "cpu", status=status)


def trained(shards: Path, out: Path, **options: object) -> Path:
    given = {"encoder": "cnn4", "image_size": 32, "batch_size": 24, "lr": 0.02, "workers": 0, "device": "cpu"}
    whole = {**given, "epochs": 2, "keep_every": 1, "tensorboard": False, "shards": str(shards), "out": str(out)}
    assert train(parse({**whole, **options}, "test").resolved()) == 0
    return out


@pytest.fixture(scope="module")
def joint(toy_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(toy_shards, tmp_path_factory.mktemp("joint") / "run", modulation="opm")


@pytest.fixture
def run(joint: Path, tmp_path: Path) -> Path:
    """A copy of the joint run, for this test alone."""
    return Path(shutil.copytree(joint, tmp_path / "run"))


def content(run: Path, name: str = "test-best") -> dict[str, Any]:
    return json.loads((run / "evaluation" / f"{name}.json").read_text(encoding="utf-8"))


def journal(run: Path, split: str) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def exported(path: Path) -> dict[str, npt.NDArray[Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return {name: np.array(values) for name, values in zip(header, zip(*rows, strict=True), strict=True)}


def floats(columns: dict[str, npt.NDArray[Any]], what: str) -> npt.NDArray[np.float64]:
    return np.stack([columns[f"{what}/{name}"].astype(np.float64) for name in CLASSES], axis=1)


# ----- metrics -----


def test_metrics_equal_scikit_learns_on_the_exported_predictions(run: Path) -> None:
    out = evaluate(run, "--export", run / "predictions.csv")
    found, columns = content(run), exported(run / "predictions.csv")
    assert columns["id"].tolist() == [f"test{i}" for i in range(25)]
    assert columns["label"].tolist() == [CLASSES[i % 4] for i in range(25)]
    assert (found["samples"], found["classes"]) == (25, CLASSES)
    for name in ("joint", "audio", "visual"):
        part = "" if name == "joint" else f"/{name}"
        truth, said = columns["label"], columns[f"predicted{part}"]
        logits, shares = floats(columns, f"logit{part}"), floats(columns, f"probability{part}")
        np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), shares, rtol=1e-5)
        assert (np.array(CLASSES)[logits.argmax(axis=1)] == said).all()
        reference = classification_report(truth, said, output_dict=True, zero_division=np.nan)
        assert found["metrics"][f"accuracy{part}"] == pytest.approx((truth == said).mean())
        assert found["metrics"][f"f1{part}"] == pytest.approx(reference["macro avg"]["f1-score"])
        one_hot = truth[:, None] == np.array(CLASSES)
        assert found["metrics"][f"mAP{part}"] == pytest.approx(
            average_precision_score(one_hot, shares, average="macro")
        )
        classwise = found["per_class"][name]
        assert classwise["ap"] == pytest.approx(average_precision_score(one_hot, shares, average=None))
        for measure, theirs in {"precision": "precision", "recall": "recall", "f1": "f1-score"}.items():
            expected = [reference[label][theirs] for label in CLASSES]
            assert [np.nan if v is None else v for v in classwise[measure]] == pytest.approx(expected, nan_ok=True)
        assert classwise["support"] == [7, 6, 6, 6]
        assert found["confusion"][name] == confusion_matrix(truth, said, labels=CLASSES).tolist()
    assert f"| best | {found['epoch']} | test | 25 | joint | {100 * found['metrics']['accuracy']:.1f}% |" in out.stdout


def test_metrics_equal_those_of_the_training(joint: Path, run: Path) -> None:
    evaluate(run, "--batch-size", 7)
    evaluate(run, "--split", "val", "--checkpoint", "all")
    (test,) = journal(joint, "test")
    found = content(run)
    assert found["epoch"] == test["epoch"]
    for name in ("accuracy", "mAP", "loss", "accuracy/audio", "accuracy/visual"):
        assert found["metrics"][name] == pytest.approx(test[name], rel=1e-5), name
    for row, name in zip(journal(joint, "val"), ("epoch-000", "epoch-001"), strict=True):
        found = content(run, f"val-{name}")
        assert (found["checkpoint"], found["epoch"], found["step"]) == (name, row["epoch"], row["step"])
        assert found["metrics"]["loss"] == pytest.approx(row["loss"], rel=1e-5)
    assert {path.name for path in (run / "evaluation").glob("val-*")} == {
        f"val-{name}.json" for name in ("best", "last", "epoch-000", "epoch-001")
    }
    assert content(run, "val-last")["model_sha256"] == content(run, "val-epoch-001")["model_sha256"]


@pytest.mark.slow
def test_nothing_else_in_the_run_changes(joint: Path, run: Path) -> None:
    evaluate(run, "--checkpoint", "all", "--probe", "--missing", "audio=1")
    files = {path.relative_to(run) for path in run.rglob("*") if path.is_file()}
    before = {path.relative_to(joint) for path in joint.rglob("*") if path.is_file()}
    assert {path.parts[0] for path in files - before} == {"evaluation"}
    assert all((run / path).read_bytes() == (joint / path).read_bytes() for path in before)


def test_a_run_of_one_modality(toy_shards: Path, run: Path, tmp_path: Path) -> None:
    audio = trained(toy_shards, tmp_path / "audio", modalities="audio")
    out = evaluate(audio, run, "--missing", "visual=1", "--missing", "audio=1", "--repeats", 1)
    assert [row["rates"] for row in content(audio)["missing"]] == [{"audio": 1.0}]
    assert [row["rates"] for row in content(run)["missing"]] == [
        {"audio": 0.0, "visual": 1.0},
        {"audio": 1.0, "visual": 0.0},
    ]
    assert "has audio only" in out.stderr
    metrics = content(audio)["metrics"]
    assert metrics["accuracy"] == metrics["accuracy/audio"]
    assert "visual" not in content(audio)["confusion"]


# ----- missing modalities and probes -----


def test_rows_of_missing_modalities_are_kept_while_the_model_is_the_same(run: Path) -> None:
    evaluate(run, "--missing", "audio=0:0.5:0.5", "--repeats", 2)
    evaluate(run, "--missing", "visual=1", "--missing", "audio=0.5", "--seed", 7, "--repeats", 3)
    rows = content(run)["missing"]
    assert [tuple(row["rates"].values()) for row in rows] == [(0, 0), (0, 1), (0.5, 0)]
    assert [row["seeds"] for row in rows] == [[0, 1], [7, 8, 9], [7, 8, 9]]
    assert all(len(row[name]) == len(row["seeds"]) for row in rows for name in ("accuracy", "mAP", "f1", "loss"))
    assert rows[0]["accuracy"] == [content(run)["metrics"]["accuracy"]] * 2
    evaluate(run)
    assert content(run)["missing"] == rows
    other = "epoch-001" if content(run)["epoch"] == 0 else "epoch-000"
    (run / "checkpoints" / f"{other}.pt").replace(run / "checkpoints" / "best.pt")
    evaluate(run)
    assert content(run)["missing"] == []


@pytest.mark.slow
def test_probes_equal_an_independent_computation_on_exported_features(run: Path) -> None:
    parts = {}
    for split in ("train", "val", "test"):
        evaluate(run, "--checkpoint", "epoch-001", "--split", split, "--export-features", run / f"{split}.npz")
        with np.load(run / f"{split}.npz", allow_pickle=False) as file:
            parts[split] = dict(file)
    assert parts["train"]["audio"].shape == (96, 128)
    assert sorted(parts["train"]["id"].tolist()) == sorted(f"train{i}" for i in range(96))
    out = evaluate(run, "--checkpoint", "epoch-001", "--probe")
    probes = json.loads((run / "evaluation" / "probes.json").read_text(encoding="utf-8"))["probes"]
    assert [row["modality"] for row in probes] == ["audio", "visual"]
    for row in probes:
        features = {split: part[row["modality"]].astype(np.float64) for split, part in parts.items()}
        mean, std = features["train"].mean(axis=0), features["train"].std(axis=0)
        std[std == 0] = 1
        reached: list[dict[str, float]] = []
        for strength in STRENGTHS:
            model = LogisticRegression(C=strength, max_iter=5000)
            model.fit((features["train"] - mean) / std, parts["train"]["label"])
            said = {split: model.predict((values - mean) / std) for split, values in features.items()}
            reached.append({split: (said[split] == parts[split]["label"]).mean() for split in said})
        best = max(range(len(STRENGTHS)), key=lambda i: reached[i]["val"])
        assert row["C"] == STRENGTHS[best]
        assert {split: row[split] for split in features} == pytest.approx(reached[best])
        assert (row["checkpoint"], row["epoch"], row["step"]) == ("epoch-001", 1, 8)
        assert f"| epoch-001 | 1 | {row['modality']} | {row['C']:g} | {100 * row['train']:.1f}% |" in out.stdout
    assert 0.3 < probes[1]["val"] < 0.8  # neither chance nor everything: the comparison says something
    evaluate(run, "--checkpoint", "epoch-000", "--probe")
    probes = json.loads((run / "evaluation" / "probes.json").read_text(encoding="utf-8"))["probes"]
    assert [(row["modality"], row["checkpoint"]) for row in probes] == [
        (m, name) for m in ("audio", "visual") for name in ("epoch-000", "epoch-001")
    ]


@pytest.mark.slow
def test_two_ranks_compute_the_same_as_one(run: Path) -> None:
    words = [run, "--missing", "audio+visual=0.5", "--probe"]
    evaluate(*words)
    one, probes = content(run), (run / "evaluation" / "probes.json").read_text(encoding="utf-8")
    shutil.rmtree(run / "evaluation")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*start, "-m", "bmlpipe.pipeline.cli", "evaluate", *map(str, words), "--device", "cpu"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    two = content(run)
    assert done.stdout.count("| run | checkpoint | epoch | split |") == 1
    assert (run / "evaluation" / "probes.json").read_text(encoding="utf-8") == probes
    for name, value in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(value, rel=1e-5), name
    for name in ("confusion", "samples", "step", "model_sha256"):
        assert two[name] == one[name]
    for mine, theirs in zip(one["missing"], two["missing"], strict=True):
        assert mine["rates"] == theirs["rates"] == {"audio": 0.5, "visual": 0.5}
        assert len(set(mine["loss"])) == 5
        for name in ("accuracy", "mAP", "f1", "loss"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-5)


# ----- files -----


def test_parquet_holds_the_same_as_csv_and_npz(run: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    evaluate(run, "--export", run / "p.csv", "--export-features", run / "f.npz")
    evaluate(run, "--export", run / "p.parquet", "--export-features", run / "f.parquet")
    table, columns = parquet.read_table(run / "p.parquet").to_pydict(), exported(run / "p.csv")
    assert list(table) == list(columns)
    assert len(columns) == 2 + 3 * (1 + 2 * 4)
    for name, values in table.items():
        text = name in ("id", "label") or name.startswith("predicted")
        assert (columns[name] == values).all() if text else (columns[name].astype(np.float32) == values).all(), name
    features = parquet.read_table(run / "f.parquet")
    with np.load(run / "f.npz", allow_pickle=False) as file:
        assert features.column_names == list(file) == ["id", "label", "label_id", "audio", "visual"]
        for name in file:
            assert (np.array(features[name].to_pylist(), dtype=file[name].dtype) == file[name]).all()
        assert (np.array(CLASSES)[file["label_id"]] == file["label"]).all()


def test_labels_with_commas_and_quotes_survive_csv(tmp_path: Path) -> None:
    names = np.array(['cat, "big"', "line\nbreak", "naïve"])
    write(tmp_path / "t.csv", {"label": names, "x": np.array([0.1, np.nan, 1e-30], np.float32)})
    columns = exported(tmp_path / "t.csv")
    assert columns["label"].tolist() == names.tolist()
    assert columns["x"].astype(np.float32)[[0, 2]].tolist() == np.array([0.1, 1e-30], np.float32).tolist()


@pytest.mark.slow
def test_kept_epochs_are_evaluated_and_keep_every_may_change(toy_shards: Path, run: Path) -> None:
    kept = run / "checkpoints"
    assert {path.name for path in kept.iterdir()} == {"best.pt", "last.pt", "epoch-000.pt", "epoch-001.pt"}
    assert [checkpoint.load(kept / f"epoch-00{n}.pt")["step"] for n in (0, 1)] == [4, 8]
    trained(toy_shards, run, modulation="opm", epochs=5, keep_every=2, resume=True)
    assert sorted(path.stem for path in kept.glob("epoch*")) == ["epoch-000", "epoch-001", "epoch-003"]
    evaluate(run, "--checkpoint", "epoch-003", "--checkpoint", kept / "last.pt")
    assert (content(run, "test-epoch-003")["epoch"], content(run, "test-last")["epoch"]) == (3, 4)
    with pytest.raises(ConfigError, match="keep_every is -1: must be at least 0"):
        parse({"dataset": "folder", "shards": "s", "out": "o", "keep_every": -1}, "test").resolved()


# ----- other shards, damaged and missing things -----


def other_set(toy_shards: Path, out: Path, *, classes: list[str], short_side: int = 40) -> Path:
    """The test samples of some classes, in a set of its own without training samples and statistics."""
    reader = ShardReader(toy_shards)
    features = {"frames": {"short_side": short_side}, "spectrogram": {"preset": "toy"}}
    with ShardWriter(out, dataset="folder", classes=classes, features=features, samples_per_shard=20) as writer:
        for number in reader.index.split_range("test"):
            sample = reader[number]
            label = CLASSES[sample.label]
            if label in classes:
                members = {name: bytes(v) for name, v in sample.members.items() if name.startswith(("frame", "spect"))}
                meta = {name: value for name, value in sample.meta.items() if name != "members"}
                writer.write("test", Sample(sample.key, classes.index(label), members, meta))
    return out


def test_moved_shards_give_the_same_results(toy_shards: Path, run: Path, tmp_path: Path) -> None:
    config = run / "config.yaml"
    config.write_text(
        config.read_text(encoding="utf-8").replace(str(toy_shards), str(tmp_path / "gone")), encoding="utf-8"
    )
    assert str(tmp_path / "gone") in evaluate(run, status=1).stderr
    moved = shutil.copytree(toy_shards, tmp_path / "moved")
    assert "not the samples" not in evaluate(run, "--shards", moved).stderr
    assert content(run)["shards"] == [str(moved)]


def test_other_samples_get_their_own_results_with_classes_matched_by_name(
    toy_shards: Path, run: Path, tmp_path: Path
) -> None:
    evaluate(run, "--export", run / "all.csv")
    before, whole = content(run), exported(run / "all.csv")
    some = other_set(toy_shards, tmp_path / "some", classes=["b", "d"])
    out = evaluate(run, "--shards", some, "--export", run / "some.csv")
    assert "2 of its 4 classes are missing here" in out.stderr
    assert content(run) == before
    found = json.loads(next((run / "evaluation").glob("*/test-best.json")).read_text(encoding="utf-8"))
    assert found["samples_sha256"] == read_index(some).samples_sha256
    assert found["per_class"]["joint"]["support"] == [0, 6, 0, 6]
    assert found["per_class"]["joint"]["ap"][0] is None
    chosen = np.isin(whole["label"], ["b", "d"])
    columns = exported(run / "some.csv")
    assert dict(zip(columns["id"], columns["label"])) == dict(zip(whole["id"][chosen], whole["label"][chosen]))
    assert found["metrics"]["accuracy"] == pytest.approx((whole["predicted"] == whole["label"])[chosen].mean())
    assert "no samples of split 'train'" in evaluate(run, "--shards", some, "--probe", status=1).stderr


def test_shards_that_do_not_fit_are_refused(toy_shards: Path, run: Path, tmp_path: Path) -> None:
    larger = other_set(toy_shards, tmp_path / "larger", classes=CLASSES, short_side=80)
    assert "frames.short_side: 40 and 80" in evaluate(run, "--shards", larger, status=1).stderr
    reader = ShardReader(toy_shards)
    strange = tmp_path / "strange"
    features = {kind: reader.index.features[kind] for kind in ("frames", "spectrogram")}
    with ShardWriter(strange, dataset="folder", classes=["a", "z"], features=features, samples_per_shard=9) as writer:
        writer.write("test", Sample("one", 1, {}, {"id": "one"}))
    assert "was not trained on: z" in evaluate(run, "--shards", strange, status=1).stderr


def test_a_rewritten_set_in_the_same_folder_is_not_taken_for_the_old_one(
    toy_shards: Path, run: Path, tmp_path: Path
) -> None:
    place = Path(shutil.copytree(toy_shards, tmp_path / "set"))
    config = run / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace(str(toy_shards), str(place)), encoding="utf-8")
    evaluate(run)
    shutil.rmtree(place)
    other_set(toy_shards, place, classes=CLASSES)
    assert (place / SAMPLES_FILE).is_file()
    error = evaluate(run, status=1).stderr
    assert "other samples than" in error
    assert "--shards" in error
    evaluate(run, "--shards", place)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--checkpoint", "epoch-008"],
            "no checkpoint 'epoch-008': choose among best, epoch-000, epoch-001, last, all",
        ),
        (["--split", "dev"], "'dev' is not one of 'train', 'val', 'test'"),
        (["--missing", "sound=0.1"], "'sound' is not a modality"),
        (["--missing", "flow=0.1"], "--missing names flow"),
        (["--missing", "audio=2"], "not a list of rates from 0 to 1"),
        (["--export", "x.xlsx"], "x.xlsx must end with .csv or .parquet"),
        (["--export-features", "x.csv"], "x.csv must end with .npz or .parquet"),
        (["--export", "nowhere/x.csv"], "there is no folder"),
        (["--checkpoint", "all", "--export", "x.csv"], "one checkpoint, but there are 4"),
    ],
)
def test_missing_runs_checkpoints_and_splits_are_named(joint: Path, words: list[str], message: str) -> None:
    error = evaluate(joint, *words, status=2 if "--split" in words or "all" in words else 1).stderr
    assert message in " ".join(error.split())
    assert "Traceback" not in error
    assert not (joint / "evaluation").exists()


def test_a_folder_without_checkpoints_and_other_files_are_refused(tmp_path: Path) -> None:
    assert "holds no checkpoints" in evaluate(tmp_path, status=1).stderr
    (tmp_path / "x.pt").write_bytes(b"no")
    assert "cannot be read as a checkpoint" in evaluate(tmp_path / "x.pt", status=1).stderr


def test_parquet_without_pyarrow_is_refused_before_anything_is_computed(
    joint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    error = evaluate(joint, "--export", "x.parquet", status=1).stderr
    assert "pip install 'bmlpipe[parquet]', or choose .csv" in " ".join(error.split())


def test_a_checkpoint_copied_without_its_run_can_be_evaluated(joint: Path, tmp_path: Path) -> None:
    shutil.copy(joint / "checkpoints" / "best.pt", tmp_path / "model.pt")
    evaluate(tmp_path / "model.pt")
    assert content(tmp_path, "test-model")["samples"] == 25


def test_the_file_of_initial_weights_is_not_needed_after_training(toy_shards: Path, tmp_path: Path) -> None:
    """A model with pretrained encoders, from its checkpoint alone."""
    given = {"shards": str(toy_shards), "out": str(tmp_path), "modalities": "visual", "image_size": 32}
    config = parse({**given, "weights": "/gone/resnet18.pth"}, "test").resolved()
    index = read_index(toy_shards)
    model = build_model(parse(given, "test").resolved(), index)
    state = {
        "model": model.state_dict(),
        "normaliser": Normaliser(("visual",), index.statistics, imagenet=True).state_dict(),
        "step": 5,
        "steps_per_epoch": 4,
        "config": config.as_dict(),
        "dataset": index.dataset,
        "classes": list(index.classes),
        "features": dict(index.features),
        "samples_sha256": index.samples_sha256,
    }
    checkpoint.save(tmp_path / "model.pt", state)
    loaded = load_run(tmp_path / "model.pt", HERE)
    assert loaded.epoch == 1
    assert loaded.normaliser.get_buffer("visual_mean").tolist() == pytest.approx([123.675, 116.28, 103.53])
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
