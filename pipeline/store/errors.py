"""Errors of a feature folder."""

from __future__ import annotations

from bmlpipe.manifests.common.errors import BmlpipeError


class ExtractionError(BmlpipeError):
    """An extraction cannot start or continue, or its results are missing or unfinished."""


class StoreError(BmlpipeError):
    """A feature file is missing, damaged or of another format."""


class StoreWriteError(StoreError):
    """The feature folder cannot be written. No clip is at fault, so the extraction must stop."""
