"""Errors of media files."""

from __future__ import annotations

from bmlpipe.manifests.common.errors import BmlpipeError


class ClipError(BmlpipeError):
    """A clip cannot be used. It becomes a row of the ledger and never stops an extraction.

    Attributes:
        reason: Stable code (docs/reasons.md), used for counting and for `--retry-failed=REASON`.
        message: The cause, with its value.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class DamageError(Exception):
    """This way of decoding failed: the data is damaged, or a seek landed too late. The caller tries another way.

    Internal to the package: it never reaches the user.
    """
