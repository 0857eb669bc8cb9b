"""Checkpoints: complete or not there, loadable without unpickling code, and honest about what they belong to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from bmlpipe.shards.sample import differences
from bmlpipe.train.config.options import ConfigError

LAST, BEST = "last.pt", "best.pt"
KEPT = "epoch-{:03d}.pt"  # after so many epochs
_FORMAT, _VERSION = "bmlpipe-checkpoint", 1

#: Options that may change when a run goes on: where and how it is computed, not what.
FREE = frozenset(
    {"out", "shards", "cache", "cache_bytes", "accumulate", "epochs", "workers", "device", "resume", "tensorboard"}
    | {"checkpoint_every", "keep_every", "group_timeout", "trackers"}
)


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


def check_same_run(old: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on with other options than the checkpoint's.

    Raises:
        ConfigError: Names what differs.
    """
    before = old["config"]
    changed = [name for name in config if name not in FREE and before.get(name) != config[name]]
    if changed:
        listed = "; ".join(f"{name}: {before.get(name)!r} before, {config[name]!r} now" for name in changed)
        raise ConfigError(f"{path} is of a run with other options ({listed}): use those, or another --out")


def check_same_features(
    old: Mapping[str, Any], features: Mapping[str, Mapping[str, Any]], kinds: Iterable[str], path: Path
) -> None:
    """Refuse shards whose features were made in another way than those that the checkpoint was trained on.

    Args:
        old: Checkpoint.
        features: Feature kind → front-end parameters, of the shards.
        kinds: Feature kinds that are used: others may differ or be absent.
        path: Where the checkpoint is, for the message.

    Raises:
        ConfigError: Names each parameter that differs, with both values.
    """
    used = set(kinds)
    before, now = ({kind: made[kind] for kind in used & made.keys()} for made in (old["features"], features))
    if changed := differences(before, now):
        raise ConfigError(
            f"{path} was trained on features made with other front-end parameters than these shards hold "
            f"({'; '.join(changed)}): use the shards it was trained on, or make these with its parameters"
        )


def check_same_samples(old: Mapping[str, Any], samples_sha256: str, path: Path) -> None:
    """Refuse to go on in the order of one set of samples with another set.

    Args:
        old: Checkpoint.
        samples_sha256: Of the index of the shards; they may lie elsewhere than before.
        path: Where the checkpoint is, for the message.

    Raises:
        ConfigError: The samples are others, or stand in another order.
    """
    if old.get("samples_sha256", samples_sha256) != samples_sha256:
        raise ConfigError(
            f"{path} is of a run on other samples than these shards hold ({old['samples_sha256'][:12]} and "
            f"{samples_sha256[:12]}), so its position means nothing here: use those shards, or another --out"
        )
