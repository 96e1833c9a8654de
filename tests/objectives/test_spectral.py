"""Spectral contrast: its trace formula, least value, shards.

Legend: B batch, D embedding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize as unit

from nearfar.objectives import Spectral, spectral
from objectives.sharding import PARTS, over_parts

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("own_pairs", [False, True])
def test_equals_stored_products(own_pairs: bool, normalize: bool) -> None:
    a, b = draw(7, 4).requires_grad_(), draw(7, 4, seed=1).requires_grad_()
    x, y = (unit(a, dim=1), unit(b, dim=1)) if normalize else (a, b)
    s = 3.0 * x @ y.t()
    kept = torch.ones(7, 7, dtype=F64) if own_pairs else 1 - torch.eye(7, dtype=F64)
    each = -2 * s.diagonal() + (kept * s**2).sum(1) / kept.sum(1)
    options: dict[str, Any] = {"scale": 3.0, "normalize": normalize, "own_pairs": own_pairs}
    torch.testing.assert_close(spectral(a, b, reduction="none", **options), each)
    torch.testing.assert_close(spectral(a, b, reduction="sum", **options), each.sum())
    found = spectral(a, b, **options)
    torch.testing.assert_close(found, each.mean())
    torch.testing.assert_close(torch.autograd.grad(found, (a, b)), torch.autograd.grad(each.mean(), (a, b)))


def population() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All ordered pairs of two augmentations of five samples, each twice, and the moments A and Sigma."""
    x = draw(5, 3, 4, seed=3) + draw(5, 1, 4, seed=4)
    pairs = torch.stack([torch.stack([x[i, p], x[i, q]]) for i in range(5) for p in range(3) for q in range(3)])
    mean = x.mean(1)
    return pairs[:, 0], pairs[:, 1], mean.t() @ mean / 5, x.flatten(0, 1).t() @ x.flatten(0, 1) / 15


@pytest.mark.oracle("feature_bias", 1)
def test_the_trace_formula_and_its_gradient() -> None:
    first, second, a, sigma = population()
    w = draw(2, 4, seed=5).requires_grad_()
    gram = (w.t() @ w).detach()
    found = spectral(first @ w.t(), second @ w.t(), own_pairs=True)
    trace = -2 * torch.trace(a @ gram) + torch.trace(sigma @ gram @ sigma @ gram)
    torch.testing.assert_close(found, trace)
    (grad,) = torch.autograd.grad(found, w)
    torch.testing.assert_close(grad, (2 * w @ (-2 * a + 2 * sigma @ gram @ sigma)).detach())


@pytest.mark.oracle("feature_bias", 2)
@pytest.mark.parametrize("width", [1, 2, 4])
def test_descent_reaches_the_closed_form(width: int) -> None:
    first, second, a, sigma = population()
    values, vectors = torch.linalg.eigh(sigma)
    root = vectors @ torch.diag(values.rsqrt()) @ vectors.t()
    best = torch.linalg.eigvalsh(root @ a @ root).clamp_min(0).flip(0)[:width]
    w = (0.1 * draw(width, 4, seed=6)).requires_grad_()
    optimiser = torch.optim.LBFGS([w], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = spectral(first @ w.t(), second @ w.t(), own_pairs=True)
        loss.backward()
        return loss

    optimiser.step(closure)
    torch.testing.assert_close(closure().detach(), -best.square().sum(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", PARTS)
def test_shards_equal_the_whole(sizes: list[int]) -> None:
    a, b = draw(7, 4).requires_grad_(), draw(7, 4, seed=1).requires_grad_()
    whole = spectral(a, b)
    parts = over_parts(
        sizes, lambda rows, offset: spectral(a[rows], b[rows], gathered=b, offset=offset, with_stats=True)
    )
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, (a, b)), torch.autograd.grad(whole, (a, b)))


def test_derivatives_and_extremes() -> None:
    assert torch.autograd.gradcheck(spectral, (draw(5, 3).requires_grad_(), draw(5, 3, seed=1).requires_grad_()))
    for dtype in (torch.float16, torch.bfloat16):
        a = (10 * draw(6, 4)).to(dtype).requires_grad_()
        loss = spectral(a, a.detach())
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(a.grad).all()


def test_module() -> None:
    a, b = draw(5, 4).float(), draw(5, 4, seed=1).float()
    torch.testing.assert_close(Spectral(2.0, normalize=True)(a, b), spectral(a, b, scale=2.0, normalize=True))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"b": draw(6, 4)}, "b: expected the shape of a"),
        ({"scale": 0.0}, "scale: expected a finite number > 0"),
        ({"reduction": "max"}, "reduction: expected one of"),
        ({"offset": 1}, "offset: expected 0 without gathered"),
        ({"gathered": draw(9, 4), "offset": 3}, "offset: expected 0 to 2"),
        ({"gathered": draw(9, 3)}, r"gathered: expected shape \[N, 4\]"),
        ({"a": draw(1, 4), "b": draw(1, 4)}, "a: expected 2 or more rows"),
    ],
)
def test_refuses(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        spectral(**{"a": draw(7, 4), "b": draw(7, 4)} | arguments)
