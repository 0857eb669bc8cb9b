"""Temporal models: the shift element by element, TSM as ResNet-18 with it, and TSN as ResNet-18 without."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bmlpipe.train.data.decode import choose_instants
from bmlpipe.train.models.encoders.registry import make_encoder
from bmlpipe.train.models.encoders.resnet18 import BasicBlock, ResNet18
from bmlpipe.train.models.encoders.temporal_shift import temporal_shift
from bmlpipe.train.models.fusion import Concatenation


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("frames", "channels"), [(2, 8), (3, 16), (4, 19)])
def test_the_shift_element_by_element(frames: int, channels: int, layout: torch.memory_format) -> None:
    x = torch.randn(2 * frames, channels, 3, 2).to(memory_format=layout)
    given = x.clone()
    got = temporal_shift(x, frames)
    fold = channels // 8
    for clip in range(2):
        for t in range(frames):
            for c in range(channels):
                source = t + 1 if c < fold else t - 1 if c < 2 * fold else t
                expected = given[clip * frames + source, c] if 0 <= source < frames else torch.zeros(3, 2)
                assert torch.equal(got[clip * frames + t, c], expected), (clip, t, c)
    assert torch.equal(x, given)  # the shortcut still needs it
    assert got.is_contiguous(memory_format=layout)


def test_the_shift_compiles_as_one_graph() -> None:
    x = torch.randn(6, 8, 3, 2)
    shift = torch.compile(temporal_shift, backend="eager", fullgraph=True)
    assert torch.equal(shift(x, 3), temporal_shift(x, 3))


def test_the_gradient_of_the_shift_is_the_shift_back() -> None:
    x = torch.randn(3, 8, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: temporal_shift(x, 3), (x,))


def test_the_shift_is_inside_the_residual_branch() -> None:
    block = BasicBlock(8, 8, 1, shift=True).eval()
    x = torch.randn(6, 8, 4, 4)
    branch = block.bn2(block.conv2(block.bn1(block.conv1(temporal_shift(x, 3))).relu()))
    torch.testing.assert_close(block(x, 3), (branch + x).relu())


def randomised(encoder: ResNet18) -> ResNet18:
    for layer in encoder.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean):
                nn.init.normal_(tensor, 0.5, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return encoder.eval()


def reference_tsm(state: dict[str, Tensor], clip: Tensor) -> Tensor:
    """(B, T, C, H, W) → (B, 8 · width): every convolution on each frame alone, in float64."""
    state = {name: value.double() for name, value in state.items()}

    def layer(x: list[Tensor], conv: str, norm: str, stride: int, padding: int) -> list[Tensor]:
        w, b, mean, var = (state[f"{norm}.{k}"] for k in ("weight", "bias", "running_mean", "running_var"))
        return [
            functional.batch_norm(functional.conv2d(f, state[f"{conv}.weight"], None, stride, padding), mean, var, w, b)
            for f in x
        ]

    x = [frame.relu() for frame in layer(list(clip.double().unbind(1)), "conv1", "bn1", 2, 3)]
    x = [functional.max_pool2d(frame, 3, 2, 1) for frame in x]
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            n, zero = x[0].shape[1] // 8, torch.zeros_like(x[0])
            after, before = [*x[1:], zero], [zero, *x[:-1]]
            mixed = [
                torch.cat([a[:, :n], b[:, n : 2 * n], own[:, 2 * n :]], dim=1)
                for a, b, own in zip(after, before, x, strict=True)
            ]
            y = [frame.relu() for frame in layer(mixed, f"{name}.conv1", f"{name}.bn1", stride, 1)]
            y = layer(y, f"{name}.conv2", f"{name}.bn2", 1, 1)
            if stride == 2:
                x = layer(x, f"{name}.downsample.0", f"{name}.downsample.1", 2, 0)
            x = [(a + b).relu() for a, b in zip(x, y, strict=True)]
    return torch.stack([frame.mean(dim=(2, 3)) for frame in x]).mean(dim=0)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_tsm_equals_the_reference(frames: int) -> None:
    encoder = randomised(ResNet18(3, width=8, shift=True))
    clip = torch.randn(2, frames, 3, 40, 36)
    with torch.no_grad():
        got = encoder(clip)
        assert got.count_nonzero() > got.numel() / 2
        if frames > 1:
            expected = reference_tsm(encoder.state_dict(), clip)
            torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)
        plain = ResNet18(3, width=8).eval()
        plain.load_state_dict(encoder.state_dict())
        assert torch.equal(plain(clip), got) == (frames == 1)  # a spectrogram has no neighbour to see


def test_tsm18_loads_the_weights_of_resnet18() -> None:
    tsm, plain = make_encoder("tsm18", "visual", channels=3), make_encoder("resnet18", "visual", channels=3)
    assert isinstance(tsm, ResNet18)
    assert {k: v.shape for k, v in tsm.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    assert all(block.shift for block in tsm.modules() if isinstance(block, BasicBlock))
    assert not any(block.shift for block in plain.modules() if isinstance(block, BasicBlock))


def test_resnet18_with_one_frame_per_segment_is_tsn() -> None:
    """Wang et al. 2016, Eq. 1: one snippet from each of K equal segments, a shared network, the mean of the scores."""
    available, segments = 10, 3
    lower = choose_instants(available, segments, [0.0] * segments)
    upper = choose_instants(available, segments, [0.999] * segments)
    for k in range(segments):
        begin, end = k * available / segments, (k + 1) * available / segments
        assert int(begin) <= lower[k] <= upper[k] < end
    assert choose_instants(available, segments) == [1, 5, 8]  # evaluation: the middle of each
    encoder = randomised(ResNet18(3, width=4))
    head = Concatenation({"visual": encoder.feature_dim}, 5)
    clip = torch.randn(2, available, 3, 40, 36)[:, lower]
    with torch.no_grad():
        of_snippets = [head({"visual": encoder(clip[:, k : k + 1])}) for k in range(segments)]
        consensus = torch.stack(of_snippets).mean(dim=0)
        torch.testing.assert_close(head({"visual": encoder(clip)}), consensus, rtol=1e-4, atol=1e-4)
