"""Every Module under torch.compile: the same value and gradient as without.

In a process of its own: Dynamo would trace the suite's type checker too, and warns of its own doings.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from nearfar import objectives

ROWS = 300
"""enough for tiles"""


@pytest.mark.slow
def test_compiled_equals_eager() -> None:
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    names = ["NTXent", "SupCon", "DCL", "InfoNCE", "CLIP", "RankedCLIP", "SigLIP", "Debiased"]
    names += ["AlignUniform", "MACL", "DecoupledUniformity", "MVInfoNCE", "MVDHEL", "MultiViewBaseline", "PolyView"]
    names += ["KernelInfoNCE", "KernelMixture", "CACR", "CACRMomentum"]
    names += ["SupReMix", "HMLC", "GML", "FocalSupCon", "SmoothedCLIP", "LorentzCLIP", "Triplet", "Margin", "NPairs"]
    names += ["BinaryNCE", "MutualInformation", "Spectral", "PatchNCE", "DenseContrast"]
    names += ["Regression", "Barlow", "VICReg", "WMSE", "SelfDistillation", "MaskedDistillation", "ProtoNCE"]
    assert done.stdout.split() == names


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def by_labels(two: Tensor, a: Tensor, b: Tensor) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    y = torch.arange(ROWS) % 7
    image, place = draw(3, 100, 4), draw(3, 100, 4, seed=1)
    return [
        (objectives.SupReMix(mix="none"), (two, y.float()), {}),
        (objectives.HMLC(0.3), (two, torch.stack([y % 2, y], 1)), {}),
        (objectives.GML(torch.arange(1, 8)), (a, y, b, y), {}),
        (objectives.FocalSupCon(2.0, 0.3), (two, y), {}),
        (objectives.SmoothedCLIP(0.1, 0.3, learnable_temperature=True), (a, b), {}),
        (objectives.LorentzCLIP(0.3), (a, b), {}),
        (objectives.Triplet(), (a, y), {}),
        (objectives.Margin(), (a, y), {}),
        (objectives.NPairs(), (a, b), {}),
        (objectives.BinaryNCE(learnable=True), (draw(ROWS), b), {}),
        (objectives.MutualInformation(), (a, b), {}),
        (objectives.Spectral(), (a, b), {}),
        (objectives.PatchNCE(0.3, detach_key=False), (image, place), {}),
        (objectives.DenseContrast(), (image, place, torch.eye(100, dtype=torch.bool).expand(3, 100, 100)), {}),
    ]


def without_negatives(two: Tensor, a: Tensor, b: Tensor) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    code, mask = b.detach().softmax(1), torch.arange(ROWS).view(20, 15) % 3 > 0
    prototypes, cluster = draw(9, 4, seed=3).detach(), torch.arange(ROWS) % 9
    return [
        (objectives.Regression(), (two, two), {}),
        (objectives.Barlow(), (a, b), {}),
        (objectives.VICReg(), (two,), {}),
        (objectives.WMSE(32), (two,), {}),
        (objectives.SelfDistillation(), (two, two.detach().softmax(-1)), {}),
        (objectives.MaskedDistillation(), (draw(int(mask.sum()), 4), code[: int(mask.sum())], mask), {}),
        (objectives.ProtoNCE(), (a, prototypes, cluster, torch.linspace(0.1, 0.5, 9)), {}),
    ]


def main() -> None:
    two, a, b = draw(2, ROWS, 4), draw(ROWS, 4), draw(ROWS, 4, seed=1)
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
        (objectives.NTXent(0.3), (two,), {}),
        (objectives.SupCon(0.3), (two, torch.arange(ROWS) % 7), {}),
        (objectives.DCL(0.3), (two,), {}),
        (objectives.InfoNCE(0.3), (a, b), {"queue": draw(ROWS, 4, seed=2).detach()}),
        (objectives.CLIP(0.3, learnable_temperature=True), (a, b), {}),
        (objectives.RankedCLIP(0.3), (a, b, torch.linspace(1, 100, ROWS)), {}),
        (objectives.SigLIP(), (a, b), {}),
        (objectives.Debiased(0.1, 0.5), (two,), {}),
        (objectives.AlignUniform(), (two,), {}),
        (objectives.MACL(0.3), (two,), {}),
        (objectives.DecoupledUniformity(sigma=1.0), (two,), {"prior": torch.linspace(0, 9, ROWS)}),
        (objectives.MVInfoNCE(0.3, learnable_temperature=True), (two,), {}),
        (objectives.MVDHEL(0.3), (two,), {}),
        (objectives.MultiViewBaseline(temperature=0.3), (two,), {}),
        (objectives.PolyView("arithmetic", 0.3), (two,), {}),
        (objectives.KernelInfoNCE(1.0, 0.3), (two,), {}),
        (objectives.KernelMixture("kernel_sum", temperature=0.3, learnable_temperature=True), (two,), {}),
        (objectives.CACR(), (two,), {}),
        (objectives.CACRMomentum(0.3), (two, two.detach()), {}),
    ]
    calls += by_labels(two, a, b) + without_negatives(two, a, b)
    for module, arguments, options in calls:
        leaves = [x for x in arguments if x.requires_grad] + list(module.parameters())
        losses = [run(*arguments, **options) for run in (torch.compile(module, backend="aot_eager"), module)]
        torch.testing.assert_close(losses[0], losses[1])
        got, expected = (torch.autograd.grad(loss, leaves) for loss in losses)
        torch.testing.assert_close(got, expected)
        print(type(module).__name__)


if __name__ == "__main__":
    main()
