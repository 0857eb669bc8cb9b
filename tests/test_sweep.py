"""Recipes: read strictly, run what is missing, go on after a failure."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from bmlpipe.train.config import ConfigError
from bmlpipe.train.sweep import read_recipe, run_jobs

RECIPE = """
base: {encoder: cnn4, image_size: 32, batch_size: 24, epochs: 1, workers: 0, device: cpu, tensorboard: false}
runs:
  concatenation: {}
  opm: {modulation: opm}
seeds: [3]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_recipe_gives_a_run_for_each_name_and_seed(tmp_path: Path) -> None:
    jobs = read_recipe(write(tmp_path, RECIPE.replace("[3]", "[0, 1]")), tmp_path / "runs", shards="here", dataset=None)
    assert [job.name for job in jobs] == [
        "concatenation, seed 0",
        "opm, seed 0",
        "concatenation, seed 1",
        "opm, seed 1",
    ]
    assert jobs[3].folder == tmp_path / "runs" / "opm" / "seed-1"
    assert (jobs[3].options["modulation"], jobs[3].options["seed"], jobs[3].options["shards"]) == ("opm", 1, "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RECIPE.replace("runs:", "rnus:"), "unknown part 'rnus'"),
        ("runs: {}\n", "expected base"),
        (RECIPE.replace("image_size", "imagesize"), "run concatenation: unknown option 'imagesize'"),
        (RECIPE.replace("modulation: opm", "modulation: opm, modalities: audio"), "nothing to balance"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused_before_anything_runs(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_recipe(write(tmp_path, text), tmp_path / "runs", shards="here")


def test_the_shipped_recipes_can_be_read(tmp_path: Path) -> None:
    shipped = [path for path in resources.files("bmlpipe.train.recipes").iterdir() if path.name.endswith(".yaml")]
    assert shipped
    for path in shipped:
        assert read_recipe(Path(str(path)), tmp_path, shards="here", dataset="folder")


@pytest.mark.slow
def test_a_second_sweep_runs_only_what_is_missing(toy_shards: Path, tmp_path: Path) -> None:
    recipe = write(tmp_path, RECIPE)
    jobs = read_recipe(recipe, tmp_path / "runs", shards=str(toy_shards))
    (jobs[1].folder / "checkpoints").mkdir(parents=True)
    (jobs[1].folder / "checkpoints" / "last.pt").write_bytes(b"damaged")
    said: list[str] = []
    assert run_jobs(jobs, parallel=2, say=said.append) == [jobs[1]]
    assert [job.finished for job in jobs] == [True, False]
    assert "last.pt cannot be read" in (jobs[1].folder / "log.txt").read_text(encoding="utf-8")
    (jobs[1].folder / "checkpoints" / "last.pt").unlink()
    before = (jobs[0].folder / "steps.jsonl").stat().st_mtime_ns
    said.clear()
    assert run_jobs(jobs, parallel=1, say=said.append) == []
    assert said == ["opm, seed 3: begins", "opm, seed 3: finished"]
    assert (jobs[0].folder / "steps.jsonl").stat().st_mtime_ns == before
