"""Errors of media files."""

from __future__ import annotations

from bmlpipe.manifests.common.errors import BmlpipeError


class ClipError(BmlpipeError):
    """A clip that cannot be used. Becomes a row of the ledger, never stops a run.

    Attributes:
        reason: Stable code (docs/reasons.md), for counting and `--retry-failed=REASON`.
        message: Cause with its value, for people.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class DamageError(BmlpipeError):
    """The decoder met an error while decoding strictly, or a seek landed too late; decode again in another way."""
