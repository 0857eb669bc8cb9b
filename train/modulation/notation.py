"""The notation of modulations in one line: `opm`, `opm+ogm`, `opm(p_exe=0.7, epochs=6:)+ogm(alpha=0.5)`.

A name is one of `bmlpipe.train.modulation.MODULATIONS`, which includes the entry points of other packages. The brackets
hold options of that rule.
"""

from __future__ import annotations

import re

from bmlpipe.manifests.common.errors import OptionError

Value = bool | int | float | str | tuple[int, int | None]

_TERM = re.compile(r"\s*([A-Za-z][\w-]*)\s*(?:\(([^()]*)\))?\s*")
_RANGE = re.compile(r"(\d*):(\d*)")


def parse(text: str) -> list[tuple[str, dict[str, Value]]]:
    """Read the notation of a modulation.

    Examples:
        >>> parse("opm(p_exe=0.7, epochs=6:)+ogm")
        [('opm', {'p_exe': 0.7, 'epochs': (6, None)}), ('ogm', {})]

    Args:
        text: Terms joined by `+`; `none` or an empty text stands for no term. Values are numbers, true, false, words,
            or a range of epochs `first:end`, where either number may be left out.

    Returns:
        The name and the options of each term, in order. Names and options are not checked against the rules.

    Raises:
        OptionError: The text does not follow the notation, or contains a name or an option twice. The message quotes
            the offending part.
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
                f"modulation {text!r} cannot be read at {text[position:]!r}. Join names by +, each with or without "
                "options in brackets, such as opm(p_exe=0.7)+ogm(alpha=0.5, epochs=0:50)"
            )
        name, inside = term.group(1), term.group(2)
        if name in found:
            raise OptionError(f"modulation {text!r} contains {name} twice")
        found[name] = _options(inside or "", text)
        if end == len(text):
            return list(found.items())
        position = end + 1


def _options(inside: str, text: str) -> dict[str, Value]:
    options: dict[str, Value] = {}
    for part in filter(None, (part.strip() for part in inside.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (equals and name.isidentifier() and value) or name in options:
            raise OptionError(
                f"modulation {text!r}: {part!r} is not of the form option=value, or the option is repeated"
            )
        options[name] = _value(value)
    return options


def _value(word: str) -> Value:
    epochs = _RANGE.fullmatch(word)
    if epochs:
        first, end = epochs.groups()
        return int(first or 0), int(end) if end else None
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word
