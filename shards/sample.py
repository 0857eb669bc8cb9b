"""A sample: its fields, its key, and the version of the format. docs/format.md is the specification."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from isal.isal_zlib import crc32

from bmlpipe.shards.targets import CLASS

FORMAT = "bmlpipe-shards"
VERSION = 1

_MAX_KEY = 64  # leaves room for ".flow_000_09_x.jpg" in the 100 characters of a USTAR name
_SAFE = re.compile(r"[A-Za-z0-9_-]+")


def key_of(clip_id: str) -> str:
    """Return the sample key of a clip: its id if that is a valid key, otherwise a readable, unique replacement.

    A key consists of at most 64 letters, digits, `_` and `-`, because WebDataset splits member names at the first dot
    and drops folders.

    Args:
        clip_id: Id of the clip, any text.

    Examples:
        >>> key_of("-Qowmc0P9ic_000034")
        '-Qowmc0P9ic_000034'
        >>> key_of("v_Archery.g01/c 01")
        'v_Archery_g01_c_01-b7958a182a'
    """
    if _SAFE.fullmatch(clip_id) and len(clip_id) <= _MAX_KEY:
        return clip_id
    digest = hashlib.sha256(clip_id.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", clip_id)[: _MAX_KEY - 11]
    return f"{readable}-{digest}"


def digest(parameters: Mapping[str, Any]) -> str:
    """Hash parameters: SHA-256 of canonical JSON. Equal hashes mean that features were made in the same way."""
    canonical = json.dumps(parameters, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Describe the differences between two sets of parameters, one line per parameter.

    Args:
        one: The first set, or one value of it.
        other: The second set, or one value of it.
        name: Name of the parameter that the values belong to; empty for whole sets.

    Examples:
        >>> differences({"frames": {"short_side": 256, "fps": 1}}, {"frames": {"short_side": 224, "fps": 1}})
        ['frames.short_side: 256 and 224']
        >>> differences({"a": 1}, {"b": None})
        ['a: 1 and missing', 'b: missing and None']
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        absent = object()
        pairs = [(key, one.get(key, absent), other.get(key, absent)) for key in sorted({*one, *other})]
        prefix = f"{name}." if name else ""
        return [
            line
            for key, a, b in pairs
            for line in (
                [f"{prefix}{key}: {_shown(a, absent)} and {_shown(b, absent)}"]
                if a is absent or b is absent
                else differences(a, b, f"{prefix}{key}")
            )
        ]
    return [] if one == other else [f"{name}: {one!r} and {other!r}"]


def _shown(value: Any, absent: object) -> str:
    return "missing" if value is absent else repr(value)


#: Name of the member that holds the metadata of the sample, as JSON.
JSON_MEMBER = "json"


@dataclass(frozen=True)
class Sample:
    """One sample as bytes, ready to be written.

    Attributes:
        key: Sample key; see `key_of`.
        label: Class id.
        members: Member suffix → contents of the feature kinds' members, without those of the target and the JSON.
        meta: Content of the JSON member (id, label name, flags, times …), as JSON values.
    """

    key: str
    label: int
    members: Mapping[str, bytes]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def files(self) -> list[tuple[str, bytes]]:
        """Return the full names and contents of all members, sorted by name: their order in the tar.

        The JSON member also lists the size and CRC-32 of each of `members`, so that damage can be located.
        """
        listed = {suffix: [len(data), crc32(data)] for suffix, data in self.members.items()}
        text = json.dumps({**self.meta, "members": listed}, sort_keys=True, ensure_ascii=False, allow_nan=False)
        contents = {**self.members, CLASS.member: CLASS.encode(self.label), JSON_MEMBER: text.encode()}
        return [(f"{self.key}.{suffix}", contents[suffix]) for suffix in sorted(contents)]
