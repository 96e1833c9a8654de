"""Margin loss by loops, its learnt boundary, shards.

Legend: V views, B batch, D embedding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nearfar.objectives import Margin, margin
from objectives.sharding import PARTS, over_parts

F64 = torch.float64
LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def listed(z: Tensor, labels: Tensor, m: float, beta: Tensor, unit: bool) -> Tensor:
    x, y = z.flatten(0, 1), labels.repeat(len(z))
    x = normalize(x, dim=1) if unit else x
    losses = []
    for i in range(len(x)):
        b = beta[y[i]] if beta.ndim else beta
        for j in range(len(x)):
            if i != j:
                d = (x[i] - x[j]).norm()
                losses.append((m + d - b if y[i] == y[j] else m + b - d).clamp_min(0))
    return torch.stack(losses)


@pytest.mark.parametrize("tile", [0, 4])
@pytest.mark.parametrize("num_views", [1, 2])
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("per_class", [False, True])
def test_equals_a_list_of_pairs(per_class: bool, unit: bool, num_views: int, tile: int) -> None:
    z = draw(num_views, 7, 4).requires_grad_()
    beta = (torch.linspace(0.8, 1.5, 4, dtype=F64) if per_class else torch.tensor(1.1, dtype=F64)).requires_grad_()
    each = listed(z, LABELS, 0.3, beta, unit)
    for average, want in (("active", each.sum() / (each > 0).sum()), ("all", each.mean())):
        found = margin(z, LABELS, margin=0.3, beta=beta, normalize=unit, average=average, tile=tile)
        torch.testing.assert_close(found, want)
        torch.testing.assert_close(
            torch.autograd.grad(found, (z, beta)), torch.autograd.grad(want, (z, beta), retain_graph=True)
        )


@pytest.mark.parametrize("average", ["active", "all"])
@pytest.mark.parametrize("sizes", PARTS)
def test_shards_equal_the_whole(sizes: list[int], average: str) -> None:
    z = draw(7, 4).requires_grad_()
    whole = margin(z, LABELS, average=average)
    parts = over_parts(
        sizes,
        lambda rows, offset: margin(
            z[rows], LABELS[rows], gathered=(z, LABELS), offset=offset, with_stats=True, average=average
        ),
    )  # fmt: skip
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, z), torch.autograd.grad(whole, z))


def test_derivatives() -> None:
    z, beta = draw(7, 3).requires_grad_(), torch.tensor(1.1, dtype=F64, requires_grad=True)
    for tile in (0, 3):
        assert torch.autograd.gradcheck(lambda z, b, t=tile: margin(z, LABELS, beta=b, tile=t), (z, beta))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_rows_are_finite(dtype: torch.dtype) -> None:
    for rows in (torch.ones(7, 4), draw(7, 4), torch.zeros(7, 4)):
        z = rows.to(dtype).requires_grad_()
        loss = margin(z, LABELS)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(z.grad).all()


def test_module_learns_its_boundary() -> None:
    z = draw(7, 4).float()
    module, fixed = Margin(num_classes=4), Margin(learnable=False)
    torch.testing.assert_close(module(z, LABELS), margin(z, LABELS))
    torch.testing.assert_close(fixed(z, LABELS), margin(z, LABELS))
    module(z, LABELS).backward()
    assert module.beta.grad.shape == (4,)
    assert (module.beta.grad != 0).any()
    assert not any(p.requires_grad for p in fixed.parameters())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"margin": -0.1}, "margin: expected a finite number of 0 or more"),
        ({"average": "some"}, "average: expected one of"),
        ({"beta": torch.ones(3)}, "labels: expected classes from 0 to 2, those of beta"),
        ({"beta": torch.ones(3, 1)}, r"beta: expected a number, or shape \[\] or \[C\]"),
        ({"labels": torch.arange(7)}, "labels: expected two classes, and two embeddings of one"),
    ],
)
def test_refuses(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        margin(**{"z": draw(7, 4), "labels": LABELS} | arguments)
