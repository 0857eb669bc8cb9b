"""Modulations from their notation: rules of bmlpipe and of other packages."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.manifests.common.plugins import PluginError
from bmlpipe.train.modulation import notation
from bmlpipe.train.modulation.discrepancy import Form
from bmlpipe.train.modulation.modulation import Modulation
from bmlpipe.train.modulation.presets import PRESETS
from bmlpipe.train.modulation.rule import Rule
from bmlpipe.train.modulation.rule_table import MODULATIONS


def make_modulation(
    text: str, modalities: Sequence[str], *, seed: int = 0, form: Form = "ratio", preset: str = "paper"
) -> Modulation:
    """Make a modulation from its notation.

    Args:
        text: `none`, or names of `MODULATIONS` (plug-ins included) joined by `+`, each with its options in brackets or
            without: `opm(p_exe=0.7)+ogm` (`bmlpipe.train.modulation.notation`).
        modalities: Names of the modalities.
        seed: Seed of the run.
        form: Form of the discrepancy ρ.
        preset: Name of `PRESETS`. Its options of a rule hold unless the brackets override them.

    Raises:
        OptionError: The notation cannot be read, a name, preset or option is unknown, an option is out of range, or a
            rule is given a single modality.
        PluginError: A rule of another package cannot be used.
    """
    if preset not in PRESETS:
        raise OptionError(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}")
    rules = []
    for name, own in notation.parse(text):
        if name not in MODULATIONS:
            raise OptionError(f"unknown modulation {name!r} in {text!r}; known: none, {', '.join(sorted(MODULATIONS))}")
        maker = MODULATIONS[name]
        known = _options(maker)
        if unknown := sorted(own.keys() - known):
            raise OptionError(f"{name} has no option {unknown[0]!r}; it has: {', '.join(sorted(known)) or 'none'}")
        rule = maker(**{**PRESETS[preset].rules.get(name, {}), **own})
        if not isinstance(rule, Rule):
            raise PluginError(f"{name!r} makes {rule!r}, which is not a bmlpipe.train.modulation.Rule")
        rules.append(rule)
    return Modulation(tuple(modalities), *rules, seed=seed, form=form)


def _options(maker: Callable[..., Any]) -> set[str]:
    """Return the names of the keyword arguments of a maker."""
    return set(inspect.signature(maker).parameters)
