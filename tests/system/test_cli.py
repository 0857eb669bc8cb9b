"""The command line: help, checks of options, conventional places, error messages and exit statuses."""

from __future__ import annotations

import csv
import os
import re
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np
import pytest
import simplejpeg
from click.testing import CliRunner, Result

from bmlpipe.manifests.common.locks import exclusive_folder
from bmlpipe.manifests.datasets import DATASETS
from bmlpipe.manifests.places import PlaceError, find_annotations
from bmlpipe.pipeline.cli import main
from bmlpipe.pipeline.extraction import worker as work
from bmlpipe.pipeline.front_ends.features import ClipFeatures, JpegSeries
from bmlpipe.pipeline.media.errors import ClipError

PROGRAM = Path(sys.executable).with_name("bmlpipe")


def bmlpipe(*words: object) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Ten files, two of them invalid, in the layout of the `folder` dataset."""
    for split, label, number in [(s, c, n) for s in ("train", "val") for c in "xy" for n in range(3)][:10]:
        path = tmp_path / "videos" / split / label / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"bad" if number == 2 and label == "x" else f"{split}{label}{number}".encode())
    return tmp_path / "videos"


@pytest.fixture(autouse=True)
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace `extract_clip` by a function that decodes nothing; return the list of files it was given."""
    seen: list[str] = []

    def extract_clip(video: Path, request: object, **span: object) -> ClipFeatures:
        seen.append(video.name)
        if video.read_bytes() == b"bad":
            raise ClipError("not_media", f"{video} is not a video")
        if video.read_bytes() == b"stop":
            raise KeyboardInterrupt
        picture = np.full((16, 16, 3), len(seen), np.uint8)
        jpeg = simplejpeg.encode_jpeg(picture, colorspace="RGB") + video.read_bytes()  # makes the JPEG unique
        return ClipFeatures({"frames": JpegSeries((jpeg,), (0.0,), 16, 16)})

    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(work, "extract_clip", extract_clip)
    return seen


def extract(videos: Path, *more: object) -> Result:
    where = ("--videos", videos, "--out", videos.parent / "out", "--kinds", "frames", "--workers", 0)
    return bmlpipe("extract", "--dataset", "folder", *where, *more)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in [folder, *folder.rglob("*")]}


# ----- help -----


def test_help_is_fast_and_imports_no_heavy_package() -> None:
    program = """
import sys
from bmlpipe.pipeline.cli import main
try:
    main(sys.argv[1:])
finally:
    heavy = {"numpy", "scipy", "torch", "dask", "distributed", "cv2", "av", "h5py", "rich", "librosa"}
    print("imported:", sorted(heavy & sys.modules.keys()))
"""
    for words in (["--help"], ["train", "--help"], ["extract", "--help"]):
        command = [sys.executable, "-c", program, *words]
        assert "imported: []" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([PROGRAM, "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.5, f"{spent} s of CPU"


def test_commands_are_listed_in_the_order_of_use_with_whole_summaries() -> None:
    lines = bmlpipe("--help").stdout.splitlines()
    listed = [line.split(maxsplit=1) for line in lines[lines.index("Commands:") + 1 :]]
    listed = listed[: listed.index([])]
    names = [
        "datasets",
        "extract",
        "shard",
        "verify",
        "stats",
        "inspect",
        "train",
        "evaluate",
        "report",
        "sweep",
        "demo",
    ]
    assert [name for name, _ in listed] == names == list(main.commands)  # a wrapped summary would add lines
    assert all(summary.endswith(".") and not summary.endswith("...") for _, summary in listed)


@pytest.mark.parametrize("name", list(main.commands))
def test_each_command_has_help_with_an_example(name: str) -> None:
    result = bmlpipe(name, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage:")
    assert re.search(r"^Examples?:\n  (bmlpipe|torchrun) ", result.stdout, re.MULTILINE)
    for option in main.commands[name].params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert option.help.endswith((".", "…")), option.name


def test_the_program_starts_as_a_module_and_prints_its_version() -> None:
    out = subprocess.run(
        [sys.executable, "-m", "bmlpipe.pipeline.cli", "--version"], capture_output=True, text=True, check=True
    ).stdout
    assert re.search(r"\d+\.\d+\.\d+", out)


def test_datasets_are_listed_with_the_files_that_they_need() -> None:
    out = bmlpipe("datasets").stdout
    for name, dataset in DATASETS.items():
        assert f"{name}: {dataset.title}" in out
        assert dataset.annotations in out
        assert dataset.videos in out


# ----- extract -----


def test_a_run_ends_with_a_summary_and_a_status_for_the_share_of_failures(videos: Path) -> None:
    result = extract(videos)
    assert result.exit_code == 1
    assert result.stdout == f"ok 8, failed 2, absent 0: see {videos.parent}/out/ledger.csv\n"
    assert "folder: 10 clips (train 6, val 4, test 0); 10 to do, 0 done before" in result.stderr
    assert "10 of 10 clips" in result.stderr
    assert "not_media 2" in result.stderr
    assert "Error: 2 of 10 clips failed, more than --max-failed 0.05" in result.stderr
    assert extract(videos, "--max-failed", 0.2).exit_code == 0
    assert extract(videos, "--max-failed", 0.19).exit_code == 1


def test_absent_clips_do_not_count_as_failures(videos: Path, tmp_path: Path) -> None:
    table = tmp_path / "clips.csv"
    rows = [f"train/x/{number}.mp4,x,train" for number in range(100)]
    table.write_text("\n".join(["path,label,split", *rows]))
    result = extract(videos, "--annotations", table, "--max-failed", 0.3)
    assert result.stdout.startswith("ok 2, failed 1, absent 97")
    assert result.exit_code == 1  # 1 of 3
    assert extract(videos, "--annotations", table, "--max-failed", 0.34).exit_code == 0


def test_extraction_without_any_file_is_an_error_with_the_folder(videos: Path, tmp_path: Path) -> None:
    table = tmp_path / "clips.csv"
    table.write_text("path,label,split\nelsewhere/1.mp4,x,train\n")
    result = extract(videos, "--annotations", table)
    assert result.exit_code == 1
    assert f"no clip has a file below {videos}: see bmlpipe datasets" in result.stderr
    assert "ok 0, failed 0, absent 1" in result.stdout


def test_failed_clips_are_retried_on_request(videos: Path, decoder: list[str]) -> None:
    extract(videos)
    for option, tried in (
        ([], 0),
        (["--retry-failed"], 2),
        (["--retry-failed=x"], 0),
        (["--retry-failed=not_media"], 2),
    ):
        decoder.clear()
        extract(videos, *option)
        assert len(decoder) == tried


def test_a_dry_run_writes_nothing(videos: Path, decoder: list[str]) -> None:
    result = extract(videos, "--dry-run")
    assert result.exit_code == 0
    assert "10 to do, 0 done before, 0 failed before, 0 without a file" in result.stderr
    assert not (videos.parent / "out").exists()
    extract(videos)
    (videos / "train/y/1.mp4").write_bytes(b"changed")
    before = tree(videos.parent / "out")
    decoder.clear()
    assert "1 to do, 7 done before, 2 failed before" in extract(videos, "--dry-run").stderr
    assert tree(videos.parent / "out") == before
    assert decoder == ["1.mp4"]  # extracted for the estimate and discarded
    with exclusive_folder(videos.parent / "out", "extraction"):  # also during another run
        assert extract(videos, "--dry-run").exit_code == 0


def test_two_runs_into_one_folder_are_refused(videos: Path, tmp_path: Path) -> None:
    with exclusive_folder(tmp_path / "out", "extraction"):
        result = extract(videos)
    assert result.exit_code == 1
    assert f"Error: another extraction is writing into {tmp_path}/out" in result.stderr


def test_another_data_set_in_the_folder_is_refused(videos: Path, tmp_path: Path) -> None:
    extract(videos)
    (tmp_path / "other" / "z").mkdir(parents=True)
    (tmp_path / "other" / "z" / "1.mp4").write_bytes(b"1")
    for more in ([], ["--dry-run"]):
        result = bmlpipe(
            *("extract", "--dataset", "folder", "--videos", tmp_path / "other", "--out", tmp_path / "out"),
            *("--workers", 0, *more),
        )
        assert result.exit_code == 1
        assert "holds features of folder with 2 classes" in result.stderr


def test_an_interrupted_extraction_can_be_continued(videos: Path) -> None:
    (videos / "train/y/0.mp4").write_bytes(b"stop")
    result = extract(videos, "--clips-per-task", 1)
    assert result.exit_code == 130
    assert "interrupted: finished clips are kept" in result.stderr
    (videos / "train/y/0.mp4").write_bytes(b"go")
    assert "7 to do, 2 done before, 1 failed before" in extract(videos).stderr


@pytest.mark.slow
def test_a_full_disk_stops_the_run_with_an_error_and_without_loss(
    tmp_path: Path, make_clips: Callable[..., None]
) -> None:
    """A limit on file sizes simulates it: spectrograms exceed it and tables do not."""
    make_clips(tmp_path / "videos" / "x", 3, seconds=1.0, size=(48, 32))
    command = [PROGRAM, "extract", "--dataset", "folder", "--videos", tmp_path / "videos", "--out", tmp_path / "out"]
    for workers in ("0", "1"):
        limited = [sys.executable, "-c", LIMITED, *command, "--workers", workers, "--clips-per-task", "1"]
        done = subprocess.run(limited, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "Error: " in done.stderr
        assert "cannot be written" in done.stderr
        assert "then run the same" in done.stderr
        assert "Traceback" not in done.stderr
        with (tmp_path / "out" / "ledger.csv").open(newline="") as file:
            assert [row["reason"] for row in csv.DictReader(file)] == ["not_tried"] * 3
    subprocess.run([*command, "--workers", "0"], check=True, capture_output=True)
    assert not list((tmp_path / "out").rglob("*.writing"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_ctrl_c_on_a_terminal_ends_without_a_traceback_and_with_a_full_ledger(
    tmp_path: Path, make_clips: Callable[..., None], wait_until: Callable[..., None], workers: str
) -> None:
    """SIGINT is sent to all processes of the group, as a terminal does."""
    videos, out = tmp_path / "videos", tmp_path / "out"
    make_clips(videos / "x", 400, seconds=1.0, size=(48, 32))
    command = [PROGRAM, "extract", "--dataset", "folder", "--videos", videos, "--out", out, "--clips-per-task", "1"]
    process = subprocess.Popen(
        [*command, "--workers", workers],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # the children of a background job ignore it
    )
    wait_until(lambda: len(list(out.glob("clips/*/*.h5"))) >= 5, process)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted: finished clips are kept" in stderr
    assert b"Traceback" not in stderr
    with (out / "ledger.csv").open(newline="") as file:
        reasons = Counter(row["reason"] for row in csv.DictReader(file))
    assert reasons.total() == 400
    assert reasons[""] >= 1
    assert reasons["not_tried"] == 400 - reasons[""]


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kinds", "frames,smell"], "must be names among frames, spectrogram, flow, rgb_diff"),
        (["--kinds", ","], "must be names among frames, spectrogram, flow"),
        (["--seconds", "0"], "0 is not in the range x>=1"),
        (["--short-side", "1"], "short_side is 1: must be from 16 to 4096 pixels"),
        (["--flow-stack", "11"], "11 is not in the range"),
        (["--workers", "-1"], "-1 is not in the range"),
        (["--val-fraction", "1.5"], "must be above 0 and below 1"),
        (["--max-failed", "5"], "5.0 is not in the range 0<=x<=1"),
        (["--scheduler", "tcp://127.0.0.1:1"], "excludes --scheduler"),
        (["--annotations", "nowhere.csv"], "does not exist"),
        (["--dataset", "imagenet"], "'imagenet' is not one of 'vggsound'"),
        (["--spectrogram-preset", "mel"], "'mel' is not one of"),
        (["--no-such-option"], "No such option"),
    ],
)
def test_options_are_checked_before_anything_is_written(videos: Path, words: list[str], message: str) -> None:
    result = extract(videos, *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (videos.parent / "out").exists()


def test_a_spectrogram_of_whole_clips_is_refused_with_the_remedy(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    common = ("extract", "--dataset", "ucf101", "--videos", videos, "--annotations", tmp_path / "lists")
    result = bmlpipe(*common, "--out", tmp_path / "out", "--kinds", "spectrogram")
    assert result.exit_code == 2
    assert "give --seconds" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "vggsound"], "there is no vggsound.csv"),
        (["--val-by-group"], "the clips of folder have no groups"),
    ],
)
def test_a_manifest_error_is_reported_without_a_traceback(videos: Path, words: list[str], message: str) -> None:
    result = extract(videos, *words)
    assert result.exit_code == 1
    assert "\nError: " in f"\n{result.stderr}"
    assert message in result.stderr


def test_an_unusable_output_folder_is_reported_without_a_traceback(videos: Path) -> None:
    (videos.parent / "out").write_text("a file")
    assert "is a file" in extract(videos).stderr
    (videos.parent / "out").unlink()
    (videos.parent / "file").write_text("a file")
    result = extract(videos, "--out", videos.parent / "file" / "out")
    assert result.exit_code == 1
    assert f"Error: {videos.parent}/file/out: Not a directory" in result.stderr


# ----- places -----


@pytest.fixture
def project(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which every path can be omitted."""
    project = tmp_path / "project"
    (project / "data" / "folder").mkdir(parents=True)
    videos.rename(project / "data" / "folder" / "videos")
    monkeypatch.chdir(project)
    return project


def test_commands_use_and_report_the_conventional_places(project: Path) -> None:
    result = bmlpipe("extract", "--dataset", "folder", "--kinds", "frames", "--workers", 0, "--max-failed", 0.2)
    assert result.exit_code == 0
    assert result.stdout == "ok 8, failed 2, absent 0: see features/folder/ledger.csv\n"
    assert "videos data/folder/videos, features features/folder" in result.stderr
    assert result.stderr.rstrip().endswith("Next: bmlpipe shard")
    result = bmlpipe("shard")
    assert result.stdout == "8 samples (train 5, val 3, test 0) in shards/folder\n"
    assert "features features/folder, shards shards/folder" in result.stderr
    assert result.stderr.rstrip().endswith("Next: bmlpipe train")
    result = bmlpipe("verify")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "shards shards/folder" in result.stderr
    assert "shards/folder: folder, format version 1, 8 samples" in bmlpipe("stats").stdout


def test_an_ambiguous_or_missing_default_is_an_error_with_the_candidates(project: Path) -> None:
    for command, option in (("shard", "--features"), ("verify", "SHARDS"), ("train", "--shards")):
        result = bmlpipe(command)
        assert result.exit_code == 1, command
        assert "there is no data set in" in result.stderr
        assert option in result.stderr
    result = bmlpipe("extract", "--dataset", "vggsound")
    assert result.exit_code == 1
    assert "vggsound.csv" in result.stderr
    assert "data/vggsound/annotations" in result.stderr
    bmlpipe("extract", "--dataset", "folder", "--kinds", "frames", "--workers", 0)
    bmlpipe("extract", "--dataset", "folder", "--kinds", "frames", "--workers", 0, "--out", "features/again")
    result = bmlpipe("shard")
    assert result.exit_code == 1
    assert "features/again, features/folder" in result.stderr
    assert "--features" in result.stderr
    assert bmlpipe("shard", "--dataset", "folder").exit_code == 0


@pytest.mark.parametrize(
    ("dataset", "files", "found"),
    [
        ("vggsound", ["vggsound.csv"], "vggsound.csv"),
        ("vggsound", ["train.csv", "test.csv"], ""),
        ("kinetics-sounds", ["KS_train_val.json", "my_train.txt", "my_test.txt"], "KS_train_val.json"),
        ("kinetics-sounds", ["my_train.txt", "my_test.txt"], ""),
        ("cremad", ["train.csv", "test.csv", "stat.csv"], ""),
        ("ucf101-three", ["lists/classInd.txt", "lists/trainlist01.txt", "lists/testlist01.txt"], "lists"),
        ("folder", ["mine.csv"], "mine.csv"),
        ("folder", [], None),
        ("folder", ["one.csv", "two.csv"], "one.csv, .*two.csv"),
        ("cremad", ["train.csv"], r"train.csv \+ test.csv"),
    ],
)
def test_the_official_annotation_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, files: list[str], found: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("data") / DATASETS[dataset].clips_of / "annotations"
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    if found is not None and not (folder / found).exists():
        with pytest.raises(PlaceError, match=found):
            find_annotations(dataset)
    else:
        assert find_annotations(dataset) == (None if found is None else folder / found)


# ----- shard and verify -----


@pytest.fixture
def shards(videos: Path) -> Path:
    extract(videos)
    features, out = videos.parent / "out", videos.parent / "shards"
    result = bmlpipe("shard", "--dataset", "folder", "--features", features, "--out", out, "--samples-per-shard", 3)
    assert result.exit_code == 0
    assert result.stdout == f"8 samples (train 5, val 3, test 0) in {out}\n"
    assert "8 of 8 samples" in result.stderr
    return out


def test_intact_shards_are_verified(shards: Path) -> None:
    result = bmlpipe("verify", shards)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "3 shards, 8 samples, 0 faults" in result.stderr


def test_verification_prints_one_row_per_fault_and_exits_with_1(shards: Path) -> None:
    path = shards / "train-000001.tar"
    whole = bytearray(path.read_bytes())
    at = whole.index(b"\xff\xd9train")  # the end of a frame
    whole[at] ^= 1
    path.write_bytes(whole)
    (shards / "val-000000.tar").unlink()
    (shards / "stray.tar").write_bytes(b"")
    result = bmlpipe("verify", shards)
    assert result.exit_code == 1
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert all(len(row) == 4 for row in rows)
    assert [row[0] for row in rows] == ["stray.tar", "train-000001.tar", "val-000000.tar"]
    assert "3 faults" in result.stderr


def test_errors_of_shard_and_verify_are_reported_without_a_traceback(videos: Path, shards: Path) -> None:
    features, out = videos.parent / "out", videos.parent / "more"

    def shard(*more: object) -> Result:
        return bmlpipe("shard", "--dataset", "folder", "--features", features, "--out", out, *more)

    for words, message in (
        (["--kinds", "flow"], "has no flow, only frames"),
        (["--dataset", "cremad"], "holds features of folder, not of cremad: correct --dataset"),
        (["--features", videos], "holds no ledger.csv, so no extraction"),
        (["--out", videos], "not a set of shards"),
        (["--out", videos / "train" / "x" / "0.mp4" / "shards"], "File exists"),
    ):
        result = shard(*words)
        assert (result.exit_code, "\nError: " in result.stderr) == (1, True), words
        assert message in result.stderr
    result = bmlpipe("verify", videos)
    assert result.exit_code == 1
    assert "not a set of shards" in result.stderr
    assert bmlpipe("verify", videos / "nothing").exit_code == 2


def test_progress_lines_are_not_wrapped(videos: Path) -> None:
    """Log lines that are not written to a terminal ignore its width."""
    environment = {**os.environ, "COLUMNS": "30"}
    command = [
        PROGRAM,
        "extract",
        "--dataset",
        "folder",
        "--videos",
        videos,
        "--out",
        videos.parent / "o",
        "--workers",
        "0",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert re.search(r"^\S+ \S+ INFO    10 of 10 clips  \S+/s  not_media 10$", done.stderr, re.MULTILINE)


def test_a_terminal_shows_a_progress_bar_with_rate_and_failures(
    videos: Path, run_on_terminal: Callable[..., str]
) -> None:
    words = ["extract", "--dataset", "folder", "--videos", str(videos), "--out", str(videos.parent / "o")]
    program = f"from bmlpipe.pipeline.cli import main; main({[*words, '--workers', '0']})"
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", run_on_terminal(program, status=1))
    assert re.search(r"━+ 10 of 10 clips  \S+/s  not_media 10", plain)
