"""Operation: exit statuses, log lines and status files of running, finished and stopped processes."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bmlpipe.manifests.common import status_file as status
from bmlpipe.manifests.common.logs import configure
from bmlpipe.manifests.common.signals import SignalInterrupt, exit_status, signals_as_exceptions
from bmlpipe.manifests.common.status_file import STATUS_FILE, StatusFile
from bmlpipe.pipeline.extraction.status import prometheus
from bmlpipe.pipeline.store.folder import FeatureFolder
from bmlpipe.pipeline.store.ledger import read_ledger
from bmlpipe.train.runs.folder import RunFolder
from bmlpipe.train.runs.status import progress

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("both_cores")]

CLIPS = 40

#: `bmlpipe` with a fake decoder; the first argument is its time per clip in seconds.
FAKE = """
import sys, time
from bmlpipe.pipeline.cli import commands as cli
from bmlpipe.pipeline.sharding import write as shard
from bmlpipe.pipeline.extraction import worker as work
from bmlpipe.pipeline.media.errors import ClipError
from bmlpipe.pipeline.front_ends.features import ClipFeatures, JpegSeries
from bmlpipe.pipeline.store.feature_file import FeatureStore

pause, read = float(sys.argv.pop(1)), FeatureStore.read

def extract_clip(video, request, **span):
    time.sleep(pause)
    if video.read_bytes() == b"bad":
        raise ClipError("not_media", f"{video} is not a video")
    return ClipFeatures({"frames": JpegSeries((b"jpeg",), (0.0,), 16, 16)})

def slow(self, *given):
    time.sleep(pause)
    return read(self, *given)

work.extract_clip, FeatureStore.read = extract_clip, slow
shard.Statistics.add = lambda self, features: None
cli.main(prog_name="bmlpipe")
"""


def fake(pause: float, *words: object) -> list[str]:
    return [sys.executable, "-c", FAKE, str(pause), *map(str, words)]


def bmlpipe(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bmlpipe.pipeline.cli", *map(str, words)]
    where = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=where)


@contextmanager
def started(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a process in its own group, and kill it with all its children at the end of the block."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes, **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def group_of(leader: int) -> list[str]:
    """Return the command lines of the processes of a group, without zombies."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(group) == leader and state != "Z":
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended meanwhile
            continue
    return found


def state_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / STATUS_FILE).read_text(encoding="utf-8"))
    return found


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Files for the fake decoder, one of them invalid."""
    (tmp_path / "videos" / "x").mkdir(parents=True)
    for number in range(CLIPS):
        (tmp_path / "videos" / "x" / f"{number}.mp4").write_bytes(b"bad" if number == 7 else b"clip")
    return tmp_path / "videos"


def extraction(videos: Path, *more: object) -> list[object]:
    given = ["--videos", videos, "--out", videos.parent / "out", "--kinds", "frames", "--clips-per-task", 1]
    return ["extract", "--dataset", "folder", *given, *more]


# ----- exit statuses -----


def test_success_failure_and_wrong_usage_have_their_exit_statuses(videos: Path, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.csv"
    nothing.write_text("path,label,split\n")
    expected = {
        0: (["datasets"],),
        1: (extraction(videos, "--annotations", nothing), ["verify", videos]),
        2: (["extract"], ["no-such-command"]),
    }
    for expected_status, commands in expected.items():
        for words in commands:
            done = bmlpipe(*words)
            assert done.returncode == expected_status, (words, done.stderr)
            assert "Traceback" not in done.stderr
            assert ("Next: " in done.stderr) == (expected_status == 0)


@pytest.mark.parametrize(
    ("number", "message"),
    [(signal.SIGTERM, "stopped by SIGTERM"), (signal.SIGHUP, "stopped by SIGHUP"), (signal.SIGINT, "interrupted")],
)
def test_a_stopped_extraction_can_be_continued(
    videos: Path, number: int, message: str, wait_until: Callable[..., None]
) -> None:
    out = videos.parent / "out"
    signals = [signal.SIGHUP, signal.SIGINT]  # a process started by nohup or in the background ignores them
    with started(
        fake(0.05, *extraction(videos, "--workers", 0)),
        preexec_fn=lambda: [signal.signal(each, signal.SIG_DFL) for each in signals],
    ) as process:
        wait_until(lambda: len(list(out.glob("clips/*/*.h5"))) > 3, process)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"{message}: finished clips are kept" in stderr
    assert "Traceback" not in stderr
    with (out / "ledger.csv").open(newline="") as file:
        reasons = Counter(row["reason"] for row in csv.DictReader(file))
    assert reasons.total() == CLIPS
    assert reasons[""] >= 3
    about = state_of(out)
    assert (about["state"], about["ok"], about["not_tried"]) == ("stopped", reasons[""], reasons["not_tried"])
    done = subprocess.run(
        fake(0, *extraction(videos, "--workers", 0)), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0
    assert Counter(row.status for row in read_ledger(out)) == {"ok": CLIPS - 1, "failed": 1}
    assert (state_of(out)["state"], state_of(out)["planned"]) == ("finished", reasons["not_tried"])


def test_a_second_sigterm_does_not_interrupt_the_clean_up() -> None:
    cleaned = []
    with pytest.raises(SignalInterrupt) as caught, signals_as_exceptions():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)
            cleaned.append(True)
    assert cleaned == [True]
    assert exit_status(caught.value) == 143
    assert exit_status(KeyboardInterrupt()) == 130
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.slow
def test_sigterm_ends_the_workers_of_a_cluster_too(
    videos: Path, make_clips: Callable[..., None], wait_until: Callable[..., None]
) -> None:
    """SIGTERM is sent to all processes of the group, as SLURM does."""
    make_clips(videos / "x", 400, seconds=1.0, size=(48, 32))
    out = videos.parent / "out"
    words = extraction(videos, "--workers", 2, "--no-disk-check")
    with started([sys.executable, "-m", "bmlpipe.pipeline.cli", *map(str, words)]) as process:
        wait_until(lambda: len(list(out.glob("clips/*/*.h5"))) > 3, process)
        os.killpg(process.pid, signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 143
        wait_until(lambda: not group_of(process.pid), seconds=30, log=lambda: group_of(process.pid))
    assert "stopped by SIGTERM: finished clips are kept" in stderr
    lines = stderr.splitlines()
    assert [line for line in lines if not re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (INFO|WARNING) ", line)] == []
    about = state_of(out)
    assert (about["state"], about["ok"] + about["not_tried"]) == ("stopped", 400)
    assert about["failed"] == 0


def test_stopped_sharding_keeps_the_old_set_and_leaves_no_other_files(
    videos: Path, wait_until: Callable[..., None]
) -> None:
    features, shards = videos.parent / "out", videos.parent / "shards"
    subprocess.run(fake(0, *extraction(videos, "--workers", 0)), check=True, capture_output=True, timeout=60)
    words = ["shard", "--dataset", "folder", "--features", features, "--out", shards]
    subprocess.run(fake(0, *words, "--seed", 1), check=True, capture_output=True, timeout=60)
    before = {path.name: path.read_bytes() for path in shards.iterdir()}
    with started(fake(0.05, *words, "--seed", 2)) as process:
        wait_until(lambda: list(videos.parent.glob(".shards.writing-*/*.tar")), process)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (143, "")
    assert "nothing was changed" in stderr
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == before
    assert sorted(path.name for path in videos.parent.iterdir()) == ["out", "shards", "videos"]
    done = subprocess.run(fake(0, *words, "--seed", 2), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in shards.iterdir()} != before


# ----- log lines -----


def objects(stderr: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in stderr.splitlines()]
    for line in found:
        assert set(line) <= {"time", "level", "logger", "message", "rank", "fields", "traceback"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert line["level"] in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    return found


def test_json_log_lines_are_selected_by_option_or_environment(videos: Path) -> None:
    given = bmlpipe(*extraction(videos, "--workers", 0, "--log-format", "json"))
    shutil.rmtree(videos.parent / "out")
    inherited = bmlpipe(*extraction(videos, "--workers", 0), BMLPIPE_LOG="json")
    for done in (given, inherited):
        assert (done.returncode, done.stdout[:18]) == (1, "ok 0, failed 40, a")
        *lines, last = objects(done.stderr)
        assert [line["level"] for line in lines] == ["INFO"] * len(lines)
        assert last["level"] == "ERROR"
        assert "40 of 40 clips failed, more than --max-failed 0.05" in last["message"]
        (progress,) = [line["fields"] for line in lines if "fields" in line]
        assert (progress["done"], progress["total"], progress["failures"]) == (40, 40, {"not_media": 40})
    wrong = bmlpipe("extract", "--clips-per-task", "0", BMLPIPE_LOG="json")
    assert wrong.returncode == 2
    assert [line["level"] for line in objects(wrong.stderr)] == ["ERROR"]
    plain = bmlpipe("extract", "--log-format", "xml")
    assert (plain.returncode, "'xml' is not one of 'text', 'json'" in plain.stderr) == (2, True)


def test_quiet_logs_warnings_and_errors_only_and_text_lines_have_time_and_level(videos: Path) -> None:
    (videos / "x" / "7.mp4").unlink()

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(fake(0, *words), capture_output=True, text=True, check=False, timeout=60)

    quiet = run(*extraction(videos, "--workers", 0, "--quiet"))
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert quiet.stdout.startswith("ok 39, failed 0, absent 0")
    shutil.rmtree(videos.parent / "out")
    loud = run(*extraction(videos, "--workers", 0))
    lines = loud.stderr.splitlines()
    assert lines
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO    \S", line) for line in lines)


@pytest.mark.slow
def test_warnings_and_errors_of_a_worker_are_json_lines() -> None:
    """The traceback of the worker process is part of the JSON object."""
    code = """
import sys
from bmlpipe.manifests.common.logs import configure
from bmlpipe.pipeline.cluster.batches import map_batches
from bmlpipe.pipeline.cluster.worker_pool import LocalWorkers

def work(batch):
    import logging, warnings
    warnings.warn("something is old")
    try:
        1 / 0
    except ZeroDivisionError:
        logging.getLogger("bmlpipe.pipeline.extraction.worker").exception("internal error in clip %s", batch[0])
    return batch

configure("json")
print(list(map_batches(work, [["a"]], lambda item: item, LocalWorkers(1))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "[['a']]\n"), done.stderr
    levels = {line["logger"]: line for line in objects(done.stderr) if line["level"] != "INFO"}
    assert set(levels) == {"py.warnings", "bmlpipe.pipeline.extraction.worker"}
    assert "ZeroDivisionError" in levels["bmlpipe.pipeline.extraction.worker"]["traceback"]


@pytest.fixture
def restored() -> Iterator[None]:
    """Restore the logging of this process."""
    root, own, hook = logging.getLogger(), logging.getLogger("bmlpipe"), sys.excepthook
    before = (root.handlers[:], root.level, own.level)
    yield
    root.handlers[:], sys.excepthook = before[0], hook
    root.setLevel(before[1])
    own.setLevel(before[2])
    logging.captureWarnings(False)


@pytest.mark.usefixtures("restored")
def test_log_lines_contain_rank_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    own, other = logging.getLogger("bmlpipe.train"), logging.getLogger("elsewhere")
    other.setLevel(logging.DEBUG)
    for rank in (0, 1):
        configure("json", logging.WARNING if rank else logging.INFO, rank)
        own.info("step %d", 3, extra={"loss": 0.5, "path": Path("/a")})
        own.warning("two\nlines")
        other.info("chatter")
        other.error("trouble")
    found = objects(capsys.readouterr().err)
    assert [(line["rank"], line["message"]) for line in found] == [
        *((0, "step 3"), (0, "two\nlines"), (0, "trouble")),
        *((1, "two\nlines"), (1, "trouble")),
    ]
    assert found[0]["fields"] == {"loss": 0.5, "path": "/a"}
    configure("text", logging.INFO, 1)
    own.info("a step")
    other.warning("trouble")
    first, second = (line[20:] for line in capsys.readouterr().err.splitlines())
    assert first == "INFO    rank 1: a step"
    assert second == "WARNING rank 1: elsewhere: trouble"
    with pytest.raises(ValueError, match="log format is 'xml': must be one of text, json"):
        configure("xml")


# ----- status files -----


def test_the_status_file_follows_a_running_extraction_until_it_is_killed(
    videos: Path, wait_until: Callable[..., None]
) -> None:
    out = videos.parent / "out"
    program = FAKE.replace(
        "import sys, time",
        "import sys, time; from bmlpipe.manifests.common import status_file; status_file.EVERY = 0.02",
    )
    command = [sys.executable, "-c", program, "0.05", *map(str, extraction(videos, "--workers", 0))]
    with started(command) as process:
        wait_until((out / STATUS_FILE).exists, process)
        wait_until(lambda: state_of(out)["failed"], process)  # every read finds a complete file
        about, host = state_of(out), os.uname().nodename
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert (about["version"], about["pid"], about["host"], about["state"]) == (1, process.pid, host, "running")
    assert about["clips"] == about["planned"] == about["ok"] + about["failed"] + about["absent"] + about["not_tried"]
    assert about["done"] == about["ok"] + about["failed"] >= 1
    assert about["failures"] == {"not_media": 1}
    assert about["bytes_written"] == pytest.approx(
        about["ok"] * next(iter(out.glob("clips/*/*.h5"))).stat().st_size, rel=0.01
    )
    assert about["clips_per_second"] > 0
    assert about["seconds_left"] >= 0
    assert about["workers"] is None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", about["updated"])
    assert "extract --dataset folder" in about["command"]
    assert state_of(out)["state"] == "running"  # only `updated` shows that the process is gone


def test_counters_are_written_in_prometheus_text_format(videos: Path) -> None:
    subprocess.run(fake(0, *extraction(videos, "--workers", 0)), check=True, capture_output=True, timeout=60)
    out = videos.parent / "out"
    text, samples, typed = FeatureFolder(out).prometheus.read_text(), dict[str, float](), set[str]()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            typed.add(line.split()[2])
        elif not line.startswith("#"):
            match = re.fullmatch(r'(\w+)(\{(?:\w+="(?:[^"\\\n]|\\.)*",?)*\}) (\S+)', line)
            assert match
            assert match[1] in typed
            samples[match[1] + match[2].replace(f'folder="{out}"', "")] = float(match[3])
    assert samples['bmlpipe_extract_clips{,status="ok"}'] == CLIPS - 1
    assert samples['bmlpipe_extract_failures{,reason="not_media"}'] == 1
    assert samples["bmlpipe_extract_running{}"] == 0
    assert abs(samples["bmlpipe_extract_updated_timestamp_seconds{}"] - time.time()) < 3600
    strange = prometheus({**state_of(out), "folder": 'a"b\\c\nd'})
    assert r'bmlpipe_extract_running{folder="a\"b\\c\nd"} 0' in strange.splitlines()


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (None, "finished"),
        (KeyboardInterrupt(), "stopped"),
        (SignalInterrupt(15), "stopped"),
        (OSError("full"), "failed"),
    ],
)
def test_the_status_file_states_how_a_block_ended(tmp_path: Path, error: BaseException | None, state: str) -> None:
    try:
        with StatusFile(tmp_path, lambda: {"done": 3}):
            assert state_of(tmp_path)["state"] == "running"
            if error is not None:
                raise error
    except (KeyboardInterrupt, OSError):
        pass
    about = state_of(tmp_path)
    assert (about["state"], about["done"], about.get("error")) == (
        state,
        3,
        "OSError: full" if state == "failed" else None,
    )
    assert [path.name for path in tmp_path.iterdir()] == [STATUS_FILE]


def test_a_status_file_that_cannot_be_written_stops_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "EVERY", 0.01)
    with StatusFile(tmp_path / "gone", dict) as file:
        time.sleep(0.05)
    assert file.state == "finished"


# ----- training -----


def training(shards: Path, out: Path, *flags: str) -> list[str]:
    program = str(Path(__file__).resolve().parents[2] / "train" / "run.py")
    given = ["--shards", str(shards), "--out", str(out), "--encoder", "cnn4", "--image-size", "32", "--workers", "0"]
    return [sys.executable, program, *given, "--batch-size", "24", "--device", "cpu", "--no-tensorboard", *flags]


ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_a_training_run_writes_its_status_and_logs_json(toy_shards: Path, tmp_path: Path) -> None:
    command = training(toy_shards, tmp_path / "run", "--epochs", "2", "--log-format", "json")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=ONE_THREAD)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    lines = objects(done.stderr)
    assert {line["rank"] for line in lines} == {0}
    assert any("finished: test of epoch" in line["message"] for line in lines)
    about = state_of(tmp_path / "run")
    steps = (tmp_path / "run" / "steps.jsonl").read_text().splitlines()
    assert (about["state"], about["step"], about["steps"], about["seconds_left"]) == ("finished", len(steps), 8, 0)
    assert about["last"] == json.loads(steps[-1])
    assert about["metrics"]["split"] == "test"
    assert about["samples_per_second"] > 0
    assert 0 <= about["data_wait"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_training_run_names_the_option_to_resume(
    toy_shards: Path, tmp_path: Path, number: int, wait_until: Callable[..., None]
) -> None:
    with started(
        training(toy_shards, tmp_path / "run", "--epochs", "500"),
        env=ONE_THREAD,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        metrics = tmp_path / "run" / "metrics.jsonl"
        wait_until(lambda: metrics.exists() and metrics.read_text(), process)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "--resume" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    assert state_of(tmp_path / "run")["state"] == "stopped"


def test_wrong_usage_of_training_is_status_2_and_one_json_line(tmp_path: Path) -> None:
    environment = {**ONE_THREAD, "BMLPIPE_LOG": "json"}
    for flag in (["--epochs", "0"], ["--no-such-option"]):
        command = training(tmp_path, tmp_path / "run", *flag)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
        assert done.returncode == 2
        assert [line["level"] for line in objects(done.stderr)] == ["ERROR"]


def test_the_status_of_a_training_run_is_read_from_a_damaged_journal(tmp_path: Path) -> None:
    row = {"step": 7, "epoch": 1, "step_s": 0.5, "data_s": 0.1, "samples_per_s": 48.0}
    lines = ["{cut", "[]", json.dumps({"step": 6}), json.dumps(row), '{"step": 8, "ep']
    (tmp_path / "steps.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = progress(RunFolder(tmp_path), 10)
    assert (found["step"], found["epoch"], found["seconds_left"], found["last"]) == (8, 1, 1, row)
    assert "metrics" not in found
