"""Recipes: errors name file and key; the bundled recipes fit their data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bmlpipe.manifests.datasets import DATASETS
from bmlpipe.manifests.places import PlaceError
from bmlpipe.pipeline.cli import main
from bmlpipe.train.config.options import ConfigError
from bmlpipe.train.sweep.paper_table import paper_table
from bmlpipe.train.sweep.recipe import Job
from bmlpipe.train.sweep.recipe_file import bundled, find_recipe, parse_overrides, parse_seeds, read_recipe

BASE = "base: {encoder: cnn4, epochs: 2}\n"


def jobs(folder: Path, text: str, **about: Any) -> list[Job]:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    given = about.pop("given", {"shards": "here", "dataset": "cremad"})
    return read_recipe(path).jobs(folder / "out", given=given, **about)


def test_a_recipe_gives_a_run_for_each_name_point_and_seed(tmp_path: Path) -> None:
    found = jobs(tmp_path, BASE + "runs: {a: , b: {lr: 0.1}}\ngrid: {fusion: [concat, sum]}\nseeds: [3, 5]\n")
    names = ["a,fusion=concat", "a,fusion=sum", "b,fusion=concat", "b,fusion=sum"]
    assert [(job.name, job.seed) for job in found] == [(name, seed) for seed in (3, 5) for name in names]
    last = found[-1]
    assert last.folder == tmp_path / "out" / "b,fusion=sum" / "seed-5"
    assert (last.config.fusion, last.config.lr, last.config.seed, last.config.epochs) == ("sum", 0.1, 5, 2)
    assert str(last) == "b,fusion=sum, seed 5"


def test_a_grid_alone_names_its_runs_by_its_values(tmp_path: Path) -> None:
    text = "grid: {gamma: [[1, 0], [0.5, 0.5]], modulation: ['opm(p_exe=0.7)+ogm']}\n"
    assert [job.name for job in jobs(tmp_path, text)] == [
        "gamma=1+0,modulation=opm-p_exe=0.7-+ogm",
        "gamma=0.5+0.5,modulation=opm-p_exe=0.7-+ogm",
    ]


def test_dollar_modality_stands_for_each_modality_of_the_data_set(tmp_path: Path) -> None:
    text = """
runs:
  $modality: {modalities: $modality}
  all:
  gblending: {modulation: gblending, references: [$modality, all, elsewhere]}
seeds: [4]
"""
    given = {"shards": "here", "dataset": "ucf101-three"}
    found = jobs(tmp_path, text, given=given)
    assert [job.name for job in found] == ["visual", "flow", "rgb_diff", "all", "gblending"]
    assert [job.config.modalities for job in found[:2]] == [("visual",), ("flow",)]
    folders = tuple(job.folder for job in found[:4])
    assert found[4].after == folders
    assert found[4].config.references == (*map(str, folders), "elsewhere")
    chosen = jobs(tmp_path, text, base={"modalities": "flow,visual"}, given=given)
    assert [job.name for job in chosen] == ["flow", "visual", "all", "gblending"]


def test_an_override_replaces_the_base_but_not_the_options_of_a_run(tmp_path: Path) -> None:
    text = BASE + "runs: {a: , b: {frames: 1}}\n"
    a, b = jobs(tmp_path, text, base=parse_overrides(("frames=9", "epochs=7", "fusion=sum", "lr=1e-2")), seeds=[8])
    assert (a.config.frames, b.config.frames) == (9, 1)
    assert (a.config.epochs, a.config.fusion, a.config.lr, a.seed) == (7, "sum", 0.01, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rnus: {a: }\n", "unknown part 'rnus'"),
        ("runs: {}\n", "has nothing to run"),
        ("runs: [a, b]\n", r"runs is \['a', 'b'\]: expected a mapping"),
        ("runs: {a: }\nseeds: 3\n", "seeds is 3: expected a list"),
        ("runs: {a: }\nseeds: [1, 1]\n", r"seeds is \[1, 1\]: expected distinct"),
        ("runs:\n  a: {lr: 1}\n  a: {lr: 2}\n", r"duplicate key 'a'\n.*line 3"),
        ("base: {image_sise: 3}\nruns: {a: }\n", "base: unknown option 'image_sise'; did you mean 'image_size'"),
        ("runs: {a: {epochs: many}}\n", "runs.a: epochs is 'many': expected int"),
        ("runs: {a: {seed: 1}}\n", "runs.a.seed cannot be set in a recipe"),
        ("base: {out: there}\nruns: {a: }\n", "base.out cannot be set"),
        ("runs: {a/b: }\n", "runs.a/b: the name of a run"),
        ("runs: {..: }\n", "the name of a run"),
        ("runs: {a: 3}\n", "runs.a is 3: expected options"),
        ("runs: {a: {modulation: opm, modalities: audio}}\n", "runs.a: with audio alone there is nothing to balance"),
        ("runs: {a: {modulation: opm(q_base=2)}}\n", "runs.a: modulation is"),
        ("grid: {lr: 0.5}\n", "grid.lr is 0.5: expected a list"),
        ("grid: {fuson: [sum]}\n", "grid: unknown option 'fuson'; did you mean 'fusion'"),
        ("runs: {a: {lr: 1}}\ngrid: {lr: [0.5]}\n", "runs.a: lr is an option of the run and of the grid"),
        ("grid: {lr: [1.0, 1.0]}\n", "grid: two runs would be named 'lr=1.0'"),
        ("runs: {'a,lr=1': , a: {lr: 2}}\ngrid: {lr: [1]}\n", "lr is an option of the run"),
        ("runs: {A: , a: {lr: 2}}\n", "runs.a: two runs would be named 'a'"),
        ("runs: {a: , b: {fusion: concat}}\n", "a and b have the same options"),
        ("runs: {$modality: {lr: 1}}\n", "audio and visual have the same options"),
        ("runs: {$name: }\n", "runs.\\$name: the name of a run"),
        ("runs: {a: {references: [b]}, b: {references: [c]}, c: {lr: 1}}\n", "references names b, which refers"),
        ("datasets: [ucf101]\nruns: {a: }\n", "is for ucf101, not for cremad"),
        ("datasets: [cremat]\nruns: {a: }\n", "'cremat' is not a data set"),
        ("runs: {a: }\npaper: {cremad: {a: {acuracy: 1}}}\n", "paper.cremad.a is .*: expected accuracy and mAP"),
        ("runs: {a: }\npaper: {cremad: {a: {accuracy: 101}}}\n", "paper.cremad.a is"),
        ("runs: {a: }\nthen: [look at $folder]\n", "then: 'look at \\$folder'"),
        ("runs: {a: [}\n", "cannot be read as YAML"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused_with_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)recipe\.yaml.*{message}"):
        jobs(tmp_path, text)


def test_options_on_the_command_line_are_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--set epochs: expected option=value"):
        parse_overrides(("epochs",))
    with pytest.raises(ConfigError, match="--set: unknown option 'epoch'; did you mean 'epochs'"):
        parse_overrides(("epoch=1",))
    with pytest.raises(ConfigError, match="--seeds 1,x: expected distinct whole numbers"):
        parse_seeds("1,x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PlaceError, match="--shards"):
        jobs(tmp_path, "runs: {a: }\n", given={})
    with pytest.raises(ConfigError, match=r"table-99 is neither a file nor a bundled recipe.*table-2"):
        find_recipe("table-99")


def test_published_numbers_of_an_unknown_run_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("runs: {a: }\npaper: {cremad: {b: {accuracy: 50}}}\n", encoding="utf-8")
    recipe = read_recipe(path)
    with pytest.raises(ConfigError, match=r"paper\.cremad\.b: there is no such run. The runs are a"):
        recipe.published(recipe.jobs(tmp_path, given={"shards": "here", "dataset": "cremad"}))


def test_placeholders_in_the_next_commands_are_filled_in(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("runs: {a: }\nthen: [evaluate $run --missing $modality=0.1, look $out $shards $dataset]\n")
    recipe = read_recipe(path)
    found = recipe.jobs(Path("out"), given={"shards": "here,there", "dataset": "cremad"})
    assert recipe.commands(Path("out"), found) == [
        "evaluate out/a/seed-0 --missing audio=0.1",
        "evaluate out/a/seed-0 --missing visual=0.1",
        "look out here,there cremad",
    ]


@pytest.mark.parametrize("name", bundled())
def test_a_bundled_recipe_fits_each_of_its_data_sets(name: str, tmp_path: Path) -> None:
    recipe = read_recipe(bundled()[name])
    assert recipe.about
    for dataset in recipe.datasets or DATASETS:
        found = recipe.jobs(tmp_path, given={"dataset": dataset, "shards": "here"})
        assert len(found) >= 4
        assert {job.config.dataset for job in found} == {dataset}
        recipe.published(found)
        assert not any("$" in line for line in recipe.commands(tmp_path, found))


def test_runs_with_one_name_are_the_same_in_all_recipes_of_the_paper(tmp_path: Path) -> None:
    """So sweeps may share a folder."""
    laptop = {"balance", "fusions"}
    known: dict[str, dict[str, Any]] = {}
    for name, path in bundled().items():
        recipe = read_recipe(path)
        for job in [] if name in laptop else recipe.jobs(tmp_path, given={"dataset": "folder", "shards": "here"}):
            options = {key: value for key, value in job.config.as_dict().items() if key != "keep_every"}
            assert known.setdefault(str(job), options) == options, (name, str(job))


def test_the_papers_main_numbers_are_those_of_its_table() -> None:
    """Accuracy / mAP as Table 2 of the paper prints them, columns CREMA-D, Kinetics-Sounds, UCF-101, VGGSound."""
    printed = """
    first | 61.4 / 67.7 | 49.9 / 51.3 | 77.2 / 82.5 | 47.5 / 49.3
    second | 50.9 / 52.2 | 46.7 / 48.1 | 59.9 / 64.1 | 28.7 / 28.3
    concatenation | 66.9 / 72.1 | 63.0 / 67.3 | 80.5 / 86.4 | 52.7 / 54.9
    opm | 75.1 / 81.2 | 67.0 / 72.5 | 81.9 / 88.0 | 54.1 / 56.5
    ogm | 74.6 / 81.4 | 65.4 / 71.4 | 81.5 / 87.6 | 53.6 / 55.9
    opm+ogm | 76.7 / 83.6 | 68.0 / 74.7 | 81.5 / 87.8 | 53.3 / 56.3
    """
    paper = read_recipe(bundled()["table-2"]).paper
    for line in printed.strip().splitlines():
        name, *cells = (cell.strip() for cell in line.split("|"))
        for dataset, cell in zip(("cremad", "kinetics-sounds", "ucf101", "vggsound"), cells, strict=True):
            place = {"first": 0, "second": 1}.get(name)
            run = name if place is None else DATASETS[dataset].modalities[place]
            accuracy, precision = map(float, cell.split("/"))
            assert paper[dataset][run] == {"accuracy": accuracy, "mAP": precision}


def test_published_and_measured_values_are_compared() -> None:
    paper = {"a": {"accuracy": 70.0, "mAP": 80.0}, "b": {"accuracy": 50.0}}
    rows = {"a": [{"accuracy": 0.7, "mAP": 0.75}, {"accuracy": 0.74, "mAP": None}], "c": [{"accuracy": 0.1}]}
    table = paper_table(paper, rows)
    assert table.header[2:5] == ["accuracy in the paper, %", "accuracy, %", "accuracy difference, points"]
    assert table.rows == [
        ["a", "2", "70.0", "72.0 ± 2.8", "+2.0", "80.0", "75.0", "-5.0"],
        ["c", "1", "-", "10.0", "-", "-", "-", "-"],
        ["b", "0", "50.0", "-", "-", "-", "-", "-"],
    ]


def test_the_bundled_recipes_are_listed_with_one_line_each() -> None:
    done = CliRunner().invoke(main, ["sweep", "--list"])
    assert done.exit_code == 0
    lines = {line.split()[0]: line for line in done.output.splitlines()}
    assert list(lines) == list(bundled())
    assert lines["three-modalities"].endswith("(ucf101-three, folder)")
