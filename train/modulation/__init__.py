"""Balanced multimodal training in any training loop: plain modules and tensors, no framework.

    balance = Modulation(("audio", "visual"), OPM(q_base=0.5, lam=0.5), OGM(alpha=0.8), seed=0)
    for epoch in range(epochs):
        balance.epoch = epoch
        for inputs, labels, ids in loader:                               # ids: int64, one per sample
            features = {m: encoders[m](inputs[m]) for m in encoders}
            scores = unimodal_scores(unimodal_logits(head, features), labels)
            features = balance.forward(features, scores, ids)            # measure ρ, drop features
            optimizer.zero_grad()
            cross_entropy(head(features), labels).backward()
            balance.backward(encoders)                                   # damp gradients, add noise
            optimizer.step()
    balance.telemetry()                                                  # {"rho/audio": tensor(1.4), …}

Rules that act on the inputs of the encoders or on the optimiser's step need two more lines, which do nothing for other
rules: `inputs = balance.inputs(inputs, ids)` before the encoders, and `balance.update(optimizer.step, encoders)` in
place of `optimizer.step()`. Under DistributedDataParallel the scores and `balance.forward` belong in the forward pass
of the wrapped module (`bmlpipe.train.models.multimodal.MultimodalModel`, argument `feature_hook`). The options are
explained in docs/methods.md. Custom rules are subclasses of `Rule`; they draw random numbers with
`bmlpipe.train.modulation.keyed`.

This package needs torch and NumPy only.
"""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.train.modulation.advice import optimizer_advice, row_advice, rule_advice
    from bmlpipe.train.modulation.modulation import Modulation
    from bmlpipe.train.modulation.presets import PRESETS, Preset
    from bmlpipe.train.modulation.registry import make_modulation
    from bmlpipe.train.modulation.rule import Rule, StepContext
    from bmlpipe.train.modulation.rule_table import MODULATIONS
    from bmlpipe.train.modulation.rules.dropouts import AnnealedDropout, CurriculumDropout, Dropout, EvolutionalDropout
    from bmlpipe.train.modulation.rules.gblending import GBlending
    from bmlpipe.train.modulation.rules.greedy import Greedy
    from bmlpipe.train.modulation.rules.moddrop import ModDrop
    from bmlpipe.train.modulation.rules.ogm import OGM, OGMStar
    from bmlpipe.train.modulation.rules.opm import OPM
    from bmlpipe.train.modulation.scores import unimodal_logits, unimodal_scores

__all__ = [
    "MODULATIONS",
    "OGM",
    "OPM",
    "PRESETS",
    "AnnealedDropout",
    "CurriculumDropout",
    "Dropout",
    "EvolutionalDropout",
    "GBlending",
    "Greedy",
    "ModDrop",
    "Modulation",
    "OGMStar",
    "Preset",
    "Rule",
    "StepContext",
    "make_modulation",
    "optimizer_advice",
    "row_advice",
    "rule_advice",
    "unimodal_logits",
    "unimodal_scores",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "advice": ("optimizer_advice", "row_advice", "rule_advice"),
        "modulation": ("Modulation",),
        "presets": ("PRESETS", "Preset"),
        "registry": ("make_modulation",),
        "rule": ("Rule", "StepContext"),
        "rule_table": ("MODULATIONS",),
        "rules.dropouts": ("AnnealedDropout", "CurriculumDropout", "Dropout", "EvolutionalDropout"),
        "rules.gblending": ("GBlending",),
        "rules.greedy": ("Greedy",),
        "rules.moddrop": ("ModDrop",),
        "rules.ogm": ("OGM", "OGMStar"),
        "rules.opm": ("OPM",),
        "scores": ("unimodal_logits", "unimodal_scores"),
    },
)
