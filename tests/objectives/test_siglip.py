"""SigLIP: the oracles, shards, masks, Module.

Legend: B batch, D embedding.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from nearfar.objectives import SigLIP, siglip
from objectives.sharding import PARTS

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def stored(a: Tensor, b: Tensor, scale: Any, bias: Any, ids: Tensor | None = None) -> Tensor:
    """The loss of every row from stored logits."""
    logits = scale * normalize(a, dim=1) @ normalize(b, dim=1).t() + bias
    signs = 2 * torch.eye(len(a), dtype=F64) - 1
    pairs = -logsigmoid(signs * logits)
    if ids is not None:
        pairs = pairs.masked_fill((ids[:, None] == ids[None]) & (signs < 0), 0.0)
    return pairs.sum(1)


@pytest.mark.oracle("siglip", 1)
@pytest.mark.parametrize("tile", [1, 2, 64, None])
def test_equals_a_double_loop(tile: int | None) -> None:
    a, b = draw(5, 3), draw(5, 3, seed=1)
    u, v = normalize(a, dim=1).tolist(), normalize(b, dim=1).tolist()
    total = 0.0
    for i in range(5):
        for j in range(5):
            logit = 7.0 * sum(x * y for x, y in zip(u[i], v[j], strict=True)) - 2.0
            total += math.log(1 + math.exp(-logit if i == j else logit))
    assert float(siglip(a, b, scale=7.0, bias=-2.0, tile=tile)) == pytest.approx(total / 5, rel=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("tile", [1, 3, 64])
@pytest.mark.parametrize("with_ids", [False, True])
def test_equals_stored_logits_in_value_and_gradient(tile: int, reduction: str, with_ids: bool) -> None:
    leaves = draw(7, 4), draw(7, 4, seed=1), torch.tensor(5.0, dtype=F64), torch.tensor(-1.0, dtype=F64)
    a, b, scale, bias = (x.requires_grad_() for x in leaves)
    ids = torch.tensor([0, 1, 0, 2, 2, 3, 0]) if with_ids else None
    found = siglip(a, b, scale=scale, bias=bias, ids=ids, reduction=reduction, tile=tile)
    expected = stored(a, b, scale, bias, ids)
    expected = {"mean": expected.mean(), "sum": expected.sum(), "none": expected}[reduction]
    torch.testing.assert_close(found, expected)
    weight = torch.rand(found.shape, generator=torch.Generator().manual_seed(3), dtype=F64)
    got = torch.autograd.grad((found * weight).sum(), (a, b, scale, bias))
    torch.testing.assert_close(got, torch.autograd.grad((expected * weight).sum(), (a, b, scale, bias)))


@pytest.mark.oracle("siglip", 2)
@pytest.mark.parametrize("sizes", PARTS)
def test_blocks_equal_the_whole(sizes: list[int]) -> None:
    a, b = draw(7, 4).requires_grad_(), draw(7, 4, seed=1).requires_grad_()
    whole = siglip(a, b, scale=5.0, bias=-2.0)
    offsets = [sum(sizes[:i]) for i in range(len(sizes))]
    parts = torch.stack([
        siglip(a[o : o + n], b[o : o + n], scale=5.0, bias=-2.0, gathered=b, offset=o, reduction="sum")
        for o, n in zip(offsets, sizes, strict=True) if n
    ]).sum() / 7  # fmt: skip
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, (a, b)), torch.autograd.grad(whole, (a, b)))


@pytest.mark.oracle("siglip", 3)
def test_gradient_has_its_closed_form() -> None:
    a, b = normalize(draw(6, 4), dim=1), normalize(draw(6, 4, seed=1), dim=1)
    a.requires_grad_()
    scale, bias = 8.0, -3.0
    (grad,) = torch.autograd.grad(siglip(a, b, scale=scale, bias=bias, tile=4), a)
    slope_BB = scale / 6 * (torch.sigmoid(scale * a @ b.t() + bias) - torch.eye(6, dtype=F64))
    along = slope_BB @ b
    u = a.detach()
    torch.testing.assert_close(grad, along - (along * u).sum(1, keepdim=True) * u)  # through the normalising


@pytest.mark.oracle("siglip", 4)
def test_one_pair_and_the_start() -> None:
    one = draw(1, 4)
    assert float(siglip(one, one, scale=3.0, bias=-1.0)) == pytest.approx(math.log1p(math.exp(-2.0)), rel=1e-12)
    wide = torch.eye(512, dtype=F64)  # orthogonal, so every cosine is 0
    expected = math.log1p(math.exp(10)) + 255 * math.log1p(math.exp(-10))
    assert float(siglip(wide[:256], wide[256:])) == pytest.approx(expected, rel=1e-12)
    assert expected == pytest.approx(10.00005 + 255 * 4.54e-5, rel=1e-5)


@pytest.mark.oracle("siglip", 5)
def test_the_best_constant_bias() -> None:
    wide = torch.eye(32, dtype=F64)
    bias = torch.tensor(0.0, dtype=F64, requires_grad=True)
    optimiser = torch.optim.LBFGS([bias], max_iter=50, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = siglip(wide[:16], wide[16:], bias=bias)
        loss.backward()
        return loss

    optimiser.step(closure)
    assert float(bias.detach()) == pytest.approx(-math.log(15), abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_extremes_are_finite(dtype: torch.dtype, scale: float) -> None:
    for rows in (torch.ones(6, 4), torch.zeros(6, 4), torch.cat([torch.ones(3, 4), -torch.ones(3, 4)])):
        z = rows.to(dtype).requires_grad_()
        loss = siglip(z, z, scale=scale, bias=-10.0)
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(z.grad).all()


def test_module() -> None:
    module = SigLIP()
    a, b = draw(4, 3).float(), draw(4, 3, seed=1).float()
    torch.testing.assert_close(module(a, b), siglip(a, b))
    module(a, b).backward()
    assert module.log_scale.grad is not None
    assert module.bias.grad is not None
    other = SigLIP(scale=2.0, bias=0.0, learnable=False)
    assert not any(p.requires_grad for p in other.parameters())
    other.load_state_dict(module.state_dict())
    torch.testing.assert_close(other(a, b), module(a, b))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"b": draw(4, 3)}, "b: expected the shape of a"),
        ({"scale": 0.0}, "scale: expected a finite number > 0"),
        ({"bias": math.inf}, "bias: expected a finite number"),
        ({"bias": torch.zeros(2)}, "bias: expected a number or a tensor"),
        ({"offset": 1}, "offset: expected 0 without gathered"),
        ({"gathered": draw(9, 2)}, r"gathered: expected shape \[N, 3\]"),
        ({"gathered": draw(9, 3), "offset": 5}, "offset: expected 0 to 4"),
        ({"ids": torch.arange(3)}, "ids: expected shapes"),
        ({"reduction": "max"}, "reduction: expected one of"),
    ],
)
def test_refuses(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        siglip(draw(5, 3), **({"b": draw(5, 3)} | arguments))


def test_integers_are_refused() -> None:
    with pytest.raises(TypeError, match="floating point"):
        siglip(torch.ones(2, 2, dtype=torch.long), torch.ones(2, 2, dtype=torch.long))
