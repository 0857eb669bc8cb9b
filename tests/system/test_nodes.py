"""Training and extraction on several hosts as docs/cluster.md describes, with network namespaces as hosts.

A host has its own address, name and mounts; all hosts are on one bridge and share the disk, as on a cluster.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from bmlpipe.train.runs import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("both_cores")]

RUN = Path(__file__).parents[2] / "train" / "run.py"
PREFIX = "bmlpipe"  # of the names of the namespaces, followed by the id of the process that made them
LIMIT = 120  # seconds after which a command that hangs is ended
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node")


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def pids(namespace: str) -> list[int]:
    done = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, timeout=20, check=False)
    return [int(word) for word in done.stdout.split()]


def remove_left_namespaces() -> None:
    """Remove the namespaces of test runs that were killed, and end the processes in them."""
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, timeout=20, check=False)
    for namespace, owner in re.findall(rf"^({PREFIX}(\d+)-\S+)", done.stdout, re.MULTILINE):
        if not Path("/proc", owner).exists():
            for pid in pids(namespace):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            ip("netns", "del", namespace)


class Process:
    """A running command and its output so far."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def result(self) -> int:
        """Wait for the end of the command and return its exit status."""
        try:
            return self._process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.end()
            pytest.fail(f"the command did not end within {LIMIT} s: {self.output}")

    def poll(self) -> int | None:
        """Return its exit status; None while it runs."""
        return self._process.poll()

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Host:
    """A namespace with one network interface, eth0, that resolves the names of the other hosts."""

    def __init__(self, name: str, namespace: str, address: str, logs: Path) -> None:
        self.name, self.namespace, self.address, self._logs = name, namespace, address, logs
        self._processes: list[Process] = []

    def start(self, *words: str, before: str = "true", **variables: str) -> Process:
        """Start a command on this host; the shell command `before` may mount something for it alone."""
        names = self._logs / "names"
        script = f'hostname {self.name} && mount --bind {names} /etc/hosts && {before} && exec "$@"'
        command = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "--mount", "sh", "-c", script, "sh"]
        log = self._logs / f"{self.name}-{len(list(self._logs.iterdir()))}.log"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0", **variables}
        self._processes.append(Process([*command, *words], log, environment))
        return self._processes[-1]

    def cable(self, state: str) -> None:
        """Plug the network in (up) or out (down)."""
        ip("-n", self.namespace, "link", "set", "eth0", state)

    def clear(self) -> None:
        """End all processes of this host."""
        for process in self._processes:
            process.end()
        for pid in pids(self.namespace):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._processes.clear()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    """Three hosts on a bridge, all in namespaces of this test process."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("no ip or unshare program: install iproute2 and util-linux")
    tag = f"{PREFIX}{os.getpid()}"
    logs = tmp_path_factory.mktemp("hosts")
    hosts = [Host(f"node{i}", f"{tag}-{i}", f"10.77.0.{i + 1}", logs) for i in range(3)]
    names = ["127.0.0.1 localhost", *(f"{host.address} {host.name}" for host in hosts)]
    (logs / "names").write_text("".join(f"{line}\n" for line in names))
    switch = f"{tag}-switch"
    with ExitStack() as stack:
        try:
            remove_left_namespaces()
            ip("netns", "add", switch)
            stack.callback(ip, "netns", "del", switch)
            ip("-n", switch, "link", "add", "bridge", "type", "bridge")
            ip("-n", switch, "link", "set", "bridge", "up")
            for number, host in enumerate(hosts):
                ip("netns", "add", host.namespace)
                stack.callback(ip, "netns", "del", host.namespace)
                stack.callback(host.clear)
                port = ("peer", "name", f"port{number}", "netns", switch)
                ip("-n", host.namespace, "link", "add", "eth0", "type", "veth", *port)
                ip("-n", switch, "link", "set", f"port{number}", "master", "bridge", "up")
                ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
                ip("-n", host.namespace, "link", "set", "lo", "up")
                ip("-n", host.namespace, "link", "set", "eth0", "up")
        except OSError as error:
            pytest.skip(f"network namespaces cannot be used ({error}): they need root and support by the kernel")
        yield hosts


@pytest.fixture
def hosts(network: list[Host]) -> Iterator[list[Host]]:
    """The same hosts, without processes of earlier tests."""
    for host in network:
        host.cable("up")
    yield network
    for host in network:
        host.clear()


SMALL = [
    *("--dataset", "folder", "--encoder", "cnn4", "--image-size", "32", "--batch-size", "24", "--lr", "0.01"),
    *("--workers", "0", "--device", "cpu", "--no-tensorboard", "--modulation", "opm+ogm"),
    *("--epochs", "12", "--checkpoint-every", "3", "--group-timeout", "4"),
]


def on_two_nodes(first: Host, second: Host, shards: Path, out: Path, *flags: str) -> list[Process]:
    """Start the command of docs/cluster.md on both hosts."""
    meet = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-id", "job1", "--rdzv-endpoint", f"{first.name}:29400"]
    command = [*TORCHRUN, "1", *meet, str(RUN), "--shards", str(shards), "--out", str(out), *SMALL, *flags]
    return [host.start(*command) for host in (first, second)]


def rows(out: Path, name: str = "steps.jsonl") -> list[dict[str, Any]]:
    """Return the rows of a journal without measured times."""
    path, clock = out / name, ("data_s", "step_s", "samples_per_s")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{key: value for key, value in row.items() if key not in clock} for row in found]


def test_training_on_two_nodes_equals_one_host_and_resumes_after_the_loss_of_a_node(
    hosts: list[Host], toy_shards: Path, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    """Without the network both ranks end with an error; the resumed run gives one host's numbers, bit for bit."""
    whole, out = tmp_path / "whole", tmp_path / "nodes"
    alone = hosts[2].start(
        *(*TORCHRUN, "2", "--standalone", str(RUN), "--shards", str(toy_shards), "--out", str(whole), *SMALL)
    )
    nodes = on_two_nodes(*hosts[:2], toy_shards, out)
    wait_until(lambda: len(rows(out)) > 5, nodes[0], seconds=LIMIT, log=lambda: nodes[0].output)
    hosts[1].cable("down")
    assert nodes[0].result() != 0
    wait_until(lambda: "has lost another rank" in nodes[1].output, nodes[1], seconds=LIMIT, log=lambda: nodes[1].output)
    nodes[1].end()  # torchrun itself keeps waiting for the rendezvous on a node without a network
    for rank, node in enumerate(nodes):
        assert f"rank {rank} of 2, on node{rank}, has lost another rank" in node.output
        assert "within 4 s" in node.output
    assert alone.result() == 0, alone.output
    assert 5 < len(rows(out)) < 48 == len(rows(whole))
    hosts[1].cable("up")
    for node in on_two_nodes(*hosts[:2], toy_shards, out, "--resume"):
        assert node.result() == 0, node.output
    assert rows(out) == rows(whole)
    assert rows(out, "metrics.jsonl") == rows(whole, "metrics.jsonl")
    one, two = (checkpoint.load(folder / "checkpoints" / "last.pt")["model"] for folder in (whole, out))
    assert all(torch.equal(one[name], two[name]) for name in one)


DASK = {
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "11s",  # without an answer, after which a host counts as lost
}
CLIPS = 240


@pytest.fixture
def videos(tmp_path: Path, make_clips: Callable[..., None]) -> Path:
    make_clips(tmp_path / "videos" / "x", CLIPS, seconds=1.0, size=(64, 48))
    return tmp_path / "videos"


def ledger_lines(out: Path) -> int:
    path = out / "ledger.log.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def test_extraction_continues_without_a_lost_host_and_rejects_a_host_without_the_videos(
    hosts: list[Host], videos: Path, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    meet, out = tmp_path / "scheduler.json", tmp_path / "features"
    dask = [sys.executable, "-m", "dask"]
    scheduler = hosts[0].start(*dask, "scheduler", "--host", "node0", "--scheduler-file", str(meet), **DASK)
    wait_until(meet.is_file, scheduler, seconds=LIMIT, log=lambda: scheduler.output)
    worker = [*dask, "worker", "--scheduler-file", str(meet), "--nthreads", "1"]
    blind = hosts[2].start(*worker, before=f"mount -t tmpfs none {videos}", **DASK)
    for host in hosts[1:]:
        host.start(*worker, "--host", host.name, **DASK)
    words = [
        "--dataset",
        "folder",
        "--videos",
        str(videos),
        "--seconds",
        "1",
        "--clips-per-task",
        "1",
        "--out",
        str(out),
    ]
    extract = hosts[0].start(
        *(sys.executable, "-m", "bmlpipe.pipeline.cli", "extract", *words, "--scheduler", f"file://{meet}"), **DASK
    )
    wait_until(lambda: ledger_lines(out) > 40, extract, seconds=LIMIT, log=lambda: extract.output)
    hosts[1].cable("down")
    assert extract.result() == 0, extract.output
    assert f"ok {CLIPS}, failed 0, absent 0" in extract.output
    assert len(list(out.glob("clips/*/*.h5"))) == CLIPS
    assert blind.result() == 0  # Dask has retired it
    (refused,) = [line for line in extract.output.splitlines() if "retired worker" in line]
    assert "on node2: " in refused
    assert "mount the same folder of videos" in refused
    assert not list(out.glob(".run-*"))
