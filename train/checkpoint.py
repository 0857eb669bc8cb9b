"""Checkpoints: complete or not there, loadable without unpickling code, and honest about what they belong to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bmlpipe.train.config import ConfigError

LAST, BEST = "last.pt", "best.pt"
_FORMAT, _VERSION = "bmlpipe-checkpoint", 1

#: Options that may change when a run goes on: where and how it is computed, not what.
FREE = frozenset({"out", "shards", "epochs", "workers", "device", "resume", "tensorboard", "checkpoint_every"})


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write under a temporary name, flush to disk, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".writing")
    with temporary.open("wb") as file:
        torch.save({"format": _FORMAT, "version": _VERSION, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain values are ever unpickled (`weights_only`).

    Raises:
        ConfigError: It is not a checkpoint of this format and version.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ConfigError(f"{path} cannot be read as a checkpoint ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (_FORMAT, _VERSION):
        raise ConfigError(f"{path} is not a checkpoint of {_FORMAT} version {_VERSION}")
    return content


def check_same_run(old: Mapping[str, Any], config: Mapping[str, Any], features_sha256: str, path: Path) -> None:
    """Refuse to go on with other options or other features than the checkpoint's.

    Raises:
        ConfigError: Names what differs.
    """
    before = old["config"]
    changed = [name for name in config if name not in FREE and before.get(name) != config[name]]
    if changed:
        listed = "; ".join(f"{name}: {before.get(name)!r} before, {config[name]!r} now" for name in changed)
        raise ConfigError(f"{path} is of a run with other options ({listed}): use those, or another --out")
    if old["features_sha256"] != features_sha256:
        raise ConfigError(
            f"{path} was trained on features made with other front-end parameters than these shards hold "
            f"({old['features_sha256'][:12]} and {features_sha256[:12]}): use the shards it was trained on"
        )
