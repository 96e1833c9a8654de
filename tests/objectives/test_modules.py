"""What every Module of objectives promises: what it declares, a state that comes back, finite extremes."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nearfar import objectives

ROWS = 6
LABELS = torch.arange(ROWS) % 2
OPTIONS: dict[str, dict[str, Any]] = {
    "BinaryNCE": {"learnable": True}, "RankingNCE": {"learnable": True}, "SupReMix": {"mix": "positive"},
    "GML": {"class_counts": torch.tensor([3, 5])},
}  # fmt: skip
"""what a Module is made with beside a learnt temperature"""


def arguments(module: nn.Module, z: Tensor) -> tuple[Any, ...]:
    """What a Module is called with, from two views [2, B, D]."""
    several = {
        "SupReMix": (z, LABELS.float()), "HMLC": (z, torch.stack([LABELS, torch.arange(ROWS) % 3], 1)),
        "GML": (z[0], LABELS, z[1], LABELS), "BlockContrast": (z[0], z[1], z[1].flip(0).unsqueeze(1)),
        "BinaryNCE": (z[0, :, 0], z[1]), "RankingNCE": (z[0, :, 0], z[1]), "PatchNCE": (z, z.flip(0)),
        "DenseContrast": (z, z.flip(0), torch.eye(ROWS, dtype=torch.bool).expand(2, ROWS, ROWS)),
        "MultiLabel": (z[0], z[1], torch.eye(ROWS, dtype=torch.bool)),
        "Regression": (z, z), "SelfDistillation": (z, z.detach().float().softmax(-1)),
        "MaskedDistillation": (z[0], z[1].detach().float().softmax(-1), torch.ones(2, 3, dtype=torch.bool)),
        "ProtoNCE": (z, z[0, :2].detach(), LABELS, torch.tensor([0.01, 0.2])),
    }  # fmt: skip
    if type(module).__name__ in several:
        return several[type(module).__name__]
    by_class = ("SupCon", "FocalSupCon", "Triplet", "PairMargin", "Margin", "Circle", "MultiSimilarity")
    if type(module).__name__ in by_class:
        return (z, LABELS)
    if isinstance(module, objectives.CACRMomentum):
        return (z, z.detach())
    if isinstance(module, objectives.RankedCLIP):
        return (z[0], z[1], torch.linspace(1, 100, ROWS))
    if isinstance(module, objectives.InfoNCE):
        return (z[0], z[1], z[0].detach().flip(0))
    return (z[0], z[1])


def modules() -> dict[str, nn.Module]:
    found = [getattr(objectives, name) for name in objectives.__all__]
    made: dict[str, nn.Module] = {}
    for kind in found:
        if isinstance(kind, type):
            learnable = "learnable_temperature" in inspect.signature(kind).parameters
            options = {"learnable_temperature": True} if learnable else {}
            made[kind.__name__] = kind(**options | OPTIONS.get(kind.__name__, {}))
    return made


each = pytest.mark.parametrize("name", modules())


@each
def test_it_says_what_it_gathers(name: str) -> None:
    module = modules()[name]
    assert module.distributed in ("gather_candidates", "gather_sums", "local")
    assert isinstance(module.needs_negatives, bool)
    assert isinstance(module.symmetric, bool)


@each
def test_its_state_comes_back(name: str) -> None:
    first, second = modules()[name], modules()[name]
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.1)
    z = torch.randn(2, ROWS, 4, generator=torch.Generator().manual_seed(0))
    if list(first.parameters()):
        assert not torch.equal(first(*arguments(first, z)), second(*arguments(second, z)))
    second.load_state_dict(first.state_dict(), strict=True)
    torch.testing.assert_close(first(*arguments(first, z)), second(*arguments(second, z)), rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(first)(*arguments(first, z)), first(*arguments(first, z)))


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", ["equal", "zero", "opposite", "one hot"])
def test_extremes_are_finite_at_the_least_temperature(name: str, rows: str, dtype: torch.dtype) -> None:
    module = modules()[name]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(4.6 if name == "SigLIP" else -4.6)  # a temperature of 0.01
    flat = {
        "equal": torch.ones(ROWS, 4), "zero": torch.zeros(ROWS, 4),
        "opposite": torch.cat([torch.ones(3, 4), -torch.ones(3, 4)]), "one hot": torch.eye(ROWS)[:, :4],
    }[rows]  # fmt: skip
    z = torch.stack([flat, flat]).to(dtype).requires_grad_()
    loss = module(*arguments(module, z))
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(z.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("positives", ["mean", "sum"])
def test_a_batch_of_one_class(dtype: torch.dtype, positives: str) -> None:
    z = torch.randn(2, ROWS, 4, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    loss = objectives.supcon(z, torch.zeros(ROWS, dtype=torch.long), temperature=0.01, positives=positives)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(z.grad).all()
