"""Kernel InfoNCE and mixtures: the oracles, the form with a queue, shards, memory.

Legend: B batch, D embedding.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nearfar.contrast import Stats
from nearfar.objectives import KernelInfoNCE, KernelMixture, kernel_info_nce, kernel_mixture, nt_xent
from nearfar.objectives.kernel_mixture import ExponentialKernel
from objectives.sharding import PARTS, over_parts
from objectives.storage import largest

F64 = torch.float64
MODES = ("loss_sum", "kernel_sum", "concat")
EACH = pytest.mark.parametrize("mode", MODES)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def distance(a: Tensor, c: Tensor, norm: float) -> Tensor:
    return (a[:, None] - c[None]).abs().pow(norm).sum(2).clamp_min(1e-300).pow(1 / norm)


def of_kernel(k: Tensor) -> Tensor:
    """Each anchor's loss from the kernel matrix [2B, 2B]."""
    num = len(k)
    own = torch.eye(num, dtype=torch.bool)
    return -torch.log(k.diagonal(num // 2, 0, 1).repeat(2) / k.masked_fill(own, 0.0).sum(1))


def stored(z: Tensor, mode: str, gamma: float, m: float, t1: Any, t2: Any, norm: float = 2.0) -> Tensor:
    u = normalize(z, dim=2).flatten(0, 1)
    halves = u.chunk(2, 1) if mode == "concat" else (u, u)
    terms = zip(halves, (gamma, 2.0), (t1, t2), strict=True)
    first, second = (torch.exp(-(distance(x, x, norm) ** p) / t) for x, p, t in terms)
    if mode == "kernel_sum":
        return of_kernel(m * first + (1 - m) * second)
    return m * of_kernel(first) + (1 - m) * of_kernel(second)


@pytest.mark.oracle("kernel_mixture", 5)
@pytest.mark.parametrize("tile", [0, 2])
@pytest.mark.parametrize(("gamma", "norm"), [(1.0, 2.0), (0.5, 2.0), (1.0, 1.0), (2.0, 2.0), (1.5, 3.0)])
@EACH
def test_equals_stored_kernels(mode: str, gamma: float, norm: float, tile: int) -> None:
    z = draw(2, 3, 4).requires_grad_()
    t1, t2 = (torch.tensor(t, dtype=F64, requires_grad=True) for t in (0.4, 0.7))
    options: dict[str, Any] = {"mode": mode, "gamma": gamma, "mixing": 0.3, "norm": norm}
    found = kernel_mixture(z, temperature=t1, gaussian_temperature=t2, reduction="none", tile=tile, **options)
    expected = stored(z, mode, gamma, 0.3, t1, t2, norm)
    torch.testing.assert_close(found, expected)
    weight = torch.arange(1.0, 7.0, dtype=F64)
    leaves = (z, t1, t2)
    torch.testing.assert_close(
        torch.autograd.grad((found * weight).sum(), leaves), torch.autograd.grad((expected * weight).sum(), leaves)
    )


@pytest.mark.oracle("kernel_mixture", 1)
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_gaussian_is_nt_xent(temperature: float) -> None:
    z = draw(2, 5, 3).requires_grad_()
    expected = nt_xent(z, temperature=temperature / 2)
    found = kernel_info_nce(z, temperature=temperature)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, z), torch.autograd.grad(expected, z))
    strips = kernel_info_nce(z, gamma=2.0, norm=2.0 + 1e-12, temperature=temperature)  # not the short cut
    torch.testing.assert_close(strips, expected)


@pytest.mark.oracle("kernel_mixture", 2)
@pytest.mark.parametrize("mode", ["loss_sum", "kernel_sum"])
def test_either_end_is_one_kernel(mode: str) -> None:
    z = draw(2, 5, 3)
    for mixing, gamma, t in ((1.0, 0.7, 0.3), (0.0, 2.0, 0.8)):
        found = kernel_mixture(z, mode=mode, gamma=0.7, mixing=mixing, temperature=0.3, gaussian_temperature=0.8)
        torch.testing.assert_close(found, kernel_info_nce(z, gamma=gamma, temperature=t))


@pytest.mark.oracle("kernel_mixture", 3)
def test_expected_loss_is_a_spectral_cut_and_a_repulsion() -> None:
    """-sum pi_ij log P_ij = tr(Z' Lap Z) / t + sum_i log R_i, with Lap of the symmetric part of pi."""
    z, t = draw(8, 3), 0.6
    pi = torch.rand(8, 8, generator=torch.Generator().manual_seed(1), dtype=F64).fill_diagonal_(0)
    pi = pi / pi.sum(1, keepdim=True)
    kernel = torch.exp(ExponentialKernel(gamma=2.0).tile(z, z) / (2 * t))
    away = kernel.masked_fill(torch.eye(8, dtype=torch.bool), 0.0)
    share = away / away.sum(1, keepdim=True)
    expected_loss = -(pi * share.clamp_min(1e-300).log()).sum()
    graph = (pi + pi.t()) / 2
    laplacian = torch.diag(graph.sum(1)) - graph
    right = torch.trace(z.t() @ laplacian @ z) / t + away.sum(1).log().sum()
    assert float(expected_loss) == pytest.approx(float(right), abs=1e-10)


@pytest.mark.oracle("kernel_mixture", 4)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@EACH
def test_identical_embeddings(mode: str, gamma: float, dtype: torch.dtype) -> None:
    z = draw(1, 1, 4).expand(2, 4, -1).to(dtype).requires_grad_()
    loss = kernel_mixture(z, mode=mode, gamma=gamma, temperature=0.05)
    loss.backward()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert float(loss.detach()) == pytest.approx(math.log(7), rel=tolerance)
    assert torch.isfinite(z.grad).all()
    assert z.grad.abs().max() <= 1e-4


@pytest.mark.oracle("kernel_mixture", 5)
def test_rotation_and_monotony() -> None:
    z = draw(2, 4, 4)
    turn = torch.linalg.qr(draw(4, 4, seed=1))[0]
    for mode in ("loss_sum", "kernel_sum"):
        torch.testing.assert_close(kernel_mixture(z @ turn, mode=mode), kernel_mixture(z, mode=mode))
    line = torch.stack([torch.linspace(0, 3, 20, dtype=F64), torch.zeros(20, dtype=F64)], 1)
    values = ExponentialKernel(gamma=1.0).tile(line[:1], line)[0]
    assert (values[1:] < values[:-1]).all()
    torch.testing.assert_close(values, -line[:, 0])


@pytest.mark.parametrize("tile", [0, 2])
@EACH
def test_a_queue_is_the_only_denominator(mode: str, tile: int) -> None:
    z, queue, m, t1, t2 = draw(2, 4, 4).requires_grad_(), draw(6, 4, seed=1), 0.2, 0.1, 0.3
    u, k = normalize(z, dim=2), normalize(queue, dim=1)
    cut = (lambda x: x.chunk(2, -1)) if mode == "concat" else (lambda x: (x, x))

    def kernels(a: Tensor, c: Tensor) -> list[Tensor]:
        powers = zip(cut(a), cut(c), (1.0, 2.0), (t1, t2), strict=True)
        return [torch.exp(-(distance(x, y, 2.0) ** p) / t) for x, y, p, t in powers]

    near, far = [x.diagonal() for x in kernels(u[0], u[1])], [x.sum(1) for x in kernels(u[0], k)]
    if mode == "kernel_sum":
        expected = -torch.log((m * near[0] + (1 - m) * near[1]) / (m * far[0] + (1 - m) * far[1]))
    else:
        expected = -m * torch.log(near[0] / far[0]) - (1 - m) * torch.log(near[1] / far[1])
    found = kernel_mixture(z, mode=mode, mixing=m, temperature=t1, gaussian_temperature=t2, queue=queue,
                           reduction="none", tile=tile)  # fmt: skip
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), z), torch.autograd.grad(expected.sum(), z))


@pytest.mark.parametrize("sizes", PARTS)
@EACH
def test_shards_equal_the_whole(mode: str, sizes: list[int]) -> None:
    z = draw(2, 7, 4).requires_grad_()
    whole = kernel_mixture(z, mode=mode)

    def part(rows: slice, offset: int) -> tuple[Tensor, Stats]:
        return kernel_mixture(z[:, rows], mode=mode, gathered=z, offset=offset, with_stats=True)

    parts = over_parts(sizes, part)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, z), torch.autograd.grad(whole, z))


@EACH
def test_gradcheck_and_reductions(mode: str) -> None:
    z = draw(2, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kernel_mixture(x, mode=mode, temperature=0.5, tile=4), z)
    each = kernel_mixture(z, mode=mode, reduction="none")
    torch.testing.assert_close(kernel_mixture(z, mode=mode), each.mean())
    torch.testing.assert_close(kernel_mixture(*z, mode=mode, reduction="sum"), each.sum())


def test_large_batches_equal_stored_kernels_and_store_none() -> None:
    z = draw(2, 300, 6).requires_grad_()
    for mode in MODES:
        found = kernel_mixture(z, mode=mode, temperature=0.3, mixing=0.4)
        expected = stored(z, mode, 1.0, 0.4, 0.3, 0.3).mean()
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, z), torch.autograd.grad(expected, z))
    for mode in MODES:
        entries = largest(lambda mode=mode: kernel_mixture(z, mode=mode, tile=64).backward())
        assert 64 * 64 <= entries <= 600 * 600 / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@EACH
def test_extremes_are_finite(mode: str, dtype: torch.dtype) -> None:
    for rows in (torch.zeros(6, 4), torch.cat([torch.ones(3, 4), -torch.ones(3, 4)])):
        z = torch.stack([rows, rows]).to(dtype).requires_grad_()
        loss = kernel_mixture(z, mode=mode, gamma=0.5, temperature=0.01)
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(z.grad).all()


def test_modules_learn_their_temperatures() -> None:
    z = draw(2, 5, 4).float()
    module = KernelMixture("kernel_sum", 0.5, 0.3, 0.2, 0.4, learnable_temperature=True)
    expected = kernel_mixture(z, mode="kernel_sum", gamma=0.5, mixing=0.3, temperature=0.2, gaussian_temperature=0.4)
    torch.testing.assert_close(module(z), expected)
    module(z).backward()
    assert module.tau.log_value.grad is not None
    assert module.gaussian_tau.log_value.grad is not None
    single = KernelInfoNCE(1.0, 0.2, learnable_temperature=True)
    torch.testing.assert_close(single(z), kernel_info_nce(z, gamma=1.0, temperature=0.2))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"gamma": 0.0}, r"gamma: expected a number in \(0, 2\]"),
        ({"gamma": 2.5}, r"gamma: expected a number in \(0, 2\]"),
        ({"norm": 0.5}, "norm: expected 1 or more"),
        ({"temperature": 0.0}, "temperature: expected a finite number > 0"),
        ({"gaussian_temperature": -1.0}, "gaussian_temperature: expected a finite number > 0"),
        ({"mixing": 1.5}, r"mixing: expected a number in \[0, 1\]"),
        ({"mode": "mean"}, "mode: expected one of"),
        ({"mode": "concat"}, "views: expected an even D"),
        ({"queue": draw(4, 3), "gathered": draw(2, 5, 3)}, "queue: expected none beside gathered"),
        ({"reduction": "max"}, "reduction: expected one of"),
    ],
)
@pytest.mark.parametrize("mode", ["loss_sum", "kernel_sum"])
def test_refuses(arguments: dict[str, Any], match: str, mode: str) -> None:
    with pytest.raises(ValueError, match=match):
        kernel_mixture(draw(2, 5, 3), **({"mode": mode} | arguments))


def test_refuses_other_views() -> None:
    with pytest.raises(ValueError, match="views: expected 2, received 3"):
        kernel_info_nce(draw(3, 5, 3))
    with pytest.raises(ValueError, match="gamma: expected"):
        KernelInfoNCE(gamma=3.0)
