"""What the benchmarks share: CPU time, ratios of interleaved rounds, the machine."""

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
    """CPU seconds (user + system) of this process and of the children that it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def ratios(costs: Mapping[str, Sequence[float]], pairs: Mapping[str, tuple[str, str]]) -> Ratios:
    """Ratio name → median and range, over the rounds, of the first cost divided by the second."""
    found = {}
    for name, (one, other) in pairs.items():
        values = [a / b for a, b in zip(costs[one], costs[other], strict=True)]
        found[name] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return found


def show(title: str, rows: Mapping[str, Sequence[float]], scale: float = 1.0, digits: int = 2) -> None:
    """Print median and range of each row."""
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
    """Print the ratios; write them with the machine's description where a path is given.

    Args:
        path: Where to.
        found: See `ratios`.
        packages: Whose versions to name.
        figures: Absolute numbers of each round that are worth keeping, written as medians.
        programs: Program → version, of others than Python packages.
    """
    show("ratio", {name: list(values.values()) for name, values in found.items()})
    if path is not None:
        content: dict[str, object] = {"machine": machine(*packages) | dict(programs or {}), "ratios": found}
        if figures:
            content["figures"] = {name: statistics.median(values) for name, values in figures.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")


def machine(*packages: str) -> dict[str, str | int | None]:
    """What the figures were measured on."""
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
