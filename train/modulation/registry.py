"""Modulations by name: our own, and those that other packages bring in."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.manifests.common.plugins import PluginError, known
from bmlpipe.train.modulation import notation
from bmlpipe.train.modulation.discrepancy import Form
from bmlpipe.train.modulation.modulation import Modulation
from bmlpipe.train.modulation.presets import PRESETS
from bmlpipe.train.modulation.rule import Epochs, Rule
from bmlpipe.train.modulation.rules.annealed import AnnealedDropout
from bmlpipe.train.modulation.rules.curriculum import CurriculumDropout
from bmlpipe.train.modulation.rules.dropout import Dropout
from bmlpipe.train.modulation.rules.evolutional import EvolutionalDropout
from bmlpipe.train.modulation.rules.gblending import GBlending
from bmlpipe.train.modulation.rules.greedy import Greedy
from bmlpipe.train.modulation.rules.moddrop import ModDrop
from bmlpipe.train.modulation.rules.ogm import OGM, Apply, Noise
from bmlpipe.train.modulation.rules.ogm_star import OGMStar
from bmlpipe.train.modulation.rules.opm import OPM

#: Group of the entry points by which other packages add modulations.
GROUP = "bmlpipe.modulations"


def ogm_ge(*, alpha: float = 0.8, noise: Noise = "all", apply: Apply = "gradient", epochs: Epochs = (0, None)) -> OGM:
    """OGM-GE of CVPR 2022: k = 1 − tanh(α·ρ), factor and noise on the weights of convolutions only."""
    return OGM(form="cvpr", parameters="convolutions", alpha=alpha, noise=noise, apply=apply, epochs=epochs)


#: Name → what makes the rule; its keyword arguments are its options.
MODULATIONS: dict[str, Callable[..., Rule]] = {
    "opm": OPM,
    "ogm": OGM,
    "ogm-star": OGMStar,
    "ogm-ge": ogm_ge,
    "moddrop": ModDrop,
    "dropout": Dropout,
    "annealed-dropout": AnnealedDropout,
    "curriculum-dropout": CurriculumDropout,
    "evolutional-dropout": EvolutionalDropout,
    "greedy": Greedy,
    "gblending": GBlending,
}


def make_modulation(
    text: str,
    modalities: Sequence[str],
    *,
    seed: int = 0,
    form: Form = "ratio",
    preset: str = "paper",
    **options: Any,
) -> Modulation:
    """A modulation by name.

    Args:
        text: `none`, or names of `MODULATIONS` and of entry points of the group `bmlpipe.modulations` joined by `+`,
            each with options of its own in brackets or none: `opm(p_exe=0.7)+ogm`
            (`bmlpipe.train.modulation.notation`).
        modalities: Names of the modalities.
        seed: Of the run.
        form: Of ρ.
        preset: Its options hold where neither `options` nor the brackets say otherwise.
        options: Of all rules alike (`q_base`, `alpha`, …). Each named rule takes those that it has; one that only
            other rules have is left unused, so that a configuration can hold the options of all.

    Raises:
        OptionError: Unknown name, preset or option, an option's value out of range, a package that cannot be used, or a
            rule for a single modality.
    """
    if preset not in PRESETS:
        raise OptionError(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}")
    terms = notation.parse(text)
    ours = all(name in MODULATIONS for name, _ in terms)
    makers: Mapping[str, Callable[..., Any]] = MODULATIONS if ours else known(GROUP, MODULATIONS)
    for name, _ in terms:
        if name not in makers:
            raise OptionError(f"unknown modulation {name!r} in {text!r}; known: none, {', '.join(sorted(makers))}")
    chosen = {name: makers[name] for name, _ in terms}
    shared = set().union(*(_options(maker) for maker in (*MODULATIONS.values(), *chosen.values())))
    if strange := sorted(options.keys() - shared):
        raise OptionError(f"no modulation has the option {strange[0]!r}; known: {', '.join(sorted(shared))}")
    rules = []
    for name, own in terms:
        has = _options(chosen[name])
        if strange := sorted(own.keys() - has):
            listed = ", ".join(sorted(has)) or "none"
            raise OptionError(f"{name} has no option {strange[0]!r}; it has: {listed}")
        given = {**PRESETS[preset].rules.get(name, {}), **options, **own}
        rule = chosen[name](**{option: value for option, value in given.items() if option in has})
        if not isinstance(rule, Rule):
            raise PluginError(f"{name!r} makes {rule!r}, which is not a bmlpipe.train.modulation.Rule")
        rules.append(rule)
    return Modulation(tuple(modalities), *rules, seed=seed, form=form)


def _options(maker: Callable[..., Any]) -> set[str]:
    """Names of the keyword arguments of what makes a rule."""
    return set(inspect.signature(maker).parameters)
