"""Two and four ranks with gloo against one process at the same global batch, and the process group's own edges."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import TCPStore

from bmlpipe.train.distributed.group import all_equal, process_group, unequal_tensors

pytestmark = pytest.mark.xdist_group("both_cores")

WORKER = Path(__file__).with_name("parallel_worker.py")
MODULATIONS = (
    *("none", "opm", "ogm", "opm+ogm", "same step", "batch unit", "inputs", "inputs of batches"),
    *("moddrop", "dropout", "evolutional", "accumulated"),
)
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
LIMIT = 240  # seconds after which processes that hang are ended; they take a tenth of it on two busy cores


@contextmanager
def ended(command: list[str], log: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes into a log; it and its children always end with the block."""
    own = {key: value for key, value in os.environ.items() if key not in TORCHRUN}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            env={**own, "OMP_NUM_THREADS": "1", **variables},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def meeting_place() -> TCPStore:
    """A store of this process for ranks to meet at: its port is taken as long as they need it."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """Number of ranks → what each of them gives."""
    folder = tmp_path_factory.mktemp("ranks")
    log, stores = folder / "log", [meeting_place(), meeting_place()]
    with ended([sys.executable, str(WORKER), str(folder), *(str(s.port) for s in stores)], log) as process:
        assert process.wait(LIMIT) == 0, log.read_text()
    return {
        world: [json.loads((folder / f"{world}-{i}.json").read_text()) for i in range(world)] for world in (1, 2, 4)
    }


@pytest.fixture(scope="module")
def results(worlds: dict[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Of the only process, and of ranks 0 and 1 of two."""
    return [*worlds[1], *worlds[2]]


@pytest.fixture(scope="module")
def four(worlds: dict[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Of four ranks."""
    return worlds[4]


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
def test_several_ranks_measure_and_modulate_like_one(
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
def test_every_modulation_acts(results: list[dict[str, Any]]) -> None:
    rows = results[0]["opm+ogm"]["rows"]
    assert sum(row["dropped/audio"] + row["dropped/visual"] for row in rows) > 0
    assert any(row["k/audio"] < 1 or row["k/visual"] < 1 for row in rows)
    assert len({results[0][name]["sha256"] for name in MODULATIONS if name != "accumulated"}) == len(MODULATIONS) - 1


@pytest.mark.slow
def test_numbers_of_the_loop_are_summed_over_ranks(results: list[dict[str, Any]]) -> None:
    alone, first, _ = results
    for name in ("opm+ogm", "same step"):
        for one, two in zip(alone[name]["extras"], first[name]["extras"], strict=True):
            assert two == pytest.approx([2 * one[0], 1.0], rel=1e-5)  # two means over half the batch; ranks 0 + 1


@pytest.mark.slow
def test_differences_between_ranks_are_found(results: list[dict[str, Any]]) -> None:
    _, first, second = results
    assert first["own noise"]["differing"] == second["own noise"]["differing"]
    assert not first["own noise"]["all_equal"]
    assert "encoders.audio.1.weight" in first["own noise"]["differing"]
    assert first["buffers"] == second["buffers"] == ["running_mean"]


@pytest.mark.slow
def test_ranks_know_their_place_and_device(results: list[dict[str, Any]]) -> None:
    alone, first, second = results
    assert alone["process"] == [0, 1, 0, "cpu"]
    assert (first["process"], second["process"]) == ([0, 2, 0, "cpu"], [1, 2, 1, "cpu"])
    assert [result["group"] for result in results] == [False, True, True]
    assert [result["group after"] for result in results] == [False, False, False]


def test_without_a_group_a_model_equals_itself() -> None:
    assert all_equal(nn.Linear(2, 2))
    assert unequal_tensors(nn.Identity()) == []


def test_missing_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    with process_group() as process:
        assert process.is_main
        assert process.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "meta", "tpu"):
        with pytest.raises(ValueError, match=f"auto, cpu, cuda or cuda:N, not '{name}'"), process_group(name):
            pass
    with pytest.raises(ValueError, match="no GPU number 64"), process_group("cuda:64"):
        pass


LEAVE = """
import os, sys, torch
from torch.nn.parallel import DistributedDataParallel
from bmlpipe.train.distributed.group import all_equal, process_group

def work():
    model = DistributedDataParallel(torch.nn.Linear(3, 3))
    model(torch.ones(2, 3)).sum().backward()
    assert all_equal(model)
    return model

def threads():
    names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
    return sum("gloo" in name for name in names)

try:
    with process_group("cpu"):
        model = work()
        during = threads()
        if sys.argv[1] != "held":
            del model
        if sys.argv[1] == "error":
            raise ValueError("inside")
except ValueError:
    pass
print(during, threads())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a process's threads are counted in /proc")
@pytest.mark.parametrize(("how", "end"), [("gone", True), ("held", False), ("error", False)])
def test_the_threads_of_a_group_end_with_it(how: str, end: bool) -> None:
    """Where a model still holds the group, or after an error, nothing waits for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-c", LEAVE, how]
    done = subprocess.run(
        command, env={**os.environ, **alone}, capture_output=True, text=True, timeout=LIMIT, check=True
    )
    during, after = map(int, done.stdout.split())
    assert during > 0
    assert after == 0 if end else after >= during  # a thread may start late


def test_incomplete_torchrun_variables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="only RANK is set"), process_group("cpu"):
        pass


LOSE = """
import os, signal, sys
from datetime import timedelta
import torch
from torch.multiprocessing import start_processes
from bmlpipe.train.distributed.group import LostRankError, process_group

def report(line):
    os.write(1, f"\\n{line}\\n".encode())  # at once, and on a line of its own: the ranks write into the same file

def rank_main(rank, how, port):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "3"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    if rank == 1 and how == "absent":
        return
    try:
        with process_group("cpu", timeout=timedelta(seconds=3)):
            model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
            for step in range(9):
                if step == 5 and how == "faulty":
                    report(f"raising {rank}")
                    raise RuntimeError("of the model")
                if step == 5 and rank == 1:
                    os.kill(os.getpid(), signal.SIGSTOP if how == "silent" else signal.SIGKILL)
                model(torch.ones(2, 2)).sum().backward()
    except (LostRankError, RuntimeError) as error:
        report(f"{how} {rank} {type(error).__name__} {error}")

for how, port in zip(sys.argv[1::2], sys.argv[2::2]):
    processes = start_processes(rank_main, (how, port), nprocs=3, join=False, start_method="fork").processes
    for process in processes if how == "faulty" else processes[::2]:
        process.join()
    processes[1].kill()
"""


@pytest.mark.slow
def test_a_lost_rank_ends_all_others_with_an_explanation(tmp_path: Path) -> None:
    stores = {how: meeting_place() for how in ("dead", "silent", "absent", "faulty")}
    log, words = tmp_path / "log", [word for how, store in stores.items() for word in (how, str(store.port))]
    with ended([sys.executable, "-c", LOSE, *words], log) as process:
        assert process.wait(LIMIT) == 0, log.read_text()
    said = log.read_text().splitlines()
    for how in ("dead", "silent", "absent"):
        for rank in (0, 2):
            (line,) = [line for line in said if line.startswith(f"{how} {rank} ")]
            assert line.startswith(f"{how} {rank} LostRankError rank {rank} of 3, on "), line
            assert "has lost another rank: it has ended, or it did not answer within 3 s" in line
            assert "--resume" in line
    # An error that does not concern the group stays unchanged; a rank that has not joined yet loses another.
    raised = [line.removeprefix("raising ") for line in said if line.startswith("raising ")]
    assert raised
    assert {f"faulty {rank} RuntimeError of the model" for rank in raised} <= set(said)
