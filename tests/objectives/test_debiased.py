"""Debiased and hardness-weighted contrast: the oracles, the reference form, shards.

Legend: B batch, D embedding.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nearfar.objectives import Debiased, debiased, debiased_floor, nt_xent
from objectives.sharding import PARTS, over_parts

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def stored(z0: Tensor, z1: Tensor, prior: float, hardness: float, t: float, more: Tensor | None = None) -> Tensor:
    """The loss of every anchor in plain exponentials, as the equations read."""
    u = normalize(torch.cat([z0, z1]), dim=1)
    num = len(z0)
    e = torch.exp(u @ u.t() / t)
    losses = []
    for i in range(2 * num):
        p = (i + num) % (2 * num)
        negative = torch.stack([e[i, k] for k in range(2 * num) if k not in (i, p)])
        n = len(negative)
        weight = negative**hardness
        total = n * (weight * negative).sum() / weight.sum()
        share = e[i, p]
        if more is not None:
            others = torch.exp(normalize(more[i % num], dim=1) @ u[i] / t)
            share = torch.cat([e[i, p, None], others]).mean()
        g = torch.clamp((total - prior * n * share) / (1 - prior), min=n * math.exp(-1 / t))
        losses.append(-torch.log(e[i, p] / (e[i, p] + g)))
    return torch.stack(losses)


@pytest.mark.parametrize("tile", [0, 3])
@pytest.mark.parametrize("hardness", [0.0, 0.7])
@pytest.mark.parametrize("prior", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("with_more", [False, True])
def test_equals_the_equations(prior: float, hardness: float, tile: int, with_more: bool) -> None:
    z0, z1, more = draw(5, 3).requires_grad_(), draw(5, 3, seed=1).requires_grad_(), draw(5, 2, 3, seed=2)
    options: dict[str, Any] = {"more_positives": more if with_more else None}
    expected = stored(z0, z1, prior, hardness, 0.5, options["more_positives"])
    found = debiased(z0, z1, class_prior=prior, hardness=hardness, reduction="none", tile=tile, **options)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found.mean(), (z0, z1)), torch.autograd.grad(expected.mean(), (z0, z1))
    )


@pytest.mark.oracle("debiased", 1)
@pytest.mark.parametrize("temperature", [0.05, 0.5, 2.0])
def test_without_a_prior_it_is_nt_xent(temperature: float) -> None:
    z0, z1 = draw(6, 4), draw(6, 4, seed=1)
    found = debiased(z0, z1, class_prior=0.0, temperature=temperature)
    torch.testing.assert_close(found, nt_xent(z0, z1, temperature=temperature))
    assert float(debiased_floor(z0, z1, class_prior=0.0, temperature=temperature)) == 0


@pytest.mark.oracle("debiased", 2)
def test_a_false_negative_as_near_as_the_positive_is_taken_out() -> None:
    """n negatives, one of which looks like the positive, prior 1/n: G is n times the mean over the others."""
    z0 = normalize(draw(3, 4), dim=1)
    z1 = z0.clone()
    z0[1] = z0[0]  # sample 1's first view is where the anchor's positive is; its second view and sample 2 are not
    t, n = 0.5, 4
    e = torch.exp(z0[0] @ torch.stack([z1[1], z0[2], z1[2]]).t() / t)
    expected = torch.log1p(n * e.mean() / math.exp(1 / t))
    found = debiased(z0, z1, class_prior=1 / n, temperature=t, reduction="none")[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.oracle("debiased", 3)
def test_unbiased_where_the_biased_mean_is_not() -> None:
    """Classes with fixed embeddings: with the true prior G / n is the mean over other classes."""
    classes = normalize(draw(4, 6, seed=3), dim=1)
    labels = torch.arange(3000) % 4  # every class its share, so that what is left is the estimator's own error
    z = classes[labels]
    s = (z[:1] @ z.t())[0] / 0.5
    loss = debiased(z, z, class_prior=0.25, reduction="none")[0]
    estimate = float((torch.expm1(loss).log() + s[0]).exp()) / (2 * 3000 - 2)
    e = torch.exp(classes[labels[0]] @ classes.t() / 0.5)
    others = [float(e[k]) for k in range(4) if k != int(labels[0])]
    true = sum(others) / 3
    assert estimate == pytest.approx(true, rel=0.01)
    assert abs(float(torch.exp(s[1:]).mean()) - true) > 0.3 * true


@pytest.mark.oracle("debiased", 4)
def test_the_floor_stops_the_gradient_of_negatives() -> None:
    """Positive at cosine 1, every negative at -1: G = n exp(-1/t)."""
    z0 = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=F64)
    z1 = z0.clone().requires_grad_()
    found = debiased(z0, z1, class_prior=0.1, temperature=0.5, reduction="none")
    torch.testing.assert_close(found, torch.full((4,), math.log1p(2 * math.exp(-4.0)), dtype=F64))
    assert float(debiased_floor(z0, z1, class_prior=0.1)) == 1
    other = torch.tensor([[0.9, 0.1], [-1.0, 0.3]], dtype=F64)
    leaf = other.clone().requires_grad_()
    loss = debiased(torch.stack([z0, leaf]), class_prior=0.5, reduction="none")[0]  # the anchor's negatives are row 1
    (grad,) = torch.autograd.grad(loss, leaf)
    assert grad[1].abs().max() < 1e-12
    assert grad[0].abs().max() > 1e-4


@pytest.mark.oracle("debiased", 5)
def test_the_loss_falls_with_the_prior_where_positives_are_nearest() -> None:
    z0 = normalize(draw(8, 16), dim=1)
    z1 = normalize(z0 + 0.1 * draw(8, 16, seed=1), dim=1)
    losses = torch.stack([debiased(z0, z1, class_prior=p, reduction="none") for p in (0.0, 0.05, 0.1, 0.2)])
    assert (losses[1:] <= losses[:-1]).all()


def test_hardness_weighs_near_negatives() -> None:
    z0, z1 = draw(6, 4), draw(6, 4, seed=1)
    losses = [float(debiased(z0, z1, class_prior=0.0, hardness=h)) for h in (0.0, 0.5, 2.0)]
    assert losses[0] < losses[1] < losses[2]


@pytest.mark.parametrize("sizes", PARTS)
def test_shards_equal_the_whole(sizes: list[int]) -> None:
    z = draw(2, 7, 4).requires_grad_()
    options: dict[str, Any] = {"class_prior": 0.2, "hardness": 0.5, "temperature": 0.5}
    whole = debiased(z, **options)
    parts = over_parts(
        sizes, lambda rows, offset: debiased(z[:, rows], gathered=z, offset=offset, with_stats=True, **options)
    )
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, z), torch.autograd.grad(whole, z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cold_and_extreme_rows_are_finite(dtype: torch.dtype) -> None:
    for rows in (torch.ones(6, 4), draw(6, 4), torch.zeros(6, 4)):
        z = torch.stack([rows, rows]).to(dtype).requires_grad_()
        loss = debiased(z, class_prior=0.3, hardness=1.0, temperature=0.01)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(z.grad).all()


def test_module_learns_its_temperature() -> None:
    module, z = Debiased(0.1, 0.5, learnable_temperature=True), draw(2, 5, 3).float()
    torch.testing.assert_close(module(z), debiased(z, class_prior=0.1, hardness=0.5))
    module(z).backward()
    assert module.tau.log_value.grad is not None


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"class_prior": 1.0}, r"class_prior: expected a number in \[0, 1\), received 1.0"),
        ({"hardness": -1.0}, "hardness: expected a finite number of 0 or more"),
        ({"temperature": 0.0}, "temperature: expected a finite number > 0"),
        ({"more_positives": draw(4, 2, 3)}, r"more_positives: expected shape \[5, M - 1, 3\]"),
        ({"reduction": "max"}, "reduction: expected one of"),
    ],
)
def test_refuses(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        debiased(draw(5, 3), draw(5, 3, seed=1), **arguments)


def test_refuses_other_views() -> None:
    with pytest.raises(ValueError, match="views: expected 2, received 3"):
        debiased(draw(3, 5, 3))
    with pytest.raises(ValueError, match="2 or more samples"):
        debiased(draw(2, 1, 3))
