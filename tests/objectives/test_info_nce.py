"""InfoNCE of queries against keys, queue and batch.

Legend: B batch, K queue, D embedding.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from nearfar.objectives import InfoNCE, info_nce
from objectives.sharding import PARTS, over_parts

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def reference(q: Tensor, k: Tensor, queue: Tensor | None, in_batch: bool, temperature: float) -> Tensor:
    """Cross-entropy of stored logits, the positive first."""
    q, k = normalize(q, dim=1), normalize(k, dim=1)
    parts = [(q * k).sum(1, keepdim=True)]
    if queue is not None:
        parts.append(q @ normalize(queue, dim=1).t())
    if in_batch:
        parts.append((q @ k.t()).masked_fill(torch.eye(len(q), dtype=torch.bool), float("-inf")))
    return cross_entropy(torch.cat(parts, 1) / temperature, torch.zeros(len(q), dtype=torch.long))


@pytest.mark.parametrize("tile", [0, 3])
@pytest.mark.parametrize("temperature", [0.01, 0.2])
@pytest.mark.parametrize(("in_batch", "queued"), [(False, True), (True, False), (True, True)])
def test_equals_stored_logits(in_batch: bool, queued: bool, temperature: float, tile: int) -> None:
    q, k = draw(7, 4).requires_grad_(), draw(7, 4, seed=1).requires_grad_()
    for queue in (draw(11, 4, seed=2), draw(11, 4, seed=2).requires_grad_()):
        used = queue if queued else None
        leaves = [q, k, *([queue] if queued and queue.requires_grad else [])]
        expected = reference(q, k, used, in_batch, temperature)
        found = info_nce(q, k, used, in_batch=in_batch, temperature=temperature, tile=tile)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves))


@pytest.mark.parametrize("tile", [0, 2])
def test_closed_form(tile: int) -> None:
    eye = torch.eye(5, dtype=F64)
    found = info_nce(eye[:3], 2 * eye[:3], eye[3:], temperature=0.5, tile=tile)
    assert float(found) == pytest.approx(math.log(1 + 2 * math.exp(-2)), rel=1e-12)


@pytest.mark.parametrize("tile", [None, 3])
@pytest.mark.parametrize("sizes", PARTS)
def test_shards_equal_the_whole(sizes: list[int], tile: int | None) -> None:
    q, k, queue = draw(7, 4).requires_grad_(), draw(7, 4, seed=1).requires_grad_(), draw(5, 4, seed=2)
    for in_batch in (True, False):
        whole = info_nce(q, k, queue, in_batch=in_batch, tile=tile)

        def part(rows: slice, offset: int, in_batch: bool = in_batch) -> tuple:
            more = {"gathered": k, "offset": offset} if in_batch else {}
            return info_nce(q[rows], k[rows], queue, in_batch=in_batch, tile=tile, with_stats=True, **more)

        parts = over_parts(sizes, part)
        torch.testing.assert_close(parts, whole)
        torch.testing.assert_close(torch.autograd.grad(parts, (q, k)), torch.autograd.grad(whole, (q, k)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_queue_of_another_type(dtype: torch.dtype) -> None:
    q, queue = draw(5, 4).float(), draw(9, 4, seed=1).to(dtype)
    for tile in (0, 3):
        torch.testing.assert_close(info_nce(q, q, queue, tile=tile), info_nce(q, q, queue.float(), tile=0))


def test_more_negatives_never_lower_the_loss() -> None:
    q, k, queue = draw(5, 4), draw(5, 4, seed=1), draw(9, 4, seed=2)
    losses = [float(info_nce(q, k, queue[:n])) for n in range(1, 10)]
    assert losses == sorted(losses)


def test_complaints() -> None:
    q = draw(5, 4)
    with pytest.raises(ValueError, match="queue: expected a tensor"):
        info_nce(q, q)
    with pytest.raises(ValueError, match="key: expected the shape of query"):
        info_nce(q, q[:3], q)
    with pytest.raises(ValueError, match="gathered: expected none without in_batch"):
        info_nce(q, q, q, gathered=q)
    with pytest.raises(ValueError, match="offset: expected 0 without gathered"):
        info_nce(q, q, q, offset=1)
    with pytest.raises(ValueError, match="extra: expected shape"):
        info_nce(q, q, q[:, :2])


def test_module_is_the_function() -> None:
    q, k, queue = draw(5, 4), draw(5, 4, seed=1), draw(9, 4, seed=2)
    module = InfoNCE()
    torch.testing.assert_close(module(q, k, queue), info_nce(q, k, queue))
    torch.testing.assert_close(module(q, k, in_batch=True), info_nce(q, k, in_batch=True))
    torch.testing.assert_close(InfoNCE(0.5, in_batch=True)(q, k), info_nce(q, k, in_batch=True, temperature=0.5))
    learnt, other = InfoNCE(0.5, learnable_temperature=True), InfoNCE(0.1, learnable_temperature=True)
    other.load_state_dict(learnt.state_dict())
    torch.testing.assert_close(other(q, k, queue), learnt(q, k, queue))
    assert (module.needs_negatives, module.distributed, module.symmetric) == (True, "gather_candidates", False)
