"""The contrast against double loops in float64, the laws it obeys, and extremes.

Legend: B anchors, N candidates, D embedding.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nearfar.contrast import Lorentz, contrast

B, N, D = 6, 8, 5
F64 = torch.float64


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def cosine(x: list[float], y: list[float]) -> float:
    dot = sum(a * b for a, b in zip(x, y, strict=True))
    return dot / math.sqrt(sum(a * a for a in x)) / math.sqrt(sum(b * b for b in y))


def brute(
    anchor: Tensor, candidate: Tensor, *, is_positive: Any, exists: Any = lambda i, j: True,
    positives: str = "mean", in_denominator: Any = None, decoupled: bool = False, t: Any = lambda i: 0.1,
    pt: Any = None, margin: float = 0.0, log_weight: Any = lambda i, j: 0.0, further: Any = lambda i: (),
    further_weight: Any = lambda i: None, own_positive: Any = lambda i: [], anchor_weight: Any = lambda i: 1.0,
    weight: Any = None,
) -> list[float | None]:  # fmt: skip
    """Loss of every anchor by loops over Python numbers; None for an anchor without a positive."""
    pt = pt or t
    losses: list[float | None] = []
    a, shared = anchor.tolist(), candidate.tolist()
    for i in range(len(a)):
        c, num = shared + own_positive(i), len(shared)
        mine = list(range(num, len(c)))
        pairs = [j for j in range(num) if exists(i, j)] + mine
        pos = [j for j in pairs if j in mine or is_positive(i, j)]

        def weigh(j: int, i: int = i, num: int = num) -> float:
            return log_weight(i, j) if j < num else 0.0

        def entry(j: int, i: int = i, pos: list[int] = pos, c: list[list[float]] = c) -> float:
            s = cosine(a[i], c[j])
            return (s - margin) / pt(i) if j in pos else s / t(i)

        kept = [
            j for j in pairs
            if not (decoupled and j in pos) and (j in mine or in_denominator is None or in_denominator(i, j))
        ]  # fmt: skip
        others = further(i)
        more = [
            math.exp(cosine(a[i], e) / t(i) + w)
            for e, w in zip(others, further_weight(i) or [0.0] * len(others), strict=True)
        ]
        total = sum(math.exp(entry(j) + weigh(j)) for j in kept) + sum(more)
        if not pos or (decoupled and total == 0):  # nothing to be told from
            losses.append(None)
        elif positives == "mean":
            losses.append(math.log(total) - sum(entry(j) for j in pos) / len(pos))
        elif positives == "sum":
            losses.append(math.log(total) - math.log(sum(math.exp(entry(j)) for j in pos)))
        elif positives == "each":
            rest = sum(math.exp(entry(j) + weigh(j)) for j in kept if j not in pos) + sum(more)
            terms = [math.log(rest + (math.exp(entry(j) + weigh(j)) if j in kept else 0.0)) - entry(j) for j in pos]
            losses.append(sum(terms) / len(pos))
        else:
            losses.append(sum(weight[i][j] * (math.log(total) - entry(j)) for j in pos))
        losses[-1] = None if losses[-1] is None else losses[-1] * anchor_weight(i)
    return losses


def mean(losses: list[float | None]) -> float:
    known = [x for x in losses if x is not None]
    return sum(known) / len(known)


LABELS = (torch.tensor([0, 1, 2, 0, 1, 5]), torch.tensor([1, 0, 0, 2, 1, 3, 3, 1]))
TARGETS = torch.tensor([3, 0, -1, 7, 2, 0])
POSITIVE = torch.rand(B, N, generator=torch.Generator().manual_seed(3)) < 0.3
GROUP = (torch.tensor([0, 1, 0, 1, 0, 0]), torch.tensor([0, 1, 0, 1, 0, 0, 1, 0]))
OWN = torch.tensor([4, 1, -1, 2, 7, 0])
KINDS = {
    "targets": ({"targets": TARGETS}, lambda i, j: int(TARGETS[i]) == j),
    "labels": ({"labels": LABELS}, lambda i, j: int(LABELS[0][i]) == int(LABELS[1][j])),
    "positive": ({"positive": POSITIVE}, lambda i, j: bool(POSITIVE[i, j])),
}
EXTRA = (draw(3, D, seed=5), draw(2, D, seed=6))
PER_ANCHOR = draw(B, 2, D, seed=7)
WEIGHT_N, WEIGHT_BN = draw(N, seed=8), draw(B, N, seed=9)
MASK = torch.rand(B, N, generator=torch.Generator().manual_seed(4)) < 0.8
TEMPERATURE_B = torch.rand(B, generator=torch.Generator().manual_seed(2), dtype=F64) + 0.3
LABELS_2 = (torch.tensor([3, 4, 5, 3, 4, 6]), torch.tensor([4, 7, 3, 8, 5, 5, 9, 4]))
POOL, INDEX = draw(5, D, seed=10), torch.tensor([[0, 1, -1], [4, 4, 2], [-1, -1, 3], [0, 2, 3], [1, -1, 0], [2, 2, 2]])
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "none": ({}, {}),
    "group": ({"group": GROUP}, {"exists": lambda i, j: int(GROUP[0][i]) == int(GROUP[1][j])}),
    "own": ({"own": OWN}, {"exists": lambda i, j: int(OWN[i]) != j}),
    "extra": ({"extra": EXTRA}, {"further": lambda i: [*EXTRA[0].tolist(), *EXTRA[1].tolist()]}),
    "per_anchor": ({"per_anchor": PER_ANCHOR}, {"further": lambda i: PER_ANCHOR[i].tolist()}),
    "log_weight": ({"log_weight": WEIGHT_N}, {"log_weight": lambda i, j: float(WEIGHT_N[j])}),
    "log_weights": ({"log_weight": WEIGHT_BN}, {"log_weight": lambda i, j: float(WEIGHT_BN[i, j])}),
    "temperature": ({"temperature": 0.4}, {"t": lambda i: 0.4}),
    "temperatures": ({"temperature": TEMPERATURE_B}, {"t": lambda i: float(TEMPERATURE_B[i])}),
    "positive_temperature": ({"positive_temperature": 0.3}, {"pt": lambda i: 0.3}),
    "margin": ({"margin": 0.2}, {"margin": 0.2}),
    "margin and weights": (
        {"margin": -0.1, "log_weight": WEIGHT_N, "temperature": 0.5},
        {"margin": -0.1, "log_weight": lambda i, j: float(WEIGHT_N[j]), "t": lambda i: 0.5},
    ),
    "ignore": ({"ignore": GROUP}, {"exists": lambda i, j: int(GROUP[0][i]) != int(GROUP[1][j])}),
    "ignore two": (
        {"ignore": [GROUP, LABELS_2]},
        {"exists": lambda i, j: GROUP[0][i] != GROUP[1][j] and LABELS_2[0][i] != LABELS_2[1][j]},
    ),
    "extra_ids": (
        {"ignore": LABELS_2, "extra": EXTRA, "extra_ids": (torch.tensor([3, 4, 9]), None)},
        {"exists": lambda i, j: LABELS_2[0][i] != LABELS_2[1][j],
         "further": lambda i: [e for e, k in zip(EXTRA[0].tolist(), (3, 4, 9), strict=True) if k != LABELS_2[0][i]]
         + EXTRA[1].tolist()},
    ),
    "own_positive": ({"own_positive": PER_ANCHOR}, {"own_positive": lambda i: PER_ANCHOR[i].tolist()}),
    "own_positive and more": (
        {"own_positive": PER_ANCHOR, "margin": 0.1, "positive_temperature": 0.3, "log_weight": WEIGHT_N},
        {"own_positive": lambda i: PER_ANCHOR[i].tolist(), "margin": 0.1, "pt": lambda i: 0.3,
         "log_weight": lambda i, j: float(WEIGHT_N[j])},
    ),
    "pool": (
        {"per_anchor": (POOL, INDEX), "per_anchor_log_weight": draw(B, 3, seed=11)},
        {"further": lambda i: POOL[INDEX[i][INDEX[i] >= 0]].tolist(),
         "further_weight": lambda i: draw(B, 3, seed=11)[i][INDEX[i] >= 0].tolist()},
    ),
    "per_anchor_log_weight": (
        {"per_anchor": PER_ANCHOR, "per_anchor_log_weight": draw(B, 2, seed=11)},
        {"further": lambda i: PER_ANCHOR[i].tolist(), "further_weight": lambda i: draw(B, 2, seed=11)[i].tolist()},
    ),
    "anchor_weight": ({"anchor_weight": TEMPERATURE_B}, {"anchor_weight": lambda i: float(TEMPERATURE_B[i])}),
    "mask": ({"denominator": MASK}, {"in_denominator": lambda i, j: bool(MASK[i, j])}),
}  # fmt: skip


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
