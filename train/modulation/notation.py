"""How modulations are written in one line: `opm`, `opm+ogm`, `opm(p_exe=0.7, epochs=6:)+ogm(alpha=0.5)`.

A name is one of the registry or of another package's entry points; what stands in brackets are fields of that rule.
"""

from __future__ import annotations

import re
from typing import Any

from bmlpipe.manifests.common.errors import OptionError

Value = bool | int | float | str | tuple[int, int | None]

_TERM = re.compile(r"\s*([A-Za-z][\w-]*)\s*(?:\(([^()]*)\))?\s*")
_WINDOW = re.compile(r"(\d*):(\d*)")


def parse(text: str) -> list[tuple[str, dict[str, Value]]]:
    """Read the notation.

    >>> parse("opm(p_exe=0.7, epochs=6:)+ogm")
    [('opm', {'p_exe': 0.7, 'epochs': (6, None)}), ('ogm', {})]

    Args:
        text: Terms joined by `+`; `none` or nothing is an empty list. Values are numbers, true, false, words, or a
            window of epochs first:end (either may be left out).

    Raises:
        OptionError: It is written otherwise, or a name or an option stands twice; shows the part.
    """
    if text.strip() in ("", "none"):
        return []
    found: dict[str, dict[str, Value]] = {}
    position = 0
    while True:
        term = _TERM.match(text, position)
        end = term.end() if term else position
        if term is None or text[end : end + 1] not in ("+", ""):
            raise OptionError(
                f"modulation {text!r} cannot be read at {text[position:]!r}: write names joined by +, each with "
                "options in brackets or none, such as opm(p_exe=0.7)+ogm(alpha=0.5, epochs=0:50)"
            )
        name, inside = term.group(1), term.group(2)
        if name in found:
            raise OptionError(f"modulation {text!r} names {name} twice")
        found[name] = _options(inside or "", text)
        if end == len(text):
            return list(found.items())
        position = end + 1


def _options(inside: str, text: str) -> dict[str, Value]:
    options: dict[str, Value] = {}
    for part in filter(None, (part.strip() for part in inside.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (equals and name.isidentifier() and value) or name in options:
            raise OptionError(f"modulation {text!r}: {part!r} is not option=value, or stands twice")
        options[name] = _value(value)
    return options


def _value(word: str) -> Value:
    window = _WINDOW.fullmatch(word)
    if window:
        first, end = window.groups()
        return int(first or 0), int(end) if end else None
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def shown(terms: list[tuple[str, dict[str, Any]]]) -> str:
    """The notation of terms, the inverse of `parse`."""
    return "+".join(name + (f"({', '.join(_pairs(options))})" if options else "") for name, options in terms) or "none"


def _pairs(options: dict[str, Any]) -> list[str]:
    words = {
        name: f"{value[0]}:{'' if value[1] is None else value[1]}" if isinstance(value, tuple) else str(value)
        for name, value in options.items()
    }
    return [f"{name}={word}" for name, word in words.items()]
