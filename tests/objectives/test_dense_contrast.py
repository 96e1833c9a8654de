"""Dense contrast: positives by coordinates; the oracles of PixPro's, ConDL's and DenseCL's losses.

Legend: B images, P and Q positions, D embedding, S side of a grid.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from nearfar.objectives import (
    DenseContrast,
    dense_contrast,
    grid_centres,
    info_nce,
    match_positions,
    near_cells,
    near_points,
    patch_nce,
)
from objectives.sharding import over_parts

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def some(*shape: int, seed: int = 5) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.3


def boxes(num: int, seed: int = 0) -> Tensor:
    corner, size = (torch.rand(num, 2, generator=torch.Generator().manual_seed(seed + k), dtype=F64) for k in (0, 9))
    return torch.cat([corner * 0.5, corner * 0.5 + 0.2 + 0.3 * size], 1)


def listed(q: Tensor, k: Tensor, positive: Tensor, exclude: Tensor, kind: str, t: float) -> Tensor:
    """The mean loss of the queries."""
    u, v, losses = normalize(q, dim=2), normalize(k, dim=2), []
    for b in range(len(q)):
        for i in range(q.shape[1]):
            s = v[b] @ u[b, i] / t
            p = positive[b, i]
            kept = p | ~exclude[b, i]
            if not p.any():
                continue
            if kind == "sum":
                losses.append(torch.logsumexp(s[kept], 0) - torch.logsumexp(s[p], 0))
            elif kind == "mean":
                losses.append(torch.logsumexp(s[kept], 0) - s[p].mean())
            else:
                rest = torch.exp(s[kept & ~p]).sum()
                losses.append((torch.log(torch.exp(s[p]) + rest) - s[p]).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("directions", ["row", "both"])
@pytest.mark.parametrize("kind", ["sum", "mean"])
@pytest.mark.parametrize("as_function", [False, True])
def test_equals_loops(as_function: bool, kind: str, directions: str) -> None:
    q, k = draw(4, 5, 3).requires_grad_(), draw(4, 6, 3, seed=1).requires_grad_()
    positive, exclude = some(4, 5, 6), some(4, 5, 6, seed=6)
    expected = listed(q, k, positive, exclude, kind, 0.3)
    if directions == "both":
        columns = listed(k, q, positive.transpose(1, 2), exclude.transpose(1, 2), kind, 0.3)
        expected = (expected + columns) / 2
    given: Any = (positive.__getitem__, exclude.__getitem__) if as_function else (positive, exclude)
    found = dense_contrast(q, k, given[0], exclude=given[1], positives=kind, directions=directions)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, (q, k)), torch.autograd.grad(expected, (q, k)))


def test_each_and_further_negatives() -> None:
    q, k, extra = draw(3, 5, 3), draw(3, 6, 3, seed=1), draw(7, 3, seed=2)
    positive = some(3, 5, 6)
    each = dense_contrast(q, k, positive, positives="each")
    torch.testing.assert_close(each, listed(q, k, positive, torch.zeros_like(positive), "each", 0.3))
    single = torch.eye(5, dtype=torch.bool).expand(3, 5, 5)
    torch.testing.assert_close(
        dense_contrast(q, k[:, :5], single, extra=extra), patch_nce(q, k[:, :5], extra=extra, temperature=0.3)
    )


def test_many_images_come_in_chunks() -> None:
    q, k, positive = draw(9, 90, 3), draw(9, 100, 3, seed=1), some(9, 90, 100)
    sizes = []

    def pairs(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return positive[images]

    found, stats = dense_contrast(q, k, pairs, with_stats=True)
    assert sizes == [2, 2, 2, 2, 1]
    torch.testing.assert_close(found, listed(q, k, positive, torch.zeros_like(positive), "sum", 0.3))
    assert stats.num_anchors == int(positive.any(2).sum())
    assert stats.num_anchors + stats.num_empty == 9 * 90


@pytest.mark.parametrize("sizes", [[4], [1, 3], [2, 1, 1]])
def test_shards_equal_the_whole(sizes: list[int]) -> None:
    q, k, positive = draw(4, 5, 3), draw(4, 6, 3, seed=1), some(4, 5, 6)
    parts = over_parts(
        sizes, lambda rows, _: dense_contrast(q[rows], k[rows], positive[rows], with_stats=True, allow_none=True)
    )
    torch.testing.assert_close(parts, dense_contrast(q, k, positive))


@pytest.mark.oracle("pixpro", 6)
def test_one_positive_is_cross_entropy() -> None:
    q, k = draw(3, 5, 4), draw(3, 6, 4, seed=1)
    target = torch.randint(6, (3, 5), generator=torch.Generator().manual_seed(0))
    positive = torch.nn.functional.one_hot(target, 6).bool()
    logits = torch.bmm(normalize(q, dim=2), normalize(k, dim=2).transpose(1, 2)) / 0.3
    expected = cross_entropy(logits.flatten(0, 1), target.flatten())
    for kind in ("sum", "mean", "each"):
        torch.testing.assert_close(dense_contrast(q, k, positive, positives=kind), expected)


@pytest.mark.oracle("pixpro", 1)
def test_equal_crops_match_cell_by_cell() -> None:
    box = boxes(3)
    pairs = near_cells(box, box, (4, 5), (4, 5), 0.1)(torch.arange(3))
    assert torch.equal(pairs, torch.eye(20, dtype=torch.bool).expand(3, 20, 20))


@pytest.mark.oracle("pixpro", 2)
def test_a_mirrored_crop_matches_mirrored_columns() -> None:
    box = boxes(3)
    mirrored = box[:, [2, 1, 0, 3]]
    pairs = near_cells(box, mirrored, (3, 4), (3, 4), 0.1)(torch.arange(3))
    cells = torch.arange(12).view(3, 4)
    expected = cells.flatten()[:, None] == cells.flip(1).flatten()[None]
    assert torch.equal(pairs, expected.expand(3, 12, 12))
    features = grid_centres(box, 3, 4), grid_centres(mirrored, 3, 4)
    torch.testing.assert_close(features[0].view(3, 3, 4, 2).flip(2).flatten(1, 2), features[1])


@pytest.mark.oracle("pixpro", 3)
def test_cells_by_a_double_loop() -> None:
    a, b, (h, w), (m, n) = boxes(4), boxes(4, seed=3), (3, 2), (2, 4)
    found = near_cells(a, b, (h, w), (m, n), 0.7)(torch.tensor([2, 0]))
    assert found.any()
    for row, image in zip(found, (2, 0), strict=True):
        cell = [
            torch.stack([x[2:] - x[:2]])[0] / torch.tensor([c, r]) for x, r, c in ((a[image], h, w), (b[image], m, n))
        ]
        reach = 0.7 * max(float(c.norm()) for c in cell)
        for i in range(h * w):
            for j in range(m * n):
                p = a[image, :2] + cell[0] * torch.tensor([i % w + 0.5, i // w + 0.5])
                q = b[image, :2] + cell[1] * torch.tensor([j % n + 0.5, j // n + 0.5])
                assert bool(row[i, j]) == (float((p - q).norm()) < reach)


def test_without_overlap_nothing_is_learnt() -> None:
    q, none = draw(2, 4, 3).requires_grad_(), torch.zeros(2, 4, 4, dtype=torch.bool)
    for directions in ("row", "both"):
        loss, stats = dense_contrast(q, q.detach(), none, allow_none=True, with_stats=True, directions=directions)
        assert float(loss.detach()) == 0
        assert stats.num_anchors == 0
        assert (torch.autograd.grad(loss, q)[0] == 0).all()
    with pytest.raises(ValueError, match="positive: expected a positive in the batch"):
        dense_contrast(q, q, none)


@pytest.mark.oracle("condl", 3)
def test_symmetric_contrast_of_points() -> None:
    """Matched points of a pair of images, each the other's positive; points too near are no negatives."""
    a, b, matched = draw(2, 3, 4), draw(2, 3, 4, seed=1), torch.eye(3, dtype=torch.bool).expand(2, 3, 3)
    losses = []
    for image in range(2):
        s = normalize(a[image], dim=1) @ normalize(b[image], dim=1).t() / 0.2
        rows = sum(torch.logsumexp(s[i], 0) - s[i, i] for i in range(3)) / 3
        columns = sum(torch.logsumexp(s[:, i], 0) - s[i, i] for i in range(3)) / 3
        losses.append((rows + columns) / 2)
    options: dict[str, Any] = {"temperature": 0.2, "directions": "both"}
    found = dense_contrast(a, b, matched, **options)
    torch.testing.assert_close(found, torch.stack(losses).mean())
    torch.testing.assert_close(dense_contrast(b, a, matched, **options), found)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(dense_contrast(a[:, order], b[:, order], matched, **options), found)
    points = torch.tensor([[[0.0, 0], [1, 0], [9, 9]], [[0, 0], [5, 5], [9, 9]]])
    near = dense_contrast(a, b, matched, exclude=near_points(points, points, 2.0), **options)
    s = normalize(a[0], dim=1) @ normalize(b[0], dim=1).t() / 0.2
    s[0, 1] = s[1, 0] = -torch.inf
    one = (cross_entropy(s, torch.arange(3)) + cross_entropy(s.t(), torch.arange(3))) / 2
    torch.testing.assert_close(near, (one + losses[1]) / 2)


def dense_cl(features: tuple[Tensor, Tensor], q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
    match = match_positions(*features)
    matched = k.gather(1, match[..., None].expand(-1, -1, k.shape[2]))
    return info_nce(q.flatten(0, 1), matched.flatten(0, 1), queue)


@pytest.mark.oracle("densecl", 5)
@pytest.mark.oracle("densecl", 4)
def test_dense_cl_by_loops() -> None:
    f, g = draw(2, 9, 5, seed=2), draw(2, 9, 5, seed=3)
    q, k, queue = draw(2, 9, 4), draw(2, 9, 4, seed=1), draw(8, 4, seed=4)
    u, v, w, losses = normalize(q, dim=2), normalize(k, dim=2), normalize(queue, dim=1), []
    for n in range(2):
        for i in range(9):
            c = int((normalize(g[n], dim=1) @ f[n, i]).argmax())
            s = torch.cat([(u[n, i] @ v[n, c])[None], w @ u[n, i]]) / 0.2
            losses.append(torch.logsumexp(s, 0) - s[0])
    found = dense_cl((f, g), q, k, queue)
    torch.testing.assert_close(found, torch.stack(losses).mean())
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(dense_cl((f, g[:, order]), q, k[:, order], queue), found)


@pytest.mark.oracle("densecl", 2)
def test_matches_of_permuted_features() -> None:
    order = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(s)) for s in range(2)])
    f = torch.eye(9, dtype=F64).expand(2, 9, 9)
    g = torch.stack([f[n][order[n]] for n in range(2)])
    match = match_positions(f, g)
    assert torch.equal(order.gather(1, match), torch.arange(9).expand(2, 9))
    queue = draw(5, 9)
    expected = torch.log1p(torch.exp((normalize(queue, dim=1) - 1) / 0.2).sum(0)).mean()
    torch.testing.assert_close(dense_cl((f, g), f, g, queue), expected)


@pytest.mark.oracle("densecl", 3)
def test_one_position_is_the_global_loss() -> None:
    q, k, queue = draw(4, 1, 5), draw(4, 1, 5, seed=1), draw(8, 5, seed=2)
    torch.testing.assert_close(dense_cl((q, k), q, k, queue), info_nce(q[:, 0], k[:, 0], queue))


def test_derivatives() -> None:
    q, k, t = draw(2, 3, 3).requires_grad_(), draw(2, 3, 3, seed=1).requires_grad_(), torch.tensor(0.5, dtype=F64)
    positive = some(2, 3, 3)
    assert torch.autograd.gradcheck(
        lambda q, k, t: dense_contrast(q, k, positive, temperature=t), (q, k, t.requires_grad_())
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cold_rows_are_finite(dtype: torch.dtype) -> None:
    for rows in (torch.ones(2, 5, 4), draw(2, 5, 4), torch.zeros(2, 5, 4)):
        q = rows.to(dtype).requires_grad_()
        loss = dense_contrast(q, -rows.to(dtype), some(2, 5, 5), temperature=0.01)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(q.grad).all()


def test_module() -> None:
    module, q, k, positive = DenseContrast(0.2, learnable_temperature=True), draw(2, 4, 3), draw(2, 4, 3), some(2, 4, 4)
    expected = dense_contrast(q, k, positive, temperature=0.2)
    torch.testing.assert_close(module(q, k, positive), expected, rtol=1e-5, atol=1e-6)
    module(q, k, positive).backward()
    assert module.tau.log_value.grad is not None


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda q: dense_contrast(q, q[:1], some(2, 4, 4)), r"key: expected shape \[2, Q, 3\]"),
        (lambda q: dense_contrast(q[0], q, some(2, 4, 4)), r"query: expected shape \[B, P, D\]"),
        (lambda q: dense_contrast(q, q, some(2, 4, 5)), r"positive: expected shape \[2, 4, 4\] for 2 images"),
        (lambda q: dense_contrast(q, q, some(2, 4, 4), exclude=lambda _: some(4, 4)), "exclude: expected shape"),
        (lambda q: dense_contrast(q, q, some(2, 4, 4), directions="self"), "directions: expected one of"),
        (lambda q: dense_contrast(q, q, some(2, 4, 4), positives="soft"), "positives: expected one of"),
        (lambda q: near_cells(boxes(2), boxes(2), (2, 2), (2, 2), 0.0), "threshold: expected a finite number > 0"),
        (lambda q: near_points(q, q, -1.0), "radius: expected a finite number > 0"),
        (lambda q: grid_centres(torch.zeros(2, 4), 2, 2), "box: expected crops of some area"),
        (lambda q: grid_centres(torch.full((2, 4), torch.nan), 2, 2), "box: expected finite numbers"),
        (lambda q: grid_centres(torch.zeros(2, 3), 2, 2), r"box: expected shape \[B, 4\]"),
        (lambda q: match_positions(q, q[..., :2]), r"key: expected shape \[2, Q, 3\]"),
    ],
)
def test_refuses(call: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call(draw(2, 4, 3))


def test_masks_are_boolean() -> None:
    with pytest.raises(TypeError, match=r"positive: expected dtype bool|positive: expected dtype torch.bool"):
        dense_contrast(draw(2, 4, 3), draw(2, 4, 3), torch.ones(2, 4, 4))
