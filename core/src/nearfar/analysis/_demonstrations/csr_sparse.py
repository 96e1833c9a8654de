"""Embeddings made of sparse atoms: codes of k entries beside k dense dimensions.

Legend: N rows, D embedding, K atoms, P dimensions of the widest head.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nearfar.analysis._csr_codes import dense_scores, encode, principal, scores, unused
from nearfar.analysis._csr_sparse import Objective, fit
from nearfar.checks import expect_choice

NUM_CLASSES, NUM_ATOMS, DIM, NUM, HELD_OUT = 20, 100, 64, 10_000, 2_000
AT = (2, 4, 8)
STEPS, QUICK_STEPS, BATCH = 1500, 50, 256
OBJECTIVE = Objective(k=8, num_dead=128)
CODERS = {
    "csr": OBJECTIVE,
    "csr_labels": OBJECTIVE,
    "no_contrast": dataclasses.replace(OBJECTIVE, contrast_weight=0.0),
    "no_wide": dataclasses.replace(OBJECTIVE, wide_weight=0.0),
    "no_dead": dataclasses.replace(OBJECTIVE, dead_weight=0.0),
}
ARMS = (*CODERS, "matryoshka", "pca", "random")


def world(seed: int) -> tuple[Tensor, Tensor]:
    """Embeddings [N, D] and classes [N]: about four of a class's eight atoms, three others, and noise."""
    generator = torch.Generator().manual_seed(seed)
    atoms = F.normalize(torch.randn(NUM_ATOMS, DIM, generator=generator), dim=1)
    member = torch.stack([torch.randperm(NUM_ATOMS, generator=generator)[:8] for _ in range(NUM_CLASSES)])
    label = torch.arange(NUM) % NUM_CLASSES
    weight = torch.zeros(NUM, NUM_ATOMS)
    own = (torch.rand(NUM, 8, generator=generator) < 0.5) * (0.5 + torch.rand(NUM, 8, generator=generator))
    weight.scatter_(1, member[label], own)
    other = torch.randint(0, NUM_ATOMS, (NUM, 3), generator=generator)
    weight.scatter_add_(1, other, 0.5 + torch.rand(NUM, 3, generator=generator))
    return weight @ atoms + 0.05 * torch.randn(NUM, DIM, generator=generator), label


def demonstrate_arm(arm: str, seed: int, quick: bool) -> dict[str, float]:
    """`nearest_K`, the accuracy of the nearest neighbour, and `recall_K` of dense neighbours, with K numbers a row.

    Args:
        arm: of ARMS.
        seed: of the world, of weights and order.
        quick: 50 steps instead of 1500.

    Returns:
        Of 2,000 held-out rows among the others; and `unused`, the latents that no row uses, where there are latents.
    """
    expect_choice("arm", arm, ARMS)
    x, y = world(seed)
    order = torch.randperm(NUM, generator=torch.Generator().manual_seed(seed))
    query, bank = order[:HELD_OUT], order[HELD_OUT:]
    labels, steps = (y[bank], y[query]), QUICK_STEPS if quick else STEPS
    found: dict[str, float] = {}
    if arm in CODERS:
        given = y[bank] if arm == "csr_labels" else None
        coder = fit(x[bank], CODERS[arm], labels=given, steps=steps, batch=BATCH, lr=1e-3, seed=seed)
        found["unused"] = unused(encode(coder, x[bank], OBJECTIVE.k))
        for k in AT:
            row = scores(coder, x[bank], x[query], k, labels)
            found |= {f"{name}_{k}": row[name] for name in ("nearest", "recall")}
        return found
    mean, axes = _axes(arm, x[bank], y[bank], steps, seed)
    for k in AT:
        shown = ((x[bank] - mean) @ axes[:k].T, (x[query] - mean) @ axes[:k].T)
        row = dense_scores(shown, (x[bank], x[query]), labels)
        found |= {f"{name}_{k}": row[name] for name in ("nearest", "recall")}
    return found


def _axes(arm: str, x: Tensor, y: Tensor, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mean [D] and directions [P, D] whose first k are what an arm keeps."""
    if arm == "pca":
        return principal(x, max(AT))
    generator = torch.Generator().manual_seed(seed)
    axes = torch.randn(32, DIM, generator=generator) / DIM**0.5
    return (x.mean(0), axes) if arm == "random" else (x.mean(0), _matryoshka(axes, x - x.mean(0), y, steps, generator))


def _matryoshka(axes: Tensor, x: Tensor, y: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """A linear map whose first 2, 4, 8, 16 and 32 outputs each carry a classifier of their own."""
    axes = nn.Parameter(axes.clone())
    heads = [nn.Linear(k, NUM_CLASSES) for k in (2, 4, 8, 16, 32)]
    for head in heads:
        with torch.no_grad():
            head.weight.copy_(torch.randn(head.weight.shape, generator=generator) / head.in_features**0.5)
            head.bias.zero_()
    optimiser = torch.optim.Adam([axes, *(p for head in heads for p in head.parameters())], lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(0, len(x), (BATCH,), generator=generator)
        z = x[rows] @ axes.T
        loss = torch.stack([F.cross_entropy(head(z[:, : head.in_features]), y[rows]) for head in heads]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return axes.detach()
