"""The encoders, and torchvision's weight file read into ours."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.config.registries import ENCODERS
from bmlpipe.train.models.encoders.cnn4 import CNN4
from bmlpipe.train.models.encoders.registry import make_encoder
from bmlpipe.train.models.encoders.resnet18 import ResNet18, load_imagenet


def randomised(channels: int) -> ResNet18:
    """An encoder whose batch norms differ from the identity, in evaluation mode."""
    torch.manual_seed(channels)
    encoder = ResNet18(channels).eval()
    for layer in encoder.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean):
                nn.init.normal_(tensor, 0.5, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return encoder


def torchvision_names() -> set[str]:
    """The entries of torchvision's ResNet-18 weight file, without the classifier."""
    convolutions, norms = ["conv1"], ["bn1"]
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            convolutions += [f"layer{stage}.{block}.conv{i}" for i in (1, 2)]
            norms += [f"layer{stage}.{block}.bn{i}" for i in (1, 2)]
        if stage > 1:
            convolutions.append(f"layer{stage}.0.downsample.0")
            norms.append(f"layer{stage}.0.downsample.1")
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"{name}.weight" for name in convolutions} | {f"{name}.{kind}" for name in norms for kind in kinds}


def reference_resnet18(state: dict[str, Tensor], frames: Tensor) -> Tensor:
    """ResNet-18 from He et al. 2016, Table 1, written as plain functions; (N, C, H, W) → (N, 512) pooled over space."""

    def conv(x: Tensor, name: str, stride: int, padding: int) -> Tensor:
        return functional.conv2d(x, state[f"{name}.weight"], stride=stride, padding=padding)

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias, mean, var = (state[f"{name}.{k}"] for k in ("weight", "bias", "running_mean", "running_var"))
        return (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt() * weight[:, None, None] + bias[
            :, None, None
        ]

    x = functional.max_pool2d(norm(conv(frames, "conv1", 2, 3), "bn1").relu(), 3, 2, 1)
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = norm(conv(x, f"{name}.conv1", stride, 1), f"{name}.bn1").relu()
            y = norm(conv(y, f"{name}.conv2", 1, 1), f"{name}.bn2")
            if stride == 2:
                x = norm(conv(x, f"{name}.downsample.0", 2, 0), f"{name}.downsample.1")
            x = (x + y).relu()
    return x.mean(dim=(2, 3))


def test_resnet18_has_torchvisions_parameter_names_and_shapes() -> None:
    encoder = ResNet18(3)
    assert set(encoder.state_dict()) == torchvision_names()
    assert sum(p.numel() for p in encoder.parameters()) == 11_689_512 - (512 * 1000 + 1000)  # torchvision's less fc


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_resnet18_equals_the_reference_averaged_over_frames(channels: int) -> None:
    encoder = randomised(channels)
    clip = torch.randn(2, 3, channels, 64, 48)
    with torch.no_grad():
        expected = torch.stack([reference_resnet18(encoder.state_dict(), clip[:, t]) for t in range(3)]).mean(dim=0)
        torch.testing.assert_close(encoder(clip), expected, rtol=1e-4, atol=1e-4)


def test_resnet18_equals_torchvisions() -> None:
    try:
        from torchvision.models import resnet18
    except (ImportError, RuntimeError) as error:  # its wheel fails with RuntimeError beside a CPU build of torch
        pytest.skip(f"torchvision does not import: {error}")
    encoder = randomised(3)
    theirs = resnet18(weights=None).eval()
    theirs.fc = nn.Identity()
    theirs.load_state_dict(encoder.state_dict())
    frames = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder(frames[:, None]), theirs(frames))


@pytest.mark.parametrize("name", sorted(ENCODERS))
@pytest.mark.parametrize(("modality", "channels", "size"), [("audio", 1, (65, 75)), ("flow", 2, (32, 33))])
def test_every_encoder_returns_one_feature_per_sample_and_learns(
    name: str, modality: str, channels: int, size: tuple[int, int]
) -> None:
    encoder = make_encoder(name, modality, channels=channels)
    out = encoder(torch.randn(2, 2, channels, *size))
    assert out.shape == (2, encoder.feature_dim)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_cnn4_equals_its_description() -> None:
    torch.manual_seed(0)
    encoder = CNN4(2, width=3, downsample=4).eval()
    clip = torch.randn(2, 3, 2, 45, 70)
    x = functional.avg_pool2d(clip.flatten(0, 1), 4)
    widths = []
    for i, convolution in enumerate(layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d)):
        widths.append(convolution.out_channels)
        x = functional.conv2d(x, convolution.weight, stride=1 if i else 2, padding=1 if i else 2)
        x = functional.max_pool2d(x, 2, ceil_mode=True) / (1 + 1e-5) ** 0.5  # batch norm as it begins
        x = x.relu()
    expected = x.mean(dim=(2, 3)).view(2, 3, -1).mean(dim=1)
    assert widths == [3, 6, 12, 12]
    assert encoder.feature_dim == 12
    torch.testing.assert_close(encoder(clip), expected)


def test_the_cnn4_of_audio_averages_its_spectrogram_down() -> None:
    audio, visual = (make_encoder("cnn4", m, channels=1) for m in ("audio", "visual"))
    audio.load_state_dict(visual.state_dict())
    x = torch.randn(2, 1, 1, 64, 64)
    blown_up = x.repeat_interleave(4, dim=3).repeat_interleave(4, dim=4)
    torch.testing.assert_close(audio(blown_up), visual(x))


def test_errors_name_the_value() -> None:
    with pytest.raises(OptionError, match=r"'vgg'.*cnn4, resnet18"):
        make_encoder("vgg", "visual", channels=3)
    with pytest.raises(OptionError, match="channels must be at least 1, not 0"):
        ResNet18(0)
    with pytest.raises(OptionError, match="downsample must be at least 1, not 0"):
        CNN4(1, downsample=0)
    with pytest.raises(OptionError, match=r"\(B, T, C, H, W\), not the shape \(2, 3, 64, 64\)"):
        CNN4(3)(torch.randn(2, 3, 64, 64))


# The weight file


@pytest.fixture(scope="module")
def weight_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like torchvision's: classifier included, no counters, its hash in its name."""
    state = {k: v for k, v in randomised(3).state_dict().items() if not k.endswith("num_batches_tracked")}
    state |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    folder = tmp_path_factory.mktemp("weights")
    torch.save(state, folder / "new.pth")
    digest = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()
    return (folder / "new.pth").rename(folder / f"resnet18-{digest[:8]}.pth")


@pytest.fixture
def server(weight_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The weight file's folder over HTTP, and an empty hub cache."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = functools.partial(Quiet, directory=str(weight_file.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_loaded_weights_give_torchvisions_features(weight_file: Path) -> None:
    encoder = ResNet18(3).eval()
    load_imagenet(encoder, weight_file)
    state = torch.load(weight_file, weights_only=True)
    frames = torch.randn(1, 1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder(frames), reference_resnet18(state, frames[:, 0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_other_channel_counts_respond_to_grey_as_the_rgb_network_does(weight_file: Path, channels: int) -> None:
    rgb, ours = ResNet18(3).eval(), ResNet18(channels).eval()
    load_imagenet(rgb, weight_file)
    load_imagenet(ours, weight_file)
    grey = torch.randn(2, 1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            ours(grey.expand(-1, -1, channels, -1, -1)), rgb(grey.expand(-1, -1, 3, -1, -1)), rtol=1e-4, atol=1e-4
        )


def test_a_download_is_checked_and_cached(weight_file: Path, server: str, tmp_path: Path) -> None:
    first, second = ResNet18(3), ResNet18(3)
    load_imagenet(first, url=f"{server}/{weight_file.name}")
    kept = tmp_path / "hub" / "hub" / "checkpoints" / weight_file.name
    assert kept.read_bytes() == weight_file.read_bytes()
    load_imagenet(second, url=f"http://127.0.0.1:1/{weight_file.name}")  # no server there: it comes from the cache
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_download_with_another_hash_is_refused(weight_file: Path, server: str, tmp_path: Path) -> None:
    (weight_file.parent / "resnet18-00000000.pth").write_bytes(weight_file.read_bytes())
    with pytest.raises(RuntimeError, match="invalid hash"):
        load_imagenet(ResNet18(3), url=f"{server}/resnet18-00000000.pth")
    assert not list((tmp_path / "hub").rglob("*.pth"))


def test_a_weight_file_of_another_network_is_refused_and_changes_nothing(weight_file: Path, tmp_path: Path) -> None:
    good = torch.load(weight_file, weights_only=True)
    for fault, state in {
        "missing": {k: v for k, v in good.items() if k != "bn1.bias"},
        "extra": good | {"layer5.weight": torch.zeros(1)},
        "misshapen": good | {"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)},
        "misshapen first": good | {"conv1.weight": torch.zeros(64, 4, 7, 7)},
    }.items():
        torch.save(state, tmp_path / "other.pth")
        for channels in (1, 3):
            encoder = ResNet18(channels)
            before = encoder.conv1.weight.clone()
            with pytest.raises(ValueError, match="does not hold the weights of ResNet-18: 1 entries"):
                load_imagenet(encoder, tmp_path / "other.pth")
            assert torch.equal(encoder.conv1.weight, before), fault


def test_a_weight_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1), tmp_path / "pickled.pth")  # a module, not tensors
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        load_imagenet(ResNet18(3), tmp_path / "pickled.pth")
