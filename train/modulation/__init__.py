"""Balanced multimodal training in anybody's loop: plain modules and tensors, no framework.

    balance = Modulation(("audio", "visual"), OPM(q_base=0.5, lam=0.5), OGM(alpha=0.8), seed=0)
    for epoch in range(epochs):
        balance.epoch = epoch
        for inputs, labels, ids in loader:                               # ids: int64, one a sample
            features = {m: encoders[m](inputs[m]) for m in encoders}
            alone = scores(unimodal_logits(head, features), labels)      # bmlpipe.train.modulation.scores
            features = balance.forward(features, alone, ids)             # measure, drop
            optimizer.zero_grad()
            cross_entropy(head(features), labels).backward()
            balance.backward(encoders)                                   # damp gradients, add noise
            optimizer.step()
    balance.telemetry()                                                  # {"rho/audio": tensor(1.4), …}

Rules that act on the encoders' inputs or on the optimiser's step need two more lines, which do nothing otherwise:
`inputs = balance.inputs(inputs, ids)` before the encoders, and `balance.update(optimizer.step, encoders)` in place of
`optimizer.step()`. Under DistributedDataParallel the two lines in the middle stand inside the wrapped module's forward
pass (`bmlpipe.train.models.multimodal.MultimodalModel`, argument `between`). What each option is: docs/methods.md.
"""

from bmlpipe.train.modulation.advice import optimizer_advice, row_advice, rule_advice
from bmlpipe.train.modulation.modulation import Modulation
from bmlpipe.train.modulation.presets import PRESETS, Preset
from bmlpipe.train.modulation.registry import MODULATIONS, make_modulation
from bmlpipe.train.modulation.rule import Rule, Step
from bmlpipe.train.modulation.rules.annealed import AnnealedDropout
from bmlpipe.train.modulation.rules.curriculum import CurriculumDropout
from bmlpipe.train.modulation.rules.dropout import Dropout
from bmlpipe.train.modulation.rules.evolutional import EvolutionalDropout
from bmlpipe.train.modulation.rules.greedy import Greedy
from bmlpipe.train.modulation.rules.moddrop import ModDrop
from bmlpipe.train.modulation.rules.ogm import OGM
from bmlpipe.train.modulation.rules.ogm_star import OGMStar
from bmlpipe.train.modulation.rules.opm import OPM

__all__ = [
    "MODULATIONS",
    "OGM",
    "OPM",
    "PRESETS",
    "AnnealedDropout",
    "CurriculumDropout",
    "Dropout",
    "EvolutionalDropout",
    "Greedy",
    "ModDrop",
    "Modulation",
    "OGMStar",
    "Preset",
    "Rule",
    "Step",
    "make_modulation",
    "optimizer_advice",
    "row_advice",
    "rule_advice",
]
