"""The dependencies declared in setup.cfg are those that the packages import."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("manifests", "shards", "pipeline", "train")

#: Declared packages that bmlpipe does not import itself → what uses them.
NOT_IMPORTED = {
    "tensorboard": "torch.utils.tensorboard imports it",
    "dask-jobqueue": "docs/examples/slurm/jobqueue.py imports it",
    "s3fs": "fsspec imports it for s3:// addresses",
    "gcsfs": "fsspec imports it for gs:// addresses",
    "bokeh": "distributed imports it for its dashboard",
}
#: Import name → distribution, for optional packages that need not be installed where the tests run.
DISTRIBUTION_OF = {"mlflow": "mlflow-skinny"}
#: Extras for the development of bmlpipe, which the packages do not import.
DEVELOPMENT = {"test", "dev", "docs"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> tuple[set[str], set[str]]:
    """Return the distributions of `install_requires` and those of the extras for users."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")

    def names(text: str) -> set[str]:
        return {canonical(found[1]) for line in text.splitlines() if (found := re.match(r"\s*([\w.-]+)", line))}

    extras = config["options.extras_require"]
    optional = [names(extras[name]) for name in extras if name not in DEVELOPMENT]
    return names(config["options"]["install_requires"]), set().union(*optional)


def imports(source: str) -> Iterator[str]:
    """Yield the top-level names that a module imports at any level."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
            for name in node.args[:1]:
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    yield name.value.partition(".")[0]


def imported(known: set[str]) -> dict[str, str]:
    """Map each imported distribution to a file that imports it, without the standard library.

    Args:
        known: Declared distributions, preferred where several distributions provide a module.
    """
    distributions = packages_distributions()
    found: dict[str, str] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for name in imports(path.read_text(encoding="utf-8")):
                if name in sys.stdlib_module_names or name == "bmlpipe":
                    continue
                provide = {
                    canonical(one) for one in [*distributions.get(name, [name]), DISTRIBUTION_OF.get(name, name)]
                }
                for distribution in provide & known or {sorted(provide)[0]}:
                    found.setdefault(distribution, str(path.relative_to(ROOT)))
    return found


def discrepancies(required: set[str], optional: set[str]) -> list[str]:
    used = imported(required | optional)
    unused = sorted((required | optional) - used.keys() - NOT_IMPORTED.keys())
    undeclared = sorted(used.keys() - required - optional)
    return [
        *(f"{name} is declared in setup.cfg and imported nowhere: remove it or use it" for name in unused),
        *(f"{name} is imported by {used[name]} and not declared in setup.cfg" for name in undeclared),
        *(f"{name} is imported after all: remove it from NOT_IMPORTED" for name in sorted(used.keys() & NOT_IMPORTED)),
    ]


def test_declared_and_imported_dependencies_are_the_same() -> None:
    assert discrepancies(*declared()) == []


def test_unused_and_undeclared_dependencies_are_found() -> None:
    required, optional = declared()
    assert {"librosa", "webdataset", "ffmpeg-python", "torch"} <= required
    assert "pyarrow" in optional
    assert discrepancies(required | {"einops"}, optional) == [
        "einops is declared in setup.cfg and imported nowhere: remove it or use it"
    ]
    assert "librosa is imported by pipeline/" in discrepancies(required - {"librosa"}, optional)[0]


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import a.b, c\nfrom d.e import f\nfrom . import g", ["a", "c", "d"]),
        ("def f():\n    if 1:\n        import a", ["a"]),
        ("from importlib import import_module\nimport_module('a.b')", ["importlib", "a"]),
    ],
)
def test_imports_are_found_at_any_level(source: str, names: list[str]) -> None:
    assert sorted(imports(source)) == sorted(names)
