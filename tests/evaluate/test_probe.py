from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from nearfar.evaluate import few_label_probe, fit_probe, linear_probe


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    x, y = torch.from_numpy(x).float(), torch.from_numpy(y).long()
    return x[:500], y[:500], x[500:1000], y[500:1000]


def test_it_is_the_minimum_of_its_objective(digits: tuple[Tensor, ...]) -> None:
    """The gradient of sum CE + penalty/2 |W|^2, written here in torch, vanishes at the fit."""
    x, y = digits[0], digits[1]
    probe = fit_probe(x, y + 3, penalty=2.0)
    assert probe.converged
    assert probe.classes.tolist() == list(range(3, 13))
    weight, bias = probe.weight.clone().requires_grad_(), probe.bias.clone().requires_grad_()
    logits = ((x.double() - probe.mean) / probe.std) @ weight.T + bias
    objective = torch.nn.functional.cross_entropy(logits, y, reduction="sum") + weight.square().sum()
    objective.backward()
    assert weight.grad.abs().max() < 0.1  # of terms that are hundreds at the start
    assert bias.grad.abs().max() < 0.1


def test_score_equals_scikit_learn(digits: tuple[Tensor, ...]) -> None:
    train_x, train_y, test_x, test_y = digits
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(train_x.double(), train_y)
    score = linear_probe(*digits)
    assert score.value == pytest.approx(model.score(test_x.double().numpy(), test_y.numpy()), abs=0.003)
    assert score.n == 500
    assert np.mean(fit_probe(train_x, train_y).predict(test_x).numpy() == model.predict(test_x.double())) > 0.99


def test_two_classes_and_a_class_absent_from_training() -> None:
    x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    probe = fit_probe(x, torch.tensor([4, 4, 9, 9]))
    assert probe.predict(torch.tensor([[-3.0], [0.4]])).tolist() == [4, 9]
    assert probe.weight.shape == (2, 1)
    score = linear_probe(x, torch.tensor([4, 4, 9, 9]), x, torch.tensor([4, 4, 9, 5]))
    assert score.value == 0.75
    log_odds = (probe.weight[1] - probe.weight[0]).item() * (3.0 - probe.mean.item()) / probe.std.item()
    model = LogisticRegression().fit((x.numpy() - 0) / math.sqrt(2.5), [0, 0, 1, 1])
    assert log_odds == pytest.approx(float(model.coef_[0, 0]) * 3 / math.sqrt(2.5), rel=1e-3)


def test_not_converged_is_reported_and_warns_nothing(
    digits: tuple[Tensor, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        probe = fit_probe(digits[0], digits[1], max_iter=2)
    assert not probe.converged
    assert probe.iterations == 2
    assert "not converged after 2 iterations" in caplog.text


def test_few_labels_draw_exactly_so_many_a_class(digits: tuple[Tensor, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    from nearfar.evaluate import probe

    seen = []
    real = probe.linear_probe
    monkeypatch.setattr(probe, "linear_probe", lambda *a, **k: (seen.append(a[:2]), real(*a, **k))[1])
    score = few_label_probe(*digits, per_class=4, draws=3)
    again = few_label_probe(*digits, per_class=4, draws=2)
    assert [y.bincount().tolist() for _, y in seen] == [[4] * 10] * 5
    rows = {tuple(x.tolist()): int(y) for x, y in zip(digits[0], digits[1], strict=True)}
    for x, y in seen:
        assert len(x.unique(dim=0)) == 40  # without replacement
        assert [rows[tuple(r.tolist())] for r in x] == y.tolist()  # labels stay with their rows
    assert not torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][0], seen[3][0])  # the first draw of a seed is the same
    values = [real(*part, *digits[2:]).value for part in seen[:3]]
    assert score.value == pytest.approx(np.mean(values))
    assert (score.n, again.n) == (3, 2)
    assert score.low < score.value < score.high <= 1.0
    assert few_label_probe(*digits, per_class=4, draws=1).n == 500


def test_bad_input_is_named(digits: tuple[Tensor, ...]) -> None:
    train_x, train_y, test_x, test_y = digits
    with pytest.raises(ValueError, match=r"per_class: expected at most the labels.*received 30, where class 0 has 21"):
        few_label_probe(train_x[:200], train_y[:200], test_x, test_y, per_class=30)
    with pytest.raises(ValueError, match="train_y: expected labels of at least 2 classes"):
        linear_probe(train_x, torch.zeros_like(train_y), test_x, test_y)
    bad = test_x.clone()
    bad[7] = torch.inf
    with pytest.raises(ValueError, match=r"test_x: expected finite features.*first 7"):
        linear_probe(train_x, train_y, bad, test_y)
    with pytest.raises(ValueError, match="penalty"):
        fit_probe(train_x, train_y, penalty=0.0)
    with pytest.raises(ValueError, match="max_iter"):
        fit_probe(train_x, train_y, max_iter=0)
    with pytest.raises((ValueError, TypeError), match="test_x"):
        linear_probe(train_x, train_y, test_x[:, :5], test_y)
    with pytest.raises(ValueError, match="x: expected width 64"):
        fit_probe(train_x, train_y).predict(test_x[:, :5])
    with pytest.raises(ValueError, match="draws"):
        few_label_probe(*digits, draws=0)
