"""Two and four ranks with gloo against one process at the same global batch, and the process group's own edges."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bmlpipe.train.parallel import all_equal, differing, process_group

WORKER = Path(__file__).with_name("parallel_worker.py")
MODULATIONS = (
    *("none", "opm", "ogm", "opm+ogm", "same step", "batch unit", "inputs", "inputs of batches"),
    *("moddrop", "dropout", "evolutional", "accumulated"),
)
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def start(out: Path, **variables: str) -> subprocess.Popen[str]:
    own = {key: value for key, value in os.environ.items() if key not in TORCHRUN}
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(out)],
        env={**own, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def outcomes(folder: Path, world: int) -> list[dict[str, Any]]:
    """What each of so many ranks gives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    outs = [folder / f"rank{rank}of{world}.json" for rank in range(world)]
    processes = [start(out, RANK=str(i), LOCAL_RANK=str(i), **group) for i, out in enumerate(outs)]
    for process in processes:
        text, _ = process.communicate(timeout=300)
        assert process.returncode == 0, text
    return [json.loads(out.read_text()) for out in outs]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of the only process, and of ranks 0 and 1 of two."""
    folder = tmp_path_factory.mktemp("ranks")
    text, _ = (alone := start(folder / "alone.json")).communicate(timeout=300)
    assert alone.returncode == 0, text
    return [json.loads((folder / "alone.json").read_text()), *outcomes(folder, 2)]


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of four ranks."""
    return outcomes(tmp_path_factory.mktemp("four"), 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULATIONS)
def test_replicas_stay_bitwise_equal(results: list[dict[str, Any]], name: str) -> None:
    _, first, second = results
    assert first[name]["sha256"] == second[name]["sha256"]
    assert first[name]["all_equal"]
    assert second[name]["all_equal"]
    assert first[name]["rows"] == second[name]["rows"]
    assert first[name]["extras"] == second[name]["extras"]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULATIONS)
@pytest.mark.parametrize("ranks", [2, 4])
def test_several_ranks_measure_and_do_what_one_does(
    results: list[dict[str, Any]], four: list[dict[str, Any]], name: str, ranks: int
) -> None:
    alone, first = results[0], results[1] if ranks == 2 else four[0]
    for reference in [name, "opm+ogm"] if name == "accumulated" else [name]:
        for one, two in zip(alone[reference]["rows"], first[name]["rows"], strict=True):
            for key, value in one.items():
                exact = key.startswith("dropped")
                assert two[key] == (value if exact else pytest.approx(value, rel=1e-6 if "rho" in key else 1e-5)), key
        assert first[name]["parameters"] == pytest.approx(alone[reference]["parameters"], rel=1e-4, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULATIONS)
def test_four_replicas_stay_bitwise_equal(four: list[dict[str, Any]], name: str) -> None:
    assert len({rank[name]["sha256"] for rank in four}) == 1
    assert all(rank[name]["all_equal"] for rank in four)


@pytest.mark.slow
def test_the_modulations_acted(results: list[dict[str, Any]]) -> None:
    rows = results[0]["opm+ogm"]["rows"]
    assert sum(row["dropped/audio"] + row["dropped/visual"] for row in rows) > 0
    assert any(row["k/audio"] < 1 or row["k/visual"] < 1 for row in rows)
    assert len({results[0][name]["sha256"] for name in MODULATIONS if name != "accumulated"}) == len(MODULATIONS) - 1


@pytest.mark.slow
def test_numbers_of_the_loops_own_are_summed_over_ranks(results: list[dict[str, Any]]) -> None:
    alone, first, _ = results
    for name in ("opm+ogm", "same step"):
        for one, two in zip(alone[name]["extras"], first[name]["extras"], strict=True):
            assert two == pytest.approx([2 * one[0], 1.0], rel=1e-5)  # two means over half the batch; ranks 0 + 1


@pytest.mark.slow
def test_ranks_that_differ_are_found(results: list[dict[str, Any]]) -> None:
    _, first, second = results
    assert first["own noise"]["differing"] == second["own noise"]["differing"]
    assert not first["own noise"]["all_equal"]
    assert "encoders.audio.1.weight" in first["own noise"]["differing"]
    assert first["buffers"] == second["buffers"] == ["running_mean"]


@pytest.mark.slow
def test_places(results: list[dict[str, Any]]) -> None:
    alone, first, second = results
    assert alone["place"] == [0, 1, 0, "cpu"]
    assert (first["place"], second["place"]) == ([0, 2, 0, "cpu"], [1, 2, 1, "cpu"])
    assert [result["group"] for result in results] == [False, True, True]
    assert [result["group after"] for result in results] == [False, False, False]


def test_without_a_group_a_model_equals_itself() -> None:
    assert all_equal(nn.Linear(2, 2))
    assert differing(nn.Identity()) == []


def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    with process_group() as place:
        assert place.first
        assert place.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "meta", "tpu"):
        with pytest.raises(ValueError, match=f"auto, cpu, cuda or cuda:N, not '{name}'"), process_group(name):
            pass
    with pytest.raises(ValueError, match="GPU number 64 is asked for"), process_group("cuda:64"):
        pass


def test_half_of_torchruns_variables_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="only RANK is set"), process_group("cpu"):
        pass
