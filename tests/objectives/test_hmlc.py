"""Hierarchical contrast in masked features: its oracles, shards.

Legend: V views, B batch, D embedding, H levels.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nearfar.objectives import HMLC, hmlc, path_ids, supcon
from objectives.sharding import PARTS, over_parts

F64 = torch.float64
LABELS = torch.tensor([[0, 0], [0, 1], [1, 0], [0, 0], [1, 1], [1, 0], [2, 0]])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_paths() -> None:
    ids = path_ids(LABELS)
    for h in range(2):
        same = (LABELS[:, None, : h + 1] == LABELS[None, :, : h + 1]).all(-1)
        assert torch.equal(ids[:, None, h] == ids[None, :, h], same)


@pytest.mark.oracle("hmlc", 1)
@pytest.mark.parametrize("num_views", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_masks_of_ones_are_a_sum_of_supcons(masked: bool, num_views: int) -> None:
    z = draw(num_views, 7, 4)
    masks = torch.ones(2, 4, dtype=F64) if masked else None
    torch.testing.assert_close(hmlc(z, LABELS[:, :1], None if masks is None else masks[:1]), supcon(z, LABELS[:, 0]))
    paths = path_ids(LABELS)
    each = torch.stack([supcon(z, paths[:, h]) for h in range(2)])
    found, levels = hmlc(z, LABELS, masks, level_weight=[0.3, 2.0], with_levels=True)
    torch.testing.assert_close(levels, each)
    torch.testing.assert_close(found, 0.3 * each[0] + 2 * each[1])
    torch.testing.assert_close(hmlc(z, LABELS, masks), each.mean())
    torch.testing.assert_close(hmlc(z, LABELS, masks, level_weight="halving"), 2**0.5 * each[0] + 2 * each[1])


@pytest.mark.oracle("hmlc", 2)
def test_disjoint_masks_keep_levels_apart() -> None:
    z = draw(2, 7, 6).requires_grad_()
    masks = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]], dtype=F64)
    for h, weight in enumerate(([1.0, 0.0], [0.0, 1.0])):
        (grad,) = torch.autograd.grad(hmlc(z, LABELS, masks, level_weight=weight), z)
        assert (grad[..., masks[h] == 0] == 0).all()
        assert (grad[..., masks[h] == 1] != 0).any(0).any(0).all()


@pytest.mark.oracle("hmlc", 4)
def test_a_masks_scale_changes_nothing_and_it_may_be_learnt() -> None:
    z = draw(2, 7, 4)
    soft = torch.rand(2, 2, 7, 4, generator=torch.Generator().manual_seed(1), dtype=F64).requires_grad_()
    torch.testing.assert_close(hmlc(z, LABELS, torch.full((2, 2, 7, 4), 0.5, dtype=F64)), hmlc(z, LABELS))
    found = hmlc(z, LABELS, soft)
    torch.testing.assert_close(hmlc(z, LABELS, soft * 3), found)
    by_hand = sum(supcon(z * soft[h], path_ids(LABELS)[:, h]) for h in range(2)) / 2
    torch.testing.assert_close(found, by_hand)
    (grad,) = torch.autograd.grad(found, soft)
    assert (grad.abs().sum((1, 2, 3)) > 0).all()


@pytest.mark.oracle("hmlc", 5)
def test_names_of_children_do_not_matter() -> None:
    z, renamed = draw(2, 7, 4), LABELS.clone()
    renamed[LABELS[:, 0] == 1, 1] = 7 - renamed[LABELS[:, 0] == 1, 1]
    torch.testing.assert_close(hmlc(z, renamed), hmlc(z, LABELS))


@pytest.mark.oracle("hmlc", 5)
@pytest.mark.parametrize("num_views", [1, 2])
def test_class_balance(num_views: int) -> None:
    even = torch.tensor([[0, 0], [0, 0], [0, 1], [0, 1], [1, 0], [1, 0], [1, 1], [1, 1]])
    z = draw(num_views, 8, 4)
    torch.testing.assert_close(hmlc(z, even, balanced=True), hmlc(z, even))
    uneven = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2])
    each = supcon(z, uneven, reduction="none", empty="zero").reshape(num_views, 8).mean(0)
    classes = [each[uneven == c].mean() for c in range(3 if num_views == 2 else 2)]  # alone, class 2 has no positive
    torch.testing.assert_close(hmlc(z, uneven[:, None], balanced=True), torch.stack(classes).mean())


@pytest.mark.parametrize("balanced", [False, [True, False]])
@pytest.mark.parametrize("num_views", [1, 2])
@pytest.mark.parametrize("sizes", PARTS)
def test_shards_equal_the_whole(sizes: list[int], num_views: int, balanced: Any) -> None:
    z = draw(num_views, 7, 4).requires_grad_()
    masks = torch.rand(2, num_views, 7, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    whole = hmlc(z, LABELS, masks, balanced=balanced)
    parts = over_parts(
        sizes,
        lambda rows, offset: hmlc(
            z[:, rows], LABELS[rows], masks[:, :, rows], gathered=(z, LABELS, masks), offset=offset, with_stats=True,
            balanced=balanced,
        ),
    )  # fmt: skip
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, z), torch.autograd.grad(whole, z))


def test_anchors_without_positives() -> None:
    z = draw(4, 3)
    labels = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    with pytest.raises(ValueError, match="positives: expected at least one anchor with a positive on level 1"):
        hmlc(z, labels)
    expected = supcon(z, labels[:, 0]) / 2
    torch.testing.assert_close(hmlc(z, labels, empty="zero"), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cold_rows_are_finite(dtype: torch.dtype) -> None:
    z = draw(2, 7, 4).to(dtype).requires_grad_()
    loss = hmlc(z, LABELS, torch.tensor([[1, 1, 0, 0], [0, 0, 0, 1]]), temperature=0.01)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(z.grad).all()


def test_module() -> None:
    module, z = HMLC(learnable_temperature=True, balanced=True), draw(2, 7, 4).float()
    torch.testing.assert_close(module(z, LABELS), hmlc(z, LABELS, balanced=True))
    module(z, LABELS).backward()
    assert module.tau.log_value.grad is not None


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"labels": LABELS[:6]}, r"labels: expected shape \[7, H\]"),
        ({"masks": torch.ones(3, 4)}, r"masks: expected masks of shape \[2, 4\] or \[2, 2, 7, 4\]"),
        ({"masks": torch.zeros(2, 4)}, "masks of 0 or more that leave level 0 a feature"),
        ({"level_weight": [1.0]}, "level_weight: expected 2 numbers"),
        ({"level_weight": "power"}, "level_weight: expected one of"),
        ({"balanced": [True]}, "balanced: expected 2 flags"),
        ({"empty": "raise"}, "empty: expected one of"),
        ({"gathered": (draw(2, 7, 4), LABELS), "offset": 3}, "offset: expected 0 to 0"),
        ({"gathered": (draw(2, 9, 4), torch.zeros(9, 1).long())}, "gathered: expected labels of 2 levels"),
    ],
)
def test_refuses(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        hmlc(**{"z": draw(2, 7, 4), "labels": LABELS} | arguments)


def test_refuses_labels() -> None:
    with pytest.raises(ValueError, match=r"labels: expected shape \[B, H\]"):
        path_ids(LABELS[:, 0])
    with pytest.raises(TypeError, match="labels: expected integers"):
        path_ids(LABELS.float())
