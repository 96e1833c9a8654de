"""Several objectives at once without weights of one's own: the step along which none of them gets worse.

Legend: T terms, P parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from nearfar import distributed
from nearfar.checks import expect
from nearfar.method import Terms


def min_norm_weights(gram_TT: Tensor, *, iterations: int = 10_000, tolerance: float = 1e-12) -> Tensor:
    """Weights of the shortest convex combination of T vectors: argmin_w |sum_k w_k g_k|^2, w >= 0, sum w = 1.

    For two vectors w_1 = clip(<g_2 - g_1, g_2> / |g_1 - g_2|^2, 0, 1), and 1/2 where they are equal.

    Args:
        gram_TT: inner products <g_k, g_l> [T, T].
        iterations: at most, of pairwise Frank-Wolfe steps, for more than two vectors.
        tolerance: of the gap to the best weights, relative to the largest inner product.

    Returns:
        [T], float64. The combination d has <d, g_k> >= |d|^2 for every k: no term gets worse along -d.

    Raises:
        ValueError: no square matrix, or numbers that are not finite.

    Source: Desideri, "Multiple-gradient descent algorithm", 2012; Sener, Koltun, "Multi-Task Learning as
    Multi-Objective Optimization", NeurIPS 2018.
    """
    num = gram_TT.shape[0]
    expect(gram_TT.ndim == 2 and gram_TT.shape[1] == num and num > 0, "gram", "shape [T, T]", tuple(gram_TT.shape))
    gram = gram_TT.detach().double().cpu()
    expect(bool(torch.isfinite(gram).all()), "gram", "finite numbers", gram)
    if num == 2:
        apart = gram[0, 0] + gram[1, 1] - 2 * gram[0, 1]
        first = (gram[1, 1] - gram[0, 1]) / apart if apart > 0 else gram.new_tensor(0.5)
        first = first.clamp(0, 1)
        return torch.stack([first, 1 - first])
    weights = torch.zeros(num, dtype=torch.float64)
    weights[int(gram.diagonal().argmin())] = 1
    scale = float(gram.abs().max()) or 1.0
    for _ in range(iterations):
        products = gram @ weights
        to = int(products.argmin())
        away = int(products.masked_fill(weights == 0, -torch.inf).argmax())
        if products[away] - products[to] <= tolerance * scale:
            break
        # weight moves from the vector that hinders most to the one that helps most, as far as that shortens
        apart = gram[to, to] + gram[away, away] - 2 * gram[to, away]
        step = min(float((products[away] - products[to]) / apart), float(weights[away]))
        weights[to] += step
        weights[away] = 0.0 if step == float(weights[away]) else weights[away] - step
    return weights


def min_norm_backward(
    terms: Terms, shared: Iterable[nn.Parameter], others: Iterable[nn.Parameter] = (), *, normalize: bool = False
) -> dict[str, float]:
    """Puts gradients in place: the shortest combination of the terms' on shared parameters, their sum on others.

    Args:
        terms: two or more; each weight multiplies its term first.
        shared: parameters that the terms pull at, such as an encoder's; they receive sum_k w_k g_k.
        others: parameters that receive the plain sum, such as a decoder's.
        normalize: divide each gradient by its norm before weights are sought (and not after).

    Returns:
        Weight of every term, worth logging: one that sticks at 0 or 1 says that a term dominates.

    Raises:
        ValueError: fewer than two terms, or a shared parameter that no term reaches.

    Notes:
        T backward passes. Over processes gradients are averaged first, each term's by its count, so that every process
        finds the same weights. Call it in `Method.update`, then `engine.step()`; it does not go through the wrapper's
        reduction, and needs whole parameters (no sharding) and precision without a loss scale.
    """
    names, shared, others = list(terms.values), list(shared), list(others)
    expect(len(names) >= 2, "terms", "two or more", names)
    rows, rest = [], []
    for name in names:
        share = _share(terms, name)
        value = terms.weights[name] * terms.values[name] * share
        found = torch.autograd.grad(value, [*shared, *others], retain_graph=True, allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip([*shared, *others], found, strict=True)]
        rows.append(_averaged(filled[: len(shared)]))
        rest.append(_averaged(filled[len(shared) :]))
    vectors_TP = torch.stack([torch.cat([g.flatten().double() for g in row]) for row in rows])
    expect(bool((vectors_TP != 0).any()), "shared", "parameters that the terms reach", "none")
    norms = vectors_TP.norm(dim=1, keepdim=True) if normalize else torch.ones(len(names), 1, device=vectors_TP.device)
    unit = vectors_TP / norms.clamp_min(torch.finfo(torch.float64).tiny)
    weights = min_norm_weights(unit @ unit.t())
    for parameter, *grads in zip(shared, *rows, strict=True):
        parameter.grad = _sum(weights.tolist(), grads)
    for parameter, *grads in zip(others, *rest, strict=True):
        parameter.grad = _sum([1.0] * len(grads), grads)
    return dict(zip(names, weights.tolist(), strict=True))


def _sum(weights: Sequence[float], grads: Sequence[Tensor]) -> Tensor:
    return torch.stack([w * g for w, g in zip(weights, grads, strict=True)]).sum(0)


def _share(terms: Terms, name: str) -> float:
    """W times this process's share of a term's count, so that the mean over processes is that of all anchors."""
    if distributed.world() == 1:
        return 1.0
    count = torch.tensor([terms.counts[name]])
    return float(count / distributed.reduce_sum(count).clamp_min(1e-12)) * distributed.world()


def _averaged(grads: list[Tensor]) -> list[Tensor]:
    if distributed.world() == 1 or not grads:
        return grads
    flat = distributed.reduce_sum(torch.cat([g.flatten() for g in grads])) / distributed.world()
    return [part.view_as(g) for part, g in zip(flat.split([g.numel() for g in grads]), grads, strict=True)]
