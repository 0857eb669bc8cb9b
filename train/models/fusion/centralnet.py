"""CentralNet: a branch of its own beside the encoders, fed from every stage of every one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.models.fusion.classifier import make_classifier, modalities_of


class CentralNet(nn.Module):
    """CentralNet (Vielzeuf et al., ECCV workshops 2018, Eq. 1), on the pooled maps of the encoders' stages.

    p_i^m is the part of φ^m that stage i gave, i = 1 … L, and P_i^m its projection to the widest one of the stage (the
    identity for those as wide, else linear without bias):

        h_1 = Σ_m α_1^m P_1^m p_1^m
        h_i = α_i^C ReLU(V_i h_{i−1} + c_i) + Σ_m α_i^m P_i^m p_i^m
        logits = W h_L + b

    with learnt scalars α, which begin as an average. The feature of a modality is all that it gives to the central
    branch, so dropping the feature, or setting it to 0 to read the others, cuts the modality off at every depth. The
    paper's additional losses of each modality are left to the training loop: they are a way of balancing of their own.

    Args:
        dims: Modality → length D_m of its feature, two or more modalities.
        classes: K.
        widths: Modality → lengths of p_1^m … p_L^m, which add up to D_m. None: L = 1, the feature as a whole.
        classifier_layers: Linear layers from h_L to the logits; hidden ones are as wide as h_L.

    Raises:
        OptionError: Widths that do not add up, or different numbers of stages.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        classes: int,
        *,
        widths: Mapping[str, Sequence[int]] | None = None,
        classifier_layers: int = 1,
    ) -> None:
        super().__init__()
        self.modalities = modalities_of(dims, at_least=2)
        self.widths = {m: list(widths[m]) if widths is not None else [dim] for m, dim in dims.items()}
        for m, dim in dims.items():
            if sum(self.widths[m]) != dim:
                raise OptionError(
                    f"the stages of {m!r} have {' + '.join(map(str, self.widths[m]))} channels, its feature {dim} "
                    "entries: CentralNet needs the features of all stages (an encoder made with pyramid=True)"
                )
        if len({len(sizes) for sizes in self.widths.values()}) > 1:
            found = ", ".join(f"{m} {len(sizes)}" for m, sizes in self.widths.items())
            raise OptionError(f"CentralNet needs encoders with the same number of stages, they have: {found}")
        stages = [dict(zip(dims, sizes, strict=True)) for sizes in zip(*self.widths.values(), strict=True)]
        central = [max(sizes.values()) for sizes in stages]
        self.projections = nn.ModuleList(
            nn.ModuleDict(
                {m: nn.Identity() if size == width else nn.Linear(size, width, bias=False) for m, size in sizes.items()}
            )
            for sizes, width in zip(stages, central, strict=True)
        )
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(central))
        terms = [len(dims) + (number > 0) for number in range(len(stages))]
        self.alphas = nn.ParameterList(nn.Parameter(torch.full((count,), 1 / count)) for count in terms)
        self.classifier = make_classifier(central[-1], classes, layers=classifier_layers, hidden=central[-1])

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """{m: (B, D_m)} → (B, K)."""
        parts = zip(*(torch.split(features[m], self.widths[m], 1) for m in self.modalities), strict=True)
        central: Tensor | None = None
        for number, part in enumerate(parts):
            project = self.projections[number]
            assert isinstance(project, nn.ModuleDict)
            terms = [project[m](p) for m, p in zip(self.modalities, part, strict=True)]
            if central is not None:
                terms.append(self.layers[number - 1](central).relu())
            central = torch.einsum("s,sbd->bd", self.alphas[number], torch.stack(terms))
        logits: Tensor = self.classifier(central)
        return logits
