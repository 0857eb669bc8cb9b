"""Recipe files, checked strictly: errors name the file and the key, before anything runs.

    about: One line about the purpose.
    datasets: [cremad]                          # the recipe is for these data sets; default: any
    base: {encoder: cnn4, epochs: 15}           # options of every run, see `bmlpipe train --help`
    runs:                                       # name → options in which the run differs
      $modality: {modalities: $modality}        # one run per modality of the data set
      concatenation: {}
      opm: {modulation: opm(q_base=0.5)}
    grid: {fusion: [concat, sum]}               # every run at every point of the grid
    seeds: [0, 1, 2]
    paper:                                      # data set → run → published result, in %
      cremad: {concatenation: {accuracy: 66.9}}
    then:                                       # next commands
      - bmlpipe report $out/*/seed-*

The bundled recipes are in `train/sweep/recipes/` and are called by their names.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from bmlpipe.manifests.datasets import DATASETS
from bmlpipe.shards.kinds import MODALITY_KIND
from bmlpipe.train.config.options import TYPES, ConfigError
from bmlpipe.train.config.parsing import parse
from bmlpipe.train.sweep.recipe import MODALITY, PLACEHOLDERS, Recipe, fill_modality

#: Metrics that published results may have: columns of `metrics.jsonl`.
METRICS = ("accuracy", "mAP")

_PARTS = {
    "about": str,
    "datasets": list,
    "base": dict,
    "runs": dict,
    "grid": dict,
    "seeds": list,
    "paper": dict,
    "then": list,
}
_NOT_HERE = {
    "seed": "list the seeds under seeds",
    "out": "the folders of the runs follow from --out of bmlpipe sweep",
    "resume": "a sweep always continues unfinished runs",
}
_NAME = re.compile(r"[\w+=$][\w.+=,@$-]*")
_BUNDLED = "bmlpipe.train.sweep.recipes"


def bundled() -> dict[str, Path]:
    """Find the bundled recipes: name → file."""
    files = (Path(str(entry)) for entry in resources.files(_BUNDLED).iterdir())
    return {path.stem: path for path in sorted(files) if path.suffix == ".yaml"}


def find_recipe(text: str) -> Path:
    """Find a recipe by the path of its file or, if it is bundled, by its name.

    Raises:
        ConfigError: There is no such recipe.
    """
    path = Path(text)
    if path.is_file():
        return path
    names = bundled()
    if text not in names:
        raise ConfigError(f"{text} is neither a file nor a bundled recipe. Bundled are {', '.join(names)}.")
    return names[text]


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file. `Recipe.jobs` checks everything that depends on the data set.

    Raises:
        ConfigError: The file cannot be read or has an unexpected form. The message names the key, or the line of
            invalid YAML.
    """
    try:
        with path.open(encoding="utf-8") as file:
            content = yaml.load(file, _Loader)  # noqa: S506  (a SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not a mapping. The parts of a recipe are {', '.join(_PARTS)}.")
    if unknown := [key for key in content if key not in _PARTS]:
        raise ConfigError(f"{path}: unknown part {unknown[0]!r}. The parts of a recipe are {', '.join(_PARTS)}.")
    parts = {key: value for key, value in content.items() if value is not None}
    for key, value in parts.items():
        if not isinstance(value, _PARTS[key]):
            expected = {str: "a line of text", list: "a list", dict: "a mapping"}[_PARTS[key]]
            raise ConfigError(f"{path}, {key} is {value!r}: expected {expected}")
    recipe = Recipe(path, **{**parts, "runs": _runs(parts.get("runs", {}), path)})
    if not recipe.runs and not recipe.grid:
        raise ConfigError(f"{path} has nothing to run. Add runs (name → options) or a grid (option → values).")
    _check(recipe)
    return recipe


def _yaml_value(text: str) -> Any:
    """Parse a value as a recipe file is parsed.

    Raises:
        ConfigError: It is not YAML.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506  (a SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r} cannot be read as YAML: {error}") from error


def _runs(runs: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, options in runs.items():
        name = str(key)  # YAML reads 0.5 as a number
        if not _NAME.fullmatch(name) or "$" in name.replace(MODALITY, ""):
            raise ConfigError(
                f"{path}, runs.{name}: the name of a run becomes the name of a folder. Use letters, digits and "
                f". _ + = , @ -, with a letter or digit first ({MODALITY} stands for each modality)."
            )
        if not isinstance(options, dict | None):
            raise ConfigError(f"{path}, runs.{name} is {options!r}: expected options (`option: value`) or nothing")
        found[name] = options or {}
    return found


def _check(recipe: Recipe) -> None:
    """Check everything that does not depend on the data set."""
    path = recipe.path
    if unknown := [name for name in (*recipe.datasets, *recipe.paper) if name not in DATASETS]:
        raise ConfigError(f"{path}: {unknown[0]!r} is not a data set. Choose among {', '.join(DATASETS)}.")
    seeds = recipe.seeds
    if not seeds or any(type(seed) is not int or seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{path}, seeds is {list(seeds)}: expected distinct whole numbers, 0 or more")
    _check_options(recipe.base, f"{path}, base")
    for name, options in recipe.runs.items():
        _check_options(options, f"{path}, runs.{name}")
    for option, values in recipe.grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{path}, grid.{option} is {values!r}: expected a list of values")
        for value in values:
            _check_options({option: value}, f"{path}, grid")
    for line in recipe.then:
        if not isinstance(line, str) or set(re.findall(r"\$(\w+)", line)) - set(PLACEHOLDERS):
            known = ", ".join(f"${word}" for word in PLACEHOLDERS)
            raise ConfigError(f"{path}, then: {line!r} must be a command whose placeholders are among {known}")
    for dataset, numbers in recipe.paper.items():
        for name, row in (numbers or {}).items() if isinstance(numbers, dict | None) else [("", numbers)]:
            valid = isinstance(row, dict) and all(
                metric in METRICS and isinstance(value, int | float) and 0 <= value <= 100
                for metric, value in row.items()
            )
            if not valid:
                where = f"{path}, paper.{dataset}.{name} is {row!r}"
                raise ConfigError(f"{where}: expected {' and '.join(METRICS)} in %, between 0 and 100")


def _check_options(options: Mapping[str, Any], where: str) -> None:
    if found := [option for option in options if option in _NOT_HERE]:
        raise ConfigError(f"{where}.{found[0]} cannot be set in a recipe: {_NOT_HERE[found[0]]}")
    any_modality = next(iter(MODALITY_KIND))
    parse({option: fill_modality(value, any_modality, ()) for option, value in options.items()}, where)


class _Loader(yaml.SafeLoader):
    """A SafeLoader that refuses duplicate keys and reads only true and false as booleans (not yes, no, on, off)."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (as the base class has it)
        first: [(tag, form) for tag, form in known if not tag.endswith(":bool") or first in "tTfF"]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            if isinstance(key, Hashable):
                seen.add(key)
        return super().construct_mapping(node, deep)


def parse_overrides(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Parse options of the form `option=value`.

    Raises:
        ConfigError: An option has another form, is unknown, or its value has the wrong type.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        option, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair}: expected option=value, such as epochs=1")
        option = option.replace("-", "_")
        found[option] = text if TYPES.get(option) is str else _yaml_value(text)
    _check_options(found, "--set")
    return found


def parse_seeds(text: str) -> list[int]:
    """Parse seeds separated by commas.

    Raises:
        ConfigError: They are not distinct whole numbers.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise ConfigError(f"--seeds {text}: expected distinct whole numbers, separated by commas")
    return [int(part) for part in parts]
