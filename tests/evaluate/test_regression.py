from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from sklearn.preprocessing import StandardScaler

from nearfar.evaluate import regression_probe


def linear(num: int, noise: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, 5, generator=generator) * torch.tensor([1.0, 10.0, 0.1, 1.0, 0.0])
    weight = torch.tensor([2.0, -0.3, 4.0, 0.0, 0.0])
    return x, x @ weight + 3 + noise * torch.randn(num, generator=generator)


def test_equals_scikit_learn():
    (train_x, train_t), (test_x, test_t) = linear(80, 0.5, 0), linear(50, 0.5, 1)
    found = regression_probe(train_x, train_t, test_x, test_t, penalty=2.0)
    scaler = StandardScaler().fit(train_x.double().numpy())
    model = Ridge(alpha=2.0).fit(scaler.transform(train_x.double().numpy()), train_t.double().numpy())
    predicted = model.predict(scaler.transform(test_x.double().numpy()))
    expected = {
        "mae": mean_absolute_error(test_t, predicted), "rmse": root_mean_squared_error(test_t, predicted),
        "r2": r2_score(test_t, predicted),
    }  # fmt: skip
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, rel=1e-6)
        assert found[name].low <= found[name].value <= found[name].high


def test_intervals_hold_what_fresh_samples_give():
    train_x, train_t = linear(200, 0.5, 0)
    held = 0
    for seed in range(1, 41):
        found = regression_probe(train_x, train_t, *linear(60, 0.5, seed), draws=200)["mae"]
        held += found.low <= 0.5 * np.sqrt(2 / np.pi) * 1.01 <= found.high
    assert 32 <= held <= 40


def test_complaints():
    x, t = linear(10, 0.1, 0)
    with pytest.raises(ValueError, match="test_t: expected targets that differ"):
        regression_probe(x, t, x, torch.ones(10))
    with pytest.raises(ValueError, match="train_t: expected shape \\(10,\\)"):
        regression_probe(x, t[:9], x, t)
    with pytest.raises(ValueError, match="train_t: expected finite targets"):
        regression_probe(x, t / 0, x, t)
