"""Hyperbolic contrast and entailment: MERU's oracles of its losses, shards, bounds of the curvature.

Legend: B batch, D embedding.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nearfar.lorentz import distance, exp_map, exterior_angle, half_aperture, lift
from nearfar.objectives import LorentzCLIP, entailment, lorentz_clip
from objectives.sharding import PARTS, over_parts

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("tile", [0, 3])
def test_equals_cross_entropies_of_distances(tile: int) -> None:
    a, b = exp_map(draw(7, 4)).requires_grad_(), exp_map(draw(7, 4, seed=1)).requires_grad_()
    c, t = (torch.tensor(x, dtype=F64, requires_grad=True) for x in (0.7, 0.3))
    logits = -distance(a[:, None].expand(7, 7, 4), b[None].expand(7, 7, 4), c) / t
    rows = torch.arange(7)
    expected = (cross_entropy(logits, rows) + cross_entropy(logits.t(), rows)) / 2
    angle = torch.stack([exterior_angle(y, x, c) - half_aperture(y, c) for x, y in zip(a, b, strict=True)])
    expected = expected + 0.5 * angle.clamp_min(0).mean()
    found = lorentz_clip(a, b, curvature=c, temperature=t, entail=0.5, tile=tile)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, (a, b, c, t)), torch.autograd.grad(expected, (a, b, c, t)))


@pytest.mark.oracle("meru", 5)
def test_entailment_of_what_lies_behind() -> None:
    v = draw(20, 4)
    text = exp_map(v)
    assert float(entailment(text, exp_map(1.5 * v), min_radius=0.05)) == 0
    assert float(entailment(text, exp_map(0.5 * v))) > 1
    aside = entailment(text, exp_map(draw(20, 4, seed=1)), reduction="none")
    by_hand = exterior_angle(text, exp_map(draw(20, 4, seed=1))) - half_aperture(text)
    torch.testing.assert_close(aside, by_hand.clamp_min(0))


@pytest.mark.oracle("meru", 5)
def test_inner_products_rank_as_distances() -> None:
    x, y = exp_map(draw(1, 4)), exp_map(draw(50, 4, seed=1))
    inner = (y @ x[0]) - lift(y) * lift(x)
    assert torch.equal(inner.argsort(), (-distance(x.expand_as(y), y)).argsort())


@pytest.mark.parametrize("sizes", PARTS)
def test_shards_equal_the_whole(sizes: list[int]) -> None:
    a, b = exp_map(draw(7, 4)).requires_grad_(), exp_map(draw(7, 4, seed=1)).requires_grad_()
    whole = lorentz_clip(a, b, curvature=0.5)
    parts = over_parts(
        sizes,
        lambda rows, offset: lorentz_clip(
            a[rows], b[rows], gathered=(a, b), offset=offset, curvature=0.5, with_stats=True
        ),
    )
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, (a, b)), torch.autograd.grad(whole, (a, b)))


def test_derivatives() -> None:
    v, w = draw(4, 3).requires_grad_(), draw(4, 3, seed=1).requires_grad_()
    c = torch.tensor(0.7, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda v, w, c: lorentz_clip(exp_map(v, c), exp_map(w, c), curvature=c, temperature=0.5, tile=0), (v, w, c)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cold_and_extreme_rows_are_finite(dtype: torch.dtype) -> None:
    module = LorentzCLIP(0.01)
    for rows in (torch.ones(6, 4), draw(6, 4), torch.zeros(6, 4), 1e4 * draw(6, 4)):
        a, b = rows.to(dtype).requires_grad_(), rows.flip(0).to(dtype).requires_grad_()
        loss = module(a, b)
        grads = torch.autograd.grad(loss, (a, b, module.log_curvature))
        assert torch.isfinite(loss)
        assert all(torch.isfinite(g).all() for g in grads)


def test_module_holds_its_curvature_within_bounds() -> None:
    module, a, b = LorentzCLIP(learnable_temperature=True, curvature=2.0), draw(5, 3).float(), draw(5, 3).float()
    points = exp_map(a, 2.0), exp_map(b, 2.0)
    torch.testing.assert_close(module(a, b), lorentz_clip(*points, curvature=2.0))
    torch.testing.assert_close(module(a, b, gathered=(a, b)), lorentz_clip(*points, curvature=2.0))
    module(a, b).backward()
    assert module.tau.log_value.grad is not None
    assert module.log_curvature.grad != 0
    for value, bound, back in ((-9.0, 0.2, -1.0), (9.0, 20.0, 1.0)):
        with torch.no_grad():
            module.log_curvature.fill_(value)
        assert module.curvature.item() == pytest.approx(bound)
        for direction in (1.0, -1.0):  # a gradient that leads back passes, one that leads on is stopped
            (grad,) = torch.autograd.grad(direction * module.curvature, module.log_curvature)
            assert (grad != 0) == (direction == back)


def test_value_by_hand() -> None:
    x = torch.eye(2)
    loss = lorentz_clip(x, -x, temperature=1.0, entail=0.0)
    assert float(loss) == pytest.approx(math.log1p(math.exp(math.acosh(3) - math.acosh(2))))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"b": draw(6, 4)}, "b: expected the shape of a"),
        ({"curvature": -1.0}, "curvature: expected a finite number > 0"),
        ({"temperature": 0.0}, "temperature: expected a finite number > 0"),
        ({"entail": -1.0}, "entail: expected a number of 0 or more"),
        ({"min_radius": 0.0}, "min_radius: expected a finite number > 0"),
        ({"offset": 2}, "offset: expected 0 without gathered"),
    ],
)
def test_refuses(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        lorentz_clip(**{"a": draw(7, 4), "b": draw(7, 4)} | arguments)


def test_entailment_refuses() -> None:
    with pytest.raises(ValueError, match="specific: expected the shape of general"):
        entailment(draw(3, 4), draw(4, 4))
    with pytest.raises(ValueError, match="reduction: expected one of"):
        entailment(draw(3, 4), draw(3, 4), reduction="max")
