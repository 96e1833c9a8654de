"""Linear probes of frozen features: all labels, and a few a class.

Letters: N rows, D features, C classes.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearfar.checks import expect, expect_positive
from nearfar.evaluate import inputs
from nearfar.evaluate.score import Score, mean_interval, wilson

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Probe:
    """A fitted linear classifier on standardised features: argmax of ((x - mean) / std) weight^T + bias."""

    classes: Int[Tensor, " C"]
    weight: Float[Tensor, "C D"]
    bias: Float[Tensor, " C"]
    mean: Float[Tensor, " D"]
    std: Float[Tensor, " D"]
    converged: bool
    iterations: int

    def predict(self, x: Float[Tensor, "N D"]) -> Int[Tensor, " N"]:
        """Class ids, on the CPU."""
        x = inputs.features("x", x).cpu().double()
        expect(x.shape[1] == len(self.mean), "x", f"width {len(self.mean)}", x.shape[1])
        return self.classes[(((x - self.mean) / self.std) @ self.weight.T + self.bias).argmax(1)]


def fit_probe(
    train_x: Float[Tensor, "N D"],
    train_y: Int[Tensor, " N"],
    *,
    penalty: float = 1.0,
    max_iter: int = 1000,
) -> Probe:
    """Multinomial logistic regression by L-BFGS: sum of cross-entropies + penalty / 2 * |weight|^2.

    Args:
        train_x, train_y: features and class ids; the features are standardised by their own mean and deviation, and
            a feature that does not vary counts for nothing.
        penalty: weight of the squared norm; the bias is free.
        max_iter: iterations of L-BFGS; when they do not suffice the result says so, and the log.

    Raises:
        ValueError: non-finite features (the row is named), a single class, a penalty or max_iter out of range.

    Notes:
        Runs in fp64 on the CPU with scikit-learn's solver, N C D a step.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    expect_positive("penalty", penalty)
    expect(max_iter >= 1, "max_iter", "1 or more", max_iter)
    train_x = inputs.features("train_x", train_x).cpu().double()
    ids, index = inputs.classes("train_y", inputs.labels("train_y", train_y, len(train_x)).cpu())
    std, mean = torch.std_mean(train_x, 0, correction=0)
    std = torch.where(std > 1e-12 * train_x.abs().amax(0), std, torch.inf)
    model = LogisticRegression(C=1.0 / penalty, max_iter=max_iter)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(((train_x - mean) / std).numpy(), index.numpy())
    for warning in caught:
        if not issubclass(warning.category, ConvergenceWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    weight, bias = torch.from_numpy(np.asarray(model.coef_)), torch.from_numpy(np.asarray(model.intercept_))
    if len(ids) == 2:  # scikit-learn keeps the one log-odds
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    iterations = int(np.max(model.n_iter_))
    if not converged:
        log.warning("the linear probe had not converged after %d iterations", iterations)
    return Probe(ids, weight, bias, mean, std, converged, iterations)


def linear_probe(
    train_x: Float[Tensor, "N D"],
    train_y: Int[Tensor, " N"],
    test_x: Float[Tensor, "Q D"],
    test_y: Int[Tensor, " Q"],
    *,
    penalty: float = 1.0,
    max_iter: int = 1000,
    confidence: float = 0.95,
) -> Score:
    """Test accuracy of `fit_probe` with Wilson's interval; a class absent from training counts as wrong.

    Raises:
        ValueError: as `fit_probe`, and features or labels of the test set that do not fit.
    """
    test_x = inputs.features("test_x", test_x)
    test_y = inputs.labels("test_y", test_y, len(test_x)).cpu()
    inputs.same_width(train_x, test_x)
    probe = fit_probe(train_x, train_y, penalty=penalty, max_iter=max_iter)
    return wilson(int((probe.predict(test_x) == test_y).sum()), len(test_y), confidence)


def few_label_probe(
    train_x: Float[Tensor, "N D"],
    train_y: Int[Tensor, " N"],
    test_x: Float[Tensor, "Q D"],
    test_y: Int[Tensor, " Q"],
    *,
    per_class: int = 10,
    draws: int = 5,
    seed: int = 0,
    penalty: float = 1.0,
    max_iter: int = 1000,
    confidence: float = 0.95,
) -> Score:
    """Mean test accuracy of probes that see `per_class` labels a class, over random draws of those labels.

    Args:
        train_x, train_y: the pool that labels are drawn from.
        test_x, test_y: all of it is judged, for every draw.
        per_class: labels a class, drawn without replacement.
        draws: repetitions; the interval is Student's over them, and Wilson's over the test set for a single draw.
        seed: of the draws; draw d of a seed is the same whatever the number of draws.

    Raises:
        ValueError: as `linear_probe`, and a class with fewer than `per_class` labels, which is named.
    """
    expect(per_class >= 1, "per_class", "1 or more", per_class)
    expect(draws >= 1, "draws", "1 or more", draws)
    train_x = inputs.features("train_x", train_x)
    train_y = inputs.labels("train_y", train_y, len(train_x)).cpu()
    ids, index = inputs.classes("train_y", train_y)
    counts = index.bincount()
    short = (counts < per_class).nonzero().flatten()
    expect(
        len(short) == 0,
        "per_class", "at most the labels of every class",
        f"{per_class}, where " + ", ".join(f"class {ids[i]} has {counts[i]}" for i in short[:5].tolist()),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    scores = []
    for _ in range(draws):
        order = torch.randperm(len(index), generator=generator)
        order = order[index[order].argsort(stable=True)]  # by class, in random order within
        starts = counts.cumsum(0) - counts
        rows = order[(starts[:, None] + torch.arange(per_class)).flatten()]
        part = train_x[rows.to(train_x.device)], train_y[rows]
        score = linear_probe(*part, test_x, test_y, penalty=penalty, max_iter=max_iter, confidence=confidence)
        scores.append(score)
    if draws == 1:
        return scores[0]
    return mean_interval([score.value for score in scores], confidence, bounds=(0.0, 1.0))
