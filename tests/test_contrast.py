"""The contrast against double loops in float64, the laws it obeys, and extremes.

Legend: B anchors, N candidates, D embedding.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from brute import (
    F64,
    GROUP,
    KINDS,
    LABELS,
    MASK,
    OPTIONS,
    POSITIVE,
    TARGETS,
    TEMPERATURE_B,
    WEIGHT_BN,
    B,
    D,
    N,
    brute,
    draw,
    mean,
)
from nearfar.contrast import Lorentz, contrast


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("positives", ["mean", "sum", "each"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_equal_double_loops(kind: str, positives: str, option: str) -> None:
    given, is_positive = KINDS[kind]
    arguments, expected = OPTIONS[option]
    if kind == "targets" and "ignore" in arguments:  # which spares an explicit target
        exists = expected["exists"]
        expected = expected | {"exists": lambda i, j: exists(i, j) or is_positive(i, j)}
    for decoupled in (False, True):
        if decoupled and option == "mask":
            continue
        a, c = draw(B, D, seed=1), draw(N, D, seed=2)
        losses = brute(a, c, is_positive=is_positive, positives=positives, decoupled=decoupled, **expected)
        denominator = {"denominator": "negatives"} if decoupled else {}
        for tile in (0, 3):
            found = contrast(
                a, c, **given, positives=positives, **(denominator | arguments), reduction="none", tile=tile
            )
            assert found.tolist() == pytest.approx([x or 0.0 for x in losses], rel=1e-10, abs=1e-12)
            loss = contrast(a, c, **given, positives=positives, **(denominator | arguments), tile=tile)
            assert float(loss) == pytest.approx(mean(losses), rel=1e-10)


@pytest.mark.parametrize("positives", ["mean", "sum", "each"])
@pytest.mark.parametrize("kind", KINDS)
def test_columns_and_both_equal_double_loops(kind: str, positives: str) -> None:
    given, is_positive = KINDS[kind]
    a, c = draw(B, D, seed=1), draw(N, D, seed=2)
    rows = brute(a, c, is_positive=is_positive, positives=positives)
    columns = brute(c, a, is_positive=lambda j, i: is_positive(i, j), positives=positives)
    for tile in (0, 3):
        options = {**given, "positives": positives, "tile": tile}
        assert float(contrast(a, c, directions="column", **options)) == pytest.approx(mean(columns), rel=1e-10)
        both = contrast(a, c, directions="both", **options)
        assert float(both) == pytest.approx((mean(rows) + mean(columns)) / 2, rel=1e-10)
        each = contrast(a, c, directions="both", reduction="none", **options)
        assert each.tolist() == pytest.approx([x or 0.0 for x in rows + columns], rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("option", ["none", "group", "margin", "extra", "log_weight"])
@pytest.mark.parametrize("positives", ["mean", "sum", "each"])
def test_self_equals_double_loops(positives: str, option: str) -> None:
    z, ids, groups = draw(N, D, seed=1), LABELS[1], GROUP[1]
    arguments, expected = dict(OPTIONS[option][0]), dict(OPTIONS[option][1])
    exists = lambda i, j: i != j  # noqa: E731
    if option == "group":
        arguments = {"group": groups}
        exists = lambda i, j: i != j and int(groups[i]) == int(groups[j])  # noqa: E731
    for decoupled in (False, True):
        losses = brute(
            z, z, is_positive=lambda i, j: int(ids[i]) == int(ids[j]), positives=positives, decoupled=decoupled,
            **(expected | {"exists": exists}),
        )  # fmt: skip
        for tile in (0, 3, 5):
            found = contrast(
                z, directions="self", labels=ids, positives=positives, tile=tile, **arguments,
                denominator="negatives" if decoupled else "all", reduction="none",
            )  # fmt: skip
            assert found.tolist() == pytest.approx([x or 0.0 for x in losses], rel=1e-10, abs=1e-12)


def test_own_positives_beside_a_queue_alone() -> None:
    a, key, queue = draw(B, D, seed=1), draw(B, 1, D, seed=2), draw(9, D, seed=3)
    u, k, n = (torch.nn.functional.normalize(x, dim=-1) for x in (a, key[:, 0], queue))
    logits = torch.cat([(u * k).sum(1, keepdim=True), u @ n.t()], 1) / 0.2
    expected = torch.nn.functional.cross_entropy(logits, torch.zeros(B, dtype=torch.long))
    for candidate, extra in ((None, (queue,)), (queue, ())):
        for tile in (0, 4):
            found = contrast(a, candidate, own_positive=key, extra=extra, temperature=0.2, tile=tile)
            torch.testing.assert_close(found, expected)


def test_pairs_are_weighted_in_both_directions() -> None:
    a, c, weight = draw(B, D, seed=1), draw(B, D, seed=2), TEMPERATURE_B
    logits = torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(c, dim=1).t() / 0.1
    rows = torch.arange(B)
    expected = sum(weight @ torch.nn.functional.cross_entropy(x, rows, reduction="none") for x in (logits, logits.t()))
    for tile in (0, 4):
        found = contrast(a, c, targets=rows, directions="both", anchor_weight=weight, tile=tile)
        torch.testing.assert_close(found, expected / (2 * B))


@pytest.mark.parametrize("tile", [0, 4])
def test_soft_weights_equal_double_loops(tile: int) -> None:
    a, c = draw(B, D, seed=1), draw(N, D, seed=2)
    weight = torch.rand(B, N, generator=torch.Generator().manual_seed(1), dtype=F64) * (draw(B, N) > 0)
    losses = brute(a, c, is_positive=lambda i, j: weight[i, j] > 0, positives="soft", weight=weight.tolist())
    found = contrast(a, c, weight=weight, positives="soft", reduction="none", tile=tile)
    assert found.tolist() == pytest.approx([x or 0.0 for x in losses], rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("tile", [0, 4, None])
def test_functions_of_anchors_stand_for_matrices(tile: int | None) -> None:
    a, c = draw(B, D, seed=1), draw(N, D, seed=2)
    soft = torch.rand(B, N, generator=torch.Generator().manual_seed(1), dtype=F64)
    forms: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"positive": POSITIVE, "denominator": MASK}, {}),
        ({"targets": TARGETS, "log_weight": WEIGHT_BN}, {}),
        ({"weight": soft}, {"positives": "soft"}),
    ]
    for matrices, options in forms:
        functions = {
            name: (lambda rows, x=x: x[rows]) if isinstance(x, Tensor) and x.ndim == 2 else x
            for name, x in matrices.items()
        }
        expected = contrast(a, c, **matrices, **options, reduction="none", tile=0)
        found = contrast(a, c, **functions, **options, reduction="none", tile=tile)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_soft_weights_are_cross_entropy() -> None:
    a, c = draw(B, D, seed=1), draw(N, D, seed=2)
    weight = torch.softmax(draw(B, N, seed=3), 1)
    logits = torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(c, dim=1).t() / 0.1
    expected = torch.nn.functional.cross_entropy(logits, weight)
    torch.testing.assert_close(contrast(a, c, weight=weight, positives="soft"), expected)


def test_logits_are_taken_as_they_are() -> None:
    logits, targets = draw(B, N, seed=1), torch.tensor([0, 1, 2, 3, 4, 5])
    expected = torch.nn.functional.cross_entropy(logits, targets)
    torch.testing.assert_close(contrast(None, logits=logits, targets=targets), expected)
    both = (expected + torch.nn.functional.cross_entropy(logits.t()[:B], targets)) / 2
    torch.testing.assert_close(contrast(None, logits=logits, targets=targets, directions="both"), both)


@pytest.mark.parametrize("tile", [0, 3])
def test_a_log_weight_of_minus_infinity_leaves_a_candidate_out(tile: int) -> None:
    a, c, targets = draw(B, D, seed=1).requires_grad_(), draw(N, D, seed=2), torch.arange(B)
    weight = torch.tensor([0.0] * 6 + [float("-inf")] * 2, dtype=F64)
    found, expected = contrast(a, c, targets=targets, log_weight=weight, tile=tile), contrast(a, c[:6], targets=targets)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, a), torch.autograd.grad(expected, a))


def test_similarities() -> None:
    a, c, targets = draw(B, D, seed=1), draw(N, D, seed=2), torch.arange(B)
    dot = torch.nn.functional.cross_entropy(a @ c.t() / 0.5, targets)
    torch.testing.assert_close(contrast(a, c, targets=targets, similarity="dot", temperature=0.5), dot)

    class Negative:
        def tile(self, x: Tensor, y: Tensor) -> Tensor:
            return -torch.cdist(x, y, p=1.0)

    distance = torch.nn.functional.cross_entropy(-torch.cdist(a, c, p=1.0) / 0.5, targets)
    found = contrast(a, c, targets=targets, similarity=Negative(), temperature=0.5)
    torch.testing.assert_close(found, distance)
    half = torch.nn.functional.cross_entropy(torch.nn.functional.normalize(a, dim=1) @ c.t(), targets)
    torch.testing.assert_close(contrast(a, c, targets=targets, normalize=("anchor",), temperature=1.0), half)


def test_lorentz_distance_has_the_closed_form_along_a_ray() -> None:
    """Points sinh(r) e on the unit hyperboloid lie at distance |r - s| of each other."""
    r, s = torch.tensor([0.5, 1.0], dtype=F64), torch.tensor([2.0, 0.1], dtype=F64)
    direction = torch.nn.functional.normalize(draw(1, 3), dim=1)
    found = Lorentz().tile(torch.sinh(r)[:, None] * direction, torch.sinh(s)[:, None] * direction)
    torch.testing.assert_close(found, -(r[:, None] - s[None, :]).abs())
    loss = contrast(direction, 2 * direction, targets=torch.tensor([0]), similarity="lorentz")
    assert float(loss) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="curvature"):
        Lorentz(-1.0)


@pytest.mark.parametrize("tile", [0, 4])
def test_laws(tile: int) -> None:
    z, ids = draw(11, D, seed=1), torch.arange(11) % 4
    options: dict[str, Any] = {"directions": "self", "tile": tile}
    loss = contrast(z, labels=ids, **options)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(draw(D, D, seed=2))[0]
    scale = torch.rand(11, 1, generator=torch.Generator().manual_seed(0), dtype=F64) + 0.1
    for changed, labels in ((z[order], ids[order]), (z @ rotation, ids), (z * scale, ids), (z, 7 - ids)):
        torch.testing.assert_close(contrast(changed, labels=labels, **options), loss)
    z.requires_grad_()
    (grad,) = torch.autograd.grad(contrast(z, labels=ids, **options), z)
    torch.testing.assert_close((grad * z.detach()).sum(1), torch.zeros(11, dtype=F64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("tile", [0, 4])
@pytest.mark.parametrize("directions", ["row", "both", "self"])
@pytest.mark.parametrize("temperature", [0.01, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", ["equal", "opposite", "zero", "one zero", "tiny", "large"])
def test_extremes_are_finite(rows: str, dtype: torch.dtype, temperature: float, directions: str, tile: int) -> None:
    z = draw(10, 4, seed=1, dtype=torch.float32)
    if rows == "equal":
        z = z[:1].expand(10, 4).clone()
    elif rows == "opposite":
        z = torch.cat([z[:1].expand(5, 4), -z[:1].expand(5, 4)])
    elif rows in ("zero", "one zero"):
        z[: 10 if rows == "zero" else 1] = 0.0
    else:
        # Smaller float16 rows have gradients, proportional to 1 / |z|, that float16 cannot hold.
        z = z * (1e-2 if rows == "tiny" else 1e4)
    z = z.to(dtype).requires_grad_()
    targets = torch.arange(10).roll(5)
    loss = contrast(
        z, None if directions == "self" else z, targets=targets, directions=directions, temperature=temperature,
        tile=tile,
    )  # fmt: skip
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(z.grad).all()
    if rows == "equal":
        assert float(loss.detach()) == pytest.approx(math.log(9 if directions == "self" else 10), rel=1e-4)


@pytest.mark.parametrize("tile", [0, 3])
def test_half_precision_accumulates_in_float32(tile: int) -> None:
    z = draw(12, 8, seed=1, dtype=torch.float32)
    expected = contrast(z.bfloat16().float(), labels=torch.arange(12) // 2, directions="self", tile=tile)
    found = contrast(z.bfloat16(), labels=torch.arange(12) // 2, directions="self", tile=tile)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("tile", [0, 3])
def test_autocast_changes_nothing(tile: int) -> None:
    values = []
    for enabled in (False, True):
        z = draw(12, 8, seed=1, dtype=torch.float32).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = contrast(z, labels=torch.arange(12) // 2, directions="self", tile=tile)
        loss.backward()
        values.append((loss.detach(), z.grad))
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=0)


@pytest.mark.parametrize("tile", [0, 3])
def test_empty_anchors(tile: int) -> None:
    a, c = draw(4, D, seed=1), draw(N, D, seed=2)
    some, none = torch.tensor([1, -1, 0, -1]), torch.full((4,), -1)
    each = contrast(a, c, targets=some, reduction="none", tile=tile)
    assert each[1] == each[3] == 0
    skip, stats = contrast(a, c, targets=some, tile=tile, with_stats=True)
    torch.testing.assert_close(skip, each.sum() / 2)
    assert (stats.num_anchors, stats.num_empty) == (2, 2)
    zero, stats = contrast(a, c, targets=some, empty="zero", tile=tile, with_stats=True)
    torch.testing.assert_close(zero, each.sum() / 4)
    assert (stats.num_anchors, stats.num_empty) == (4, 2)
    with pytest.raises(ValueError, match=r"empty: expected a positive for every anchor, received 2"):
        contrast(a, c, targets=some, empty="raise", tile=tile)
    with pytest.raises(ValueError, match="at least one anchor with a positive"):
        contrast(a, c, targets=none, tile=tile)
    a.requires_grad_()
    loss = contrast(a, c, targets=none, empty="zero", tile=tile)
    (grad,) = torch.autograd.grad(loss, a)
    assert float(loss.detach()) == 0
    assert not grad.any()


@pytest.mark.parametrize("tile", [0, 3])
def test_an_empty_denominator_leaves_the_mean(tile: int) -> None:
    z = draw(6, D, seed=1).requires_grad_()
    ids = torch.zeros(6, dtype=torch.long)
    options: dict[str, Any] = {"labels": ids, "directions": "self", "denominator": "negatives", "tile": tile}
    with pytest.raises(ValueError, match="something in its denominator"):
        contrast(z, **options)
    loss = contrast(z, **options, empty="zero")
    (grad,) = torch.autograd.grad(loss, z)
    assert float(loss.detach()) == 0
    assert not grad.any()


def test_accuracy() -> None:
    z = torch.eye(4)
    _, stats = contrast(z, z, targets=torch.tensor([0, 1, 3, -1]), with_stats=True)
    assert float(stats.accuracy) == pytest.approx(2 / 3)
    _, stats = contrast(torch.ones(4, 2), torch.ones(4, 2), targets=torch.arange(4), with_stats=True)
    assert float(stats.accuracy) == 0  # all alike: nobody found anything
    _, stats = contrast(z, z, targets=torch.arange(4), tile=2, with_stats=True)
    assert stats.accuracy is None
    _, stats = contrast(z, z, targets=torch.arange(4), with_stats="counts")
    assert (stats.num_anchors, stats.accuracy) == (4, None)


def test_large_matrices_are_tiled_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    from nearfar import _composed

    calls = []
    parts = _composed.parts
    monkeypatch.setattr(_composed, "parts", lambda *a: calls.append(1) or parts(*a))
    for num, expected in ((256, 0), (257, 1)):
        contrast(draw(num, 4), labels=torch.arange(num) // 2, directions="self", empty="zero")
        assert len(calls) == expected
    contrast(draw(9, 4), draw(9, 4), targets=torch.arange(9), extra=(draw(9000, 4),))  # a queue counts too
    assert len(calls) == 2
