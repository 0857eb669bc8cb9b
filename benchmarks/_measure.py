"""Shared code of the benchmarks: CPU time, ratios of alternating rounds, description of the machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

Ratios = dict[str, dict[str, float]]


def cpu() -> float:
    """CPU time (user + system) of this process and of the children that it has waited for, in seconds."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def ratios(costs: Mapping[str, Sequence[float]], pairs: Mapping[str, tuple[str, str]]) -> Ratios:
    """Median and range, over the rounds, of the first cost of each pair divided by the second."""
    found = {}
    for name, (one, other) in pairs.items():
        values = [a / b for a, b in zip(costs[one], costs[other], strict=True)]
        found[name] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return found


def show(title: str, rows: Mapping[str, Sequence[float]], scale: float = 1.0, digits: int = 2) -> None:
    """Print median and range of each row, multiplied by `scale`."""
    width = max(len(title), *map(len, rows)) + 2
    print(f"\n{title:{width}}   median      min      max")
    for name, values in rows.items():
        numbers = (statistics.median(values) * scale, min(values) * scale, max(values) * scale)
        print(f"{name:{width}}" + "".join(f"{number:9.{digits}f}" for number in numbers))


def write(
    path: Path | None,
    found: Ratios,
    *packages: str,
    figures: Mapping[str, Sequence[float]] | None = None,
    programs: Mapping[str, str] | None = None,
) -> None:
    """Print the ratios, and write them with a description of the machine to a JSON file.

    Args:
        path: File to write; None: only print.
        found: The result of `ratios`.
        packages: Python packages whose versions to record.
        figures: Absolute numbers of each round to record, as medians.
        programs: Versions of programs that are not Python packages, by name.
    """
    show("ratio", {name: list(values.values()) for name, values in found.items()})
    if path is not None:
        content: dict[str, object] = {"machine": machine(*packages) | dict(programs or {}), "ratios": found}
        if figures:
            content["figures"] = {name: statistics.median(values) for name, values in figures.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")


def machine(*packages: str) -> dict[str, str | int | None]:
    """Describe the machine and the versions of Python packages."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    about: dict[str, str | int | None] = {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    return about | {package: importlib.metadata.version(package) for package in packages}
