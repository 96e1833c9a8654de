"""A ridge probe of frozen features for targets that are numbers.

Letters: N rows, Q queries, D features.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.checks import expect, expect_positive
from nearfar.evaluate import inputs
from nearfar.evaluate.score import Score, bootstrap


def regression_probe(
    train_x: Float[Tensor, "N D"],
    train_t: Float[Tensor, " N"],
    test_x: Float[Tensor, "Q D"],
    test_t: Float[Tensor, " Q"],
    *,
    penalty: float = 1.0,
    confidence: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Score]:
    """Ridge regression on standardised features: "mae", "rmse" and "r2" on the test part, each with its interval.

    Args:
        train_x, train_t: features and targets that the probe is fitted to.
        test_x, test_t: what it is judged on.
        penalty: of the squared weights; the bias is free.
        draws, seed: of the bootstrap over test samples that the intervals come from.

    Returns:
        mean absolute error and root mean squared error in the target's unit, and
        r2 = 1 - sum (t - prediction)^2 / sum (t - mean of the test targets)^2, which is 0 for that mean.

    Raises:
        ValueError: non-finite features or targets, unequal lengths, test targets that are all equal.
    """
    from sklearn.linear_model import Ridge

    expect_positive("penalty", penalty)
    train_x, test_x = inputs.features("train_x", train_x), inputs.features("test_x", test_x)
    inputs.same_width(train_x, test_x)
    train_t, test_t = _targets("train_t", train_t, len(train_x)), _targets("test_t", test_t, len(test_x))
    spread = (test_t - test_t.mean()).square()
    expect(float(spread.sum()) > 0, "test_t", "targets that differ", "equal ones")
    std, mean = torch.std_mean(train_x.cpu().double(), 0, correction=0)
    std = torch.where(std > 1e-12, std, torch.inf)
    model = Ridge(alpha=penalty).fit(((train_x.cpu().double() - mean) / std).numpy(), train_t.numpy())
    error = torch.from_numpy(model.predict(((test_x.cpu().double() - mean) / std).numpy())) - test_t
    squares = bootstrap(error.square(), confidence, draws=draws, seed=seed)
    variance = float(spread.mean())
    return {
        "mae": bootstrap(error.abs(), confidence, draws=draws, seed=seed),
        "rmse": Score(squares.value**0.5, squares.low**0.5, squares.high**0.5, squares.n),
        "r2": Score(1 - squares.value / variance, 1 - squares.high / variance, 1 - squares.low / variance, squares.n),
    }


def _targets(name: str, t: Tensor, num_rows: int) -> Tensor:
    expect(t.shape == (num_rows,), name, f"shape ({num_rows},), one target a row", tuple(t.shape))
    t = t.detach().cpu().double()
    expect(bool(t.isfinite().all()), name, "finite targets", "nan or inf")
    return t
