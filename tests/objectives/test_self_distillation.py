"""Self-distillation: loops over views and patches, closed forms, the centre, parts of a batch.

Legend: V views, W target views, B batch, K prototypes, T patches, M masked patches.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from torch import Tensor

from nearfar.contrast import Stats
from nearfar.objectives import (
    MaskedDistillation,
    SelfDistillation,
    centred_softmax,
    masked_distillation,
    self_distillation,
    update_centre,
)
from nearfar.prototypes import sinkhorn, swapped_prediction
from objectives.sharding import PARTS, over_parts

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def entropy(target: np.ndarray, logits: np.ndarray, temperature: float) -> float:
    return float(-(target * scipy.special.log_softmax(logits / temperature)).sum())


def by_loops(student: Tensor, target: Tensor, temperature: float, all_pairs: bool) -> np.ndarray:
    s, p = student.detach().numpy(), target.numpy()
    each = []
    for i in range(s.shape[1]):
        pairs = [(v, w) for v in range(len(s)) for w in range(len(p)) if v != w or all_pairs]
        each.append(np.mean([entropy(p[w, i], s[v, i], temperature) for v, w in pairs]))
    return np.array(each)


def test_centred_softmax_and_its_centre() -> None:
    logits, centre = 3 * draw(2, 4, 5), draw(5, seed=1)
    found = centred_softmax(logits, centre, temperature=0.07)
    expected = scipy.special.softmax((logits.numpy() - centre.numpy()) / 0.07, axis=-1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)
    torch.testing.assert_close(centred_softmax(logits + 9, centre + 9, temperature=0.07), found)
    same = draw(1, 1, 5).expand(2, 4, 5)  # a teacher that always says the same is uniform once centred
    torch.testing.assert_close(centred_softmax(same, same[0, 0]), torch.full((2, 4, 5), 0.2, dtype=F64))


def test_the_centre_is_a_moving_average() -> None:
    centre, means = draw(5), draw(6, 5, seed=1)
    expected = 0.9**6 * centre + sum(0.1 * 0.9 ** (5 - t) * means[t] for t in range(6))
    before = centre.clone()
    found = centre
    for mean in means:
        found = update_centre(found, mean)
    torch.testing.assert_close(found, expected)
    assert torch.equal(centre, before)  # pure
    assert torch.equal(update_centre(centre, means[0], momentum=1.0), centre)
    assert torch.equal(update_centre(centre, means[0], momentum=0.0), means[0])
    assert update_centre(centre.float(), means[0]).dtype == torch.float32
    assert not update_centre(centre.clone().requires_grad_(), means[0]).requires_grad


@pytest.mark.parametrize(
    ("num", "num_targets", "all_pairs"),
    [(2, 2, False), (4, 4, False), (6, 2, False), (2, 1, False), (1, 1, True), (2, 3, True)],
)
def test_equals_loops(num: int, num_targets: int, all_pairs: bool) -> None:
    student = draw(num, 4, 5)
    target = centred_softmax(draw(num_targets, 4, 5, seed=1), torch.zeros(5), temperature=0.5)
    expected = torch.from_numpy(by_loops(student, target, 0.3, all_pairs))
    options: dict[str, Any] = {"temperature": 0.3, "all_pairs": all_pairs}
    torch.testing.assert_close(self_distillation(student, target, reduction="none", **options), expected)
    torch.testing.assert_close(self_distillation(student, target, reduction="sum", **options), expected.sum())
    torch.testing.assert_close(self_distillation(student, target, **options), expected.mean())
    torch.testing.assert_close(SelfDistillation(0.3, all_pairs=all_pairs)(student, target), expected.mean())


def test_closed_forms() -> None:
    student, uniform = draw(2, 4, 6), torch.full((2, 4, 6), 1 / 6, dtype=F64)
    flat = torch.zeros(2, 4, 6, dtype=F64)
    torch.testing.assert_close(self_distillation(flat, uniform), torch.tensor(math.log(6), dtype=F64))
    assert self_distillation(student, uniform) > math.log(6)  # uniform is the only best answer to uniform
    target = centred_softmax(student, torch.zeros(6), temperature=0.1)
    swapped = self_distillation(student.flip(0), target, temperature=0.1)  # every view says the other's target
    torch.testing.assert_close(swapped, torch.special.entr(target).sum(-1).mean())
    codes = torch.eye(6, dtype=F64)[:4].expand(2, 4, 6)
    torch.testing.assert_close(self_distillation(50 * codes, codes, temperature=1.0), torch.zeros((), dtype=F64))


def test_gradient_is_student_less_target() -> None:
    student = draw(2, 3, 5).requires_grad_()
    target = centred_softmax(draw(2, 3, 5, seed=1), torch.zeros(5), temperature=0.5).requires_grad_()
    found = torch.autograd.grad(
        self_distillation(student, target, temperature=0.2), (student, target), allow_unused=True
    )
    assert found[1] is None
    expected = ((student / 0.2).softmax(-1) - target.flip(0)) / (0.2 * 2 * 3)
    torch.testing.assert_close(found[0], expected.detach())


def test_sinkhorn_in_place_of_a_centre_is_swav() -> None:
    scores = draw(2, 8, 4).float()
    target = torch.stack([sinkhorn(view, eps=0.05) for view in scores])
    found = self_distillation(scores, target, temperature=0.1)
    torch.testing.assert_close(found, swapped_prediction(scores, temperature=0.1, eps=0.05), rtol=1e-4, atol=1e-4)


def test_laws() -> None:
    student, target = draw(3, 5, 4), draw(3, 5, 4, seed=1).softmax(-1)
    whole, order, names = self_distillation(student, target), torch.randperm(5), torch.tensor([2, 0, 3, 1])
    for same in (
        self_distillation(student[:, order], target[:, order]), self_distillation(student.flip(0), target.flip(0)),
        self_distillation(student[..., names], target[..., names]), self_distillation(student + 7, target),
    ):  # fmt: skip
        torch.testing.assert_close(same, whole)


@pytest.mark.parametrize("sizes", PARTS)
def test_parts_equal_the_whole(sizes: list[int]) -> None:
    student, target = draw(2, 7, 4).requires_grad_(), draw(2, 7, 4, seed=1).softmax(-1)
    parts = over_parts(
        sizes, lambda rows, _: (self_distillation(student[:, rows], target[:, rows]),
                                Stats(len(student[0, rows]), 0, None))
    )  # fmt: skip
    torch.testing.assert_close(parts, self_distillation(student, target))


def masks() -> Tensor:
    return torch.tensor([[True, True, False, True], [False, False, False, False], [False, True, False, False]])


def test_masked_equals_loops() -> None:
    mask, student = masks(), draw(3, 4, 5)
    target = draw(3, 4, 5, seed=1).softmax(-1)
    total = 0.0
    for i in range(3):
        rows = [t for t in range(4) if mask[i, t]]
        if rows:
            total += np.mean([entropy(target[i, t].numpy(), student[i, t].numpy(), 0.2) for t in rows])
    found = masked_distillation(student[mask], target[mask], mask, temperature=0.2)
    assert float(found) == pytest.approx(total / 3, rel=1e-10)
    assert float(MaskedDistillation(0.2)(student[mask], target[mask], mask)) == pytest.approx(total / 3, rel=1e-10)


def test_masked_closed_forms() -> None:
    mask = masks()
    flat, uniform = torch.zeros(4, 6, dtype=F64), torch.full((4, 6), 1 / 6, dtype=F64)
    found = masked_distillation(flat, uniform, mask)
    torch.testing.assert_close(found, torch.tensor(2 / 3 * math.log(6), dtype=F64))  # one image has no masked patch
    none = torch.zeros(2, 4, dtype=torch.bool)
    nothing = torch.zeros(0, 6, dtype=F64, requires_grad=True)
    loss = masked_distillation(nothing, nothing.detach(), none)
    loss.backward()
    assert float(loss.detach()) == 0.0
    # images weigh alike however many patches are masked: the gradient of a row is 1/3 of its image's share
    student = draw(4, 6).requires_grad_()
    (grad,) = torch.autograd.grad(masked_distillation(student, uniform, mask, temperature=1.0), student)
    share = torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0], dtype=F64)[:, None] / 3
    torch.testing.assert_close(grad, share * (student.detach().softmax(-1) - uniform))


def test_derivatives_and_extremes() -> None:
    target = draw(2, 3, 4, seed=1).softmax(-1)
    assert torch.autograd.gradcheck(lambda s: self_distillation(s, target), (draw(3, 3, 4).requires_grad_(),))
    rows = draw(4, 4, seed=1).softmax(-1)
    assert torch.autograd.gradcheck(lambda s: masked_distillation(s, rows, masks()), (draw(4, 4).requires_grad_(),))
    for dtype in (torch.float16, torch.bfloat16):
        logits = (1e4 * draw(2, 3, 4)).to(dtype).requires_grad_()
        loss = self_distillation(logits, centred_softmax(logits, torch.zeros(4)), temperature=0.01)
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"student": draw(4, 3)}, r"student: expected shape \[V, B, D\]"),
        ({"target": draw(2, 4, 2)}, r"target: expected shape \[W, 4, 3\]"),
        ({"target": draw(3, 4, 3)}, "target: expected at most 2 views"),
        ({"student": draw(1, 4, 3), "target": draw(1, 4, 3)}, "student: expected 2 or more views"),
        ({"temperature": 0.0}, "temperature: expected a finite number > 0"),
        ({"reduction": "max"}, "reduction: expected one of"),
    ],
)
def test_refuses(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        self_distillation(**{"student": draw(2, 4, 3), "target": draw(2, 4, 3)} | arguments)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"student": draw(3, 5)}, r"student: expected shape \[4, K\]"),
        ({"target": draw(4, 6)}, "target: expected the shape of student"),
        ({"mask": torch.zeros(4, dtype=torch.bool)}, r"mask: expected shape \[B, T\]"),
        ({"temperature": -1.0}, "temperature: expected a finite number > 0"),
    ],
)
def test_masked_refuses(arguments: dict[str, Any], match: str) -> None:
    given = {"student": draw(4, 5), "target": draw(4, 5), "mask": masks()}
    with pytest.raises(ValueError, match=match):
        masked_distillation(**given | arguments)
    with pytest.raises(TypeError, match="mask: expected bool"):
        masked_distillation(**given | {"mask": masks().long()})


def test_helpers_refuse() -> None:
    with pytest.raises(ValueError, match=r"centre: expected shape \[3\]"):
        centred_softmax(draw(2, 3), torch.zeros(4))
    with pytest.raises(ValueError, match="temperature: expected a finite number > 0"):
        centred_softmax(draw(2, 3), torch.zeros(3), temperature=0.0)
    with pytest.raises(ValueError, match="mean: expected the shape of centre"):
        update_centre(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="momentum: expected a number in"):
        update_centre(torch.zeros(3), torch.zeros(3), momentum=1.5)
