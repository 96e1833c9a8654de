"""A tied autoencoder whose codes have at most k entries, and the contrast among its codes.

Legend: B batch, N rows, D embedding, H latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.contrast import contrast

FIRED = 1e-5
"""a latent counts as used where its value in a code is above this"""


class SparseCoder(nn.Module):
    """Embeddings [B, D] to codes [B, H] of at most k entries, none negative, and back through the same weights.

    a = W (x / s - c) + b,  z_k = relu(the k largest of a),  x' = s (W^T z_k + c)

    Args:
        dim: D.
        hidden: H; 0: 4 D.
        layer_norm: every row is coded with its own mean taken out and divided by its own deviation, and decoded with
            both put back.

    Attributes:
        weight: W [H, D], rows drawn of unit length.
        bias, centre: b [H] and c [D].
        scale: s, a buffer; 1 unless `start` has seen data.
        idle: how many steps ago each latent was last used, int64 [H].

    Notes:
        One set of weights serves every k: codes of a smaller k are those of a larger one with entries left out.

    Source: Wen et al., "Beyond Matryoshka: Revisiting Sparse Coding for Adaptive Representation", ICML 2025.
    """

    scale: Tensor
    idle: Tensor

    def __init__(self, dim: int, hidden: int = 0, *, layer_norm: bool = False) -> None:
        super().__init__()
        expect(dim >= 1, "dim", "1 or more", dim)
        expect(hidden >= 0, "hidden", "0 or more", hidden)
        self.dim, self.hidden, self.layer_norm = dim, hidden or 4 * dim, layer_norm
        self.weight = nn.Parameter(F.normalize(torch.randn(self.hidden, dim), dim=1))
        self.bias = nn.Parameter(torch.zeros(self.hidden))
        self.centre = nn.Parameter(torch.zeros(dim))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("idle", torch.zeros(self.hidden, dtype=torch.int64))

    @torch.no_grad()
    def start(self, x: Float[Tensor, "N D"]) -> None:
        """Puts the centre at the mean of the rows and makes their mean squared deviation 1.

        Raises:
            ValueError: all rows are equal.
        """
        x = self.standard(x)[0]
        mean = x.mean(0)
        scale = (x - mean).square().mean().sqrt()
        expect_positive("x: deviation of the rows", float(scale))
        self.scale.copy_(scale)
        self.centre.copy_(mean / scale)

    def standard(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(rows as they are coded but for the scale, what was taken out, what they were divided by)."""
        if not self.layer_norm:
            return x, x.new_zeros(()), x.new_ones(())
        mean, deviation = x.mean(1, keepdim=True), x.std(1, keepdim=True, correction=0).clamp_min(1e-5)
        return (x - mean) / deviation, mean, deviation

    def activation(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B H"]:
        """a [B, H], before any entry is left out."""
        expect(x.ndim == 2 and x.shape[1] == self.dim, "x", f"shape [B, {self.dim}]", tuple(x.shape))
        return F.linear(self.standard(x)[0] / self.scale - self.centre, self.weight, self.bias)

    def code(self, x: Float[Tensor, "B D"], k: int) -> Float[Tensor, "B H"]:
        """z_k [B, H]."""
        return top(self.activation(x), k)

    def decode(self, z: Float[Tensor, "B H"]) -> Float[Tensor, "B D"]:
        """W^T z + c: what a code says of x / s (with layer_norm, of the standardised row)."""
        return z @ self.weight + self.centre

    def forward(self, x: Float[Tensor, "B D"], k: int) -> Float[Tensor, "B D"]:
        """x' [B, D], the embeddings after coding and decoding."""
        _, mean, deviation = self.standard(x)
        return self.decode(self.code(x, k)) * self.scale * deviation + mean

    @torch.no_grad()
    def count(self, z: Float[Tensor, "B H"]) -> None:
        """A step has passed in which the codes were these."""
        self.idle += 1
        self.idle[(z > FIRED).any(0)] = 0


def top(a: Float[Tensor, "B H"], k: int) -> Float[Tensor, "B H"]:
    """relu of the k largest entries of every row, 0 elsewhere; the gradient reaches those entries alone.

    Raises:
        ValueError: k outside 1 to H.
    """
    expect(1 <= k <= a.shape[1], "k", f"a number from 1 to {a.shape[1]}, the latents there are", k)
    value, index = a.topk(k, dim=1)
    return torch.zeros_like(a).scatter(1, index, value.relu())


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What the coder is trained for: L = L_k + wide_weight L_4k + dead_weight L_dead + contrast_weight L_cl.

    Args:
        k: entries of a code; 4 k, at most H, in the second reconstruction.
        num_dead: latents that may explain the residual at a time.
        dead_after: steps without use after which a latent counts as dead.
        temperature: of the contrast.
        contrast: "cosine" as the authors' code has it, "dot" without temperature as the paper writes it.
    """

    k: int = 8
    num_dead: int = 512
    dead_after: int = 10
    wide_weight: float = 1 / 8
    dead_weight: float = 1 / 32
    contrast_weight: float = 0.1
    temperature: float = 0.2
    contrast: Literal["cosine", "dot"] = "cosine"

    def __post_init__(self) -> None:
        expect(self.k >= 1, "k", "1 or more", self.k)
        expect(self.num_dead >= 1, "num_dead", "1 or more", self.num_dead)
        expect(self.dead_after >= 1, "dead_after", "1 or more", self.dead_after)
        for name in ("wide_weight", "dead_weight", "contrast_weight"):
            value = getattr(self, name)
            expect(math.isfinite(value) and value >= 0, name, "0 or more", value)
        expect_positive("temperature", self.temperature)
        expect_choice("contrast", self.contrast, ("cosine", "dot"))


def loss(
    coder: SparseCoder,
    x: Float[Tensor, "B D"],
    objective: Objective,
    *,
    labels: Int[Tensor, " B"] | None = None,
    pair: Float[Tensor, "B D"] | None = None,
) -> dict[str, Tensor]:
    """The weighted "loss" of a batch and its parts "k", "wide", "dead" and "contrast"; counts the step in `coder.idle`.

    L_k    = mean (x - x'_k)^2,  L_4k the same with 4 k entries, both in units of the scale s
    L_dead = mean (x'_dead - r)^2 / mean (mean_B r - r)^2,  r = x - x'_k + c without gradient

    where x'_dead is decoded from the largest entries among latents unused for a while; 0 while there are none.

    Args:
        coder: counts which latents are used.
        x: embeddings.
        objective: weights and sizes.
        labels: class ids; the contrast then takes rows of one class for positives.
        pair: what belongs to each row, e.g. documents of queries; the contrast is then between the two.

    Raises:
        ValueError: k or num_dead above H.
    """
    for name in ("k", "num_dead"):
        value = getattr(objective, name)
        expect(value <= coder.hidden, name, f"at most the {coder.hidden} latents there are", value)
    rows = x if pair is None else torch.cat([x, pair])
    a = coder.activation(rows)
    truth = coder.standard(rows)[0] / coder.scale
    z = top(a, objective.k)
    out = coder.decode(z)
    coder.count(z)
    parts = {
        "k": F.mse_loss(out, truth),
        "wide": F.mse_loss(coder.decode(top(a, min(4 * objective.k, coder.hidden))), truth),
        "dead": _dead(coder, a, truth - out.detach() + coder.centre.detach(), objective),
        "contrast": code_contrast(
            z[: len(x)], other=None if pair is None else z[len(x) :], labels=labels,
            temperature=objective.temperature, form=objective.contrast,
        )[0],
    }  # fmt: skip
    weights = (1.0, objective.wide_weight, objective.dead_weight, objective.contrast_weight)
    total = torch.stack([w * part for w, part in zip(weights, parts.values(), strict=True) if w]).sum()
    return {"loss": total, **parts}


def dead(coder: SparseCoder, objective: Objective) -> Bool[Tensor, " H"]:
    """Which latents have not been used for more than `dead_after` steps."""
    return coder.idle > objective.dead_after


def _dead(coder: SparseCoder, a: Tensor, residual: Tensor, objective: Objective) -> Tensor:
    mask = dead(coder, objective)
    num = min(objective.num_dead, int(mask.sum()))
    spread = F.mse_loss(residual.mean(0).expand_as(residual), residual)
    if num == 0 or float(spread) == 0:
        return a.new_zeros(())
    z = top(a.masked_fill(~mask, -torch.inf), num)
    return F.mse_loss(coder.decode(z), residual) / spread


def code_contrast(
    z: Float[Tensor, "B H"],
    *,
    other: Float[Tensor, "B H"] | None = None,
    labels: Int[Tensor, " B"] | None = None,
    temperature: float = 0.2,
    form: str = "cosine",
) -> tuple[Float[Tensor, ""], int]:
    """Contrast among codes, which spreads them over different latents; and how many codes were empty.

    L_cl = -mean_i log e^{1/t} / (e^{1/t} + 2 sum_{j != i} e^{cos(z_i, z_j) / t})

    is NT-Xent between the codes and themselves. With form "dot", -mean_i log e^{z_i z_i} / sum_j e^{z_i z_j}. With
    labels, the other codes of a class are positives; with `other`, each code's own row there.

    Args:
        z: codes.
        other: codes of what belongs to each.
        labels: class ids; not beside other.
        temperature: t.
        form: "cosine" or "dot".

    Notes:
        Rows without any entry have no direction: they are left out on both sides and counted. 0 where fewer than two
        are left, or where no two of them are of one class.
    """
    expect(other is None or labels is None, "labels", "none beside pairs", "both")
    kept = (z > 0).any(1) if other is None else (z > 0).any(1) & (other > 0).any(1)
    empty = int((~kept).sum())
    z = z[kept]
    if len(z) < 2:
        return z.sum() * 0, empty
    how = {"temperature": temperature} if form == "cosine" else {"similarity": "dot", "temperature": 1.0}
    rows = torch.arange(len(z), device=z.device)
    if other is not None:
        return contrast(z, other[kept], targets=rows, **how), empty  # type: ignore[arg-type]
    if labels is not None:
        return contrast(z, labels=labels[kept], directions="self", empty="zero", **how), empty  # type: ignore[arg-type]
    if form == "dot":
        return contrast(z, z, targets=rows, **how), empty  # type: ignore[arg-type]
    twice = z.new_full((len(z),), math.log(2.0))
    return contrast(z, z, own=rows, own_positive=z[:, None], log_weight=twice, **how), empty  # type: ignore[arg-type]


def fit(
    x: Float[Tensor, "N D"],
    objective: Objective,
    *,
    hidden: int = 0,
    layer_norm: bool = False,
    labels: Int[Tensor, " N"] | None = None,
    pair: Float[Tensor, "N D"] | None = None,
    steps: int = 3000,
    batch: int = 512,
    lr: float = 4e-4,
    seed: int = 0,
    say: Callable[[int, dict[str, Tensor]], None] = lambda step, parts: None,
) -> SparseCoder:
    """A coder trained on rows by Adam (eps 6.25e-10), without weight decay.

    Args:
        x: embeddings, finite; centre and scale are taken from them.
        objective, hidden, layer_norm, labels, pair: see `loss` and `SparseCoder`.
        steps: of the optimiser.
        batch: rows of a step, drawn without replacement pass by pass; at most N.
        lr: learning rate.
        seed: of weights and order.
        say: hears of every step.

    Raises:
        ValueError: fewer than two rows, and as `loss`.
    """
    expect(len(x) >= 2, "x", "2 rows or more", len(x))
    expect(steps >= 1, "steps", "1 or more", steps)
    expect(batch >= 2, "batch", "2 or more", batch)
    expect_positive("lr", lr)
    generator = torch.Generator().manual_seed(seed)
    coder = SparseCoder(x.shape[1], hidden, layer_norm=layer_norm).to(x.dtype)
    with torch.no_grad():
        coder.weight.copy_(F.normalize(torch.randn(coder.weight.shape, generator=generator), dim=1))
    coder = coder.to(x.device)
    coder.start(x)
    optimiser = torch.optim.Adam(coder.parameters(), lr=lr, eps=6.25e-10)
    order, batch = torch.empty(0, dtype=torch.int64), min(batch, len(x))
    for step in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(x), generator=generator)
        rows, order = order[:batch].to(x.device), order[batch:]
        parts = loss(
            coder, x[rows], objective,
            labels=None if labels is None else labels[rows], pair=None if pair is None else pair[rows],
        )  # fmt: skip
        optimiser.zero_grad()
        parts["loss"].backward()
        optimiser.step()
        say(step, parts)
    return coder
