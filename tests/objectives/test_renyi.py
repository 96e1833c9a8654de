"""Rényi information of Gram matrices: MobileVOS's oracles.

Legend: B batch, D embedding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nearfar.objectives import Renyi, renyi

F64 = torch.float64
LABELS = torch.tensor([0, 1, 0, 2, 1, 0])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.oracle("mobilevos", 4)
@pytest.mark.parametrize("tile", [0, 2])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.95, 1.0])
def test_equals_a_double_loop(share: float, tile: int) -> None:
    z, teacher = draw(6, 3).requires_grad_(), draw(6, 5, seed=1)
    u, v = normalize(z, dim=1), normalize(teacher, dim=1)
    plain, joint = 0.0, 0.0
    for i in range(6):
        for j in range(6):
            c = u[i] @ u[j]
            plain = plain + c**2
            joint = joint + (c * (share * (v[i] @ v[j]) + (1 - share) * float(LABELS[i] == LABELS[j]))) ** 2
    expected = (torch.log2(plain) - torch.log2(joint)) / 6
    found = renyi(z, teacher, LABELS, share=share, tile=tile)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, z), torch.autograd.grad(expected, z))


@pytest.mark.oracle("mobilevos", 4)
def test_derivative() -> None:
    for tile in (0, 2):
        assert torch.autograd.gradcheck(
            lambda z, t=tile: renyi(z, draw(6, 5, seed=1), LABELS, share=0.5, tile=t), (draw(6, 3).requires_grad_(),)
        )


@pytest.mark.oracle("mobilevos", 1)
def test_distilling_itself() -> None:
    z = draw(6, 3)
    c = normalize(z, dim=1) @ normalize(z, dim=1).t()
    found = renyi(z, z)
    torch.testing.assert_close(found * 6, torch.log2((c**2).sum()) - torch.log2((c**4).sum()))
    assert found > 0
    assert float(renyi(torch.eye(5, dtype=F64), torch.eye(5, dtype=F64))) == 0


@pytest.mark.oracle("mobilevos", 2)
def test_labels_alone() -> None:
    one_hot, labels = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]), torch.tensor([0, 0, 1, 1])
    assert float(renyi(one_hot, labels=labels)) == 0
    assert float(renyi(torch.ones(4, 2), labels=labels)) == pytest.approx(0.25)
    torch.testing.assert_close(renyi(draw(6, 3), labels=LABELS), renyi(draw(6, 3), draw(6, 3), LABELS, share=0.0))
    torch.testing.assert_close(renyi(draw(6, 3), draw(6, 4)), renyi(draw(6, 3), draw(6, 4), LABELS, share=1.0))


@pytest.mark.oracle("mobilevos", 3)
def test_rotations_and_permutations() -> None:
    z, teacher, order = draw(6, 3), draw(6, 5, seed=1), torch.tensor([3, 1, 5, 0, 2, 4])
    whole = renyi(z, teacher, LABELS, share=0.5)
    turn = torch.linalg.qr(draw(3, 3, seed=2)).Q
    torch.testing.assert_close(renyi(z @ turn, teacher, LABELS, share=0.5), whole)
    torch.testing.assert_close(renyi(z[order], teacher[order], LABELS[order], share=0.5), whole)


@pytest.mark.oracle("mobilevos", 5)
def test_it_is_minus_the_information() -> None:
    z, teacher = normalize(draw(6, 3), dim=1), normalize(draw(6, 5, seed=1), dim=1)

    def entropy(gram: Tensor) -> Tensor:
        return -torch.log2((gram / 6).square().sum())

    a, b = z @ z.t(), 0.5 * teacher @ teacher.t() + 0.5 * (LABELS[:, None] == LABELS).double()
    information = entropy(a) + entropy(b) - entropy(a * b)
    torch.testing.assert_close(renyi(z, teacher, LABELS, share=0.5) * 6, entropy(b) - information)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extremes_are_finite_and_the_teacher_stays(dtype: torch.dtype) -> None:
    for rows in (torch.ones(6, 4), draw(6, 4), torch.zeros(6, 4)):
        z, teacher = rows.to(dtype).requires_grad_(), draw(6, 4).to(dtype).requires_grad_()
        loss = renyi(z, teacher, LABELS)
        grad, none = torch.autograd.grad(loss, (z, teacher), allow_unused=True)
        assert none is None
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(grad).all()


def test_module() -> None:
    z, teacher = draw(6, 3), draw(6, 5, seed=1)
    torch.testing.assert_close(Renyi(0.3)(z, teacher, LABELS), renyi(z, teacher, LABELS, share=0.3))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"teacher": None}, "teacher, labels: expected at least one"),
        ({"teacher": draw(5, 3)}, r"teacher: expected shape \[6, E\]"),
        ({"labels": LABELS[:5]}, r"labels: expected shape \[6\]"),
        ({"share": 1.2}, r"share: expected a number in \[0, 1\]"),
        ({"student": draw(6)}, r"student: expected shape \[B, D\]"),
    ],
)
def test_refuses(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        renyi(**{"student": draw(6, 3), "teacher": draw(6, 3)} | arguments)
