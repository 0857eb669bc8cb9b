"""The table of targets: kinds of labels, and how each is stored and checked.

A target is stored twice: as a member of each sample, which stock WebDataset readers decode, and as a field of the
sample's record in the index, which is read without opening a tar.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Target:
    """One kind of target.

    Attributes:
        name: Name of the target.
        summary: One line for help texts.
        member: Name of the tar member that holds the target.
        field: Name of its field in the index's records.
        dtype: NumPy type of that field.
        encode: Turns a target into the contents of the member.
        in_range: Whether a target is valid in a set with this number of classes.
    """

    name: str
    summary: str
    member: str
    field: str
    dtype: str
    encode: Callable[[int], bytes]
    in_range: Callable[[int, int], bool]


#: One class per sample: a class id, as a decimal number in the member and a 32-bit integer in the index.
CLASS = Target(
    name="class",
    summary="one class per sample",
    member="cls",
    field="label",
    dtype="<i4",
    encode=lambda value: str(value).encode(),
    in_range=lambda value, classes: 0 <= value < classes,
)

TARGETS: Mapping[str, Target] = MappingProxyType({target.name: target for target in (CLASS,)})
"""Name → target."""
