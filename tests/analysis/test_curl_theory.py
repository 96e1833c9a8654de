"""CURL theory: its inequalities on enumerated worlds, against loops over every tuple, linear programmes and draws."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from nearfar.analysis.curl_theory import (
    Contrastive,
    collision,
    contrastive_loss,
    curl_theory,
    spread,
    supervised_loss,
)

F64 = torch.float64
LOSSES = ("hinge", "logistic")
LABELS = torch.arange(4).repeat_interleave(5)
PRIOR = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=F64)
COLLISION = {"hinge": 1 / math.sqrt(2), "logistic": 1 / (math.sqrt(2) * math.log(2))}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def margin(v: Any, loss: str) -> float:
    return max(0.0, 1 - min(v)) if loss == "hinge" else math.log2(1 + sum(math.exp(-x) for x in v))


def brute(f: Tensor, labels: Tensor, prior: Tensor, loss: str, k: int = 1, b: int = 1) -> tuple[float, float, float]:
    """(loss, part without, part with collision) by loops over every tuple of classes and points."""
    classes = [f[labels == c].numpy() for c in labels.unique()]
    total = {False: 0.0, True: 0.0}
    mass = {False: 0.0, True: 0.0}
    for cs in itertools.product(range(len(classes)), repeat=k + 1):
        weight = math.prod(float(prior[c]) for c in cs)
        sets = [list(itertools.product(classes[c], repeat=b)) for c in cs]
        found = [
            margin([x @ (np.mean(p, 0) - np.mean(n, 0)) for n in ns], loss)
            for x in classes[cs[0]]
            for p, *ns in itertools.product(*sets)
        ]
        hit = cs[0] in cs[1:]
        total[hit] += weight * float(np.mean(found))
        mass[hit] += weight
    return total[False] + total[True], total[False] / mass[False], total[True] / mass[True]


def brute_supervised(f: Tensor, prior: Tensor, loss: str) -> tuple[float, float]:
    """(L_sup_mu, accuracy) of twenty points by loops."""
    means = [f[c == LABELS].mean(0) for c in range(4)]
    total, right, mass = 0.0, 0.0, 0.0
    for c, d in itertools.permutations(range(4), 2):
        v = f[c == LABELS] @ (means[c] - means[d])
        weight = float(prior[c] * prior[d])
        total += weight * float(np.mean([margin([float(x)], loss) for x in v]))
        right += weight * float((v > 0).double().mean())
        mass += weight
    return total / mass, right / mass


@pytest.mark.oracle("curl_theory", 1)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("seeds", [range(150), pytest.param(range(150, 1000), marks=pytest.mark.slow)], ids=str)
def test_no_encoder_breaks_the_bounds(loss: str, seeds: range) -> None:
    options: dict[str, Any] = {"loss": loss, "limit": 10**5}
    for seed in seeds:
        f = draw(20, 1 + seed % 4, seed=seed) * (0.1 + seed % 50 / 15)
        found = contrastive_loss(f, LABELS, PRIOR, **options)
        assert found.exact
        assert found.mean_classifier <= found.bound + 1e-12
        assert found.bound == pytest.approx((found.loss - found.tau) / (1 - found.tau))
        worse = found.apart + COLLISION[loss] * found.tau / (1 - found.tau) * spread(f, LABELS, PRIOR)
        assert found.bound <= worse + 1e-12


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("k", "b"), [(1, 1), (2, 1), (1, 2)])
def test_the_loss_is_that_of_loops(loss: str, k: int, b: int) -> None:
    f, labels = draw(7, 3), torch.tensor([5, 5, 9, 9, 9, 2, 2])  # unsorted ids, uneven classes
    prior = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    found = contrastive_loss(f, labels, prior, loss=loss, num_negatives=k, block=b)
    total, apart, collided = brute(f, labels, prior, loss, k, b)
    assert (found.loss, found.apart, found.collided) == pytest.approx((total, apart, collided), abs=1e-12)
    assert (found.error, found.exact) == (0.0, True)


@pytest.mark.parametrize("loss", LOSSES)
def test_several_negatives_bound_tasks_of_as_many_classes(loss: str) -> None:
    for seed in range(20):
        f = draw(20, 3, seed=seed)
        found = contrastive_loss(f, LABELS, PRIOR, loss=loss, num_negatives=2)
        assert found.floor <= found.collided + 1e-12
        assert found.mean_classifier <= found.apart + 1e-12
        assert found.apart <= found.bound + 1e-12
    # no classes but the anchor's own: all that is left is the floor
    same = contrastive_loss(torch.zeros(20, 3, dtype=F64), LABELS, PRIOR, loss=loss, num_negatives=2)
    assert same.collided >= same.floor
    if loss == "hinge":
        assert same.floor == 1
    else:
        both = float((PRIOR**3).sum()) / same.tau
        assert same.floor == pytest.approx((1 - both) * 1 + both * math.log2(3))


@pytest.mark.oracle("curl_theory", 2)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_split_and_its_gap(loss: str) -> None:
    f = draw(20, 3)
    found = contrastive_loss(f, LABELS, PRIOR, loss=loss)
    assert found.loss == pytest.approx(brute(f, LABELS, PRIOR, loss)[0], abs=1e-12)
    assert found.loss == pytest.approx((1 - found.tau) * found.apart + found.tau * found.collided, abs=1e-14)
    assert found.apart > found.mean_classifier + 0.01
    points = contrastive_loss(draw(4, 3)[LABELS], LABELS, PRIOR, loss=loss)
    assert points.collided == pytest.approx(1, abs=1e-12)
    assert points.apart == pytest.approx(points.mean_classifier, abs=1e-12)
    assert points.bound == pytest.approx(points.mean_classifier, abs=1e-12)


@pytest.mark.oracle("curl_theory", 3)
def test_the_intraclass_deviation() -> None:
    f = draw(20, 3)
    weight = PRIOR.square() / PRIOR.square().sum()
    expected = 0.0
    for c in range(4):
        rows = f[c == LABELS]
        top = np.linalg.eigvalsh(np.cov(rows.numpy(), rowvar=False, bias=True))[-1]
        expected += float(weight[c]) * math.sqrt(top) * float(rows.norm(dim=1).mean())
    assert spread(f, LABELS, PRIOR) == pytest.approx(expected)
    for scale in (0.5, -3.0):
        assert spread(scale * f, LABELS, PRIOR) == pytest.approx(scale**2 * expected)
    constant = torch.tensor([[1.0, 2.0], [0.5, -1.0], [4.0, 0.0], [2.0, 2.0]], dtype=F64)[LABELS]
    assert spread(constant, LABELS, PRIOR) == 0
    constant[7] += 0.1
    assert spread(constant, LABELS, PRIOR) > 0


@pytest.mark.oracle("curl_theory", 4)
@pytest.mark.parametrize("loss", LOSSES)
def test_blocks_lower_the_loss_and_the_bound(loss: str) -> None:
    labels = torch.arange(3).repeat_interleave(3)
    for seed in range(5):
        f = draw(9, 2, seed=seed)
        one, two = (contrastive_loss(f, labels, loss=loss, block=b) for b in (1, 2))
        assert one.loss == pytest.approx(brute(f, labels, torch.full((3,), 1 / 3, dtype=F64), loss)[0], abs=1e-12)
        assert two.exact
        assert two.loss < one.loss
        assert two.mean_classifier <= two.bound < one.bound


@pytest.mark.oracle("curl_theory", 5)
def test_the_chance_of_a_collision() -> None:
    assert collision(PRIOR) == pytest.approx(float(PRIOR.square().sum()), abs=1e-15)
    expected = sum(float(p) * (1 - (1 - float(p)) ** 3) for p in PRIOR)
    assert collision(PRIOR, 3) == pytest.approx(expected)
    chances = [collision(PRIOR, k) for k in (1, 2, 5, 20, 1000)]
    assert chances == sorted(chances)
    assert chances[-1] == pytest.approx(1, abs=1e-12)
    many = torch.full((10**7,), 1e-7, dtype=F64)
    assert collision(many) == pytest.approx(1e-7, rel=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("k", "b"), [(1, 1), (3, 1), (1, 2), (3, 2)])
def test_draws_agree_with_enumeration(loss: str, k: int, b: int) -> None:
    f, labels = draw(6, 2), torch.arange(3).repeat_interleave(2)
    prior = torch.tensor([0.6, 0.3, 0.1], dtype=F64)
    exact = contrastive_loss(f, labels, prior, loss=loss, num_negatives=k, block=b)
    drawn = contrastive_loss(f, labels, prior, loss=loss, num_negatives=k, block=b, limit=0, draws=20_000)
    assert (exact.exact, drawn.exact) == (True, False)
    assert 0 < drawn.error < 0.05
    assert abs(drawn.loss - exact.loss) < 5 * drawn.error
    for name in ("apart", "collided", "mean_classifier"):
        assert getattr(drawn, name) == pytest.approx(getattr(exact, name), abs=0.08), name
    assert (drawn.tau, drawn.floor) == (exact.tau, exact.floor)


def test_draws_are_of_their_seed_and_need_no_collision_of_classes_without_mass() -> None:
    f, labels = draw(6, 2), torch.arange(3).repeat_interleave(2)
    prior = torch.tensor([0.5, 0.0, 0.5], dtype=F64)
    options: dict[str, Any] = {"num_negatives": 3, "limit": 0, "draws": 500}
    one, again, other = (contrastive_loss(f, labels, prior, seed=s, **options) for s in (1, 1, 2))
    assert one == again
    assert one != other
    rows = labels != 1
    exact = contrastive_loss(f[rows], labels[rows], num_negatives=3)
    assert abs(one.loss - exact.loss) < 5 * one.error
    assert contrastive_loss(f, labels, prior).loss == pytest.approx(contrastive_loss(f[rows], labels[rows]).loss)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_mean_classifier(loss: str) -> None:
    f = draw(20, 3)
    found = supervised_loss(f, LABELS, PRIOR, loss=loss)
    assert (found.mean_classifier, found.accuracy) == pytest.approx(brute_supervised(f, PRIOR, loss), abs=1e-12)
    assert found.mean_classifier == pytest.approx(contrastive_loss(f, LABELS, PRIOR, loss=loss).mean_classifier)
    assert found.best <= found.mean_classifier
    assert (found.num_fitted, found.num) == (6, 6)


def test_the_best_hinge_classifier_is_that_of_a_linear_programme() -> None:
    f = draw(20, 2) + 0.3 * LABELS[:, None]
    expected, mass = 0.0, 0.0
    for c, d in itertools.combinations(range(4), 2):
        x = torch.cat([f[c == LABELS], -f[d == LABELS]]).numpy()
        # min mean of slacks with x w + slack >= 1, slack >= 0
        cost = np.r_[np.zeros(2), np.full(10, 0.1)]
        bounds = [(None, None)] * 2 + [(0, None)] * 10
        best = linprog(cost, A_ub=-np.c_[x, np.eye(10)], b_ub=-np.ones(10), bounds=bounds).fun
        expected += float(PRIOR[c] * PRIOR[d]) * best
        mass += float(PRIOR[c] * PRIOR[d])
    found = supervised_loss(f, LABELS, PRIOR, loss="hinge").best
    assert expected / mass - 1e-9 <= found <= expected / mass + 6e-4


def test_the_best_logistic_classifier_has_no_slope() -> None:
    f = draw(10, 2)
    labels = torch.arange(2).repeat_interleave(5)
    found = supervised_loss(f, labels)
    x = torch.cat([f[:5], -f[5:]])
    w = torch.zeros(2, dtype=F64)
    for _ in range(100):  # Newton's steps
        p = torch.sigmoid(-(x @ w))
        w = w + torch.linalg.solve((x * (p * (1 - p))[:, None]).t() @ x, x.t() @ p)
    best = float(torch.log2(1 + torch.exp(-(x @ w))).mean())
    assert found.best == pytest.approx(best, abs=1e-7)
    assert best < found.mean_classifier


def test_fitted_tasks_may_be_drawn() -> None:
    f = draw(40, 3)
    labels = torch.arange(8).repeat_interleave(5)
    whole, part = supervised_loss(f, labels), supervised_loss(f, labels, num_fitted=10)
    assert (part.num_fitted, part.num) == (10, 28)
    assert part.mean_classifier == whole.mean_classifier
    assert part.best == pytest.approx(whole.best, abs=0.3)
    assert 0 <= part.best <= part.mean_classifier


def test_the_report() -> None:
    f = draw(20, 3)
    report = curl_theory(f, LABELS, PRIOR, num_negatives=(2,), blocks=(1, 2), loss="hinge")
    assert [(c.num_negatives, c.block) for c in report.contrastive] == [(1, 1), (2, 1), (1, 2)]
    assert report.contrastive[1] == contrastive_loss(f, LABELS, PRIOR, num_negatives=2, loss="hinge")
    assert report.sup <= report.sup_mu <= report.bound_a <= report.contrastive[0].bound <= report.bound_b
    assert report.bound_a == report.contrastive[2].bound
    assert report.spread == spread(f, LABELS, PRIOR)
    assert report.tau == pytest.approx(collision(PRIOR), abs=1e-15)
    assert all(isinstance(c, Contrastive) and c.exact for c in report.contrastive)


def test_info_nce_of_unit_vectors_is_the_logistic_loss_of_scaled_ones() -> None:
    from nearfar.objectives import info_nce

    z = torch.nn.functional.normalize(draw(4, 3), dim=1)
    labels, t = torch.tensor([0, 0, 1, 1]), 0.3
    found = contrastive_loss(z / math.sqrt(t), labels)
    losses = []
    for c, d in itertools.product(range(2), repeat=2):
        a, b = z[labels == c], z[labels == d]
        losses += [
            float(info_nce(a[x : x + 1], a[p : p + 1], b[n : n + 1], temperature=t))
            for x, p, n in itertools.product(range(2), repeat=3)
        ]
    assert found.loss * math.log(2) == pytest.approx(np.mean(losses), abs=1e-6)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"labels": torch.zeros(20, dtype=torch.long)}, "labels: expected labels of at least 2 classes"),
        ({"labels": LABELS[:5]}, r"labels: expected shape \(20,\)"),
        ({"features": draw(20)}, r"features: expected shape \[N, D\]"),
        ({"features": draw(20, 3) / 0}, "features: expected finite features"),
        ({"prior": PRIOR[:3]}, r"prior: expected shape \(4,\)"),
        ({"prior": 2 * PRIOR}, "prior: expected numbers that sum to 1"),
        ({"prior": torch.tensor([1.5, -0.5, 0.0, 0.0])}, "prior: expected finite numbers of 0 or more"),
        ({"prior": torch.tensor([0.0, 1.0, 0.0, 0.0])}, "prior: expected two classes or more of positive"),
        ({"loss": "square"}, "loss: expected one of"),
        ({"num_negatives": 0}, "num_negatives: expected 1 or more"),
        ({"block": 0}, "block: expected 1 or more"),
        ({"draws": 1}, "draws: expected 2 or more"),
    ],
)
def test_refuses(change: dict[str, Any], match: str) -> None:
    given: dict[str, Any] = {"features": draw(20, 3), "labels": LABELS, "prior": PRIOR} | change
    with pytest.raises(ValueError, match=match):
        contrastive_loss(given.pop("features"), given.pop("labels"), **given)


def test_refuses_labels_that_are_no_ids() -> None:
    with pytest.raises(TypeError, match="labels: expected integer class ids"):
        contrastive_loss(draw(20, 3), LABELS.double())
    with pytest.raises(ValueError, match="num_fitted: expected 1 or more"):
        supervised_loss(draw(20, 3), LABELS, num_fitted=0)
