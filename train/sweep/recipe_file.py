"""Files of recipes, read strictly: whatever is wrong is told with the file and the key, before anything runs.

    about: One line about it.
    datasets: [cremad]                          # it is for these alone
    base:  {encoder: cnn4, epochs: 15}          # options of every run: `bmlpipe train --help`
    runs:                                       # name → the options in which it differs
      $modality: {modalities: $modality}        # one for each modality of the data set
      concatenation: {}
      opm: {modulation: opm}
    grid:  {fusion: [concat, sum]}              # every run at every point of the grid
    seeds: [0, 1, 2]
    paper:                                      # data set → run → what was published, in %
      cremad: {concatenation: {accuracy: 66.9}}
    then:                                       # commands to go on with
      - bmlpipe report $out

The bundled ones lie in `train/recipes/` and go by their name.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from bmlpipe.manifests.datasets import DATASETS
from bmlpipe.train.config.options import TYPES, ConfigError
from bmlpipe.train.config.parsing import parse
from bmlpipe.train.sweep.recipe import MODALITY, PLACEHOLDERS, Recipe

#: What a published number may be of: columns of `metrics.jsonl`.
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
    "seed": "seeds lists them",
    "out": "--out is given to the sweep",
    "resume": "a sweep always goes on where it stopped",
}
_NAME = re.compile(r"[\w+=$][\w.+=,@$-]*")
_BUNDLED = "bmlpipe.train.sweep.recipes"


def bundled() -> dict[str, Path]:
    """The recipes that come with bmlpipe: name → file."""
    files = (Path(str(entry)) for entry in resources.files(_BUNDLED).iterdir())
    return {path.stem: path for path in sorted(files) if path.suffix == ".yaml"}


def find_recipe(text: str) -> Path:
    """The file of a recipe by its path or, for a bundled one, its name.

    Raises:
        ConfigError: There is none.
    """
    path = Path(text)
    if path.is_file():
        return path
    there = bundled()
    if text not in there:
        raise ConfigError(f"{text} is neither a file nor a bundled recipe ({', '.join(there)})")
    return there[text]


def read_recipe(path: Path) -> Recipe:
    """Read a recipe; `Recipe.jobs` checks what depends on the data set.

    Raises:
        ConfigError: It cannot be read or has another form: names the key and, where YAML is at fault, the line.
    """
    try:
        with path.open(encoding="utf-8") as file:
            content = yaml.load(file, _Loader)  # noqa: S506  (a SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no mapping: a recipe has the parts {', '.join(_PARTS)}")
    if unknown := [key for key in content if key not in _PARTS]:
        raise ConfigError(f"{path}: unknown part {unknown[0]!r}: a recipe has {', '.join(_PARTS)}")
    parts = {key: value for key, value in content.items() if value is not None}
    for key, value in parts.items():
        if not isinstance(value, _PARTS[key]):
            expected = {str: "a line of text", list: "a list", dict: "a mapping"}[_PARTS[key]]
            raise ConfigError(f"{path}, {key} is {value!r}: expected {expected}")
    recipe = Recipe(path, **{**parts, "runs": _runs(parts.get("runs", {}), path)})
    if not recipe.runs and not recipe.grid:
        raise ConfigError(f"{path}: there is nothing to run: give it runs (name → options) or a grid (option → values)")
    _check(recipe)
    return recipe


def value_of(text: str) -> Any:
    """A value as YAML reads it in a recipe.

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
                f"{path}, runs.{name}: the name of a run becomes that of a folder: letters, digits and . _ + = , @ -, "
                f"the first a letter or digit ({MODALITY} stands for each modality)"
            )
        if not isinstance(options, dict | None):
            raise ConfigError(f"{path}, runs.{name} is {options!r}: expected options (`option: value`), or nothing")
        found[name] = options or {}
    return found


def _check(recipe: Recipe) -> None:
    """What can be said without knowing the data set."""
    path = recipe.path
    if strange := [name for name in (*recipe.datasets, *recipe.paper) if name not in DATASETS]:
        raise ConfigError(f"{path}: {strange[0]!r} is not a data set: choose among {', '.join(DATASETS)}")
    seeds = recipe.seeds
    if not seeds or any(type(seed) is not int or seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{path}, seeds is {list(seeds)}: expected different whole numbers from 0 on")
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
            there = ", ".join(f"${word}" for word in PLACEHOLDERS)
            raise ConfigError(f"{path}, then: {line!r} is not a command with no other placeholders than {there}")
    for dataset, numbers in recipe.paper.items():
        for name, row in (numbers or {}).items() if isinstance(numbers, dict | None) else [("", numbers)]:
            good = isinstance(row, dict) and all(
                metric in METRICS and isinstance(value, int | float) and 0 <= value <= 100
                for metric, value in row.items()
            )
            if not good:
                where = f"{path}, paper.{dataset}.{name} is {row!r}"
                raise ConfigError(f"{where}: expected {' and '.join(METRICS)} in %, between 0 and 100")


def _check_options(options: Mapping[str, Any], where: str) -> None:
    if here := [option for option in options if option in _NOT_HERE]:
        raise ConfigError(f"{where}.{here[0]} cannot be set in a recipe: {_NOT_HERE[here[0]]}")
    parse(options, where)


class _Loader(yaml.SafeLoader):
    """YAML as people expect it: a key that stands twice is an error, and only true and false are truth values."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (as the base class has it)
        first: [(tag, form) for tag, form in known if not tag.endswith(":bool") or first in "tTfF"]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", key_node.start_mark)
            if isinstance(key, Hashable):
                seen.add(key)
        return super().construct_mapping(node, deep)


def overrides(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Options of the form `option=value`.

    Raises:
        ConfigError: One has another form, is unknown, or its value has the wrong type.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        option, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair}: expected option=value, such as epochs=1")
        option = option.replace("-", "_")
        found[option] = text if TYPES.get(option) is str else value_of(text)
    _check_options(found, "--set")
    return found


def whole_numbers(text: str) -> list[int]:
    """Seeds separated by commas.

    Raises:
        ConfigError: They are not different whole numbers from 0 on.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise ConfigError(f"--seeds {text}: expected different whole numbers from 0 on, separated by commas")
    return [int(part) for part in parts]
