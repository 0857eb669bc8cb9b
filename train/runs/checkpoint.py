"""Checkpoint files: written atomically, read without unpickling code, refused where they do not match the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from bmlpipe.manifests.common.files import open_atomically
from bmlpipe.shards.sample import differences
from bmlpipe.train.config.options import MAY_CHANGE, ConfigError

_FORMAT, _VERSION = "bmlpipe-checkpoint", 1


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint under a temporary name, flush it to disk and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomically(path, sync=True) as file:
        torch.save({"format": _FORMAT, "version": _VERSION, **content}, file)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain values are unpickled (`weights_only`).

    Args:
        path: Checkpoint file.
        device: Device of the tensors.

    Raises:
        ConfigError: The file cannot be read, or is not a checkpoint of this format and version.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises exceptions of many classes for a damaged file
        raise ConfigError(f"{path} cannot be read as a checkpoint ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (_FORMAT, _VERSION):
        raise ConfigError(f"{path} is not a checkpoint of the format {_FORMAT}, version {_VERSION}")
    return content


def check_same_options(state: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> None:
    """Check that a run is resumed with its own options.

    Args:
        state: Content of the checkpoint.
        config: Options now.
        path: Checkpoint file, for the message.

    Raises:
        ConfigError: Options outside `MAY_CHANGE` differ; the message lists them with both values.
    """
    before = state["config"]
    changed = [name for name in config if name not in MAY_CHANGE and before.get(name) != config[name]]
    if changed:
        listed = "; ".join(f"{name}: {before.get(name)!r} before, {config[name]!r} now" for name in changed)
        raise ConfigError(
            f"{path} belongs to a run with other options ({listed}): resume with the options of that run, or choose "
            "another --out"
        )


def check_same_features(
    state: Mapping[str, Any], features: Mapping[str, Mapping[str, Any]], kinds: Iterable[str], path: Path
) -> None:
    """Check that the features of the shards were made with the front-end parameters of the training.

    Args:
        state: Content of the checkpoint.
        features: Feature kind → front-end parameters, of the shards.
        kinds: Feature kinds that the model reads; other kinds may differ or be absent.
        path: Checkpoint file, for the message.

    Raises:
        ConfigError: Parameters differ; the message lists them with both values.
    """
    used = set(kinds)
    before, now = ({kind: made[kind] for kind in used & made.keys()} for made in (state["features"], features))
    if changed := differences(before, now):
        raise ConfigError(
            f"{path} was trained on features with other front-end parameters than those of these shards "
            f"({'; '.join(changed)}): use the shards of the training, or extract the features with its parameters"
        )


def check_same_samples(state: Mapping[str, Any], samples_sha256: str, path: Path) -> None:
    """Check that a run is resumed on the samples it was trained on, in the same order.

    Args:
        state: Content of the checkpoint.
        samples_sha256: SHA-256 of the samples' records in the index of the shards, which may have moved.
        path: Checkpoint file, for the message.

    Raises:
        ConfigError: The samples or their order differ.
    """
    if state["samples_sha256"] != samples_sha256:
        raise ConfigError(
            f"{path} was trained on other samples than these shards hold (samples {state['samples_sha256'][:12]} "
            f"before, {samples_sha256[:12]} now), so the run cannot continue at its position: use the shards of the "
            "training, or choose another --out"
        )
