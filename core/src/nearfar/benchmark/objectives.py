"""Objectives, forward and backward, in each library.

Legend: B batch, D embedding.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from nearfar.benchmark.cases import OURS
from nearfar.benchmark.subject import GRADIENT, VALUE, Subject, expect_close
from nearfar.checks import expect_choice
from nearfar.objectives import clip, info_nce, nt_xent, siglip, supcon

TEMPERATURE, SCALE = 0.1, 14.0
SIGMOID = {"scale": 10.0, "bias": -10.0}

Loss = Callable[..., Tensor]


def _peer(module: str, name: str) -> Any:
    """A class of another library, imported only now: none of them is a dependency."""
    return getattr(importlib.import_module(module), name)


def _lightly_nt_xent(labels: Tensor) -> Loss:
    return _peer("lightly.loss", "NTXentLoss")(temperature=TEMPERATURE)


def _open_clip(labels: Tensor) -> Loss:
    loss = _peer("open_clip.loss", "ClipLoss")()
    return lambda a, b: loss(normalize(a, dim=1), normalize(b, dim=1), SCALE)


def _open_clip_siglip(labels: Tensor) -> Loss:
    loss = _peer("open_clip.loss", "SigLipLoss")()
    return lambda a, b: loss(normalize(a, dim=1), normalize(b, dim=1), *SIGMOID.values())


def _pml_supcon(labels: Tensor) -> Loss:
    loss = _peer("pytorch_metric_learning.losses", "SupConLoss")(temperature=TEMPERATURE)
    return lambda a: loss(a, labels)


def _pml_nt_xent(labels: Tensor) -> Loss:
    loss = _peer("pytorch_metric_learning.losses", "NTXentLoss")(temperature=TEMPERATURE)
    return _peer("pytorch_metric_learning.losses", "SelfSupervisedLoss")(loss)


# subject -> (ours, another library's or none, inputs, rows of the matrix of logits for each sample); both makers get
# the labels.
LOSSES: dict[str, tuple[Callable[[Tensor], Loss], Callable[[Tensor], Loss] | None, int, int]] = {
    "nt_xent": (lambda labels: partial(nt_xent, temperature=TEMPERATURE), _lightly_nt_xent, 2, 2),
    "nt_xent_pml": (lambda labels: partial(nt_xent, temperature=TEMPERATURE), _pml_nt_xent, 2, 2),
    "clip": (lambda labels: partial(clip, scale=SCALE), _open_clip, 2, 1),
    "siglip": (lambda labels: partial(siglip, **SIGMOID), _open_clip_siglip, 2, 1),
    "supcon": (lambda labels: partial(supcon, labels=labels, temperature=TEMPERATURE), _pml_supcon, 1, 1),
    "info_nce": (lambda labels: partial(info_nce, temperature=TEMPERATURE, in_batch=True), None, 2, 1),
}


def objective(name: str, *, libraries: Sequence[str], batch: int, dim: int, classes: int = 100) -> Subject:
    """One step of an objective of `LOSSES` on normal inputs; `classes` are those of labels, where it takes any."""
    expect_choice("subject", name, LOSSES)
    ours, theirs, num_inputs, rows = LOSSES[name]
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(batch, dim, generator=generator).requires_grad_() for _ in range(num_inputs)]
    labels = torch.arange(batch) % classes  # every class has several rows
    losses: dict[str, Loss] = {}
    for library in libraries:
        make = ours if library == OURS else theirs
        if make is None:
            raise ValueError(f"library: expected {OURS!r} alone for {name}, received {library!r}")
        losses[library] = make(labels)
    compare = partial(_agree, losses, inputs) if theirs is not None else partial(_agree_in_part, inputs)
    return Subject(
        steps={library: partial(step, loss, inputs) for library, loss in losses.items()},
        compare=compare,
        operands_mb=2 * sum(x.numel() * x.element_size() for x in inputs) / 2**20,
        floor=lambda: {"products": products(rows * batch, dim)},
    )


def step(loss: Loss, inputs: Sequence[Tensor]) -> None:
    """Forward and backward."""
    for x in inputs:
        x.grad = None
    loss(*inputs).backward()


def products(rows: int, dim: int) -> Callable[[], None]:
    """The three products that any gradient of a full matrix of logits takes, into memory that is there already."""
    z = normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(1)), dim=1)
    logits, grad = torch.empty(rows, rows), torch.empty(rows, dim)

    def run() -> None:
        torch.mm(z, z.t(), out=logits)
        torch.mm(logits, z, out=grad)
        torch.mm(logits.t(), z, out=grad)

    return run


def _agree(losses: dict[str, Loss], inputs: Sequence[Tensor]) -> dict[str, float]:
    """Largest differences of value and gradient between the libraries."""
    values = [loss(*inputs) for loss in losses.values()]
    (mine, *my_grads), *others = [(value.detach(), *torch.autograd.grad(value, inputs)) for value in values]
    worst = {"value": 0.0, "gradient": 0.0}
    for name, (value, *grads) in zip(list(losses)[1:], others, strict=True):
        apart = float((value - mine).abs())
        expect_close(f"the loss of {name}", apart, VALUE * max(1.0, float(mine)))
        gap = max(float((x - y).abs().max()) for x, y in zip(grads, my_grads, strict=True))
        expect_close(f"the gradient of {name}", gap, GRADIENT * max(float(x.abs().max()) for x in my_grads))
        worst = {"value": max(worst["value"], apart), "gradient": max(worst["gradient"], gap)}
    return worst


def _agree_in_part(inputs: Sequence[Tensor], num: int = 64) -> dict[str, float]:
    """The gradient of a few anchors, which their own rows of logits decide, against the same through cross entropy."""
    query, key = inputs
    if query.grad is None:
        raise RuntimeError("gradient: expected one from a step before, found none")
    few = query.detach()[:num].requires_grad_()
    logits = normalize(few, dim=1) @ normalize(key.detach(), dim=1).T / TEMPERATURE
    loss = cross_entropy(logits, torch.arange(len(few)), reduction="sum") / len(query)
    (expected,) = torch.autograd.grad(loss, few)
    gap = float((expected - query.grad[:num]).abs().max())
    expect_close("the gradient of the first anchors", gap, GRADIENT * float(expected.abs().max()))
    return {"gradient": gap}
