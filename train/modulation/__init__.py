"""Balanced multimodal training in anybody's loop: plain modules and tensors, no framework.

    balance = Modulation(("audio", "visual"), OPM(q_base=0.5, lam=0.5), OGM(alpha=0.8), seed=0)
    for epoch in range(epochs):
        balance.epoch = epoch
        for inputs, labels, ids in loader:                               # ids: int64, one a sample
            features = {m: encoders[m](inputs[m]) for m in encoders}
            alone = scores(unimodal_logits(head, features), labels)      # bmlpipe.train.scores
            features = balance.forward(features, alone, ids)             # measure, drop
            optimizer.zero_grad()
            cross_entropy(head(features), labels).backward()
            balance.backward(encoders)                                   # damp gradients, add noise
            optimizer.step()
    balance.telemetry()                                                  # {"rho/audio": tensor(1.4), …}

Under DistributedDataParallel the two lines in the middle stand inside the wrapped module's forward pass
(`bmlpipe.train.model.MultimodalModel`, argument `between`). What each option is: docs/methods.md.
"""

from bmlpipe.train.modulation.advice import optimizer_advice, row_advice
from bmlpipe.train.modulation.combine import Modulation
from bmlpipe.train.modulation.ogm import OGM
from bmlpipe.train.modulation.opm import OPM
from bmlpipe.train.modulation.registry import MODULATIONS, make_modulation
from bmlpipe.train.modulation.rule import Rule, Step

__all__ = [
    "MODULATIONS",
    "OGM",
    "OPM",
    "Modulation",
    "Rule",
    "Step",
    "make_modulation",
    "optimizer_advice",
    "row_advice",
]
