"""Vision transformers block by block: the oracles.

Legend: B images, L blocks, H heads, T tokens, S patches, N samples, D features.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from torch import Tensor

from nearfar.analysis._vit_attention import (
    AttentionMetrics,
    distances,
    is_offset,
    mask_iou,
    mass_mask,
    peak,
    saliency_iou,
    spatial,
)
from nearfar.analysis._vit_features import CKA, cka, hsic, keypoint_transfer, pooled, purity
from nearfar_images.vit_report import scores

F64 = torch.float64


def result(attention: Tensor, grid: tuple[int, int], num_prefix: int = 0) -> dict[str, Tensor]:
    metrics = AttentionMetrics(grid, num_prefix=num_prefix)
    metrics.update(attention)
    return metrics.result()


def right_neighbour(n: int) -> Tensor:
    """Every patch of n x n looks at the next in its row, the last of a row at itself."""
    a = torch.zeros(n * n, n * n)
    for s in range(n * n):
        a[s, s if s % n == n - 1 else s + 1] = 1
    return a


# -- oracle 1 --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("vit_analysis", 1)
@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_distance_of_uniform_and_identity(grid: tuple[int, int]) -> None:
    h, w = grid
    num = h * w
    heads = torch.stack([torch.full((num, num), 1 / num), torch.eye(num)])
    found = result(heads[None, None], grid)
    place = [(i / (h - 1), j / (w - 1)) for i in range(h) for j in range(w)]
    pairwise = sum(math.dist(a, b) for a in place for b in place) / num**2
    assert found["distance"][0, 0].item() == pytest.approx(pairwise)
    assert found["distance"][0, 1].item() == 0
    torch.testing.assert_close(distances(grid)[0, -1].item(), math.sqrt(2))


@pytest.mark.oracle("vit_analysis", 1)
def test_a_planted_offset_head_is_found() -> None:
    n = 8
    identity = torch.eye(n * n)
    found = result(
        torch.stack([right_neighbour(n), identity, torch.full((n * n, n * n), 1 / n**2)])[None, None], (n, n)
    )
    down, right = peak(found["aligned"])
    assert (down[0, 0].item(), right[0, 0].item()) == (0, 1)
    assert found["is_offset"].tolist() == [[1, 0, 0]]
    assert found["offset"][0, 0].item() == pytest.approx((n - 1) / n / (n - 1))  # one row in n looks at itself
    assert found["offset"][0, 0].item() == pytest.approx(1 / (n - 1), rel=0.15)
    assert found["offset"][0, 1:].abs().max().item() < 1e-9
    torch.testing.assert_close(found["aligned"].sum((-1, -2)), torch.ones(1, 3, dtype=F64))
    two_away = torch.zeros(5, 5)
    two_away[2, 4] = 1
    assert not bool(is_offset(two_away))


# -- the other statistics of attention -------------------------------------------------------------------------------


def test_statistics_against_loops() -> None:
    torch.manual_seed(0)
    a = torch.rand(3, 2, 4, 7, 7, dtype=F64).softmax(-1)
    found = result(a, (2, 3), num_prefix=1)
    raw = a[..., 1:, 1:]
    pure = raw / raw.sum(-1, keepdim=True)
    d = distances((2, 3))
    for block in range(2):
        deviation = np.mean([raw[i, block].numpy().std(0).mean() for i in range(3)])
        assert found["head_deviation"][block].item() == pytest.approx(deviation)
        for head in range(4):
            each = [(pure[i, block, head] * d).sum().item() / 6 for i in range(3)]
            assert found["distance"][block, head].item() == pytest.approx(np.mean(each))
            each = [raw[i, block, head].numpy().std(0).mean() for i in range(3)]
            assert found["position_deviation"][block, head].item() == pytest.approx(np.mean(each))
    torch.testing.assert_close(found["on_token_all"], a.mean((0, 3)))
    torch.testing.assert_close(found["on_token_cls"], a[..., 0, :].mean(0))
    torch.testing.assert_close(found["on_token_spatial"], a[..., 1:, :].mean((0, 3)))
    torch.testing.assert_close(found["on_token_pure"], pure.mean((0, 3)))
    torch.testing.assert_close(found["spatial_to_cls"], a[..., 1:, 0].mean((0, 3)))
    assert not bool(found["null"].any())


def test_patches_that_attend_to_none_are_counted() -> None:
    a = torch.zeros(1, 1, 1, 5, 5)
    a[..., 0] = 1
    found = result(a, (2, 2), num_prefix=1)
    assert found["null"].item() == 1
    assert found["distance"].item() == 0
    assert found["offset"].item() == 0
    pure, null = spatial(torch.tensor([[0.0, 0.0], [0.1, 0.3]]))
    torch.testing.assert_close(pure, torch.tensor([[0.0, 0.0], [0.25, 0.75]]))
    assert null.tolist() == [True, False]


def test_attention_given_is_left_as_it_is() -> None:
    a = torch.rand(2, 1, 1, 5, 5).softmax(-1)
    before = a.clone()
    result(a, (2, 2), num_prefix=1)
    assert torch.equal(a, before)


# -- oracle 2 --------------------------------------------------------------------------------------------------------


def brute_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Over all quadruples of different samples: E[K_ij L_ij] + E[K_ij L_qr] - 2 E[K_ij L_iq]."""
    num, total = len(k), 0.0
    count = 0
    for i in range(num):
        for j in range(num):
            for q in range(num):
                for r in range(num):
                    if len({i, j, q, r}) == 4:
                        total += k[i, j] * m[i, j] + k[i, j] * m[q, r] - 2 * k[i, j] * m[i, q]
                        count += 1
    return total / count


@pytest.mark.oracle("vit_analysis", 2)
def test_hsic_and_cka_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 3)), rng.standard_normal((8, 5))
    y[:, :3] += x
    k, m = x @ x.T, y @ y.T
    assert float(hsic(torch.tensor(k), torch.tensor(m))) == pytest.approx(brute_hsic(k, m))
    expected = brute_hsic(k, m) / math.sqrt(brute_hsic(k, k) * brute_hsic(m, m))
    assert cka(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected)


@pytest.mark.oracle("vit_analysis", 2)
def test_cka_laws() -> None:
    x, y = torch.randn(50, 8, dtype=F64), torch.randn(50, 4, dtype=F64)
    y[:, :2] += x[:, :2]
    assert cka(x, x) == pytest.approx(1)
    turned = 3 * x @ torch.linalg.qr(torch.randn(8, 8, dtype=F64))[0]
    assert cka(turned, y) == pytest.approx(cka(x, y))
    assert cka(x, y) > 0.1
    values = [cka(torch.randn(60, 6), torch.randn(60, 6)) for _ in range(60)]
    assert abs(float(np.mean(values))) < 0.01
    assert min(values) < 0
    assert cka(torch.ones(5, 2), y[:5]) == 0


# -- oracle 3 --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("vit_analysis", 3)
def test_clusters_against_scikit_learn() -> None:
    cluster, label = torch.randint(0, 4, (60,)), torch.randint(3, 8, (60,))
    assert purity(cluster, label) == pytest.approx(contingency_matrix(label, cluster).max(0).sum() / 60)
    balanced = torch.arange(60) % 5
    assert purity(balanced * 7 + 1, balanced) == 1
    assert purity(torch.zeros(60).long(), balanced) == pytest.approx(1 / 5)
    x = torch.randn(60, 3) + 2 * torch.eye(3)[balanced % 3]
    found = scores(x, balanced % 3)
    from nearfar.prototypes import kmeans

    groups = [kmeans(x, 3, seed=draw).label for draw in range(3)]
    truth = balanced % 3
    assert found["nmi"] == pytest.approx(np.mean([normalized_mutual_info_score(truth, g) for g in groups]))
    assert found["ari"] == pytest.approx(np.mean([adjusted_rand_score(truth, g) for g in groups]))
    assert found["purity"] == pytest.approx(np.mean([purity(g, truth) for g in groups]))


# -- oracle 4 --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("vit_analysis", 4)
@pytest.mark.parametrize("m", [1, 2, 5, 7, 10, 64])
def test_mask_of_uniform_attention(m: int) -> None:
    attention = torch.zeros(80)
    attention[torch.randperm(80)[:m]] = 0.3
    mask = mass_mask(attention)
    assert int(mask.sum()) == math.ceil(round(0.6 * m, 9))
    assert bool((attention[mask] > 0).all())


@pytest.mark.oracle("vit_analysis", 4)
def test_intersection_over_union() -> None:
    mask = mass_mask(torch.rand(5, 12))
    assert torch.equal(mask_iou(mask, mask), torch.ones(5))
    empty = mass_mask(torch.zeros(1, 12))
    assert not bool(empty.any())
    assert mask_iou(empty, empty).item() == 1
    assert mask_iou(empty, ~empty).item() == 0
    first, second = torch.tensor([True, True, False, False]), torch.tensor([False, True, True, False])
    assert mask_iou(first, second).item() == pytest.approx(1 / 3)


def test_saliency_of_the_class_token_and_without() -> None:
    a = torch.full((1, 1, 2, 5, 5), 0.01)
    a[0, 0, 0, 0, 2] = 1.0  # the first head's class token looks at patch 1
    a[0, 0, 1, 1:, 4] = 1.0
    a = a / a.sum(-1, keepdim=True)
    mask = torch.tensor([[False, True, False, False]])
    assert saliency_iou(a, mask).tolist()[0][0][0] == 1
    assert saliency_iou(a[..., 1:, 1:], ~mask, num_prefix=0)[0, 0, 1].item() == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match=r"mask: expected shape \(1, 4\)"):
        saliency_iou(a, mask[:, :3])


# -- oracle 5 --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("vit_analysis", 5)
def test_batches_add_up() -> None:
    a = torch.rand(7, 2, 3, 10, 10).softmax(-1)
    parts = AttentionMetrics((3, 3))
    for part in a.split([4, 3]):
        parts.update(part)
    for name, value in result(a, (3, 3), num_prefix=1).items():
        torch.testing.assert_close(parts.result()[name], value, msg=name)


@pytest.mark.oracle("vit_analysis", 5)
def test_cka_adds_its_terms_before_it_divides() -> None:
    x, y = torch.randn(12, 4, dtype=F64), torch.randn(12, 4, dtype=F64)
    streamed = CKA()
    for part in (slice(0, 5), slice(5, 12)):
        streamed.update([x[part], y[part]], [y[part]])
    terms = torch.zeros(3, dtype=F64)
    for part in (slice(0, 5), slice(5, 12)):
        k, m = x[part] @ x[part].T, y[part] @ y[part].T
        terms += torch.stack([hsic(k, m), hsic(k, k), hsic(m, m)])
    assert streamed.result().shape == (2, 1)
    assert streamed.result()[0, 0].item() == pytest.approx((terms[0] / (terms[1] * terms[2]).sqrt()).item())
    assert streamed.result()[1, 0].item() == pytest.approx(1)


# -- features --------------------------------------------------------------------------------------------------------


def test_pooling_and_keypoints() -> None:
    tokens = torch.randn(2, 6, 3)
    assert torch.equal(pooled(tokens, "cls", 2), tokens[:, 0])
    assert torch.equal(pooled(tokens, "spatial", 2), tokens[:, 2:])
    assert torch.equal(pooled(tokens, "mean", 2), tokens[:, 2:].mean(1))
    with pytest.raises(ValueError, match="mode: expected another than 'cls'"):
        pooled(tokens, "cls", 0)
    source = torch.eye(16).unflatten(1, (4, 4))
    moved = source.roll(1, 2)  # everything lies a patch further right
    points = torch.tensor([[0.1, 0.1], [0.4, 0.6]])
    truth = torch.tensor([[0.375, 0.125], [0.625, 0.625]])
    assert keypoint_transfer(source, moved, points, truth, alpha=0.01) == 1
    assert keypoint_transfer(source, moved, points, points, alpha=0.1) == 0
    with pytest.raises(ValueError, match=r"truth: expected numbers in \[0, 1\]"):
        keypoint_transfer(source, moved, points, truth + 1)
    with pytest.raises(ValueError, match="points: expected one point"):
        keypoint_transfer(source, moved, points[:0], truth[:0])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="grid: expected 2 patches or more"):
        AttentionMetrics((1, 4))
    with pytest.raises(ValueError, match="attention: expected a batch or more"):
        AttentionMetrics((2, 2)).result()
    with pytest.raises(ValueError, match=r"attention: expected shape \[B, L, H, 5, 5\]"):
        AttentionMetrics((2, 2)).update(torch.rand(1, 1, 1, 4, 4))
    with pytest.raises(ValueError, match="attention: expected rows that sum to 1"):
        AttentionMetrics((2, 2)).update(torch.rand(1, 1, 1, 5, 5))
    with pytest.raises(ValueError, match="features: expected 4 samples or more"):
        cka(torch.randn(3, 2), torch.randn(3, 2))
    with pytest.raises(ValueError, match="mass: expected a number"):
        mass_mask(torch.rand(4), 1.0)
    with pytest.raises(ValueError, match="features: expected a batch or more"):
        CKA().result()
