"""The root of all exceptions that bmlpipe raises for its user to act on.

A command or a training run reports a `BmlpipeError` in one line. Every other exception is a bug and keeps its
traceback.
"""

from __future__ import annotations


class BmlpipeError(Exception):
    """An error that the user can correct. The message states the cause, the value and the remedy."""


class OptionError(BmlpipeError, ValueError):
    """An option or argument is outside its range. The message states its name, its value and the allowed range."""
