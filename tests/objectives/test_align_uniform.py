"""Alignment and uniformity: the oracles, queues, rows of any length, shards, memory.

Legend: B batch, K queue, D embedding.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.special import hyp0f1
from torch import Tensor
from torch.nn.functional import normalize

from nearfar.contrast import Stats
from nearfar.evaluate import geometry
from nearfar.objectives import AlignUniform, align_uniform, alignment, info_nce, uniformity
from objectives.sharding import PARTS, over_parts
from objectives.storage import largest

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def stored(x: Tensor, t: float, queue: Tensor | None = None, in_batch: bool = True) -> Tensor:
    """Every pair once, then the logarithm of the mean."""
    distances = []
    if in_batch:
        upper = torch.triu_indices(len(x), len(x), 1)
        distances.append((x[upper[0]] - x[upper[1]]).square().sum(1))
    if queue is not None:
        distances.append((x[:, None] - queue[None]).square().sum(2).flatten())
    return torch.exp(-t * torch.cat(distances)).mean().log()


def simplex(num: int) -> Tensor:
    """Corners of a regular simplex of `num` points, as unit vectors."""
    return normalize(torch.eye(num, dtype=F64) - 1 / num, dim=1)


@pytest.mark.oracle("align_uniform", 1)
@pytest.mark.parametrize("dim", [2, 3, 128])
def test_the_uniform_law_has_its_value(dim: int) -> None:
    """The law's projection is constant, so that the error falls as one over the rows, not over their root."""
    expected = -4 + math.log(float(hyp0f1(dim / 2, 4.0)))
    assert expected == pytest.approx({2: -1.5750, 3: -2.0799, 128: -3.94}[dim], abs=5e-3)
    if dim == 3:
        assert expected == pytest.approx(-4 + math.log(math.sinh(4) / 4), rel=1e-12)
    found = uniformity(draw(4000, dim, seed=1).float())
    assert float(found) == pytest.approx(expected, abs=1e-2)
    assert geometry(draw(4000, dim, seed=1).float())["uniformity"] == pytest.approx(float(found), abs=1e-4)


def test_in_many_dimensions_it_is_two_t() -> None:
    assert float(uniformity(draw(200, 20000), t=1.5)) == pytest.approx(-3.0, abs=1e-2)


@pytest.mark.oracle("align_uniform", 2)
def test_collapse_and_two_poles() -> None:
    one = torch.ones(5, 3, dtype=F64)
    assert float(uniformity(one)) == pytest.approx(0, abs=1e-12)
    for alpha in (0.5, 1.0, 2.0, 3.0):
        assert float(alignment(one, one, alpha=alpha)) == 0
    poles = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=F64)
    for t in (0.5, 2.0):
        assert float(uniformity(poles, t=t)) == pytest.approx(-4 * t, rel=1e-12)


@pytest.mark.oracle("align_uniform", 3)
@pytest.mark.parametrize("num", [2, 3, 8])
def test_a_simplex_is_the_least(num: int) -> None:
    points, t = simplex(num), 2.0
    least = -2 * t * num / (num - 1)
    assert float(uniformity(points, t=t)) == pytest.approx(least, rel=1e-12)
    leaf = points.clone().requires_grad_()
    uniformity(leaf, t=t).backward()
    assert leaf.grad.abs().max() < 1e-12
    for seed in range(5):
        assert float(uniformity(points + 0.1 * draw(num, num, seed=seed), t=t)) > least


@pytest.mark.oracle("align_uniform", 4)
def test_alignment_by_cosines_and_rotation() -> None:
    x, y = draw(6, 4), draw(6, 4, seed=1)
    u, v = normalize(x, dim=1), normalize(y, dim=1)
    torch.testing.assert_close(alignment(x, y), 2 - 2 * (u * v).sum(1).mean())
    turn = torch.linalg.qr(draw(4, 4, seed=2))[0]
    torch.testing.assert_close(alignment(x @ turn, y @ turn, alpha=1.3), alignment(x, y, alpha=1.3))
    torch.testing.assert_close(uniformity(x @ turn), uniformity(x))


@pytest.mark.oracle("align_uniform", 5)
def test_many_negatives_tell_both_apart() -> None:
    """InfoNCE - log M goes to -E cos/t + E log E exp(cos / t); the latter is log(sinh(1/t) t) in three dimensions."""
    t, num = 0.5, 40000
    queue, query = draw(num, 3, seed=1), draw(4000, 3, seed=2)
    key = normalize(query, dim=1) + 0.3 * draw(4000, 3, seed=3)
    attraction = (normalize(query, dim=1) * normalize(key, dim=1)).sum(1).mean() / t
    limit = -float(attraction) + math.log(math.sinh(1 / t) * t)
    found = float(info_nce(query.float(), key.float(), queue.float(), temperature=t)) - math.log(num)
    assert found == pytest.approx(limit, abs=1e-2)


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("case", ["batch", "queue", "both", "moving queue"])
@pytest.mark.parametrize("tile", [None, 3])
def test_equals_stored_pairs(case: str, unit: bool, tile: int | None) -> None:
    x, queue = draw(7, 4).requires_grad_(), draw(9, 4, seed=1)
    if case == "moving queue":
        queue.requires_grad_()
    options: dict[str, Any] = {"in_batch": case in ("batch", "both")}
    options["queue"] = None if case == "batch" else queue
    u, k = (normalize(r, dim=1) for r in (x, queue))
    if not unit:
        x, queue = (r.detach().requires_grad_(r.requires_grad) for r in (u, k))
        options["queue"] = None if case == "batch" else queue
        u, k = x, queue
    found = uniformity(x, t=1.7, normalize=unit, tile=tile, **options)
    expected = stored(u, 1.7, None if case == "batch" else k, options["in_batch"])
    torch.testing.assert_close(found, expected)
    leaves = (x, queue) if case == "moving queue" else (x,)
    torch.testing.assert_close(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves))


def test_rows_of_any_length_far_from_the_origin() -> None:
    x = (3 + 0.3 * draw(50, 4)).float()
    with pytest.warns(UserWarning, match="norms differ from 1 by up to"):
        found = uniformity(x, normalize=False)
    torch.testing.assert_close(found.double(), stored(x.double(), 2.0), rtol=1e-5, atol=1e-5)


def test_large_batches_equal_stored_pairs() -> None:
    z = draw(2, 900, 8, seed=1)
    for unit in (True, False):
        leaf = normalize(z, dim=2).requires_grad_()
        found = align_uniform(leaf, normalize=unit)
        rows = normalize(leaf, dim=2) if unit else leaf
        expected = (rows[0] - rows[1]).square().sum(1).mean() + (stored(rows[0], 2.0) + stored(rows[1], 2.0)) / 2
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, leaf), torch.autograd.grad(expected, leaf))


@pytest.mark.parametrize("unit", [True, False])
def test_no_matrix_is_stored(unit: bool) -> None:
    x = normalize(draw(1700, 8).float(), dim=1).requires_grad_()
    assert 64 * 64 <= largest(lambda: uniformity(x, normalize=unit, tile=64).backward()) <= 1700 * 1700 / 4


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0])
def test_powers_and_reductions(alpha: float) -> None:
    x, y = draw(5, 3).requires_grad_(), draw(5, 3, seed=1).requires_grad_()
    expected = (normalize(x, dim=1) - normalize(y, dim=1)).norm(dim=1) ** alpha
    found = alignment(x, y, alpha=alpha, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=2 * 1e-12 ** (alpha / 2) if alpha < 2 else 1e-12)
    torch.testing.assert_close(alignment(x, y, alpha=alpha), found.mean())
    torch.testing.assert_close(alignment(x, y, alpha=alpha, reduction="sum"), found.sum())
    (grad,) = torch.autograd.grad(alignment(x, x.detach(), alpha=alpha), x)
    assert torch.equal(grad, torch.zeros_like(grad))


def test_gradcheck() -> None:
    x, y = draw(5, 3).requires_grad_(), draw(5, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: align_uniform(a, b, alpha=1.5, t=1.3), (x, y))


def test_weights_add_up_and_the_queue_replaces_the_keys() -> None:
    x, y, queue = draw(5, 3), draw(5, 3, seed=1), draw(8, 3, seed=2)
    found = align_uniform(x, y, align_weight=0.5, uniform_weight=3.0)
    torch.testing.assert_close(found, 0.5 * alignment(x, y) + 1.5 * (uniformity(x) + uniformity(y)))
    found = align_uniform(x, y, queue=queue, in_batch=False)
    torch.testing.assert_close(found, alignment(x, y) + uniformity(x, queue, in_batch=False))


@pytest.mark.parametrize("sizes", PARTS)
def test_shards_equal_the_whole(sizes: list[int]) -> None:
    z = draw(2, 7, 4).requires_grad_()
    whole = align_uniform(z)

    def part(rows: slice, offset: int) -> tuple[Tensor, Stats]:
        return align_uniform(z[:, rows], gathered=z, offset=offset, with_stats=True)

    parts = over_parts(sizes, part)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, z), torch.autograd.grad(whole, z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("t", [2.0, 100.0])
def test_extremes_are_finite(dtype: torch.dtype, t: float) -> None:
    for rows in (torch.ones(6, 4), torch.zeros(6, 4), torch.cat([torch.ones(3, 4), -torch.ones(3, 4)])):
        z = torch.stack([rows, rows]).to(dtype).requires_grad_()
        loss = align_uniform(z, alpha=0.5, t=t)
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(z.grad).all()


def test_module() -> None:
    z = draw(2, 5, 3)
    module = AlignUniform(1.0, 3.0, 0.5, 2.0)
    torch.testing.assert_close(module(z), align_uniform(z, alpha=1.0, t=3.0, align_weight=0.5, uniform_weight=2.0))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda z: alignment(z, z, alpha=0.0), "alpha: expected a finite number > 0"),
        (lambda z: alignment(z, z[:3]), "y: expected the shape of x"),
        (lambda z: alignment(z, z, reduction="max"), "reduction: expected one of"),
        (lambda z: uniformity(z, t=-1.0), "t: expected a finite number > 0"),
        (lambda z: uniformity(z[:1]), r"x: expected shape \[B, D\], B >= 2"),
        (lambda z: uniformity(z, in_batch=False), "in_batch: expected True without a queue"),
        (lambda z: uniformity(z, z[:, :2]), r"queue: expected shape \[K, 3\]"),
        (lambda z: align_uniform(torch.stack([z, z, z])), "views: expected 2, received 3"),
        (lambda z: align_uniform(z, z, align_weight=-1.0), "align_weight: expected a finite number of 0 or more"),
        (lambda z: align_uniform(z, z, gathered=[z, z], offset=1), "offset: expected 0 to 0"),
        (lambda z: AlignUniform(alpha=-1.0), "alpha: expected a finite number > 0"),
    ],
)
def test_refuses(call: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call(draw(5, 3))


def test_integers_are_refused() -> None:
    with pytest.raises(TypeError, match="x: expected floating point"):
        uniformity(torch.ones(3, 2, dtype=torch.long))
