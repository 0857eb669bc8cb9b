"""Sweeps: only unfinished runs are trained, on their own devices, through failures, signals and kills."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

from bmlpipe.manifests.common.locks import LockError, exclusive_folder
from bmlpipe.manifests.common.signals import SignalInterrupt
from bmlpipe.pipeline.cli import main
from bmlpipe.train.config.options import ConfigError
from bmlpipe.train.run import train
from bmlpipe.train.runs import checkpoint
from bmlpipe.train.sweep import devices
from bmlpipe.train.sweep.devices import DeviceGroup, share_devices
from bmlpipe.train.sweep.folder import state_of
from bmlpipe.train.sweep.recipe import Job
from bmlpipe.train.sweep.recipe_file import bundled, read_recipe
from bmlpipe.train.sweep.run_jobs import run_jobs

BASE = {"encoder": "cnn4", "image_size": 32, "batch_size": 24, "workers": 0, "device": "cpu", "tensorboard": False}

#: Replaces `python -m [torch.distributed.run …] bmlpipe.train.run`; it acts according to the name of the run.
STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
import yaml
options = yaml.safe_load(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
folder = Path(options["out"])
name = folder.parent.name
def saved(number, frame):
    (folder / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, saved)
(folder / "started.json").write_text(json.dumps({
    "arguments": sys.argv[1:], "group": os.getpgrp(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
    "threads": os.environ.get("OMP_NUM_THREADS"), "time": time.monotonic(),
    "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])]}))
if name.startswith("fails"):
    sys.exit("that cannot be\\n")
while name.startswith("waits"):
    time.sleep(0.02)
time.sleep(0.3 * name.startswith("slow"))
(folder / "config.yaml").write_text(yaml.safe_dump({"epochs": options["epochs"]}))
(folder / "metrics.jsonl").write_text(json.dumps({"split": "test", "accuracy": 0.5}) + "\\n")
(folder / "ended").write_text(str(time.monotonic()))
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(devices, "PYTHON", (sys.executable, str(script)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def planned(folder: Path, runs: dict[str, Any], shards: Path | str = "here", **base: Any) -> list[Job]:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"base": {**BASE, "epochs": 1, **base}, "runs": runs}, sort_keys=False))
    return read_recipe(path).jobs(folder / "runs", given={"dataset": "folder", "shards": str(shards)})


def different(*names: str) -> dict[str, Any]:
    return {name: {"lr": 0.001 * (number + 1)} for number, name in enumerate(names)}


def started(job: Job) -> Any:
    return json.loads((job.folder / "started.json").read_text())


def states(jobs: Sequence[Job]) -> list[str]:
    return [state_of(job) for job in jobs]


@pytest.mark.usefixtures("stand_in")
def test_runs_share_the_gpus_and_only_unfinished_runs_start(tmp_path: Path) -> None:
    jobs = planned(tmp_path, different("slow1", "slow2", "slow3", "slow4", "slow5"))
    places = share_devices(["3", "GPU-ab", "7"], jobs=None)
    assert run_jobs(jobs, places) == []
    begun = [started(job) for job in jobs]
    assert [one["gpus"] for one in begun[:3]] == ["3", "GPU-ab", "7"]
    for gpu in ("3", "GPU-ab", "7"):  # one run per GPU at a time
        own = [
            (one["time"], float((job.folder / "ended").read_text()))
            for job, one in zip(jobs, begun)
            if one["gpus"] == gpu
        ]
        assert own
        assert all(end <= start for (_, end), (start, _) in pairwise(own))
    assert all(one["arguments"][-3:] == ["--resume", "--device", "cuda"] for one in begun)
    before = [(job.folder / "started.json").stat().st_mtime_ns for job in jobs]
    (jobs[1].folder / "metrics.jsonl").unlink()
    assert run_jobs(jobs, places) == []
    after = [(job.folder / "started.json").stat().st_mtime_ns for job in jobs]
    assert [old == new for old, new in zip(before, after)] == [True, False, True, True, True]


@pytest.mark.usefixtures("stand_in")
def test_torchrun_gets_one_gpu_per_process(tmp_path: Path) -> None:
    jobs = planned(tmp_path, different("slow1", "slow2"))
    assert run_jobs(jobs, share_devices(["0", "1", "2", "3"], processes=2)) == []
    assert [started(job)["gpus"] for job in jobs] == ["0,1", "2,3"]
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "bmlpipe.train.run"]
    assert started(jobs[0])["arguments"][:6] == launcher


def test_devices_are_divided_among_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert share_devices([]) == [DeviceGroup((), 0, 16)]
    assert share_devices([], jobs=3, processes=2) == [DeviceGroup((), 2, 2)] * 3
    assert share_devices(["0", "1"], jobs=4) == [DeviceGroup(("0",), 0, 4), DeviceGroup(("1",), 0, 4)] * 2
    assert share_devices(["0", "1", "2"], processes=2) == [DeviceGroup(("0", "1"), 2, 8)]
    with pytest.raises(ConfigError, match="--nproc-per-node is 2, but there are only 1 GPUs"):
        share_devices(["0"], processes=2)
    with pytest.raises(ConfigError, match="name each GPU once"):
        share_devices(["0", "0"])


@pytest.mark.usefixtures("stand_in")
def test_a_failed_run_stops_only_those_that_refer_to_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runs = different("needs-good", "needs-bad", "fails", "good")
    runs["needs-good"]["references"] = ["good"]
    runs["needs-bad"]["references"] = ["good", "fails"]
    jobs = planned(tmp_path, runs)
    with caplog.at_level(logging.INFO, "bmlpipe"):
        failed = run_jobs(jobs, [DeviceGroup(), DeviceGroup()])
    assert [job.name for job in failed] == ["fails", "needs-bad"]
    assert states(jobs) == ["finished", "new", "new", "finished"]
    assert started(jobs[0])["time"] > float((jobs[3].folder / "ended").read_text())
    log = jobs[2].folder / "log.txt"
    assert f"fails, seed 0 failed with status 1, see {log}: … that cannot be" in caplog.text
    assert "needs-bad, seed 0 was not started, since it refers to fails, seed 0, which failed" in caplog.text
    assert "good, seed 0 finished in 0 min 00 s, test accuracy 50.0%" in caplog.text


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_sweep_lets_its_runs_save(tmp_path: Path, number: signal.Signals) -> None:
    jobs = planned(tmp_path, different("waits1", "waits2", "later"))

    def before(number: int, frame: FrameType | None) -> None:
        """The handler before the sweep. Under nohup SIGHUP is ignored, and the sweep would ignore it, too."""

    inherited = signal.signal(number, before)

    class Interrupting(list[DeviceGroup]):
        """Groups of devices that send the signal to this process as soon as both runs wait."""

        def __iter__(self) -> Iterator[DeviceGroup]:
            if all((job.folder / "started.json").is_file() for job in jobs[:2]):
                os.kill(os.getpid(), number)
            return super().__iter__()

    try:
        with pytest.raises(SignalInterrupt) as stopped:
            run_jobs(jobs, Interrupting([DeviceGroup(), DeviceGroup()]))
        assert signal.getsignal(number) is before
    finally:
        signal.signal(number, inherited)
    assert stopped.value.number == number
    assert [(job.folder / "saved").is_file() for job in jobs] == [True, True, False]
    assert not jobs[2].folder.exists()
    assert {signal.SIGINT, signal.SIGHUP} <= set(started(jobs[0])["blocked"])  # a terminal's Ctrl-C does not reach it
    assert started(jobs[0])["group"] == os.getpgrp()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGINT, signal.SIGHUP} == set()


@pytest.mark.usefixtures("stand_in")
def test_a_folder_belongs_to_one_sweep_while_any_of_its_runs_trains(tmp_path: Path) -> None:
    (job,) = planned(tmp_path, different("waits"))
    out, options, log = tmp_path / "runs", tmp_path / "options.yaml", tmp_path / "log.txt"
    job.folder.mkdir(parents=True)
    options.write_text(yaml.safe_dump(dict(job.options)))
    forked = multiprocessing.get_context("fork")
    here, there = forked.Pipe()

    def other() -> None:
        with exclusive_folder(out, "sweep") as lock:
            assert lock is not None
            there.send(DeviceGroup().start(options, log, inherit=[lock]).pid)
            time.sleep(600)

    sweep = forked.Process(target=other, daemon=True)
    refused = pytest.raises(LockError, match="another sweep is writing into")
    sweep.start()
    try:
        assert here.poll(60)
        left = here.recv()
        with refused, exclusive_folder(out, "sweep"):
            pass
    finally:
        sweep.kill()
        sweep.join(60)
    try:
        with refused, exclusive_folder(out, "sweep"):  # the run still holds the lock
            pass
    finally:
        os.kill(left, signal.SIGKILL)
    for _ in range(500):  # init is its parent, so this process cannot wait for it
        if not running(left):
            break
        time.sleep(0.02)
    for _ in range(2):
        with exclusive_folder(out, "sweep") as lock:
            assert lock is not None


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    jobs = planned(tmp_path, different("a"), epochs=3)
    assert states(jobs) == ["new"]
    folder = jobs[0].folder
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.pt").touch()
    config = jobs[0].config.as_dict()

    def left(**changes: Any) -> None:
        (folder / "config.yaml").write_text(yaml.safe_dump({**config, **changes}))

    left(workers=5, shards=["elsewhere"], epochs=2)
    assert states(jobs) == ["unfinished"]
    (folder / "metrics.jsonl").write_text('{"split": "val"}\n{"split": "test"}\n')
    assert states(jobs) == ["unfinished"]  # the recipe has more epochs than the run
    left(epochs=3)
    assert states(jobs) == ["finished"]
    for changes, message in (
        ({"lr": 0.5}, r"other options \(lr: 0.5 there, 0.001 in the recipe\)"),
        ({"epochs": 4}, "epochs: 4 there, 3 in the recipe"),
        ({"epochs": None}, "damaged"),
    ):
        left(**changes)
        with pytest.raises(ConfigError, match=message):
            run_jobs(jobs, [DeviceGroup()])
    assert not (folder / "options.yaml").exists()


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and modification time of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def steps(folder: Path) -> list[dict[str, Any]]:
    """Complete rows of the journal, without measured times."""
    path = folder / "steps.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k not in ("data_s", "step_s", "samples_per_s")} for row in rows]


def pretend(job: Job, accuracy: float) -> None:
    """Files of a finished run."""
    job.folder.mkdir(parents=True)
    row = {"epoch": 0, "step": 4, "split": "test", "loss": 1.0, "accuracy": accuracy, "mAP": accuracy + 0.1}
    row |= {f"accuracy/{m}": accuracy for m in job.config.resolved_modalities}
    (job.folder / "config.yaml").write_text(yaml.safe_dump(job.config.as_dict()))
    (job.folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (job.folder / "steps.jsonl").touch()


def test_the_command_compares_published_and_measured_values(toy_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    given = {"dataset": "cremad", "shards": str(toy_shards)}
    jobs = read_recipe(bundled()["table-2"]).jobs(out, given=given, base={"epochs": 1}, seeds=[0, 1])
    command = ["sweep", "table-2", "--dataset", "cremad", "--shards", str(toy_shards), "--out", str(out)]
    command += ["--set", "epochs=1", "--seeds", "0,1"]
    for job in jobs[:-1]:
        pretend(job, 0.5 + 0.1 * job.seed)
    planned = CliRunner().invoke(main, [*command, "--dry-run"])
    assert planned.exit_code == 0, planned.output
    assert planned.stdout.splitlines()[-2:] == ["finished   ogm, seed 1", "new        opm+ogm, seed 1"]
    pretend(jobs[-1], 0.6)
    before = content(out)
    done = CliRunner().invoke(main, [*command, "--report", str(tmp_path / "report.html")])
    assert done.exit_code == 0, done.output
    assert {name: one for name, one in content(out).items() if not name.endswith(".lock")} == before
    assert (
        "| run | seeds | accuracy in the paper, % | accuracy, % | accuracy difference, points | mAP in the paper, % |"
        in done.stdout
    )
    assert "| opm+ogm | 2 | 76.7 | 55.0 ± 7.1 | -21.7 | 83.6 | 65.0 ± 7.1 | -18.6 |" in done.stdout
    assert "| audio | 2 | 61.4 | 55.0 ± 7.1 | -6.4 |" in done.stdout
    assert "These runs are not in the paper's setting: epochs=1." in done.stdout
    assert (tmp_path / "report.html").stat().st_size > 1000
    assert done.stderr.count("holds shards of folder, but the runs have the setting of cremad") == 1


def test_the_command_reports_errors_before_anything_runs(toy_shards: Path, tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["sweep", *arguments, "--out", str(tmp_path / "runs")])
        assert done.exit_code in (1, 2)
        assert not (tmp_path / "runs").exists()
        return done.output

    here = ("--shards", str(toy_shards))
    assert "bmlpipe shard" in refused("table-2")
    assert "neither a file nor a bundled recipe" in refused("table-3", *here)
    assert "nowhere" in refused("table-2", "--shards", str(tmp_path / "nowhere"))
    assert "is for ucf101-three" in refused("three-modalities", "--dataset", "cremad", *here)
    assert "did you mean 'epochs'" in refused("table-2", *here, "--set", "epoch=1")
    assert "must be at least 1" in refused("table-2", *here, "--set", "epochs=0")
    assert "trackers: 'comet'" in refused("table-2", *here, "--set", "trackers=comet")
    assert "each process needs a GPU" in refused("table-2", *here, "--devices", "0", "--nproc-per-node", "2")
    assert "must end in .html" in refused("table-2", *here, "--report", "report.pdf")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_sweep_killed_in_the_middle_finishes_only_what_is_missing(toy_shards: Path, tmp_path: Path) -> None:
    """SIGKILL of the process group in the second run, which must end as if it had not been interrupted."""
    out = tmp_path / "runs"
    runs = {"first": {"modalities": "audio", "epochs": 1}, "second": {"modulation": "opm+ogm"}}
    first, second = (job.folder for job in planned(tmp_path, runs, toy_shards, epochs=4, checkpoint_every=3))
    program = [sys.executable, "-m", "bmlpipe.pipeline.cli", "sweep", str(tmp_path / "recipe.yaml")]
    command = [*program, "--shards", str(toy_shards), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # the order of additions depends on the number of threads
    with (tmp_path / "sweep.txt").open("wb") as log:
        sweep = subprocess.Popen(command, start_new_session=True, stdout=log, stderr=log, env=environment)
    try:
        while len(steps(second)) < 6:
            assert sweep.poll() is None, (tmp_path / "sweep.txt").read_text()
            time.sleep(0.005)
    finally:
        os.killpg(sweep.pid, signal.SIGKILL)
        sweep.wait(60)
    assert 0 < checkpoint.load(second / "checkpoints" / "last.pt")["step"] < 16
    assert len(steps(second)) < 16
    finished = content(first)
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "2 runs in" in ended.stderr
    assert "1 finished, 1 unfinished, 0 new" in ended.stderr
    assert "second, seed 0 continues" in ended.stderr
    assert "first" not in ended.stderr.replace(str(tmp_path), "")
    assert content(first) == finished
    (whole,) = planned(tmp_path, {"whole": runs["second"]}, toy_shards, epochs=4)
    assert in_this_process(whole) == 0
    assert steps(second) == steps(whole.folder)
    one, other = (checkpoint.load(folder / "checkpoints" / "last.pt")["model"] for folder in (second, whole.folder))
    assert all(torch.equal(one[name], other[name]) for name in other)


def in_this_process(job: Job) -> int:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train(job.config)
    finally:
        torch.set_num_threads(threads)


SMALL = {**BASE, "image_size": 16, "batch_size": 48, "epochs": 1, "frames": 1}


@pytest.mark.slow
def test_the_runs_of_the_paper_s_recipes_train(toy_shards: Path, tmp_path: Path) -> None:
    """Every modulation, fusion and option of the recipes, once each, on shards of all four feature kinds."""
    seen = set()
    for name, path in bundled().items():
        if name in ("balance", "fusions"):
            continue  # their runs are small variants of runs of other recipes
        chosen = {"modalities": "visual,flow,rgb_diff"} if name == "three-modalities" else {}
        given = {"dataset": "folder", "shards": str(toy_shards)}
        for job in read_recipe(path).jobs(tmp_path / name, given=given, base={**SMALL, **chosen}, seeds=[0]):
            options = {**job.config.as_dict(), "out": "", "keep_every": 0}
            if str(options) not in seen and not job.name.endswith((",modulation=opm", ",modulation=ogm")):
                seen.add(str(options))
                assert in_this_process(job) == 0, (name, str(job))
                assert state_of(job) == "finished"
    assert len(seen) > 25
