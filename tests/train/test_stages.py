"""Encoders stage by stage: features of all stages, intermediate fusion between stages, encoders of other packages."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.config.registries import ENCODERS
from bmlpipe.train.models.encoders.cnn4 import CNN4
from bmlpipe.train.models.encoders.registry import make_encoder
from bmlpipe.train.models.encoders.resnet18 import ResNet18
from bmlpipe.train.models.encoders.staged_encoder import StagedEncoder, require_staged, run_stages_jointly
from bmlpipe.train.models.fusion import make_fusion
from bmlpipe.train.models.intermediate import make_intermediate
from bmlpipe.train.models.multimodal import MultimodalModel


def pair(**options: bool) -> dict[str, nn.Module]:
    return {"audio": CNN4(1, width=2, **options), "visual": ResNet18(3, width=3, **options)}


INPUTS = {"audio": torch.randn(2, 1, 1, 40, 36), "visual": torch.randn(2, 3, 3, 33, 33)}


class Whole(nn.Module):
    """An encoder of another package: no stages, but its features have a length."""

    feature_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


class Short(nn.Module):
    """An encoder of another package, of two stages, with a pooling of its own."""

    feature_dim = 3
    stage_channels = (2, 3)

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList([nn.Conv3d(1, 2, 3, padding=1), nn.Conv3d(2, 3, 3, padding=1)])

    def forward(self, x: Tensor) -> Tensor:
        return self.stage(1, self.stage(0, x)).amax(dim=(1, 3, 4))

    def stage(self, number: int, maps: Tensor) -> Tensor:
        return self.convolutions[number](maps.transpose(1, 2)).transpose(1, 2).relu()

    def pool(self, number: int, maps: Tensor) -> Tensor | None:
        return maps.amax(dim=(1, 3, 4)) if number == 1 else None


@pytest.mark.parametrize("kind", [CNN4, ResNet18])
def test_the_feature_of_all_stages_is_their_pooled_maps(kind: type[CNN4] | type[ResNet18]) -> None:
    plain, every = kind(2, width=3).eval(), kind(2, width=3, all_stages=True).eval()
    every.load_state_dict(plain.state_dict())  # the same names: a checkpoint goes with both
    clip = torch.randn(2, 3, 2, 40, 33)
    maps, pooled = clip, []
    for number, width in enumerate(plain.stage_channels):
        maps = plain.stage(number, maps)
        assert maps.shape[:3] == (2, 3, width)
        frames = maps.double().flatten(3).mean(dim=3)
        pooled.append(frames.mean(dim=1).float())
    assert every.feature_dim == sum(plain.stage_channels)
    torch.testing.assert_close(every(clip), torch.cat(pooled, dim=1))
    torch.testing.assert_close(plain(clip), pooled[-1])


def test_joint_stages_equal_those_of_each_encoder_alone() -> None:
    given = {m: encoder.eval() for m, encoder in pair().items()}
    seen: list[tuple[int, dict[str, tuple[int, ...]]]] = []

    def watch(maps: dict[str, Tensor], stage: int) -> dict[str, Tensor]:
        seen.append((stage, {m: tuple(value.shape) for m, value in maps.items()}))
        return maps

    together = run_stages_jointly(require_staged(given, "test"), INPUTS, watch)
    for m, encoder in given.items():
        torch.testing.assert_close(together[m], encoder(INPUTS[m]), rtol=0, atol=0)
    assert [stage for stage, _ in seen] == [-4, -3, -2, -1]
    assert seen[0][1] == {"audio": (2, 1, 2, 10, 9), "visual": (2, 3, 3, 9, 9)}
    assert seen[-1][1] == {"audio": (2, 1, 8, 2, 2), "visual": (2, 3, 24, 2, 2)}


def test_maps_changed_by_a_fusion_reach_the_next_stage_and_the_feature() -> None:
    given = {m: encoder.eval() for m, encoder in pair(all_stages=True).items()}

    def blind(maps: dict[str, Tensor], stage: int) -> dict[str, Tensor]:
        return {**maps, "visual": maps["visual"] * 0} if stage == -2 else maps

    got = run_stages_jointly(require_staged(given, "test"), INPUTS, blind)
    torch.testing.assert_close(got["audio"], given["audio"](INPUTS["audio"]))
    visual = given["visual"]
    assert isinstance(visual, ResNet18)
    plain = visual(INPUTS["visual"])
    torch.testing.assert_close(got["visual"][:, :9], plain[:, :9])
    assert got["visual"][:, 9:21].count_nonzero() == 0
    nothing = visual.stage(3, torch.zeros(2, 3, 12, 3, 3)).mean(dim=(1, 3, 4))
    torch.testing.assert_close(got["visual"][:, 21:], nothing)


def test_stages_of_encoders_are_matched_from_the_end() -> None:
    given = {"visual": CNN4(3, width=2).eval(), "text": Short()}
    assert isinstance(given["text"], StagedEncoder)
    inputs = {"visual": INPUTS["visual"], "text": torch.randn(2, 1, 1, 3, 5)}
    seen: list[int] = []

    def watch(maps: dict[str, Tensor], stage: int) -> dict[str, Tensor]:
        seen.append(stage)
        assert maps["text"].shape == (2, 1, 4 + stage, 3, 5)
        return maps

    got = run_stages_jointly(require_staged(given, "test"), inputs, watch)
    assert seen == [-2, -1]
    for m, encoder in given.items():
        torch.testing.assert_close(got[m], encoder(inputs[m]), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["mmtm", "attention"])
def test_encoders_without_stages_allow_late_fusion_only(name: str) -> None:
    given = {"audio": Whole(), "visual": CNN4(3, width=1)}
    head = make_fusion("concat", {"audio": 4, "visual": 4}, 3)
    assert MultimodalModel(given, head)(INPUTS).shape == (2, 3)
    with pytest.raises(OptionError, match=rf"'{name}' works between the stages.*Whole of 'audio'"):
        make_intermediate(name, given)
    with pytest.raises(OptionError, match="Whole of 'audio'"):
        MultimodalModel(given, head, nn.Identity())


def test_an_encoder_of_another_package_is_made_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    makers = {"whole": lambda modality, channels: Whole(), "bare": lambda modality, channels: nn.Flatten()}
    plugins = {name: SimpleNamespace(load=lambda maker=maker: maker) for name, maker in makers.items()}
    monkeypatch.setattr(ENCODERS, "plugins", lambda: plugins)
    assert make_encoder("whole", "text", channels=1).feature_dim == 4
    with pytest.raises(OptionError, match=r"'whole' does not offer features.*cnn4, resnet18, tsm18"):
        make_encoder("whole", "text", channels=1, all_stages=True)
    with pytest.raises(OptionError, match="'bare' must have the attribute `feature_dim`"):
        make_encoder("bare", "text", channels=1)


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_centralnet_on_all_stages_in_a_model(name: str) -> None:
    given = {m: make_encoder(name, m, channels=x.shape[2], all_stages=True) for m, x in INPUTS.items()}
    dims = {m: int(encoder.feature_dim) for m, encoder in given.items()}
    head = make_fusion(
        "centralnet", dims, 3, stage_channels={m: encoder.stage_channels for m, encoder in given.items()}
    )
    model = MultimodalModel(given, head)
    model(INPUTS).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
