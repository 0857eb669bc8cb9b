"""Intermediate fusion: MMTM and attention against NumPy, and in a model under every way of training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.models.encoders.cnn4 import CNN4
from bmlpipe.train.models.encoders.resnet18 import ResNet18
from bmlpipe.train.models.fusion import make_fusion
from bmlpipe.train.models.intermediate import INTERMEDIATE_FUSIONS, MMTM, CrossModalAttention, make_intermediate
from bmlpipe.train.models.multimodal import MultimodalModel
from bmlpipe.train.modulation import OGM, OPM, Modulation
from bmlpipe.train.modulation.scores import unimodal_logits, unimodal_scores

WIDTHS = {"audio": (2, 4), "visual": (3, 6), "flow": (1, 5)}
#: A spectrogram (one frame) beside clips of three and two frames.
SIZES = {"audio": (1, 5, 7), "visual": (3, 2, 3), "flow": (2, 4, 1)}
PAIR, TRIPLE = ("audio", "visual"), ("visual", "audio", "flow")


def maps_after(stage: int, names: tuple[str, ...] = TRIPLE, batch: int = 4) -> dict[str, Tensor]:
    return {m: torch.randn(batch, SIZES[m][0], WIDTHS[m][stage], *SIZES[m][1:], dtype=torch.float64) for m in names}


def linear(layer: nn.Module, x: np.ndarray) -> np.ndarray:
    assert isinstance(layer, nn.Linear)
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


# MMTM


def excited(mmtm: MMTM, maps: Mapping[str, Tensor], squeezed: Mapping[str, np.ndarray], m: str) -> np.ndarray:
    """The last stage's maps of m, from the squeezes that it sees."""
    unit = mmtm.units[-1]
    joint = np.maximum(linear(unit.squeeze, np.concatenate(list(squeezed.values()), axis=1)), 0)
    gate = 2 / (1 + np.exp(-linear(unit.excite[m], joint)))
    return np.einsum("btchw,bc->btchw", maps[m].numpy(), gate)


def squeezes(maps: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {m: value.numpy().mean(axis=(1, 3, 4)) for m, value in maps.items()}


@pytest.mark.parametrize("names", [PAIR, TRIPLE])
def test_mmtm_squeezes_joins_and_excites(names: tuple[str, ...]) -> None:
    mmtm = MMTM({m: WIDTHS[m] for m in names}).double()
    assert mmtm.stages == (-1,)
    assert mmtm.units[0].squeeze.out_features == sum(WIDTHS[m][-1] for m in names) // 4
    maps = maps_after(-1, names)
    got = mmtm(maps, -1)
    assert list(got) == list(names)
    for m in names:
        np.testing.assert_allclose(got[m].detach().numpy(), excited(mmtm, maps, squeezes(maps), m), rtol=1e-12)
    early = maps_after(-2, names)
    assert all(value is early[m] for m, value in mmtm(early, -2).items())


def test_mmtm_averages_over_the_training_batches_alone() -> None:
    mmtm = MMTM(WIDTHS).double()
    batches = [maps_after(-1, tuple(WIDTHS)) for _ in range(3)]
    for maps in batches:
        mmtm(maps, -1)
    kept = mmtm.units[0].average.clone()
    expected = np.mean([np.concatenate(list(squeezes(maps).values()), axis=1).mean(axis=0) for maps in batches], axis=0)
    np.testing.assert_allclose(kept.numpy(), expected, rtol=1e-12)
    mmtm.solo("audio")
    mmtm(batches[0], -1)
    mmtm.solo(None)
    mmtm.eval()(batches[0], -1)
    assert torch.equal(mmtm.units[0].average, kept)
    assert mmtm.units[0].batches == 3
    again = MMTM(WIDTHS).double()
    again.load_state_dict(mmtm.state_dict())
    assert torch.equal(again.units[0].average, kept)  # a checkpoint holds them


@pytest.mark.parametrize("alone", TRIPLE)
def test_solo_replaces_the_others_by_their_averages(alone: str) -> None:
    mmtm = MMTM({m: WIDTHS[m] for m in TRIPLE}).double()
    mmtm(maps_after(-1), -1)
    average = dict(zip(TRIPLE, np.split(mmtm.units[0].average.numpy(), [6, 10]), strict=True))
    maps = maps_after(-1)
    mmtm.solo(alone)
    got = mmtm(maps, -1)
    own = squeezes(maps)
    for m in TRIPLE:
        seen = {j: own[j] if j == alone or m != alone else np.tile(average[j], (4, 1)) for j in TRIPLE}
        np.testing.assert_allclose(got[m].detach().numpy(), excited(mmtm, maps, seen, m), rtol=1e-12)
    changed = {m: value if m == alone else value + 1 for m, value in maps.items()}
    torch.testing.assert_close(mmtm(changed, -1)[alone], got[alone], rtol=0, atol=0)


def test_mmtm_fuses_after_all_stages_but_the_first_by_default() -> None:
    four = {"audio": (2, 2, 2, 2), "visual": (3, 3, 3, 3)}
    assert MMTM(four).stages == (-3, -2, -1)
    assert MMTM({**four, "text": (1, 1)}).stages == (-1,)
    assert MMTM({"audio": (2,), "visual": (2,)}).stages == (-1,)
    chosen = MMTM(four, stages=(-4, -2), ratio=2)
    assert [unit.squeeze.out_features for unit in chosen.units] == [2, 2]
    with pytest.raises(OptionError, match=r"stages must be one or more of \[-4, -3, -2, -1\], not \[0\]"):
        MMTM(four, stages=(0,))


# Attention


@pytest.mark.parametrize("names", [PAIR, TRIPLE])
def test_attention_by_einsum(names: tuple[str, ...]) -> None:
    attention = CrossModalAttention({m: WIDTHS[m] for m in names}, heads=2).double()
    width, half = 6, 3
    maps = maps_after(-1, names)
    got = attention(maps, -1)
    tokens = {m: np.moveaxis(maps[m].numpy(), 2, -1).reshape(4, -1, WIDTHS[m][-1]) for m in names}
    z = np.concatenate(
        [linear(attention.read[m], tokens[m]) + attention.embedding[m].detach().numpy() for m in names], axis=1
    )
    z = (z - z.mean(axis=-1, keepdims=True)) / np.sqrt(z.var(axis=-1, keepdims=True) + 1e-5)
    weight, bias = (attention.attend.get_parameter(f"in_proj_{kind}").detach().numpy() for kind in ("weight", "bias"))
    q, k, v = ((z @ weight[i * width : (i + 1) * width].T + bias[i * width : (i + 1) * width]) for i in range(3))
    heads = []
    for i in range(2):
        part = slice(i * half, (i + 1) * half)
        energy = np.exp(np.einsum("bnd,bmd->bnm", q[..., part], k[..., part]) / np.sqrt(half))
        heads.append(np.einsum("bnm,bmd->bnd", energy / energy.sum(axis=-1, keepdims=True), v[..., part]))
    out = linear(attention.attend.out_proj, np.concatenate(heads, axis=-1))
    begin = 0
    for m in names:
        count = tokens[m].shape[1]
        seen = tokens[m] + linear(attention.write[m], out[:, begin : begin + count])
        begin += count
        frames, height, width_ = SIZES[m]
        expected = np.moveaxis(seen.reshape(4, frames, height, width_, -1), -1, 2)
        np.testing.assert_allclose(got[m].detach().numpy(), expected, rtol=1e-10, atol=1e-12)
    early = maps_after(-2, names)
    assert attention(early, -2) is early


def test_the_heads_of_attention_divide_its_width() -> None:
    assert CrossModalAttention({"audio": (4, 12), "visual": (4, 10)}).attend.num_heads == 4
    with pytest.raises(OptionError, match="divisor of the width of the tokens, 6"):
        CrossModalAttention(WIDTHS, heads=4)


# In a model


def make_model(name: str, fusion: str = "concat", names: tuple[str, ...] = TRIPLE) -> MultimodalModel:
    """Small encoders of both kinds, with the shift where there are frames."""
    encoders: dict[str, nn.Module] = {
        "audio": CNN4(1, width=2),
        "visual": ResNet18(3, width=2, shift=True),
        "flow": CNN4(2, width=3),
    }
    encoders = {m: encoders[m] for m in names}
    head = make_fusion(fusion, {m: int(encoder.feature_dim) for m, encoder in encoders.items()}, 4)
    return MultimodalModel(encoders, head, make_intermediate(name, encoders))


def inputs(names: tuple[str, ...] = TRIPLE) -> dict[str, Tensor]:
    shapes = {"audio": (1, 1, 40, 36), "visual": (3, 3, 33, 33), "flow": (2, 2, 32, 33)}
    return {m: torch.randn(4, *shapes[m]) for m in names}


LABELS = torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize("names", [PAIR, TRIPLE])
@pytest.mark.parametrize("name", sorted(INTERMEDIATE_FUSIONS))
def test_gradients_reach_every_parameter_and_cross_between_the_encoders(name: str, names: tuple[str, ...]) -> None:
    model = make_model(name, names=names)
    given = {m: value.requires_grad_() for m, value in inputs(names).items()}
    nn.functional.cross_entropy(model(given), LABELS).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.count_nonzero() > 0, key
    features = model.eval().encode(given)
    (gradient,) = torch.autograd.grad(features["audio"].sum(), given["visual"])
    assert gradient.count_nonzero() > 0  # the audio feature knows of the picture
    model.intermediate = None
    (gradient,) = torch.autograd.grad(
        model.encode(given)["audio"].sum(), given["visual"], allow_unused=True, materialize_grads=True
    )
    assert gradient.count_nonzero() == 0


@pytest.mark.parametrize("name", sorted(INTERMEDIATE_FUSIONS))
def test_the_feature_of_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    model, given = make_model(name).eval(), inputs()
    whole = model.encode(given)
    for i in range(4):
        one = model.encode({m: value[i : i + 1] for m, value in given.items()})
        for m in TRIPLE:
            torch.testing.assert_close(one[m][0], whole[m][i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(INTERMEDIATE_FUSIONS))
def test_measuring_scores_between_steps_changes_nothing(name: str) -> None:
    given, states, logits = inputs(), [], []
    for read in (False, True):
        torch.manual_seed(1)
        model = make_model(name, "gated")

        def feature_hook(features: dict[str, Tensor], model: MultimodalModel = model) -> dict[str, Tensor]:
            alone = unimodal_logits(model.head, features)
            zeros = {m: torch.zeros_like(value) for m, value in features.items()}
            for m in TRIPLE:
                torch.testing.assert_close(alone[m], model.head({**zeros, m: features[m]}).detach())
            return features

        logits.append(model(given, feature_hook if read else None))
        states.append(model.state_dict())
    assert torch.equal(*logits)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("name", sorted(INTERMEDIATE_FUSIONS))
def test_modulation_leaves_the_intermediate_fusion_alone(name: str) -> None:
    model, given = make_model(name), inputs()
    balance = Modulation(TRIPLE, OPM(), OGM(alpha=1.0))

    def feature_hook(features: dict[str, Tensor]) -> dict[str, Tensor]:
        return balance.forward(
            features, unimodal_scores(unimodal_logits(model.head, features), LABELS), torch.arange(4)
        )

    nn.functional.cross_entropy(model(given, feature_hook), LABELS).backward()
    before = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    balance.backward(model.encoders)
    changed = {key for key, p in model.named_parameters() if not torch.equal(before[key], p.grad)}
    convolutions = {key for key, p in model.named_parameters() if key.startswith("encoders.") and p.ndim > 1}
    assert convolutions <= changed <= {key for key in before if key.startswith("encoders.")}
    assert any(key.startswith("intermediate.") for key in before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(INTERMEDIATE_FUSIONS))
def test_autocast_runs_and_stays_close(name: str, dtype: torch.dtype) -> None:
    model, given = make_model(name), inputs()
    model(given)
    model.eval()
    plain = model(given)
    with torch.autocast("cpu", dtype=dtype):
        low = model(given)
    torch.testing.assert_close(low.float(), plain, rtol=0.1, atol=0.1)
    assert not torch.equal(low.float(), plain)
    model.train()
    with torch.autocast("cpu", dtype=dtype):
        loss = nn.functional.cross_entropy(model(given).float(), LABELS)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(b.dtype in {torch.float32, torch.int64} and b.isfinite().all() for b in model.buffers())


@pytest.mark.parametrize("name", sorted(INTERMEDIATE_FUSIONS))
def test_channels_last_is_kept_from_stage_to_stage(name: str) -> None:
    model, given = make_model(name).eval(), inputs()
    plain = model.encode(given)
    model = model.to(memory_format=torch.channels_last)
    assert model.intermediate is not None
    kept = []
    model.intermediate.register_forward_hook(lambda _, __, maps: kept.append(maps["visual"].flatten(0, 1)))
    last = model.encode(given)
    assert len(kept) == 4
    assert all(frames.is_contiguous(memory_format=torch.channels_last) for frames in kept)
    torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(INTERMEDIATE_FUSIONS))
def test_the_model_compiles_as_one_graph(name: str) -> None:
    names = ("audio", "flow")
    model, given = make_model(name, "lowrank", names), inputs(names)
    expected = model(given)  # batch statistics: what a forward pass before has left behind does not matter
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(given), expected)


@pytest.fixture
def alone_in_a_group(tmp_path: Path) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone_in_a_group")
@pytest.mark.parametrize("fusion", ["concat", "lowrank", "centralnet"])
@pytest.mark.parametrize("name", ["none", *sorted(INTERMEDIATE_FUSIONS)])
def test_data_parallel_finds_no_unused_parameter(name: str, fusion: str) -> None:
    model, given = make_model(name, fusion), inputs()
    wrapped = DistributedDataParallel(model)
    for _ in range(2):  # a parameter without gradient is found at the second forward pass
        nn.functional.cross_entropy(wrapped(given), LABELS).backward()
    if isinstance(model.intermediate, MMTM):
        model.intermediate.solo("audio")
        for _ in range(2):
            nn.functional.cross_entropy(wrapped(given), LABELS).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_errors_name_the_value() -> None:
    encoders = {"audio": CNN4(1, width=1), "visual": CNN4(3, width=1)}
    assert make_intermediate("none", encoders) is None
    with pytest.raises(ValueError, match="'early'; known: none, attention, mmtm"):
        make_intermediate("early", encoders)
    for name in INTERMEDIATE_FUSIONS:
        with pytest.raises(OptionError, match="two or more modalities, but there is only audio"):
            make_intermediate(name, {"audio": encoders["audio"]})
    with pytest.raises(ValueError, match="solo must be one of audio, visual, flow or None, not 'text'"):
        MMTM(WIDTHS).solo("text")


def test_an_intermediate_fusion_of_another_package_is_made_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Halve(nn.Module):
        def __init__(self, stage_channels: Mapping[str, tuple[int, ...]]) -> None:
            super().__init__()
            assert stage_channels == {"audio": (2, 4, 8, 8), "visual": (1, 2, 4, 4)}

        def forward(self, maps: dict[str, Tensor], stage: int) -> dict[str, Tensor]:
            return {m: value / 2 for m, value in maps.items()} if stage == -1 else maps

    monkeypatch.setattr(INTERMEDIATE_FUSIONS, "plugins", lambda: {"halve": SimpleNamespace(load=lambda: Halve)})
    encoders = {"audio": CNN4(1, width=2).eval(), "visual": CNN4(3, width=1).eval()}
    model = MultimodalModel(
        encoders, make_fusion("sum", {"audio": 8, "visual": 4}, 3), make_intermediate("halve", encoders)
    )
    given = inputs(PAIR)
    for m, value in model.encode(given).items():
        torch.testing.assert_close(value, encoders[m](given[m]) / 2)
