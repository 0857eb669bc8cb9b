"""Error messages and exit statuses of the command-line programs."""

from __future__ import annotations

import ast
import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import errno, os, signal, sys
import click
from bmlpipe.manifests.common.command import Program, ProgramGroup
from bmlpipe.manifests.common.errors import BmlpipeError, OptionError

@click.group(cls=ProgramGroup)
def main():
    pass

@main.command(on_interrupt="finished clips are kept")
@click.argument("event")
def go(event):
    if event == "stop":
        os.kill(os.getpid(), signal.SIGTERM)
    if event == "full":
        raise OSError(errno.ENOSPC, "No space left on device")
    if event == "network":
        raise OSError(errno.EHOSTUNREACH, "No route to host")
    if event == "file":
        open("/nowhere/file")
    if event in ("ours", "option", "value"):
        raise {"ours": BmlpipeError, "option": OptionError, "value": ValueError}[event]("size is 3: must be 4")
    if event == "interrupt":
        raise KeyboardInterrupt

main(prog_name="program")
"""

#: Event → exit status, whether it counts as an unexpected error, message.
CASES = {
    "nothing": (0, False, ""),
    "ours": (1, False, "size is 3: must be 4"),
    "option": (2, False, "size is 3: must be 4"),
    "file": (1, False, "/nowhere/file: No such file or directory"),
    "full": (1, False, "No space left on device"),
    "value": (1, True, "ValueError: size is 3: must be 4"),
    "network": (1, True, f"OSError: [Errno {errno.EHOSTUNREACH}] No route to host"),
    "interrupt": (130, False, "interrupted: finished clips are kept"),
    "stop": (143, False, "stopped by SIGTERM: finished clips are kept"),
}


#: Exceptions that their callers always catch.
INTERNAL = {"DamageError"}


def program(event: str, log: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", PROGRAM, "go", event, "--log-format", log]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("event", CASES)
def test_in_text_an_error_is_one_line_unless_it_is_unexpected(event: str) -> None:
    status, unexpected, message = CASES[event]
    done = program(event, "text")
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr
    assert ("Traceback" in done.stderr) == unexpected
    if status == 1 and not unexpected:
        assert done.stderr == f"Error: {message}\n"
    assert ("unexpected error" in done.stderr) == unexpected


@pytest.mark.parametrize("event", CASES)
def test_in_json_an_error_is_one_object(event: str) -> None:
    status, unexpected, message = CASES[event]
    done = program(event, "json")
    assert done.returncode == status
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    if event == "nothing":
        assert lines == []
        return
    (line,) = lines
    assert message in line["message"]
    assert ("traceback" in line) == unexpected
    assert line["level"] == ("CRITICAL" if unexpected else "ERROR" if status < 128 else "WARNING")


def test_every_exception_class_derives_from_the_root() -> None:
    """A class that derives from another exception would be reported as a bug."""
    root, bases = Path(__file__).parents[2], dict[str, set[str]]()
    for package in ("manifests", "shards", "pipeline", "train"):
        for path in (root / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    bases[node.name] = {base.id for base in node.bases if isinstance(base, ast.Name)}

    def ours(name: str) -> bool:
        return name == "BmlpipeError" or any(ours(base) for base in bases.get(name, ()))

    named = {name for name in bases if name.endswith("Error") and name != "BmlpipeError"}
    assert {name for name in named if not name.startswith("_") and not ours(name)} == INTERNAL
    assert len(named) > 10
