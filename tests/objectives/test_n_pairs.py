"""N-pairs loss by its formula, shards.

Legend: B batch, D embedding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nearfar.objectives import NPairs, n_pairs
from objectives.sharding import PARTS, over_parts

F64 = torch.float64
LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("tile", [0, 3])
@pytest.mark.parametrize("with_labels", [False, True])
def test_equals_the_formula(with_labels: bool, tile: int) -> None:
    a, p = draw(7, 4).requires_grad_(), draw(7, 4, seed=1).requires_grad_()
    labels = LABELS if with_labels else torch.arange(7)
    s = a @ p.t()
    each = torch.stack([
        torch.log(1 + sum(torch.exp(s[i, j] - s[i, i]) for j in range(7) if labels[j] != labels[i])) for i in range(7)
    ])  # fmt: skip
    each = each + 0.1 * (a.square().sum(1) + p.square().sum(1))
    options: dict[str, Any] = {"labels": LABELS if with_labels else None, "penalty": 0.1, "tile": tile}
    torch.testing.assert_close(n_pairs(a, p, reduction="none", **options), each)
    torch.testing.assert_close(n_pairs(a, p, reduction="sum", **options), each.sum())
    found = n_pairs(a, p, **options)
    torch.testing.assert_close(found, each.mean())
    torch.testing.assert_close(torch.autograd.grad(found, (a, p)), torch.autograd.grad(each.mean(), (a, p)))


@pytest.mark.parametrize("sizes", PARTS)
def test_shards_equal_the_whole(sizes: list[int]) -> None:
    a, p = draw(7, 4).requires_grad_(), draw(7, 4, seed=1).requires_grad_()
    whole = n_pairs(a, p, LABELS, penalty=0.2)
    parts = over_parts(
        sizes,
        lambda rows, offset: n_pairs(
            a[rows], p[rows], (LABELS[rows], LABELS), penalty=0.2, gathered=p, offset=offset, with_stats=True
        ),
    )
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, (a, p)), torch.autograd.grad(whole, (a, p)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_long_vectors_are_finite(dtype: torch.dtype) -> None:
    a, p = (100 * draw(6, 4)).to(dtype).requires_grad_(), (100 * draw(6, 4, seed=1)).to(dtype).requires_grad_()
    loss = n_pairs(a, p)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(a.grad).all()
    assert torch.isfinite(p.grad).all()


def test_module() -> None:
    a, p = draw(5, 4).float(), draw(5, 4, seed=1).float()
    torch.testing.assert_close(NPairs(0.3)(a, p, LABELS[:5]), n_pairs(a, p, LABELS[:5], penalty=0.3))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"positive": draw(6, 4)}, "positive: expected the shape of anchor"),
        ({"penalty": -1.0}, "penalty: expected a number of 0 or more"),
        ({"offset": 1}, "offset: expected 0 without gathered"),
    ],
)
def test_refuses(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        n_pairs(**{"anchor": draw(7, 4), "positive": draw(7, 4)} | arguments)
