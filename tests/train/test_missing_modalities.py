"""Missing modalities: the notation of rates, which samples lose what, and equality with zeroed inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, log_loss
from torch import Tensor, nn

from bmlpipe.train.config.options import ConfigError
from bmlpipe.train.evaluation.missing_modalities import (
    is_missing,
    missing_metrics,
    parse_missing,
    subsets,
    with_missing,
)
from bmlpipe.train.evaluation.predict import Predictions, PredictOptions, predict
from bmlpipe.train.models.encoders.registry import make_encoder
from bmlpipe.train.models.fusion import make_fusion, needs_all_stages
from bmlpipe.train.models.intermediate import make_intermediate
from bmlpipe.train.models.multimodal import MultimodalModel
from bmlpipe.train.tasks.classification import Classification

NUMBERS = np.arange(40_000, dtype=np.int64)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("audio=0.3", [{"audio": 0.3}]),
        ("audio=0:1:0.5", [{"audio": 0.0}, {"audio": 0.5}, {"audio": 1.0}]),
        ("audio=0.1:0.3", [{"audio": 0.1}, {"audio": 0.2}, {"audio": 0.3}]),
        ("audio=0:1:0.4", [{"audio": 0.0}, {"audio": 0.4}, {"audio": 0.8}]),
        ("audio=0, 0.5,visual=1", [{"audio": 0.0, "visual": 1.0}, {"audio": 0.5, "visual": 1.0}]),
        ("audio=0.5,0.5,0:0.5:0.5", [{"audio": 0.5}, {"audio": 0.0}]),
        ("audio+flow=0,1", [{"audio": 0.0, "flow": 0.0}, {"audio": 1.0, "flow": 1.0}]),
        ("visual=0.2,audio=0.1:0.2", [{"visual": 0.2, "audio": 0.1}, {"visual": 0.2, "audio": 0.2}]),
    ],
)
def test_rates_are_parsed(text: str, expected: list[dict[str, float]]) -> None:
    assert parse_missing(text) == expected


def test_a_range_holds_the_rates_as_they_are_written() -> None:
    expected = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
    assert [one["audio"] for one in parse_missing("audio=0:1:0.1")] == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sound=0.1", "'sound' is not a modality"),
        ("0.5", "names no modality"),
        ("audio=1.5", "'1.5' is not a list of rates"),
        ("audio=-0.1", "not a list of rates"),
        ("audio=0.5:0.1", "not a list of rates"),
        ("audio=0:1:0", "not a list of rates"),
        ("audio=0:1:nan", "not a list of rates"),
        ("audio=nan", "not a list of rates"),
        ("audio=0:1:0.1:2", "not a list of rates"),
        ("audio=", "not a list of rates"),
        ("audio=half", "not a list of rates"),
        ("audio=0.1,audio=0.2", "twice"),
        ("audio=0.1,audio+visual=0.2", "twice"),
        ("audio+audio=0.2", "twice"),
    ],
)
def test_invalid_rates_are_refused_with_the_grammar(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_missing(text)
    assert words in str(error.value)
    assert repr(text) in str(error.value)


def test_the_draw_is_a_function_of_seed_sample_and_modality() -> None:
    whole = is_missing(NUMBERS, "audio", 0.3, seed=1)
    order = np.random.default_rng(0).permutation(NUMBERS)
    assert (is_missing(order, "audio", 0.3, seed=1) == whole[order]).all()
    for other in (is_missing(NUMBERS, "visual", 0.3, seed=1), is_missing(NUMBERS, "audio", 0.3, seed=2)):
        both = (whole & other).mean()
        assert abs(both - 0.09) < 4 * np.sqrt(0.09 * 0.91 / len(NUMBERS))


def test_rates_are_exact_at_0_and_1_and_nested_between() -> None:
    assert not is_missing(NUMBERS, "audio", 0.0, seed=0).any()
    assert is_missing(NUMBERS, "audio", 1.0, seed=0).all()
    before = is_missing(NUMBERS, "audio", 0.1, seed=0)
    for rate in (0.2, 0.5, 0.9):
        after = is_missing(NUMBERS, "audio", rate, seed=0)
        assert after[before].all()
        assert abs(after.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / len(NUMBERS))
        before = after


# ----- against a direct computation -----

SHAPES = {"audio": (1, 1, 64, 32), "visual": (2, 3, 32, 32), "flow": (2, 2, 32, 32)}
CLASSES, SAMPLES = 3, 23


class AsTheyAre(nn.Module):
    """In the place of `Normaliser`: batches are normalised already."""

    def forward(self, raw: dict[str, Tensor]) -> dict[str, Tensor]:
        return raw


def made(modalities: tuple[str, ...], fusion: str, intermediate: str) -> MultimodalModel:
    torch.manual_seed(0)
    all_stages = needs_all_stages(fusion)
    encoders = {m: make_encoder("cnn4", m, channels=SHAPES[m][1], all_stages=all_stages) for m in modalities}
    dims = {m: int(encoder.feature_dim) for m, encoder in encoders.items()}  # type: ignore[arg-type]
    stage_channels = {m: encoder.stage_channels for m, encoder in encoders.items()} if all_stages else None
    head = make_fusion(fusion, dims, CLASSES, stage_channels=stage_channels)  # type: ignore[arg-type]
    model = MultimodalModel(encoders, head, make_intermediate(intermediate, encoders))
    model.train()
    model(
        {m: torch.randn(16, *SHAPES[m]) for m in modalities}
    )  # so that batch norm's statistics are not the initial ones
    return model.eval()


def batches(data: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    return [{name: value[i : i + size] for name, value in data.items()} for i in range(0, SAMPLES, size)]


@pytest.mark.parametrize(
    ("modalities", "fusion", "intermediate"),
    [
        (("audio", "visual"), "concat", "none"),
        (("audio", "visual"), "film", "none"),
        (("audio", "visual"), "centralnet", "none"),
        (("audio", "visual"), "concat", "mmtm"),
        (("audio", "visual"), "concat", "attention"),
        (("audio", "visual", "flow"), "sum", "none"),
        (("audio",), "concat", "none"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(len(value)),
)
def test_predictions_equal_those_of_zeroed_inputs(modalities: tuple[str, ...], fusion: str, intermediate: str) -> None:
    """Each sample is predicted alone with zeroed inputs; scikit-learn computes the metrics."""
    model = made(modalities, fusion, intermediate)
    random = torch.Generator().manual_seed(1)
    labels = torch.randint(CLASSES, (SAMPLES,), generator=random)
    data = {m: torch.randn(SAMPLES, *SHAPES[m], generator=random) + labels.view(-1, 1, 1, 1, 1) for m in modalities}
    numbers = torch.arange(100, 100 + SAMPLES)
    whole = {**data, "number": numbers, "label": labels}
    found = predict(
        model,
        AsTheyAre(),
        batches(whole, 8),
        outputs=CLASSES,
        device=torch.device("cpu"),
        options=PredictOptions(missing=modalities),
    )  # type: ignore[arg-type]
    combinations = [dict.fromkeys(modalities, 0.5), {modalities[0]: 0.4}, {modalities[0]: 1.0}, {modalities[0]: 0.4}]
    rows = missing_metrics(Classification(tuple("abc")), found, combinations, seeds=[3, 4])
    assert len(rows) == 3
    for row in rows:
        for place, seed in enumerate((3, 4)):
            logits = []
            for i in range(SAMPLES):
                gone = {m: is_missing(numbers[i : i + 1].numpy(), m, row["rates"][m], seed)[0] for m in modalities}
                with torch.no_grad():
                    logits.append(
                        model({m: 0 * data[m][i : i + 1] if gone[m] else data[m][i : i + 1] for m in modalities})
                    )
            expected = torch.cat(logits)
            np.testing.assert_allclose(with_missing(found, row["rates"], seed), expected.numpy(), rtol=1e-4, atol=1e-5)
            shares, truth = expected.double().softmax(dim=1).numpy(), labels.numpy()
            assert row["accuracy"][place] == pytest.approx(accuracy_score(truth, shares.argmax(axis=1)))
            assert row["f1"][place] == pytest.approx(f1_score(truth, shares.argmax(axis=1), average="macro"))
            assert row["loss"][place] == pytest.approx(log_loss(truth, shares), rel=1e-4)
            assert row["mAP"][place] == pytest.approx(average_precision_score(np.eye(CLASSES)[truth], shares), abs=0.02)
    assert rows[0]["rates"] == dict.fromkeys(modalities, 0.5)
    assert rows[2]["rates"] == {**dict.fromkeys(modalities, 0.0), modalities[0]: 1.0}
    assert len(set(rows[2]["accuracy"])) == 1


def test_rate_zero_removes_nothing_and_rate_one_everything() -> None:
    random = np.random.default_rng(0)
    logits: dict[Any, Any] = {gone: random.normal(size=(9, 2)) for gone in [frozenset(), *subsets(["a", "b"])]}
    found = Predictions(np.arange(9), np.arange(9) % 2, logits.pop(frozenset()), {}, without=logits)
    assert (with_missing(found, {"a": 0, "b": 0}, 0) == found.logits).all()
    assert (with_missing(found, {"a": 1, "b": 0}, 0) == logits[frozenset("a")]).all()
    assert (with_missing(found, {"a": 0, "b": 1}, 0) == logits[frozenset("b")]).all()
    assert (with_missing(found, {"a": 1, "b": 1}, 0) == logits[frozenset("ab")]).all()
