"""PatchNCE: CUT's oracles of the loss.

Legend: B images, P patches, D embedding.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nearfar.objectives import PatchNCE, info_nce, patch_nce

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.oracle("cut", 1)
@pytest.mark.parametrize("tile", [0, 4])
@pytest.mark.parametrize("across", [False, True])
def test_equals_loops(across: bool, tile: int) -> None:
    q, k = draw(3, 5, 4).requires_grad_(), draw(3, 5, 4, seed=1).requires_grad_()
    u, v = normalize(q, dim=2), normalize(k.detach(), dim=2)
    losses = []
    for b in range(3):
        for p in range(5):
            others = [(c, j) for c in range(3) for j in range(5) if (c, j) != (b, p) and (across or c == b)]
            e = [torch.exp(u[b, p] @ v[c, j] / 0.3) for c, j in others]
            own = torch.exp(u[b, p] @ v[b, p] / 0.3)
            losses.append(-torch.log(own / (own + torch.stack(e).sum())))
    expected = torch.stack(losses)
    found = patch_nce(q, k, temperature=0.3, across=across, reduction="none", tile=tile)
    torch.testing.assert_close(found, expected)
    (grad,) = torch.autograd.grad(expected.mean(), q)
    got, none = torch.autograd.grad(
        patch_nce(q, k, temperature=0.3, across=across, tile=tile), (q, k), allow_unused=True
    )
    torch.testing.assert_close(got, grad)
    assert none is None


@pytest.mark.parametrize("tile", [0, 4])
def test_negatives_of_other_images_alone(tile: int) -> None:
    q, k = draw(3, 5, 4).requires_grad_(), draw(3, 5, 4, seed=1)
    u, v = normalize(q, dim=2), normalize(k, dim=2)
    losses = []
    for b in range(3):
        others = torch.cat([v[c] for c in range(3) if c != b])
        for p in range(5):
            own, rest = u[b, p] @ v[b, p] / 0.3, others @ u[b, p] / 0.3
            losses.append(torch.cat([own[None], rest]).logsumexp(0) - own)
    found = patch_nce(q, k, temperature=0.3, across=True, within=False, tile=tile)
    torch.testing.assert_close(found, torch.stack(losses).mean())
    grads = [torch.autograd.grad(loss, q)[0] for loss in (found, torch.stack(losses).mean())]
    torch.testing.assert_close(*grads)
    torch.testing.assert_close(PatchNCE(0.3, across=True, within=False)(q, k), found)


@pytest.mark.oracle("cut", 1)
def test_one_image_is_info_nce() -> None:
    q, k = draw(1, 6, 4), draw(1, 6, 4, seed=1)
    torch.testing.assert_close(patch_nce(q, k), info_nce(q[0], k[0], in_batch=True, temperature=0.07))
    q, k = draw(2, 6, 4), draw(2, 6, 4, seed=1)
    whole = info_nce(q.flatten(0, 1), k.flatten(0, 1), in_batch=True, temperature=0.07)
    torch.testing.assert_close(patch_nce(q, k, across=True), whole)


@pytest.mark.oracle("cut", 2)
def test_orthonormal_and_equal_patches() -> None:
    q = torch.eye(5, dtype=F64).expand(2, 5, 5)
    assert float(patch_nce(q, q, temperature=0.4)) == pytest.approx(math.log(1 + 4 * math.exp(-1 / 0.4)))
    one = torch.ones(2, 5, 3, dtype=F64)
    assert float(patch_nce(one, one)) == pytest.approx(math.log(5))


@pytest.mark.oracle("cut", 3)
def test_images_do_not_meet() -> None:
    q, k = draw(3, 5, 4), draw(3, 5, 4, seed=1)
    other = k.clone()
    other[2] = draw(5, 4, seed=9)
    before, after = (patch_nce(q, x, reduction="none").view(3, 5) for x in (k, other))
    torch.testing.assert_close(before[:2], after[:2], rtol=0, atol=0)
    assert (before[2] != after[2]).all()
    across = patch_nce(q, k, across=True, reduction="none") - patch_nce(q, other, across=True, reduction="none")
    assert (across != 0).all()


@pytest.mark.oracle("cut", 4)
def test_the_order_of_places_does_not_matter() -> None:
    q, k, order = draw(2, 5, 4), draw(2, 5, 4, seed=1), torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(patch_nce(q[:, order], k[:, order]), patch_nce(q, k))


def test_further_negatives_and_gradient_of_keys() -> None:
    q, k, extra = draw(2, 1, 4).requires_grad_(), draw(2, 1, 4, seed=1).requires_grad_(), draw(7, 4, seed=2)
    found = patch_nce(q, k, extra=extra, detach_key=False, temperature=0.2)
    torch.testing.assert_close(found, info_nce(q[:, 0], k[:, 0], extra))
    assert (torch.autograd.grad(found, k)[0] != 0).any()
    assert torch.autograd.gradcheck(
        lambda q, k: patch_nce(q, k, detach_key=False, temperature=0.5, tile=0),
        (draw(2, 3, 3).requires_grad_(), draw(2, 3, 3, seed=1).requires_grad_()),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cold_rows_are_finite(dtype: torch.dtype) -> None:
    for rows in (torch.ones(2, 5, 4), draw(2, 5, 4), torch.zeros(2, 5, 4)):
        q = rows.to(dtype).requires_grad_()
        loss = patch_nce(q, -rows.to(dtype), temperature=0.01)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(q.grad).all()


def test_module() -> None:
    module, q, k = PatchNCE(0.3, learnable_temperature=True, across=True), draw(2, 4, 3), draw(2, 4, 3, seed=1)
    torch.testing.assert_close(module(q, k), patch_nce(q, k, temperature=0.3, across=True), rtol=1e-5, atol=1e-6)
    module(q, k).backward()
    assert module.tau.log_value.grad is not None


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"key": draw(2, 4, 4)}, "key: expected the shape of query"),
        ({"query": draw(5, 4), "key": draw(5, 4)}, r"key: expected the shape of query, \[B, P, D\]"),
        ({"query": draw(2, 1, 4), "key": draw(2, 1, 4)}, "query: expected a negative for every patch: 2 or more"),
        ({"query": draw(1, 5, 4), "key": draw(1, 5, 4), "across": True, "within": False}, "1 images of 5 patches"),
        ({"within": False}, "query: expected a negative for every patch"),
        ({"temperature": 0.0}, "temperature: expected a finite number > 0"),
    ],
)
def test_refuses(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        patch_nce(**{"query": draw(2, 5, 4), "key": draw(2, 5, 4)} | arguments)
