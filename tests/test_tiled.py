"""The tiled engine against the stored logits: values and gradients, numerically checked derivatives, memory.

Legend: B anchors, N candidates, D embedding, K queue.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nearfar.contrast import Lorentz, contrast
from nearfar.tiled import Mask, frozen_log_sum_exp, log_sum_exp, self_log_sum_exp

B, N, D = 11, 13, 4
F64 = torch.float64


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


def ids(num: int, high: int, seed: int) -> Tensor:
    return torch.randint(0, high, (num,), generator=torch.Generator().manual_seed(seed))


MASKS = {
    "none": Mask(),
    "exclude": Mask(exclude=(torch.arange(B), torch.arange(B).roll(3))),
    "same": Mask(same=((ids(B, 3, 1), ids(N, 3, 2)),)),
    "differ": Mask(differ=((ids(B, 3, 1), ids(N, 3, 2)),)),
    "sorted groups": Mask(same=((torch.arange(B) // 4, torch.arange(N) // 4),)),
    "a row without pairs": Mask(same=((torch.arange(B), torch.arange(1, N + 1)),)),
}


def kept(mask: Mask, num_rows: int, num_columns: int) -> Tensor:
    found = torch.ones(num_rows, num_columns, dtype=torch.bool)
    for x in mask.exclude:
        found[x[:, None] == torch.arange(num_columns)] = False
    for x, y in mask.same:
        found &= x[:, None] == y[None, :]
    for x, y in mask.differ:
        found &= x[:, None] != y[None, :]
    return found


def same(found: Any, expected: Any, leaves: list[Tensor]) -> None:
    """Equal values, and equal gradients of a random combination of the finite ones."""
    finite = torch.isfinite(expected)
    torch.testing.assert_close(found, expected)
    weight = torch.rand(expected.shape, generator=torch.Generator().manual_seed(9), dtype=F64)
    got = torch.autograd.grad((found[finite] * weight[finite]).sum(), leaves, retain_graph=True)
    want = torch.autograd.grad((expected[finite] * weight[finite]).sum(), leaves, retain_graph=True)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("tile", [1, 3, 5, 64])
@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_log_sums_equal_stored_logits(name: str, bounded: bool, tile: int) -> None:
    a, c, mask = draw(B, D, seed=1), draw(N, D, seed=2), MASKS[name]
    logits = (a @ c.t()).masked_fill(~kept(mask, B, N), float("-inf"))
    rows = log_sum_exp(a, c, mask, bounded=bounded, tile=tile)[0]
    same(rows, logits.logsumexp(1), [a, c])
    rows, columns = log_sum_exp(a, c, mask, both=True, bounded=bounded, tile=tile)
    same(torch.cat([rows, columns]), torch.cat([logits.logsumexp(1), logits.logsumexp(0)]), [a, c])


@pytest.mark.parametrize("tile", [1, 3, 5, 64])
@pytest.mark.parametrize("bounded", [False, True])
def test_symmetric_log_sums_equal_stored_logits(bounded: bool, tile: int) -> None:
    z, classes = draw(N, D, seed=1), ids(N, 3, 1)
    own = torch.arange(N)
    for mask in (Mask(exclude=(own,)), Mask(exclude=(own,), differ=((classes, classes),)), Mask(same=((own, own),))):
        logits = (z @ z.t()).masked_fill(~kept(mask, N, N), float("-inf"))
        same(self_log_sum_exp(z, mask, bounded=bounded, tile=tile), logits.logsumexp(1), [z])


@pytest.mark.parametrize("tile", [2, 64])
@pytest.mark.parametrize("bounded", [False, True])
def test_frozen_candidates_equal_stored_logits(bounded: bool, tile: int) -> None:
    a, queue = draw(B, D, seed=1), draw(29, D, seed=2).detach()
    expected = (a @ torch.nn.functional.normalize(queue, dim=1).t()).logsumexp(1)
    same(frozen_log_sum_exp(a, queue, Mask(), normalize=True, bounded=bounded, tile=tile), expected, [a])
    half = queue.half()
    expected = (a @ half.double().t()).logsumexp(1)
    same(frozen_log_sum_exp(a, half, Mask(), normalize=False, bounded=bounded, tile=tile), expected, [a])
    assert (frozen_log_sum_exp(a, queue[:0], Mask(), normalize=True) == float("-inf")).all()


@pytest.mark.parametrize("tile", [3, 64])
def test_a_gradient_made_ahead_is_used_only_when_it_came_true(tile: int) -> None:
    a, c = draw(B, D, seed=1), draw(N, D, seed=2)
    weight = torch.tensor([1.0, 0.0] * 6, dtype=F64)[:B]
    expected = (a @ c.t()).logsumexp(1)
    found = log_sum_exp(a, c, Mask(), weight_B=weight, tile=tile)[0]
    for upstream in (weight / 5, weight * 3, torch.linspace(0, 1, B, dtype=F64)):
        got = torch.autograd.grad(found, [a, c], upstream, retain_graph=True)
        torch.testing.assert_close(got, torch.autograd.grad(expected, [a, c], upstream, retain_graph=True))


def forms() -> dict[str, dict[str, Any]]:
    classes = (ids(B, 4, 1), ids(N, 4, 2))
    groups = (ids(B, 2, 3), ids(N, 2, 4))
    targets = ids(B, N, 5)
    extra = draw(7, D, seed=7)
    return {
        "targets": {"targets": targets},
        "both": {"targets": targets, "directions": "both"},
        "both, sum": {"labels": classes, "positives": "sum", "directions": "both"},
        "column": {"labels": classes, "directions": "column"},
        "decoupled": {"targets": targets, "denominator": "negatives"},
        "labels": {"labels": classes, "empty": "zero"},
        "labels, sum, decoupled": {"labels": classes, "positives": "sum", "denominator": "negatives"},
        "own and group": {"labels": classes, "own": torch.arange(B), "group": groups, "empty": "zero"},
        "queue": {"targets": targets, "extra": (extra.detach(), extra)},
        "own candidates": {"targets": targets, "per_anchor": draw(B, 2, D, seed=8)},
        "log-weights": {"targets": targets, "log_weight": draw(N, seed=6)},
        "margin": {"labels": classes, "margin": 0.3, "positive_temperature": 0.4, "empty": "zero"},
        "cold": {"targets": targets, "temperature": 0.012},
        "temperatures": {"targets": targets, "temperature": torch.linspace(0.1, 0.9, B, dtype=F64).requires_grad_()},
        "learnt": {"labels": classes, "temperature": torch.tensor(0.3, dtype=F64).requires_grad_()},
        "learnt, both": {"targets": targets, "temperature": torch.tensor(0.3, dtype=F64).requires_grad_(),
                         "directions": "both"},
        "dot": {"targets": targets, "similarity": "dot"},
        "self": {"targets": torch.arange(B).roll(4), "directions": "self"},
        "self, pairs": {"targets": torch.arange(B - 1, -1, -1), "directions": "self", "denominator": "negatives",
                        "empty": "zero"},
        "self, not mutual": {"targets": torch.arange(B).roll(4), "directions": "self", "denominator": "negatives"},
        "self, labels": {"labels": classes[0], "directions": "self", "positives": "sum", "empty": "zero"},
        "self, learnt": {"labels": classes[0], "directions": "self",
                         "temperature": torch.tensor(0.3, dtype=F64).requires_grad_(), "empty": "zero"},
        "ignore": {"targets": targets, "ignore": classes},
        "ignore, both": {"targets": targets, "ignore": [classes, groups], "directions": "both"},
        "ignore, sum, decoupled": {"targets": targets, "ignore": groups, "positives": "sum",
                                   "denominator": "negatives", "directions": "both"},
        "ignore, labels": {"labels": groups, "ignore": classes, "empty": "zero"},
        "ignored rows of a queue": {"targets": targets, "ignore": classes, "extra": (extra.detach(), extra),
                                    "extra_ids": (ids(7, 4, 3), ids(7, 4, 4))},
        "an ignored queue": {"targets": targets, "ignore": (ids(B, 1, 0), ids(N, 1, 0) + 1),
                             "extra": (extra.detach(),), "extra_ids": (ids(7, 1, 0),)},
        "own positives": {"labels": classes, "own_positive": draw(B, 2, D, seed=13), "margin": 0.1},
        "own positives, sum": {"labels": classes, "own_positive": draw(B, 2, D, seed=13), "positives": "sum",
                               "denominator": "negatives"},
        "own positives alone": {"own_positive": draw(B, 1, D, seed=13), "extra": (extra.detach(),)},
        "pool": {"targets": targets, "per_anchor": (draw(6, D, seed=14), ids(B, 7, 15).sub(1)[:, None].repeat(1, 3)),
                 "per_anchor_log_weight": draw(B, 3, seed=16)},
        "anchor weights": {"targets": targets, "anchor_weight": torch.linspace(0, 2, B, dtype=F64)},
        "each": {"labels": classes, "positives": "each", "margin": 0.1, "empty": "zero"},
        "each, both": {"labels": classes, "positives": "each", "directions": "both", "empty": "zero"},
        "matrices": {"positive": draw(B, N, seed=10).detach() > 0.5, "denominator": draw(B, N, seed=11).detach() < 1,
                     "extra": (extra,), "per_anchor": draw(B, 2, D, seed=8), "empty": "zero"},
        "matrices, both": {"positive": draw(B, N, seed=10).detach() > 0.5, "log_weight": draw(B, N, seed=6),
                           "directions": "both", "empty": "zero"},
        "soft, learnt": {"weight": draw(B, N, seed=12).detach().clamp_min(0), "positives": "soft", "empty": "zero",
                         "temperature": torch.linspace(0.1, 0.9, B, dtype=F64).requires_grad_()},
        "functions": {"positive": lambda rows: classes[0][rows][:, None] == classes[1], "empty": "zero",
                      "log_weight": lambda rows: draw(B, N, seed=6)[rows]},
        "lorentz": {"targets": targets, "similarity": Lorentz(torch.tensor(0.7, dtype=F64)), "own": torch.arange(B)},
        "self, ignore": {"targets": torch.arange(B).roll(4), "directions": "self", "ignore": classes[0]},
        "self, ignore, mutual": {"targets": torch.arange(B - 1, -1, -1), "directions": "self", "ignore": classes[0],
                                 "empty": "zero"},
        "self, lorentz": {"labels": classes[0], "directions": "self", "similarity": "lorentz", "empty": "zero"},
        "self, queue": {"labels": classes[0], "directions": "self", "extra": (extra,), "empty": "zero"},
    }  # fmt: skip


def leaves_of(a: Tensor, c: Tensor, form: dict[str, Any]) -> list[Tensor]:
    more = [x for v in form.values() for x in (v if isinstance(v, tuple) else (v,))]
    return [a, c, *(x for x in more if isinstance(x, Tensor) and x.requires_grad)]


@pytest.mark.parametrize("name", forms())
def test_tiled_equals_plain(name: str) -> None:
    a, c, form = draw(B, D, seed=1), draw(N, D, seed=2), forms()[name]
    single = form.get("directions") == "self"
    leaves = [x for x in leaves_of(a, c, form) if not (single and x is c)]
    candidate = None if single else c
    for reduction in ("mean", "sum", "none"):
        plain = contrast(a, candidate, **form, reduction=reduction, tile=0)
        for tile in (1, 4, 5, 100):
            tiled = contrast(a, candidate, **form, reduction=reduction, tile=tile)
            same(tiled, plain, leaves)


@pytest.mark.parametrize("tile", [0, 4])
@pytest.mark.parametrize("name", forms())
def test_derivatives_are_those_of_the_value(name: str, tile: int) -> None:
    a, c, form = draw(B, D, seed=1), draw(N, D, seed=2), forms()[name]
    single = form.get("directions") == "self"
    inputs = (a,) if single else (a, c)

    def loss(*x: Tensor) -> Tensor:
        return contrast(x[0], None if single else x[1], **form, tile=tile)

    # a second backward computes what the first one used up again, equal up to rounding
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True, nondet_tol=1e-12)


def test_what_another_similarity_learns_has_its_gradient() -> None:
    a, c, targets = draw(B, D, seed=1), draw(N, D, seed=2), ids(B, N, 5)
    curvature, gate = torch.tensor(0.7, dtype=F64).requires_grad_(), draw(D, seed=3)

    class Gated:
        """The cosine of vectors weighted by a learnt gate."""

        def tile(self, x: Tensor, y: Tensor) -> Tensor:
            x, y = (torch.nn.functional.normalize(v * gate.sigmoid(), dim=1) for v in (x, y))
            return x @ y.t()

    for similarity in (Lorentz(curvature), Gated()):
        losses = [
            contrast(a, c, targets=targets, similarity=similarity, directions="both", tile=tile) for tile in (0, 4)
        ]
        same(losses[1], losses[0], [a, c, curvature if isinstance(similarity, Lorentz) else gate])


def test_given_logits_in_strips() -> None:
    logits = draw(B, N, seed=1)
    for directions in ("row", "column", "both"):
        options: dict[str, Any] = {"targets": ids(B, N, 5), "directions": directions}
        losses = [contrast(None, logits=logits, **options, tile=tile) for tile in (0, 4)]
        same(losses[1], losses[0], [logits])


def test_groups_in_order_reach_only_their_own_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of rows with columns of other groups are not made."""
    a, c, groups = draw(24, D, seed=1), draw(24, D, seed=2), torch.arange(24) // 4
    form: dict[str, Any] = {"targets": torch.arange(24), "group": groups}
    expected = contrast(a, c, **form, tile=0)
    widths = []
    reach = Mask.reach

    def seen(self: Mask, rows: tuple[int, int], num: int) -> tuple[int, int]:
        widths.append(reach(self, rows, num))
        return widths[-1]

    monkeypatch.setattr(Mask, "reach", seen)
    same(contrast(a, c, **form, tile=4), expected, [a, c])
    assert widths == [(i, i + 4) for i in range(0, 24, 4)]


def test_only_needed_gradients_are_made() -> None:
    a, c = draw(B, D, seed=1), draw(N, D, seed=2)
    for first, second in ((a, c.detach()), (a.detach(), c)):
        for directions in ("row", "both"):
            options: dict[str, Any] = {"targets": ids(B, N, 5), "directions": directions}
            tiled, plain = (contrast(first, second, **options, tile=tile) for tile in (4, 0))
            leaf = a if first is a else c
            torch.testing.assert_close(torch.autograd.grad(tiled, leaf), torch.autograd.grad(plain, leaf))
    assert not contrast(a.detach(), c.detach(), targets=ids(B, N, 5), tile=4).requires_grad


@pytest.mark.parametrize("directions", ["row", "both", "self"])
def test_second_derivatives_are_refused(directions: str) -> None:
    a, c = draw(B, D, seed=1), draw(N, D, seed=2)
    loss = contrast(
        a, None if directions == "self" else c, targets=torch.arange(B).roll(1), directions=directions, tile=4
    )
    (grad,) = torch.autograd.grad(loss, a, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        grad.square().sum().backward()


def test_plain_has_second_derivatives() -> None:
    a, c = draw(3, D, seed=1), draw(4, D, seed=2)
    assert torch.autograd.gradgradcheck(
        lambda x, y: contrast(x, y, targets=torch.tensor([0, 1, 1]), temperature=0.5, tile=0), (a, c), fast_mode=True
    )


def test_float32_agrees_with_float64_over_many_rows() -> None:
    z = draw(1500, 16, seed=1, dtype=torch.float32)
    targets = torch.arange(1500).roll(750)
    for temperature in (0.1, 0.01):
        options: dict[str, Any] = {"targets": targets, "directions": "self", "temperature": temperature}
        single, double = contrast(z, **options), contrast(z.double(), **options, tile=0)
        assert float(single.detach()) == pytest.approx(float(double.detach()), rel=1e-6)
        (g,), (h,) = torch.autograd.grad(single, z), torch.autograd.grad(double, z)
        torch.testing.assert_close(g, h, rtol=1e-3, atol=1e-7)


def test_no_matrix_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of the engine is as large as a quarter of the logits."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        entries = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(x, Tensor):
                    self.entries = max(self.entries, x.numel())
            return out

    num, targets = 640, torch.arange(640).roll(1)
    shapes: list[dict[str, Any]] = [
        {"targets": targets, "directions": "row"}, {"targets": targets, "directions": "both"},
        {"targets": targets, "directions": "self"}, {"targets": targets, "similarity": "lorentz"},
        {"labels": targets // 5, "positives": "each", "directions": "self"},
        {"positive": lambda rows: targets[rows][:, None] == torch.arange(num)},
    ]  # fmt: skip
    for form in shapes:
        a, c = draw(num, 8, seed=1, dtype=torch.float32), draw(num, 8, seed=2, dtype=torch.float32)
        with Largest() as mode:
            contrast(a, None if form.get("directions") == "self" else c, **form, tile=64).backward()
        assert 64 * 64 <= mode.entries <= num * num / 4
