"""MACL: the oracles, the form with a queue, shards, what it reports.

Legend: B batch, D embedding.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

from nearfar.contrast import Stats
from nearfar.objectives import MACL, dcl, macl, macl_state, macl_temperature, nt_xent
from objectives.sharding import PARTS, over_parts
from objectives.storage import largest

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def stored(z0: Tensor, z1: Tensor, t0: float, alpha: float, origin: float, queue: Tensor | None = None) -> Tensor:
    """The loss of every anchor, step by step, in plain softmaxes."""
    u0, u1 = normalize(z0, dim=1), normalize(z1, dim=1)
    positive = (u0 * u1).sum(1)
    t = t0 * (1 + alpha * (float(positive.mean().detach()) - origin))
    if queue is not None:
        logits = torch.cat([positive[:, None], u0 @ normalize(queue, dim=1).t()], 1) / t
    else:
        u, num = torch.cat([u0, u1]), len(u0)
        away = ~(torch.eye(num, dtype=torch.bool).repeat(2, 2))
        logits = torch.cat([positive.repeat(2)[:, None], (u @ u.t())[away].view(2 * num, -1)], 1) / t
    log_p = torch.log_softmax(logits, 1)[:, 0]
    return -log_p / (1 - log_p.exp()).detach()


@pytest.mark.parametrize("tile", [0, 3])
@pytest.mark.parametrize(("alpha", "origin"), [(0.5, 0.0), (2.0, 0.2)])
@pytest.mark.parametrize("queued", [False, True])
def test_equals_the_steps(alpha: float, origin: float, tile: int, queued: bool) -> None:
    z0, z1 = draw(5, 3).requires_grad_(), draw(5, 3, seed=1).requires_grad_()
    queue = draw(6, 3, seed=2) if queued else None
    found = macl(z0, z1, temperature=0.3, alpha=alpha, alignment_origin=origin, queue=queue, reduction="none",
                 tile=tile, max_weight=1e12)  # fmt: skip
    expected = stored(z0, z1, 0.3, alpha, origin, queue)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found.mean(), (z0, z1)), torch.autograd.grad(expected.mean(), (z0, z1))
    )


@pytest.mark.oracle("macl", 1)
def test_value_from_the_decoupled_loss() -> None:
    z0, z1 = draw(6, 4), draw(6, 4, seed=1)
    t = macl_state(z0, z1, alpha=1.0)["temperature"]
    d = dcl(z0, z1, temperature=t, reduction="none")
    torch.testing.assert_close(macl(z0, z1, alpha=1.0, reduction="none"), (1 + torch.exp(-d)) * softplus(d))


@pytest.mark.oracle("macl", 2)
@pytest.mark.parametrize("spread", [1.0, 0.1])
def test_gradient_is_that_of_the_decoupled_loss(spread: float) -> None:
    z0 = draw(6, 4).requires_grad_()
    z1 = (z0.detach() + spread * draw(6, 4, seed=1)).requires_grad_()
    found = torch.autograd.grad(macl(z0, z1, alpha=0.0, temperature=0.3, max_weight=1e12), (z0, z1))
    torch.testing.assert_close(found, torch.autograd.grad(dcl(z0, z1, temperature=0.3), (z0, z1)))


@pytest.mark.oracle("macl", 3)
def test_without_its_parts_it_is_nt_xent() -> None:
    z0, z1 = draw(6, 4).requires_grad_(), draw(6, 4, seed=1)
    found, expected = macl(z0, z1, alpha=0.0, max_weight=1.0), nt_xent(z0, z1, temperature=0.1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, z0), torch.autograd.grad(expected, z0))


@pytest.mark.oracle("macl", 4)
def test_the_temperature_follows_and_carries_no_gradient() -> None:
    assert macl_temperature(0.3, temperature=0.2, alpha=0.7, alignment_origin=0.3) == 0.2
    values = [macl_temperature(a, alpha=0.5) for a in (-1.0, -0.2, 0.0, 0.4, 1.0)]
    assert values == sorted(values)
    assert len(set(values)) == 5
    assert macl_temperature(-1.0, alpha=5.0) == 1e-3
    z0, z1 = normalize(draw(4, 3), dim=1), normalize(draw(4, 3, seed=1), dim=1)
    alignment = (z0 * z1).sum(1).mean().requires_grad_()
    t = macl_temperature(alignment)
    # the slope in each positive cosine, found through a queue that the anchors alone meet: -1/t for every anchor
    key = z1.clone().requires_grad_()
    loss = macl(z0, key, queue=draw(5, 3, seed=2), alignment=alignment, reduction="sum", max_weight=1e12)
    (grad,) = torch.autograd.grad(loss, key)
    flat = z0 - (z0 * z1).sum(1, keepdim=True) * z1  # the part of the anchor that turns the key
    torch.testing.assert_close(grad, -flat / t)
    with pytest.raises(RuntimeError, match="unused|not have been used"):
        torch.autograd.grad(macl(z0, key, queue=draw(5, 3), alignment=alignment), alignment)


@pytest.mark.oracle("macl", 5)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_easy_anchor_at_a_low_temperature_is_finite(dtype: torch.dtype) -> None:
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=dtype).requires_grad_()
    loss = macl(z, z, temperature=0.01, alpha=0.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(z.grad).all()
    assert macl_state(z, z, temperature=0.01)["clamped"] == 1


def test_state_tells_what_to_watch() -> None:
    z0, z1 = draw(6, 4), draw(6, 4, seed=1)
    state = macl_state(z0, z1, temperature=0.2, alpha=0.5)
    assert state["alignment"] == pytest.approx(float((normalize(z0, dim=1) * normalize(z1, dim=1)).sum(1).mean()))
    assert state["temperature"] == pytest.approx(0.2 * (1 + 0.5 * state["alignment"]))
    d = dcl(z0, z1, temperature=state["temperature"], reduction="none")
    assert state["positive"] == pytest.approx(float(torch.sigmoid(-d).mean()))
    assert state["clamped"] == 0
    assert macl_state(z0, z1, temperature=0.2, alpha=0.5, max_weight=1.0)["clamped"] == 1


@pytest.mark.parametrize("sizes", PARTS)
def test_shards_equal_the_whole(sizes: list[int]) -> None:
    z = draw(2, 7, 4).requires_grad_()
    whole = macl(z, alpha=1.5)

    def part(rows: slice, offset: int) -> tuple[Tensor, Stats]:
        return macl(z[:, rows], alpha=1.5, gathered=z, offset=offset, with_stats=True)

    parts = over_parts(sizes, part)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, z), torch.autograd.grad(whole, z))


def test_large_batches_equal_the_steps_and_store_no_matrix() -> None:
    z0, z1 = draw(500, 8, seed=1).requires_grad_(), draw(500, 8, seed=2)
    found = macl(z0, z1, temperature=0.3, max_weight=1e12)
    expected = stored(z0, z1, 0.3, 0.5, 0.0).mean()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, z0), torch.autograd.grad(expected, z0))
    assert 64 * 64 <= largest(lambda: macl(z0, z1, tile=64).backward()) <= 1000 * 1000 / 4


def test_gradcheck_with_a_known_alignment() -> None:
    """The weight carries no gradient, so that finite differences see the decoupled part: alpha 0, weight 1."""
    z = draw(2, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: macl(x, alignment=0.3, max_weight=1.0), z)


def test_module() -> None:
    z = draw(2, 5, 3)
    module = MACL(0.2, 1.0, 0.1, max_weight=10.0)
    expected = macl(z, temperature=0.2, alpha=1.0, alignment_origin=0.1, max_weight=10.0)
    torch.testing.assert_close(module(z), expected)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"alpha": -0.1}, "alpha: expected a finite number of 0 or more"),
        ({"temperature": 0.0}, "temperature: expected a finite number > 0"),
        ({"alignment_origin": 2.0}, r"alignment_origin: expected a number in \[-1, 1\]"),
        ({"max_weight": 0.5}, "max_weight: expected 1 or more"),
        ({"reduction": "max"}, "reduction: expected one of"),
        ({"queue": draw(3, 3), "gathered": draw(2, 5, 3)}, "queue: expected none beside gathered"),
        ({"alpha": math.inf}, "alpha: expected a finite number"),
    ],
)
def test_refuses(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        macl(draw(5, 3), draw(5, 3, seed=1), **arguments)


def test_refuses_other_views() -> None:
    with pytest.raises(ValueError, match="views: expected 2, received 3"):
        macl(draw(3, 5, 3))
    with pytest.raises(ValueError, match="2 or more samples"):
        macl(draw(2, 1, 3))
