"""The rules of the house: who imports whom, names in train/, length of files, that everything starts and installs."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.metadata
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import bmlpipe

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("manifests", "shards", "pipeline", "train")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

#: Package → the packages of this namespace that it may import.
ALLOWED = {
    "manifests": {"manifests"},
    "shards": {"manifests", "shards"},
    "pipeline": {"manifests", "shards", "pipeline"},
    "train": {"manifests", "shards", "train"},
}
#: Where everything is put together: of the commands only those about trained runs.
COMPOSITION_ROOT = {Path(f"pipeline/cli/{name}.py") for name in ("report", "sweep", "evaluate")}


def imported(tree: ast.AST) -> set[str]:
    """Full names of all modules that a file imports, late imports included."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    place = path.relative_to(ROOT)
    allowed = ALLOWED[place.parts[0]] | ({"train"} if place in COMPOSITION_ROOT else set())
    names = imported(ast.parse(path.read_text(encoding="utf-8")))
    ours = {name.split(".")[1] for name in names if name.startswith("bmlpipe.")}
    assert ours <= allowed
    bare = {name for name in names if name.split(".")[0] in PACKAGES}
    assert not bare, f"import bmlpipe.… instead of {bare}"
    assert "bmlpipe" not in names


def test_a_forbidden_import_would_be_seen() -> None:
    text = "def f():\n    from bmlpipe import pipeline\n    import bmlpipe.train.engine.trainer as x\n"
    assert imported(ast.parse(text)) == {"bmlpipe.pipeline", "bmlpipe.train.engine.trainer"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= 320, f"{lines} lines"


def modules() -> list[str]:
    return sorted(
        module.name
        for package in PACKAGES
        for module in pkgutil.walk_packages([str(ROOT / package)], f"bmlpipe.{package}.")
    )


def test_the_namespace_is_found_whole() -> None:
    assert not hasattr(bmlpipe, "__file__") or bmlpipe.__file__ is None
    names = {
        str(path.relative_to(ROOT).with_suffix("")).replace(os.sep, ".") for path in FILES if path.stem != "__init__"
    }
    packages = {str(path.parent.relative_to(ROOT)).replace(os.sep, ".") for path in FILES if path.stem == "__init__"}
    assert set(modules()) == {f"bmlpipe.{name}" for name in names | packages if name not in PACKAGES}


@pytest.mark.parametrize("name", [name for name in modules() if not name.endswith("__main__")])
def test_docstrings_examples_hold_and_modules_import(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, "a module says what it is for"
    result = doctest.testmod(module)
    assert result.failed == 0


def test_there_are_examples_at_all() -> None:
    finder = doctest.DocTestFinder()
    found = [
        t
        for name in modules()
        if not name.endswith("__main__")
        for t in finder.find(importlib.import_module(name))
        if t.examples
    ]
    assert len(found) >= 3


def run(*words: object, **options: object) -> str:
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, timeout=300, **options
    )  # type: ignore[call-overload]
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return str(done.stdout)


#: What a README's commands may begin with, and how this environment starts it.
PROGRAMS = {
    "bmlpipe": [sys.executable, "-m", "bmlpipe.pipeline.cli"],
    "torchrun": [sys.executable, "-m", "torch.distributed.run"],
    "python": [sys.executable],
}


def commands_of_the_readme() -> list[list[str]]:
    """Each program with sub-command or script that a README code block or `code span` names; once each."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [
        line
        for block in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    ]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    found: dict[tuple[str, ...], None] = {}
    for words in (line.split("#")[0].split() for line in lines):
        if not words or words[0] not in PROGRAMS:
            continue
        if words[0] == "bmlpipe":
            found[tuple(words[:2])] = None
        elif words[0] == "python" and words[1:2] == ["-m"]:
            found[tuple(words[:3])] = None
        elif words[0] == "torchrun" and any(word.endswith(".py") for word in words):
            script = next(word for word in words if word.endswith(".py"))
            found[("torchrun", script)] = None
    return [list(words) for words in found]


@pytest.mark.slow
def test_every_command_that_the_readme_names_starts() -> None:
    commands = commands_of_the_readme()
    assert ["torchrun", "train/run.py"] in commands
    assert ["python", "-m", "bmlpipe.train.run"] in commands
    assert ["bmlpipe", "extract"] in commands
    for first, *rest in commands:
        alone = ["--standalone", "--nproc-per-node", "1"] if first == "torchrun" else []
        out = run(*PROGRAMS[first], *alone, *rest, "--help", cwd=ROOT)
        assert "Usage:" in out, [first, *rest]


@pytest.mark.slow
def test_the_make_targets_that_the_readme_names_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\bmake ([a-z-]+)\b(?= *(?:#|`|$))", text, re.MULTILINE))
    assert {"demo", "test"} <= named
    listed = set(re.findall(r"^  make ([a-z-]+)", run("make", "help", cwd=ROOT), re.MULTILINE))
    assert named <= listed


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the tree (setuptools leaves folders behind)."""
    source = tmp_path_factory.mktemp("source") / "tree"
    ignore = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "demo", "runs", "features", "tests")
    shutil.copytree(ROOT, source, ignore=ignore)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", source / "dist", source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_namespace_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    content = {name for name in names if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in content} == {"bmlpipe"}
    assert {name for name in content if name.endswith(".py")} == {f"bmlpipe/{p.relative_to(ROOT)}" for p in FILES}
    assert {f"bmlpipe/{package}/py.typed" for package in PACKAGES} <= content
    recipes = {f"bmlpipe/{path.relative_to(ROOT)}" for path in (ROOT / "train" / "sweep" / "recipes").glob("*.yaml")}
    assert recipes <= content
    page = {f"bmlpipe/train/report/page.{ending}" for ending in ("html", "css", "js")}
    assert page <= content
    extra = {name for name in content - page if not name.endswith((".py", "py.typed", ".yaml"))}
    assert not extra
    assert "bmlpipe/__init__.py" not in content


@pytest.mark.slow
def test_a_regular_install_works(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel)
    program = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'bmlpipe' not in repr(f)]\n"
        "import bmlpipe.pipeline.cli, bmlpipe.train.run, bmlpipe.shards.verify.compare, bmlpipe.manifests.datasets\n"
        "print(bmlpipe.pipeline.cli.__file__); bmlpipe.pipeline.cli.main(['datasets'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    out = run(sys.executable, "-c", program, cwd=tmp_path, env=environment)
    assert out.startswith(str(target / "bmlpipe" / "pipeline" / "cli.py"))
    assert "VGGSound" in out
    scripts = (target / "bin").iterdir() if (target / "bin").is_dir() else ()
    assert [path.name for path in scripts] == ["bmlpipe"]


def test_every_reason_that_a_clip_can_fail_for_is_documented() -> None:
    raised = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ClipError":
                assert isinstance(node.args[0], ast.Constant), f"{path}: a reason is a literal"
                raised.add(node.args[0].value)
            raised |= {
                keyword.value.value
                for keyword in getattr(node, "keywords", ())
                if keyword.arg == "reason" and isinstance(keyword.value, ast.Constant)
            }
    assert {"damaged_container", "missing_audio", "worker_died", "internal_error"} <= raised
    text = (ROOT / "docs" / "reasons.md").read_text(encoding="utf-8")
    assert raised <= set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
