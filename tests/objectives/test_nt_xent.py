"""NT-Xent: the oracles of its sheet, shards, options, Module.

Legend: B batch, V views, D embedding.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from nearfar.objectives import NTXent, nt_xent, supcon
from objectives.sharding import PARTS, over_parts

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def brute(z: Tensor, temperature: float) -> float:
    """Mean over all embeddings of [V, B, D], by loops over Python numbers."""
    num_views, num = z.shape[:2]
    rows = [(v, b, z[v, b].tolist()) for v in range(num_views) for b in range(num)]

    def similarity(x: list[float], y: list[float]) -> float:
        norm = math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
        return sum(a * b for a, b in zip(x, y, strict=True)) / norm / temperature

    total = 0.0
    for v, b, x in rows:
        others = [(w, c, similarity(x, y)) for w, c, y in rows if (w, c) != (v, b)]
        mates = [s for _, c, s in others if c == b]
        total += math.log(sum(math.exp(s) for _, _, s in others)) - sum(mates) / len(mates)
    return total / len(rows)


@pytest.mark.oracle("simclr", 1)
@pytest.mark.parametrize("tile", [0, 3])
@pytest.mark.parametrize("num_views", [2, 3])
@pytest.mark.parametrize("num", [3, 4, 5])
def test_equals_double_loops(num: int, num_views: int, tile: int) -> None:
    z = draw(num_views, num, 4, seed=num)
    for temperature in (0.1, 0.7):
        assert float(nt_xent(z, temperature=temperature, tile=tile)) == pytest.approx(brute(z, temperature), rel=1e-10)
        assert float(nt_xent(*z, temperature=temperature, tile=tile)) == pytest.approx(brute(z, temperature), rel=1e-10)


@pytest.mark.oracle("simclr", 2)
@pytest.mark.parametrize("tile", [0, 3])
def test_identical_embeddings(tile: int) -> None:
    z = draw(1, 1, 4).expand(2, 5, 4)
    for temperature in (0.01, 0.1, 1.0):
        assert float(nt_xent(z, temperature=temperature, tile=tile)) == pytest.approx(math.log(9), abs=1e-10)


@pytest.mark.oracle("simclr", 3)
@pytest.mark.parametrize("tile", [0, 3])
def test_identical_views_of_orthogonal_images(tile: int) -> None:
    z = torch.eye(5, dtype=F64)
    expected = math.log(1 + 8 * math.exp(-1 / 0.3))
    assert float(nt_xent(z, 2 * z, temperature=0.3, tile=tile)) == pytest.approx(expected, rel=1e-12)
    with pytest.warns(UserWarning, match="one sample has no negatives"):
        assert float(nt_xent(z[:1], z[:1], tile=tile)) == 0


@pytest.mark.oracle("simclr", 4)
@pytest.mark.parametrize("tile", [0, 3])
def test_invariances(tile: int) -> None:
    z = draw(2, 6, 5)
    loss = nt_xent(z, tile=tile)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    rotation = torch.linalg.qr(draw(5, 5, seed=1))[0]
    scale = draw(2, 6, 1, seed=2).exp()
    for changed in (z @ rotation, z * scale, z[:, order], z.flip(0)):
        torch.testing.assert_close(nt_xent(changed, tile=tile), loss)
    z.requires_grad_()
    (grad,) = torch.autograd.grad(nt_xent(z, tile=tile), z)
    torch.testing.assert_close((grad * z).sum(-1).detach(), torch.zeros(2, 6, dtype=F64), atol=1e-12, rtol=0)
    assert grad.abs().sum() > 0


@pytest.mark.oracle("simclr", 5)
@pytest.mark.parametrize("tile", [0, 3])
def test_equals_masked_cross_entropy_and_supcon(tile: int) -> None:
    z = draw(2, 5, 4)
    u = torch.nn.functional.normalize(z.flatten(0, 1), dim=1)
    logits = (u @ u.t() / 0.2).fill_diagonal_(float("-inf"))
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(10).roll(5))
    torch.testing.assert_close(nt_xent(z, temperature=0.2, tile=tile), expected)
    torch.testing.assert_close(supcon(z, torch.arange(5), temperature=0.2, tile=tile), expected)


@pytest.mark.oracle("simclr", 6)
@pytest.mark.parametrize("tile", [None, 3])
@pytest.mark.parametrize("num_views", [2, 3])
@pytest.mark.parametrize("sizes", PARTS)
def test_shards_equal_the_whole(sizes: list[int], num_views: int, tile: int | None) -> None:
    z = draw(num_views, 7, 4).requires_grad_()
    whole = nt_xent(z, tile=tile)
    parts = over_parts(
        sizes, lambda rows, offset: nt_xent(z[:, rows], gathered=z, offset=offset, tile=tile, with_stats=True)
    )
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, z), torch.autograd.grad(whole, z))


@pytest.mark.parametrize("tile", [0, 3])
def test_derivatives(tile: int) -> None:
    temperature = torch.tensor(0.3, dtype=F64, requires_grad=True)
    z = draw(2, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z, t: nt_xent(z, temperature=t, tile=tile), (z, temperature))


def test_reductions_and_stats() -> None:
    z = draw(2, 5, 4)
    each = nt_xent(z, reduction="none")
    assert each.shape == (10,)
    torch.testing.assert_close(nt_xent(z, reduction="sum"), each.sum())
    loss, stats = nt_xent(z, with_stats=True)
    torch.testing.assert_close(loss, each.mean())
    assert (stats.num_anchors, stats.num_empty) == (10, 0)
    _, stats = nt_xent(torch.eye(4), torch.eye(4), with_stats=True)
    assert float(stats.accuracy) == 1


def test_complaints() -> None:
    z = draw(2, 5, 4)
    with pytest.raises(ValueError, match="views: expected 2 or more views, received 1"):
        nt_xent(z[:1])
    with pytest.raises(ValueError, match=r"views: expected shape \[V, B, D\]"):
        nt_xent(z[0])
    with pytest.raises(ValueError, match="views: expected views of one shape"):
        nt_xent(z[0], z[1, :3])
    with pytest.raises(ValueError, match="one or more samples"):
        nt_xent(z[:, :0])
    with pytest.raises(ValueError, match="offset: expected 0 to 3"):
        nt_xent(z[:, :2], gathered=z, offset=4)
    with pytest.raises(ValueError, match="gathered: expected 2 views"):
        nt_xent(z, gathered=z[:1])
    with pytest.raises(ValueError, match="temperature: expected a finite number > 0"):
        nt_xent(z, temperature=0.0)


def test_module_is_the_function() -> None:
    z = draw(2, 5, 4)
    module = NTXent(0.3, tile=3)
    torch.testing.assert_close(module(*z), nt_xent(z, temperature=0.3), rtol=1e-12, atol=0)
    assert module.temperature == 0.3
    assert not list(module.parameters())
    assert (module.needs_negatives, module.distributed, module.symmetric) == (True, "gather_candidates", True)


def test_learnt_temperature() -> None:
    module, z = NTXent(0.5, learnable_temperature=True), draw(2, 8, 4)
    with torch.no_grad():
        torch.testing.assert_close(module(z), nt_xent(z, temperature=0.5), rtol=1e-6, atol=0)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        optimiser.zero_grad()
        loss = module(z)
        loss.backward()
        losses.append(float(loss.detach()))
        optimiser.step()
    assert all(after < before for before, after in pairwise(losses))
    other = NTXent(0.1, learnable_temperature=True)
    other.load_state_dict(module.state_dict())
    torch.testing.assert_close(other(z), module(z))
    assert list(module.state_dict()) == ["tau.log_value"]


def test_learnt_temperature_has_a_floor_with_a_way_back() -> None:
    module = NTXent(0.5, learnable_temperature=True)
    with torch.no_grad():
        module.tau.log_value.fill_(-9.0)
    torch.testing.assert_close(module.temperature.detach(), torch.tensor(0.01))
    up, down = -module.temperature, module.temperature
    assert torch.autograd.grad(up, module.tau.log_value)[0] < 0
    assert torch.autograd.grad(down, module.tau.log_value)[0] == 0
