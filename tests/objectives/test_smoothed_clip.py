"""Label smoothing in CLIP's contrast: ALIGN's oracles of its loss, shards.

Legend: B batch, D embedding.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from nearfar.objectives import SmoothedCLIP, clip, smoothed_clip
from objectives.sharding import PARTS, over_parts

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def both(a: Tensor, b: Tensor, t: float, e: float, reduction: str = "mean") -> tuple[Tensor, Tensor]:
    logits, rows = normalize(a, dim=1) @ normalize(b, dim=1).t() / t, torch.arange(len(a))
    first, second = (cross_entropy(x, rows, label_smoothing=e, reduction=reduction) for x in (logits, logits.t()))
    return first, second


@pytest.mark.oracle("align", 3)
@pytest.mark.parametrize("tile", [0, 3])
@pytest.mark.parametrize("e", [0.0, 0.1, 0.5])
def test_equals_smoothed_cross_entropies(e: float, tile: int) -> None:
    a, b = draw(7, 4).requires_grad_(), draw(7, 4, seed=1).requires_grad_()
    first, second = both(a, b, 0.3, e)
    found = smoothed_clip(a, b, smoothing=e, temperature=0.3, directions="sum", tile=tile)
    torch.testing.assert_close(found, first + second)
    torch.testing.assert_close(torch.autograd.grad(found, (a, b)), torch.autograd.grad(first + second, (a, b)))
    each = smoothed_clip(a, b, smoothing=e, temperature=0.3, reduction="none", tile=tile)
    torch.testing.assert_close(each, torch.cat(both(a, b, 0.3, e, "none")))
    total = smoothed_clip(a, b, smoothing=e, temperature=0.3, reduction="sum", tile=tile)
    torch.testing.assert_close(total, each.sum() / 2)


@pytest.mark.oracle("align", 1)
def test_without_smoothing_it_is_clip() -> None:
    a, b = draw(7, 4), draw(7, 4, seed=1)
    torch.testing.assert_close(smoothed_clip(a, b, smoothing=0.0), clip(a, b))
    logits = normalize(a, dim=1) @ normalize(b, dim=1).t() / 0.5
    loops = sum(
        torch.log(sum(math.e ** x[i, j] for j in range(7))) - x[i, i] for x in (logits, logits.t()) for i in range(7)
    )
    torch.testing.assert_close(smoothed_clip(a, b, smoothing=0.0, temperature=0.5, directions="sum"), loops / 7)


@pytest.mark.oracle("align", 2)
def test_equal_embeddings_give_log_n() -> None:
    a = torch.ones(9, 4, dtype=F64)
    for e in (0.0, 0.1, 0.9):
        assert float(smoothed_clip(a, a, smoothing=e, directions="sum")) == pytest.approx(2 * math.log(9))


@pytest.mark.oracle("align", 4)
def test_rotations_and_permutations() -> None:
    a, b = draw(7, 4), draw(7, 4, seed=1)
    turn, order = torch.linalg.qr(draw(4, 4, seed=2)).Q, torch.randperm(7, generator=torch.Generator().manual_seed(0))
    whole = smoothed_clip(a, b)
    torch.testing.assert_close(smoothed_clip((a @ turn)[order], (b @ turn)[order]), whole)
    assert abs(float(smoothed_clip(a, b[order]) - whole)) > 0.01


@pytest.mark.parametrize("sizes", PARTS)
def test_shards_equal_the_whole(sizes: list[int]) -> None:
    a, b = draw(7, 4).requires_grad_(), draw(7, 4, seed=1).requires_grad_()
    whole = smoothed_clip(a, b)
    parts = over_parts(
        sizes,
        lambda rows, offset: smoothed_clip(a[rows], b[rows], gathered=(a, b), offset=offset, with_stats=True),
    )  # fmt: skip
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, (a, b)), torch.autograd.grad(whole, (a, b)))


def test_derivatives() -> None:
    a, b = draw(4, 3).requires_grad_(), draw(4, 3, seed=1).requires_grad_()
    t = torch.tensor(0.5, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b, t: smoothed_clip(a, b, temperature=t, tile=0), (a, b, t))


def test_module() -> None:
    module, a, b = SmoothedCLIP(0.2, 0.3, learnable_temperature=True), draw(5, 4).float(), draw(5, 4, seed=1).float()
    torch.testing.assert_close(module(a, b), smoothed_clip(a, b, smoothing=0.2, temperature=0.3))
    module(a, b).backward()
    assert module.tau.log_value.grad is not None


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"smoothing": 1.0}, r"smoothing: expected a number in \[0, 1\)"),
        ({"directions": "row"}, "directions: expected one of"),
        ({"temperature": -1.0}, "temperature: expected a finite number > 0"),
        ({"b": draw(6, 4)}, "b: expected the shape of a"),
    ],
)
def test_refuses(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        smoothed_clip(**{"a": draw(7, 4), "b": draw(7, 4)} | arguments)
