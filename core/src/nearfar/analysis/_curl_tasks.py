"""Tasks of two classes: the mean classifier, and the best linear one.

Legend: N points, D features, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from nearfar.analysis._curl_theory import World, margin_loss

Array = NDArray[np.float64]
SOFTENING = (1.0, 0.1, 0.01, 0.001)
"""width of the parabola that rounds the hinge's corner; it costs at most half of the last"""


@dataclass(frozen=True)
class Tasks:
    """Averages over pairs of classes, drawn from the prior given that they differ.

    Args:
        mean_classifier: L_sup_mu.
        best: L_sup, from above; the mean classifier's where it is not beaten.
        accuracy: of the mean classifier, a tie counting a half.
        num_fitted: tasks whose best classifier was sought.
        num: of them there are.
    """

    mean_classifier: float
    best: float
    accuracy: float
    num_fitted: int
    num: int


def tasks(w: World, loss: str, *, num_fitted: int, generator: torch.Generator) -> Tasks:
    """All pairs by the mean classifier; the best classifier on all pairs, or on `num_fitted` drawn by their weight."""
    num = len(w.prior)
    mean_CC, right_CC = (torch.zeros(num, num, dtype=torch.float64) for _ in range(2))
    for c in range(num):
        product = w.rows(c) @ w.mean.t()
        v = product[:, c : c + 1] - product
        mean_CC[c] = margin_loss(v.flatten().unsqueeze(1), loss).view_as(v).mean(0)
        right_CC[c] = ((v > 0).double() + (v == 0).double() / 2).mean(0)
    # Both classes of a task weigh alike, since (c, d) and (d, c) are equally likely.
    weight_CC = (w.prior[:, None] * w.prior).fill_diagonal_(0.0)
    weight_CC /= weight_CC.sum()
    mean, right = float((weight_CC * mean_CC).sum()), float((weight_CC * right_CC).sum())
    num_pairs = num * (num - 1) // 2
    if num_pairs <= num_fitted:
        first, second = torch.triu_indices(num, num, offset=1)
        share = 2 * weight_CC[first, second]
    else:
        first = torch.multinomial(weight_CC.sum(1), num_fitted, replacement=True, generator=generator)
        second = torch.multinomial(weight_CC[first], 1, generator=generator)[:, 0]
        share = torch.full((num_fitted,), 1 / num_fitted, dtype=torch.float64)
    gain = 0.0
    for a, b, weight in zip(first.tolist(), second.tolist(), share.tolist(), strict=True):
        if weight > 0:
            gain += weight * max(0.0, float(mean_CC[a, b] + mean_CC[b, a]) / 2 - _best(w, a, b, loss))
    return Tasks(mean, max(0.0, mean - gain), right, len(first), num_pairs)


def _best(w: World, a: int, b: int, loss: str) -> float:
    """The least loss that L-BFGS finds for w . f on one task, from the mean classifier on."""
    rows: Tensor = torch.cat([w.rows(a), -w.rows(b)])
    x = rows.numpy()
    p = np.repeat([0.5 / int(w.count[a]), 0.5 / int(w.count[b])], [int(w.count[a]), int(w.count[b])])
    start = (w.mean[a] - w.mean[b]).numpy()
    if loss == "logistic":
        found = _descend(lambda v: (np.logaddexp(0, -v), -expit(-v)), x, p, start)
        return float(p @ np.logaddexp(0, -(x @ found))) / math.log(2)
    least = math.inf
    for width in SOFTENING:
        start = _descend(lambda v, width=width: _soft_hinge(v, width), x, p, start)
        least = min(least, float(p @ np.maximum(0, 1 - x @ start)))
    return least


def _descend(loss: Callable[[Array], tuple[Array, Array]], x: Array, p: Array, start: Array) -> Array:
    """Weights [D] of least mean loss of the margins x w."""

    def value(weight: Array) -> tuple[float, Array]:
        each, slope = loss(x @ weight)
        return float(p @ each), x.T @ (p * slope)

    return minimize(value, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000, "ftol": 1e-12}).x


def _soft_hinge(v: Array, width: float) -> tuple[Array, Array]:
    """The hinge with a parabola of that width in its corner, nowhere above it, and its slope."""
    u = 1 - v
    each = np.where(u <= 0, 0.0, np.where(u >= width, u - width / 2, u * u / (2 * width)))
    return each, -np.clip(u / width, 0.0, 1.0)
