"""Every Module under torch.compile: the same value and gradient as without.

In a process of its own: Dynamo would trace the suite's type checker too, and warns of its own doings.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch
from torch import Tensor

from nearfar import objectives

ROWS = 300
"""enough for tiles"""


def test_compiled_equals_eager() -> None:
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    names = ["NTXent", "SupCon", "DCL", "InfoNCE", "CLIP", "RankedCLIP", "SigLIP", "Debiased"]
    assert done.stdout.split() == names


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


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
    ]
    for module, arguments, options in calls:
        leaves = [x for x in arguments if x.requires_grad] + list(module.parameters())
        losses = [run(*arguments, **options) for run in (torch.compile(module, backend="aot_eager"), module)]
        torch.testing.assert_close(losses[0], losses[1])
        got, expected = (torch.autograd.grad(loss, leaves) for loss in losses)
        torch.testing.assert_close(got, expected)
        print(type(module).__name__)


if __name__ == "__main__":
    main()
