"""The rules: OPM, OGM, and the baselines with which they are compared."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.train.modulation.rules.dropouts import AnnealedDropout, CurriculumDropout, Dropout, EvolutionalDropout
    from bmlpipe.train.modulation.rules.gblending import GBlending
    from bmlpipe.train.modulation.rules.greedy import Greedy
    from bmlpipe.train.modulation.rules.moddrop import ModDrop
    from bmlpipe.train.modulation.rules.ogm import OGM, OGMStar
    from bmlpipe.train.modulation.rules.opm import OPM

__all__ = [
    "OGM",
    "OPM",
    "AnnealedDropout",
    "CurriculumDropout",
    "Dropout",
    "EvolutionalDropout",
    "GBlending",
    "Greedy",
    "ModDrop",
    "OGMStar",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "dropouts": ["AnnealedDropout", "CurriculumDropout", "Dropout", "EvolutionalDropout"],
        "gblending": ["GBlending"],
        "greedy": ["Greedy"],
        "moddrop": ["ModDrop"],
        "ogm": ["OGM", "OGMStar"],
        "opm": ["OPM"],
    },
)
