"""DCL and DCLW: the oracles of their sheet, shards, queue, Module.

Legend: B batch, V views, D embedding, K queue.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

from nearfar.objectives import DCL, dcl, nt_xent, vmf_weight
from objectives.sharding import PARTS, over_parts

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def brute(z: Tensor, temperature: float, sigma: float | None = None) -> list[float]:
    """Loss of every anchor of [2, B, D], view after view, by loops over Python numbers."""
    u = normalize(z, dim=-1).tolist()
    num = z.shape[1]

    def dot(x: list[float], y: list[float]) -> float:
        return sum(a * b for a, b in zip(x, y, strict=True))

    mates = [dot(u[0][i], u[1][i]) for i in range(num)]
    weight = [1.0] * num
    if sigma is not None:
        norm = sum(math.exp(m / sigma) for m in mates) / num
        weight = [2 - math.exp(m / sigma) / norm for m in mates]
    return [
        -weight[i] * mates[i] / temperature
        + math.log(
            sum(math.exp(dot(u[v][i], u[w][j]) / temperature) for w in (0, 1) for j in range(num) if j != i)
        )
        for v in (0, 1)
        for i in range(num)
    ]  # fmt: skip


@pytest.mark.oracle("dcl", 1)
@pytest.mark.parametrize("tile", [0, 3])
def test_softplus_is_nt_xent(tile: int) -> None:
    z = draw(2, 5, 4)
    for temperature in (0.05, 0.5):
        options = {"temperature": temperature, "reduction": "none", "tile": tile}
        torch.testing.assert_close(softplus(dcl(z, **options)), nt_xent(z, **options))


@pytest.mark.oracle("dcl", 2)
@pytest.mark.parametrize("tile", [0, 3])
def test_gradient_identity(tile: int) -> None:
    """With all other embeddings constant, an anchor's gradient of NT-Xent is sigmoid(DCL) times that of DCL."""
    z = draw(2, 5, 4)
    for i in range(5):
        anchor = z[0, i].clone().requires_grad_()
        views = z.clone()
        views[0, i] = anchor
        decoupled, coupled = (f(views, temperature=0.3, reduction="none", tile=tile)[i] for f in (dcl, nt_xent))
        (g,) = torch.autograd.grad(decoupled, anchor, retain_graph=True)
        (h,) = torch.autograd.grad(coupled, anchor)
        torch.testing.assert_close(h, torch.sigmoid(decoupled.detach()) * g)


@pytest.mark.oracle("dcl", 3)
@pytest.mark.parametrize("tile", [0, 3])
def test_closed_forms(tile: int) -> None:
    eye, same = torch.eye(5, dtype=F64), torch.ones(2, 5, 3, dtype=F64)
    found = dcl(eye, 2 * eye, temperature=0.3, tile=tile)
    assert float(found) == pytest.approx(-1 / 0.3 + math.log(8), rel=1e-12)
    for temperature in (0.1, 1.0):
        found = dcl(same, temperature=temperature, tile=tile)
        assert float(found) == pytest.approx(math.log(8), rel=1e-10)


@pytest.mark.oracle("dcl", 4)
@pytest.mark.parametrize("tile", [0, 3])
def test_weights(tile: int) -> None:
    z = draw(2, 6, 4)
    angle = torch.tensor(0.7, dtype=F64)
    plane = normalize(draw(6, 2, seed=1), dim=1)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    equal = torch.stack([plane, plane @ turn])  # all positive pairs at one angle
    torch.testing.assert_close(dcl(equal, vmf_sigma=0.5, tile=tile), dcl(equal, tile=tile))
    for sigma in (0.1, 0.5, 2.0):
        weight = vmf_weight((normalize(z[0], dim=1) * normalize(z[1], dim=1)).sum(1), sigma)
        assert float(weight.mean()) == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(dcl(z, vmf_sigma=1e9, tile=tile), dcl(z, tile=tile), rtol=1e-7, atol=0)
    assert abs(float(dcl(z, vmf_sigma=0.5, tile=tile) - dcl(z, tile=tile))) > 1e-3


@pytest.mark.oracle("dcl", 5)
@pytest.mark.parametrize("tile", [0, 3])
@pytest.mark.parametrize("sigma", [None, 0.5])
def test_equals_double_loops_and_invariances(sigma: float | None, tile: int) -> None:
    z = draw(2, 4, 3)
    expected = brute(z, 0.2, sigma)
    options = {"temperature": 0.2, "vmf_sigma": sigma, "tile": tile}
    assert dcl(z, **options, reduction="none").tolist() == pytest.approx(expected, rel=1e-10)
    assert float(dcl(z, **options)) == pytest.approx(sum(expected) / 8, rel=1e-10)
    assert float(dcl(z, **options, reduction="sum")) == pytest.approx(sum(expected), rel=1e-10)
    one_way = dcl(z, **options, symmetric=False)
    assert float(one_way) == pytest.approx(sum(expected[:4]) / 4, rel=1e-10)
    other_way = dcl(z.flip(0), **options, symmetric=False)
    torch.testing.assert_close((one_way + other_way) / 2, dcl(z, **options))
    rotation, order = torch.linalg.qr(draw(3, 3, seed=1))[0], torch.tensor([2, 0, 3, 1])
    for changed in (z @ rotation, z[:, order], z.flip(0)):
        torch.testing.assert_close(dcl(changed, **options), dcl(z, **options))


def test_weight_gradient_is_an_option() -> None:
    z = draw(2, 4, 3).requires_grad_()
    u = normalize(z, dim=-1)
    cosine = (u[0] * u[1]).sum(1)
    rest = dcl(z, temperature=0.2) + cosine.mean() / 0.2
    for detach in (True, False):
        weight = vmf_weight(cosine.detach() if detach else cosine, 0.5)
        expected = rest - (weight * cosine).mean() / 0.2
        found = dcl(z, temperature=0.2, vmf_sigma=0.5, vmf_detach=detach)
        torch.testing.assert_close(found, expected)
        grads = [torch.autograd.grad(x, z, retain_graph=True) for x in (found, expected)]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("tile", [None, 3])
@pytest.mark.parametrize(
    "options", [{}, {"vmf_sigma": 0.5}, {"symmetric": False}, {"symmetric": False, "vmf_sigma": 0.5}]
)
@pytest.mark.parametrize("sizes", PARTS)
def test_shards_equal_the_whole(sizes: list[int], options: dict, tile: int | None) -> None:
    z = draw(2, 7, 4).requires_grad_()
    whole = dcl(z, **options, tile=tile)
    parts = over_parts(
        sizes, lambda rows, start: dcl(z[:, rows], gathered=z, offset=start, tile=tile, with_stats=True, **options)
    )
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, z), torch.autograd.grad(whole, z))


@pytest.mark.parametrize("tile", [0, 3])
def test_more_views(tile: int) -> None:
    z = draw(3, 4, 3)
    u = normalize(z, dim=-1)
    losses = []
    for v in range(3):
        for i in range(4):
            total = sum(torch.exp(u[v, i] @ u[w, j] / 0.2) for w in range(3) for j in range(4) if j != i)
            losses.append(total.log() - sum(u[v, i] @ u[w, i] / 0.2 for w in range(3) if w != v) / 2)
    torch.testing.assert_close(dcl(z, temperature=0.2, tile=tile), torch.stack(losses).mean())
    one = dcl(z, temperature=0.2, symmetric=False, tile=tile)
    torch.testing.assert_close(one, torch.stack(losses[:4]).mean())


@pytest.mark.parametrize("tile", [0, 3])
def test_queue(tile: int) -> None:
    z, queue = draw(2, 5, 4), draw(6, 4, seed=1)
    u, bank = normalize(z, dim=-1), normalize(queue, dim=1)
    both = [(u[v] @ bank.t() / 0.2).logsumexp(1) - (u[0] * u[1]).sum(1) / 0.2 for v in (0, 1)]
    torch.testing.assert_close(dcl(z, queue=queue, temperature=0.2, tile=tile), torch.cat(both).mean())
    one = dcl(z, queue=queue, temperature=0.2, symmetric=False, tile=tile)
    torch.testing.assert_close(one, both[0].mean())
    alone = dcl(z[:, :1], queue=queue, temperature=0.2, symmetric=False, tile=tile)
    torch.testing.assert_close(alone, both[0][0])


@pytest.mark.parametrize("tile", [0, 3])
def test_derivatives(tile: int) -> None:
    temperature = torch.tensor(0.3, dtype=F64, requires_grad=True)
    z = draw(2, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z, t: dcl(z, temperature=t, vmf_sigma=0.5, vmf_detach=False, tile=tile), (z, temperature)
    )


def test_complaints() -> None:
    z = draw(3, 4, 3)
    with pytest.raises(ValueError, match="views: expected 2 or more samples"):
        dcl(z[:2, :1])
    with pytest.raises(ValueError, match="views: expected 2 with vmf_sigma or queue, received 3"):
        dcl(z, vmf_sigma=0.5)
    with pytest.raises(ValueError, match="vmf_sigma: expected a finite number > 0"):
        dcl(z[:2], vmf_sigma=-0.5)
    with pytest.raises(ValueError, match="queue: expected none beside gathered"):
        dcl(z[:2], queue=z[0], gathered=z[:2])


def test_module_is_the_function() -> None:
    z, queue = draw(2, 5, 4), draw(6, 4, seed=1)
    torch.testing.assert_close(DCL()(*z), dcl(z))
    module = DCL(0.2, vmf_sigma=0.5, symmetric=False, tile=3)
    torch.testing.assert_close(module(z), dcl(z, temperature=0.2, vmf_sigma=0.5, symmetric=False))
    torch.testing.assert_close(DCL()(z, queue=queue), dcl(z, queue=queue))
    learnt, other = DCL(0.5, learnable_temperature=True), DCL(0.1, learnable_temperature=True)
    other.load_state_dict(learnt.state_dict())
    torch.testing.assert_close(other(z), learnt(z))
    assert (module.needs_negatives, module.distributed, DCL.symmetric) == (True, "gather_candidates", True)
