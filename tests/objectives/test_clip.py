"""CLIP: cross-entropy both ways, shards, temperature and scale, Module.

Legend: B batch, D embedding.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from nearfar.objectives import CLIP, clip, info_nce
from objectives.sharding import PARTS, over_parts

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
@pytest.mark.parametrize("tile", [0, 3])
def test_equals_cross_entropy_both_ways(tile: int, temperature: float) -> None:
    a, b = draw(7, 4).requires_grad_(), draw(7, 4, seed=1).requires_grad_()
    logits = normalize(a, dim=1) @ normalize(b, dim=1).t() / temperature
    rows = torch.arange(7)
    expected = (cross_entropy(logits, rows) + cross_entropy(logits.t(), rows)) / 2
    found = clip(a, b, temperature=temperature, tile=tile)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, (a, b)), torch.autograd.grad(expected, (a, b)))


@pytest.mark.parametrize("tile", [0, 3])
def test_closed_forms_and_symmetry(tile: int) -> None:
    eye, same = torch.eye(5, dtype=F64), torch.ones(5, 3, dtype=F64)
    expected = math.log(1 + 4 * math.exp(-2))
    assert float(clip(eye, 3 * eye, temperature=0.5, tile=tile)) == pytest.approx(expected, rel=1e-12)
    assert float(clip(same, same, tile=tile)) == pytest.approx(math.log(5), rel=1e-12)
    a, b = draw(5, 4), draw(5, 4, seed=1)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(clip(a, b, tile=tile), clip(b, a, tile=tile))
    torch.testing.assert_close(clip(a[order], b[order], tile=tile), clip(a, b, tile=tile))
    one_way = [info_nce(x, y, in_batch=True, temperature=0.07) for x, y in ((a, b), (b, a))]
    torch.testing.assert_close(clip(a, b, tile=tile), (one_way[0] + one_way[1]) / 2)


@pytest.mark.parametrize("tile", [None, 3])
@pytest.mark.parametrize("sizes", PARTS)
def test_shards_equal_the_whole(sizes: list[int], tile: int | None) -> None:
    a, b = draw(7, 4).requires_grad_(), draw(7, 4, seed=1).requires_grad_()
    whole = clip(a, b, tile=tile)
    parts = over_parts(
        sizes,
        lambda rows, offset: clip(a[rows], b[rows], gathered=(a, b), offset=offset, tile=tile, with_stats=True),
    )
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, (a, b)), torch.autograd.grad(whole, (a, b)))


@pytest.mark.parametrize("tile", [0, 3])
def test_scale_is_one_over_temperature(tile: int) -> None:
    a, b = draw(6, 4), draw(6, 4, seed=1)
    torch.testing.assert_close(clip(a, b, scale=20.0, tile=tile), clip(a, b, temperature=0.05, tile=tile))
    log_scale = torch.tensor(1.0, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: clip(a, b, scale=s.exp(), tile=tile), (log_scale,))


def test_reductions_and_stats() -> None:
    a, b = draw(6, 4), draw(6, 4, seed=1)
    for options in ({}, {"gathered": (a, b)}):
        each = clip(a, b, reduction="none", **options)
        assert each.shape == (12,)
        torch.testing.assert_close(clip(a, b, reduction="sum", **options), each.sum() / 2)
        loss, stats = clip(a, b, with_stats=True, **options)
        torch.testing.assert_close(loss, each.mean())
        assert (stats.num_anchors, stats.num_empty) == (12, 0)
    _, stats = clip(torch.eye(4), torch.eye(4), with_stats=True)
    assert float(stats.accuracy) == 1


def test_complaints() -> None:
    a, b = draw(6, 4), draw(6, 4, seed=1)
    with pytest.raises(ValueError, match="b: expected the shape of a"):
        clip(a, b[:5])
    with pytest.raises(ValueError, match="scale: expected a finite number > 0"):
        clip(a, b, scale=-1.0)
    with pytest.raises(ValueError, match="offset: expected 0 without gathered"):
        clip(a, b, offset=2)
    with pytest.raises(ValueError, match="targets: expected values"):
        clip(a, b, gathered=(a, b), offset=1)


def test_module_is_the_function() -> None:
    a, b = draw(6, 4), draw(6, 4, seed=1)
    torch.testing.assert_close(CLIP()(a, b), clip(a, b))
    module = CLIP(0.2, learnable_temperature=True, tile=4)
    torch.testing.assert_close(module(a, b).detach(), clip(a, b, temperature=0.2), rtol=1e-6, atol=0)
    module(a, b).backward()
    assert module.tau.log_value.grad.abs() > 0
    other = CLIP(0.1, learnable_temperature=True)
    other.load_state_dict(module.state_dict())
    torch.testing.assert_close(other.temperature, module.temperature)
    assert (module.needs_negatives, module.distributed, module.symmetric) == (True, "gather_candidates", True)
