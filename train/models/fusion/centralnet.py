"""CentralNet: a central branch beside the encoders that reads every stage of each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.models.fusion.classifier import make_classifier, modalities_of


class CentralNet(nn.Module):
    """CentralNet (Vielzeuf et al., ECCV workshops 2018, Eq. 1), on the pooled maps of the encoders' stages.

    p_i^m is the part of φ^m that comes from stage i = 1 … L, and P_i^m its projection to the widest p_i of the stage
    (linear without bias; the identity if it is as wide already):

        h_1 = Σ_m α_1^m P_1^m p_1^m
        h_i = α_i^C ReLU(V_i h_{i−1} + c_i) + Σ_m α_i^m P_i^m p_i^m
        logits = W h_L + b

    with learnt scalars α, which start as an average. The feature of a modality is all that it contributes to the
    central branch, so dropping it (OPM), or setting it to 0 to read the other modalities, removes the modality at every
    depth. The paper's additional losses of each modality are left out: they are a balancing method of their own.

    Args:
        dims: Modality → length D_m of its feature; two or more modalities.
        classes: Number of classes K.
        stage_channels: Modality → lengths of p_1^m … p_L^m, which add up to D_m. None: L = 1, the whole feature.
        classifier_layers: Number of linear layers from h_L to the logits; hidden layers are as wide as h_L.

    Raises:
        OptionError: The lengths do not add up to D_m, or the encoders have different numbers of stages.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        classes: int,
        *,
        stage_channels: Mapping[str, Sequence[int]] | None = None,
        classifier_layers: int = 1,
    ) -> None:
        super().__init__()
        self.modalities = modalities_of(dims, at_least=2)
        self.parts = {m: list(stage_channels[m]) if stage_channels is not None else [dim] for m, dim in dims.items()}
        for m, dim in dims.items():
            if sum(self.parts[m]) != dim:
                raise OptionError(
                    f"the stages of {m!r} have {' + '.join(map(str, self.parts[m]))} channels, but its feature has "
                    f"{dim} entries: CentralNet needs the features of all stages (all_stages=True)"
                )
        if len({len(sizes) for sizes in self.parts.values()}) > 1:
            found = ", ".join(f"{m} {len(sizes)}" for m, sizes in self.parts.items())
            raise OptionError(f"CentralNet needs encoders with the same number of stages, but they have: {found}")
        stages = [dict(zip(dims, sizes, strict=True)) for sizes in zip(*self.parts.values(), strict=True)]
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
        """Compute logits: {m: (B, D_m)} → (B, K)."""
        parts = zip(*(torch.split(features[m], self.parts[m], 1) for m in self.modalities), strict=True)
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
