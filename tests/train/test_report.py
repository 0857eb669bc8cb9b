"""The results table and the picture show what the journals hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bmlpipe.train.config.options import ConfigError
from bmlpipe.train.config.parsing import parse
from bmlpipe.train.report import group_runs, results_table, write_picture
from bmlpipe.train.runs.run_reader import read_run


def fake_run(
    folder: Path, *, seed: int, accuracy: float, modulation: str = "none", rho: float = 2.0, seconds: float = 1.0
) -> Path:
    """A finished run of three epochs of four steps; ρ of audio is `rho` in the middle epoch, 9 elsewhere.

    A step takes `seconds` after one second of waiting for data.
    """
    import yaml

    folder.mkdir(parents=True)
    given = {
        "dataset": "cremad",
        "shards": "s",
        "out": str(folder),
        "seed": seed,
        "modulation": modulation,
        "epochs": 3,
    }
    config = parse(given, "test").resolved()
    (folder / "config.yaml").write_text(yaml.safe_dump(config.as_dict()), encoding="utf-8")
    steps = [
        {"step": s, "epoch": s // 4, "rho/audio": rho if s // 4 == 1 else 9.0, "rho/visual": 0.5}
        | {"step_s": seconds + 1, "data_s": 1}
        for s in range(12)
    ]
    common = {"mAP": 0.5, "accuracy/audio": 0.6, "accuracy/visual": 0.2}
    metrics = [{"epoch": e, "step": 4 * e + 4, "split": "val", "accuracy": 0.1 * e, **common} for e in range(3)]
    metrics.append({"epoch": 2, "step": 12, "split": "test", "accuracy": accuracy, **common})
    for name, rows in (("steps.jsonl", steps), ("metrics.jsonl", metrics)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_seeds_are_averaged_and_experiments_named_by_what_differs(tmp_path: Path) -> None:
    folders = [
        fake_run(tmp_path / "a", seed=0, accuracy=0.40, rho=4.0),
        fake_run(tmp_path / "b", seed=1, accuracy=0.50, rho=6.0),
        fake_run(tmp_path / "c", seed=0, accuracy=0.70, modulation="opm", rho=1.0, seconds=1.5),
    ]
    runs = [read_run(folder) for folder in folders]
    assert {name: len(group) for name, group in group_runs(runs).items()} == {"none": 2, "opm": 1}
    table = results_table(runs)
    assert [dict(zip(table.header, row)) for row in table.rows] == [
        {
            "run": "none",
            "seeds": "2",
            "split": "test",
            "accuracy, %": "45.0 ± 7.1",
            "mAP, %": "50.0 ± 0.0",
            "audio branch, %": "60.0 ± 0.0",
            "visual branch, %": "20.0 ± 0.0",
            "ρ audio halfway": "5.00 ± 1.41",
            "ρ visual halfway": "0.50 ± 0.00",
            "step time": "1.00",
        },
        {
            "run": "opm",
            "seeds": "1",
            "split": "test",
            "accuracy, %": "70.0",
            "mAP, %": "50.0",
            "audio branch, %": "60.0",
            "visual branch, %": "20.0",
            "ρ audio halfway": "1.00",
            "ρ visual halfway": "0.50",
            "step time": "1.50",
        },
    ]


def test_a_run_in_progress_is_read_as_far_as_it_is(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", seed=0, accuracy=0.4)
    metrics = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([*metrics[:2], metrics[2][:20]]), encoding="utf-8")
    run = read_run(folder)
    assert run.final == {**json.loads(metrics[1])}
    (folder / "metrics.jsonl").write_text("", encoding="utf-8")
    table = results_table([read_run(folder)])
    assert dict(zip(table.header, table.rows[0]))["accuracy, %"] == "-"


def test_an_error_names_the_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        read_run(tmp_path)


def test_the_picture_shows_the_curves(tmp_path: Path) -> None:
    ratios = (("none", 6.0), ("opm", 1.5))
    runs = [read_run(fake_run(tmp_path / m, seed=0, accuracy=0.5, modulation=m, rho=rho)) for m, rho in ratios]
    write_picture(runs, tmp_path / "sub" / "report.png")
    image = np.asarray(Image.open(tmp_path / "sub" / "report.png").convert("RGB")).astype(int)
    assert image.shape[1] > 3 * image.shape[0]
    blue = (image[..., 2] - image[..., 0] > 80).sum()
    orange = (image[..., 0] - image[..., 2] > 80).sum()
    assert blue > 100
    assert orange > 100


def test_options_of_any_type_distinguish_experiments(tmp_path: Path) -> None:
    """A plug-in, or a file edited by hand, may hold any value that YAML has."""
    import yaml

    changes = {"a": {}, "b": {}, "c": {"warp": [{"a": 1}]}, "d": {"warp": {"a": 1}}, "e": {"warp": 3}}
    folders = [fake_run(tmp_path / name, seed=0, accuracy=0.5) for name in changes]
    for folder, change in zip(folders, changes.values()):
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) | change
        (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    groups = group_runs([read_run(folder) for folder in folders])
    assert [[run.folder.name for run in group] for group in groups.values()] == [["a", "b"], ["c"], ["d"], ["e"]]
    assert list(groups)[3] == "warp 3"


def test_groups_with_equal_names_stay_separate(tmp_path: Path) -> None:
    import yaml

    folders = [fake_run(tmp_path / name, seed=0, accuracy=0.5) for name in ("plain", "extra")]
    config = yaml.safe_load((folders[1] / "config.yaml").read_text(encoding="utf-8")) | {"warp": 3}
    (folders[1] / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    groups = group_runs([read_run(folder) for folder in folders])
    assert list(groups) == ["all", f"all ({folders[1]})"]


def test_a_picture_without_content_is_refused(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", seed=0, accuracy=0.4)
    for name in ("steps.jsonl", "metrics.jsonl"):
        (folder / name).write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="nothing to draw"):
        write_picture([read_run(folder)], tmp_path / "picture.png")


def test_config_that_holds_no_options_is_refused_by_name(tmp_path: Path) -> None:
    for text in ("[1, 2]", "a: [", ""):
        (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=r"config\.yaml"):
            read_run(tmp_path)


def test_the_table_is_made_without_importing_torch_or_matplotlib() -> None:
    code = (
        "import sys, bmlpipe.train.report.tables, bmlpipe.train.runs.run_reader\n"
        "print([name for name in ('torch', 'matplotlib', 'sklearn') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "[]\n"
