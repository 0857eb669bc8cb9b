"""The names of the rules, and where each is made. No rule is imported here."""

from __future__ import annotations

from bmlpipe.manifests.common.plugins import Registry

_RULES = "bmlpipe.train.modulation.rules"

MODULATIONS = Registry(
    "bmlpipe.modulations",
    {
        "opm": f"{_RULES}.opm:OPM",
        "ogm": f"{_RULES}.ogm:OGM",
        "ogm-star": f"{_RULES}.ogm:OGMStar",
        "ogm-ge": f"{_RULES}.ogm:ogm_ge",
        "moddrop": f"{_RULES}.moddrop:ModDrop",
        "dropout": f"{_RULES}.dropouts:Dropout",
        "annealed-dropout": f"{_RULES}.dropouts:AnnealedDropout",
        "curriculum-dropout": f"{_RULES}.dropouts:CurriculumDropout",
        "evolutional-dropout": f"{_RULES}.dropouts:EvolutionalDropout",
        "greedy": f"{_RULES}.greedy:Greedy",
        "gblending": f"{_RULES}.gblending:GBlending",
    },
)
"""Names of rules → their makers, plug-ins included. The keyword arguments of a maker are the options of the rule."""
