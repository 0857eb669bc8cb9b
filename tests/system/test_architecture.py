"""The architecture: directions of imports, sizes of files and folders, public names, and installation."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import bmlpipe

ROOT = Path(__file__).resolve().parents[2]


def _import_graph() -> ModuleType:
    spec = importlib.util.spec_from_file_location("import_graph", Path(__file__).with_name("import_graph.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


graph = _import_graph()
PACKAGES = graph.PACKAGES
FILES = graph.files(ROOT)

#: The rooms of each package. A room may import the rooms on lines above its own and nothing else of its package.
ORDER = {
    "manifests": """
        common
        schema
        video_files
        readers
        locate splits
        datasets
        places
    """,
    "shards": """
        errors
        kinds targets order
        sample mixture_order
        index
        remote
        reader writer
        combined_reader stats verify stream
    """,
    "pipeline": """
        media
        front_ends
        store
        cluster
        extraction
        sharding
        inspection
        demo
        cli
    """,
    "train": """
        modulation
        config
        models tasks
        distributed runs
        data
        evaluation
        engine
        run
        __main__ report
        sweep
    """,
}
#: Package → the packages that it may import.
BELOW = {
    "manifests": set(),
    "shards": {"manifests"},
    "pipeline": {"manifests", "shards"},
    "train": {"manifests", "shards"},
}
#: The only room that may import every package.
COMPOSITION_ROOT = "pipeline/cli"


def test_rooms_import_only_rooms_below_them() -> None:
    rank = {
        f"{package}/{room}": number
        for package, lines in ORDER.items()
        for number, line in enumerate(lines.strip().splitlines())
        for room in line.split()
    }
    offenders = []
    for (importing, other), where in graph.edges(ROOT).items():
        package, below = importing.split("/")[0], other.split("/")[0]
        if package == below:
            allowed = rank[other] < rank[importing]
        else:
            allowed = below in BELOW[package] or (importing == COMPOSITION_ROOT and below == "train")
        if not allowed:
            offenders.append(f"{importing} imports {other}: {', '.join(where)}")
    assert not offenders, "\n".join(offenders)


def test_the_documented_order_is_the_one_that_is_tested() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for package, lines in ORDER.items():
        row = "; ".join(", ".join(line.split()) for line in lines.strip().splitlines())
        assert f"| {package} | {row} |" in text


def test_modules_are_imported_by_their_full_name() -> None:
    offenders = []
    for path in FILES:
        names = graph.imported(ast.parse(path.read_text(encoding="utf-8")))
        if bare := {name for name in names if name.split(".")[0] in PACKAGES or name == "bmlpipe"}:
            offenders.append(f"{path.relative_to(ROOT)}: import bmlpipe.… instead of {', '.join(sorted(bare))}")
    assert not offenders, "\n".join(offenders)


def test_a_forbidden_import_and_a_cycle_are_found(tmp_path: Path) -> None:
    (tmp_path / "shards" / "remote").mkdir(parents=True)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "run.py").write_text("x = 1\n")
    (tmp_path / "shards" / "index.py").write_text("def f():\n    from bmlpipe.shards.remote import cache\n")
    (tmp_path / "shards" / "remote" / "cache.py").write_text("import bmlpipe.train.run, bmlpipe.shards.index as x\n")
    assert set(graph.edges(tmp_path)) == {
        ("shards/index", "shards/remote"),
        ("shards/remote", "train/run"),
        ("shards/remote", "shards/index"),
    }
    assert graph.cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c", "a"]]
    assert not graph.cycles({"a": {"b", "c"}, "b": {"c"}})


def test_files_and_folders_are_small() -> None:
    offenders = [
        f"{path.relative_to(ROOT)}: {lines} lines"
        for path in FILES
        if (lines := path.read_text(encoding="utf-8").count("\n")) > 320
    ]
    folders = Counter(path.parent.relative_to(ROOT) for path in FILES if path.name != "__init__.py")
    offenders += [f"{folder}: {count} modules" for folder, count in folders.items() if count > 24]
    assert not offenders, "\n".join(offenders)


def test_public_names_exist_and_are_documented() -> None:
    offenders = []
    for path in FILES:
        if path.name != "__init__.py":
            continue
        name = ".".join(("bmlpipe", *path.parent.relative_to(ROOT).parts))
        module = importlib.import_module(name)
        if not hasattr(module, "__all__"):
            offenders.append(f"{name} has no __all__")
            continue
        modules = {file.stem for file in path.parent.glob("*.py")}
        if clashes := set(module.__all__) & modules:  # an import of the module would replace the name
            offenders.append(f"{name} exports names of its own modules: {', '.join(sorted(clashes))}")
        for public in module.__all__:
            found = getattr(module, public)
            if isinstance(found, type | FunctionType) and not found.__doc__:
                offenders.append(f"{name}.{public} has no docstring")
    assert not offenders, "\n".join(offenders)


def modules() -> list[str]:
    return sorted(
        module.name
        for package in PACKAGES
        for module in pkgutil.walk_packages([str(ROOT / package)], f"bmlpipe.{package}.")
    )


def test_all_modules_are_found_in_the_namespace() -> None:
    assert not hasattr(bmlpipe, "__file__") or bmlpipe.__file__ is None
    names = {
        str(path.relative_to(ROOT).with_suffix("")).replace(os.sep, ".") for path in FILES if path.stem != "__init__"
    }
    packages = {str(path.parent.relative_to(ROOT)).replace(os.sep, ".") for path in FILES if path.stem == "__init__"}
    assert set(modules()) == {f"bmlpipe.{name}" for name in names | packages if name not in PACKAGES}


def test_every_module_can_be_imported_and_has_a_docstring_with_valid_examples() -> None:
    offenders, examples = [], 0
    for name in modules():
        if name.endswith("__main__"):
            continue
        module = importlib.import_module(name)
        if not module.__doc__:
            offenders.append(f"{name} has no docstring")
        result = doctest.testmod(module)
        examples += result.attempted
        if result.failed:
            offenders.append(f"{name}: {result.failed} examples fail")
    assert not offenders, "\n".join(offenders)
    assert examples >= 3


def run(*words: object, **options: object) -> str:
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, timeout=300, **options
    )  # type: ignore[call-overload]
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return str(done.stdout)


#: Programs that the README names → how this environment starts them.
PROGRAMS = {
    "bmlpipe": [sys.executable, "-m", "bmlpipe.pipeline.cli"],
    "torchrun": [sys.executable, "-m", "torch.distributed.run"],
    "python": [sys.executable],
}


def commands_of_the_readme() -> list[list[str]]:
    """Return each program, with its sub-command or script, that a code block or code span of the README names, once."""
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
    assert ["bmlpipe", "train"] in commands
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
    """The wheel, built from a copy of the tree, because setuptools leaves folders behind."""
    source = tmp_path_factory.mktemp("source") / "tree"
    written = {"build", "demo", "runs", "features", "data", "tests"}  # at the root only
    ignore = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__")
    for path in ROOT.iterdir():
        if path.is_dir() and path.name not in written and path.name not in ignore(str(ROOT), [path.name]):
            shutil.copytree(path, source / path.name, ignore=ignore)
        elif path.is_file():
            source.mkdir(exist_ok=True)
            shutil.copy(path, source)
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
    assert out.startswith(str(target / "bmlpipe" / "pipeline" / "cli" / "__init__.py"))
    assert "VGGSound" in out
    scripts = (target / "bin").iterdir() if (target / "bin").is_dir() else ()
    assert [path.name for path in scripts] == ["bmlpipe"]


def test_every_reason_for_a_failed_clip_is_documented() -> None:
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
