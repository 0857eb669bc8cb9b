"""The import graph between rooms, and the sizes of files, folders and parameter lists.

Run it to print them; test_architecture.py imports it:

    python tests/system/import_graph.py [ROOT]

A room is a folder of a package, or a module that lies directly in a package.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGES = ("manifests", "shards", "pipeline", "train")

Edges = dict[tuple[str, str], list[str]]


def files(root: Path) -> list[Path]:
    """Return all modules of the four packages."""
    return sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))


def imported(tree: ast.AST) -> set[str]:
    """Return the full names of all modules and names that a file imports, including those imported in functions."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(root: Path, module: str) -> str | None:
    """Return the room of a name under `bmlpipe.`, e.g. `shards/remote` or `shards/index`; None for a package itself."""
    parts = module.split(".")[1:]
    if len(parts) < 2 or parts[0] not in PACKAGES:
        return None
    package, unit = parts[:2]
    known = (root / package / unit).is_dir() or (root / package / f"{unit}.py").is_file()
    return f"{package}/{unit}" if known else package


def edges(root: Path) -> Edges:
    """Map (importing room, imported room) to the importing files, without the `__init__.py` files."""
    found: Edges = {}
    for path in files(root):
        place = path.relative_to(root)
        own = f"{place.parts[0]}/{place.parts[1].removesuffix('.py')}"
        if path.name == "__init__.py":
            continue
        for name in imported(ast.parse(path.read_text(encoding="utf-8"))):
            room = room_of(root, name) if name.startswith("bmlpipe.") else None
            if room is not None and room != own:
                found.setdefault((own, room), []).append(str(place))
    return found


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return one cycle for each group of nodes that reach one another; empty for an acyclic graph."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> None:
        if node in path:
            found.append([*path[path.index(node) :], node])
            return
        if node in done:
            return
        for other in sorted(graph.get(node, ())):
            visit(other, [*path, node])
        done.add(node)

    for node in sorted(graph):
        visit(node, [])
    return found


def parameters(root: Path) -> Iterator[tuple[int, str]]:
    """Yield the number of parameters and the name of each function and method, without `self` and `cls`."""
    for path in files(root):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                given = node.args
                names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
                names += [a.arg for a in (given.vararg, given.kwarg) if a is not None]
                commands = any("command" in ast.unparse(decorator) for decorator in node.decorator_list)
                if not commands:  # a command has one parameter per option
                    yield len(set(names) - {"self", "cls"}), f"{path.relative_to(root)}: {node.name}"


def main() -> None:
    """Print the graph and the sizes."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2]
    graph: dict[str, set[str]] = {}
    for importing, other in edges(root):
        graph.setdefault(importing, set()).add(other)
    print("Room → the rooms that it imports")
    for room in sorted(graph):
        print(f"  {room:32} {', '.join(sorted(graph[room]))}")
    found = files(root)
    folders = Counter(str(path.parent.relative_to(root)) for path in found if path.name != "__init__.py")
    lines = {str(path.relative_to(root)): path.read_text(encoding="utf-8").count("\n") for path in found}
    longest = max(parameters(root))
    print(f"cycles between rooms   {len(cycles(graph))}")
    print(f"modules                {sum(folders.values())} in {len(folders)} folders")
    print(f"largest folder         {folders.most_common(1)[0]}")
    print(f"largest file           {max(lines.items(), key=lambda item: item[1])}, {sum(lines.values())} lines in all")
    print(f"longest parameter list {longest[0]} ({longest[1]})")


if __name__ == "__main__":
    main()
