"""Modulations by name: `none`, `opm`, `ogm`, and several joined by `+`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from bmlpipe.train.modulation.combine import Modulation
from bmlpipe.train.modulation.ogm import OGM
from bmlpipe.train.modulation.opm import OPM
from bmlpipe.train.modulation.ratio import Form
from bmlpipe.train.modulation.rule import Rule

#: Name → rule; a rule is a dataclass, its fields are its options.
MODULATIONS: dict[str, Callable[..., Rule]] = {"opm": OPM, "ogm": OGM}


def make_modulation(
    name: str, modalities: Sequence[str], *, seed: int = 0, form: Form = "ratio", **options: Any
) -> Modulation:
    """A modulation by name.

    Args:
        name: `none`, a key of `MODULATIONS`, or several keys joined by `+`.
        modalities: Names of the modalities.
        seed: Of the run.
        form: Of ρ.
        options: Fields of the rules (`q_base`, `alpha`, …). Each named rule takes those that it has; one that only
            other rules have is left unused, so that a configuration can hold the options of all.

    Raises:
        ValueError: Unknown name or option, an option's value out of range, or a rule for a single modality.
    """
    names = [] if name == "none" else name.split("+")
    unknown = [one for one in names if one not in MODULATIONS]
    if unknown:
        raise ValueError(
            f"unknown modulation {unknown[0]!r} in {name!r}; known: none, {', '.join(sorted(MODULATIONS))}"
        )
    taken = {one: {option.name for option in fields(rule)} for one, rule in MODULATIONS.items()}  # type: ignore[arg-type]
    strange = sorted(options.keys() - set().union(*taken.values()))
    if strange:
        raise ValueError(
            f"no modulation has the option {strange[0]!r}; known: {', '.join(sorted(set().union(*taken.values())))}"
        )
    rules = [MODULATIONS[one](**{key: options[key] for key in options.keys() & taken[one]}) for one in names]
    return Modulation(tuple(modalities), *rules, seed=seed, form=form)
