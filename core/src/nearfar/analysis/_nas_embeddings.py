"""Networks as vectors: what untrained networks do to a few probes, and an encoder that tells architectures apart by it.

Legend: A architectures, M initialisations, N probes, C outputs, D input numbers, R components, H hidden, E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from nearfar.checks import expect, expect_positive
from nearfar.objectives import nt_xent


def jacobian(model: nn.Module, x: Float[Tensor, "N ..."]) -> Float[Tensor, "N D"]:
    """Gradient of the sum of a network's outputs with respect to each probe, one row a probe.

    J_n = d sum_c out_c(x_n) / d x_n

    Args:
        model: from probes to outputs; left in evaluation mode, its batch statistics those of the probes.
        x: probes.

    Notes:
        One backward for all probes: in evaluation mode rows do not depend on each other. Batch norms take their
        statistics from one forward of the probes before.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    model.eval()
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
            norm.train()
        if norms:
            model(x)
        model.eval()
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        (found,) = torch.autograd.grad(model(x).sum(), x)
    return found.flatten(1)


def project(j: Float[Tensor, "N D"], num_components: int, *, canonical: bool = True) -> Float[Tensor, "N R"]:
    """The leading components of a Jacobian, U_R S_R of J = U S V'.

    Args:
        j: J, finite.
        num_components: R.
        canonical: turn the sign of each column so that the entry of U that is largest in size is positive; columns of
            an SVD have any sign.

    Raises:
        ValueError: R above N or D, or numbers that are not finite.
    """
    most = min(j.shape)
    expect(1 <= num_components <= most, "num_components", f"a number from 1 to {most}", num_components)
    expect(bool(j.isfinite().all()), "j", "finite numbers", "nan or inf")
    u, s, _ = torch.linalg.svd(j.double(), full_matrices=False)
    u, s = u[:, :num_components], s[:num_components]
    if canonical:
        u = u * u.gather(0, u.abs().argmax(0, keepdim=True)).sign()
    return (u * s).to(j.dtype)


def describe(
    architectures: Sequence[Callable[[], nn.Module]],
    probes: Float[Tensor, "N ..."],
    *,
    num_components: int = 128,
    num_inits: int = 4,
    seed: int = 0,
    canonical: bool = True,
) -> tuple[Float[Tensor, "A M N R"], Bool[Tensor, "A M"]]:
    """Projected Jacobians of several initialisations of every architecture, and which of them are finite.

    Args:
        architectures: each makes a network with weights drawn anew by torch's generator.
        probes: the same for all.
        num_components: R, at most N and the numbers of a probe.
        num_inits: M.
        seed: of the weights.
        canonical: see `project`.

    Returns:
        Zeros, and False, where a network's Jacobian is not finite.

    Raises:
        ValueError: no architectures, or as `project`.
    """
    expect(len(architectures) >= 1, "architectures", "one or more", "none")
    expect(num_inits >= 1, "num_inits", "1 or more", num_inits)
    rows, finite = [], []
    with torch.random.fork_rng(devices=[]):
        for number, make in enumerate(architectures):
            for init in range(num_inits):
                torch.manual_seed((seed * len(architectures) + number) * num_inits + init)
                j = jacobian(make(), probes)
                finite.append(bool(j.isfinite().all()))
                rows.append(project(j if finite[-1] else torch.zeros_like(j), num_components, canonical=canonical))
    shape = (len(architectures), num_inits)
    return torch.stack(rows).unflatten(0, shape), torch.tensor(finite).view(shape)


class ArchitectureEncoder(nn.Module):
    """Rows of a projected Jacobian, in any order, to one vector: an MLP a row, their mean, another MLP.

    e = g(mean_n f(E_n)), projection p(relu(e)) for the contrast; f and g have four linear layers, p one

    Args:
        num_components: R.
        hidden: H.
        dim: of e and of the projection.
        num_extra: further numbers of an architecture that join the mean, such as the logarithm of its parameters.

    Attributes:
        scale: what Jacobians are divided by, a buffer; `fit` takes their root mean square.
    """

    scale: Tensor

    def __init__(self, num_components: int, *, hidden: int = 256, dim: int = 256, num_extra: int = 0) -> None:
        super().__init__()
        for name, value in (("num_components", num_components), ("hidden", hidden), ("dim", dim)):
            expect(value >= 1, name, "1 or more", value)
        expect(num_extra >= 0, "num_extra", "0 or more", num_extra)
        self.num_components, self.num_extra = num_components, num_extra
        self.rows = _mlp(num_components, hidden, hidden)
        self.whole = _mlp(hidden + num_extra, hidden, dim)
        self.projection = nn.Linear(dim, dim)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Float[Tensor, "A N R"], extra: Float[Tensor, "A X"] | None = None) -> Float[Tensor, "A E"]:
        """e [A, E]."""
        expect(x.ndim == 3 and x.shape[2] == self.num_components, "x", f"shape [A, N, {self.num_components}]",
               tuple(x.shape))  # fmt: skip
        given = 0 if extra is None else extra.shape[1]
        expect(given == self.num_extra, "extra", f"{self.num_extra} numbers an architecture", given)
        mean = self.rows(x / self.scale).mean(1)
        return self.whole(mean if extra is None else torch.cat([mean, extra], 1))

    def project(self, e: Float[Tensor, "A E"]) -> Float[Tensor, "A E"]:
        """What the contrast sees."""
        return self.projection(e.relu())


def _mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    sizes = (width, hidden, hidden, hidden, out)
    layers = [layer for k in range(4) for layer in (nn.Linear(sizes[k], sizes[k + 1]), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def fit(
    jacobians: Float[Tensor, "A M N R"],
    *,
    finite: Bool[Tensor, "A M"] | None = None,
    extra: Float[Tensor, "A X"] | None = None,
    hidden: int = 256,
    dim: int = 256,
    temperature: float = 0.1,
    steps: int = 500,
    batch: int = 1024,
    lr: float = 5e-5,
    seed: int = 0,
) -> ArchitectureEncoder:
    """An encoder by NT-Xent: two initialisations of an architecture are positives, all others negatives.

    Adam; the rate falls by 0.95 thirty times over the run, as in the paper's thirty epochs.

    Args:
        jacobians: as `describe` gives them.
        finite: initialisations that count; architectures with fewer than two are left out.
        extra: further numbers of every architecture.
        hidden, dim: of the encoder.
        temperature: of the contrast.
        steps, batch, lr: of the optimiser; a batch of architectures, at most as many as there are.
        seed: of weights, order and pairs.

    Raises:
        ValueError: fewer than two architectures with two initialisations, or Jacobians that are zero throughout.
    """
    expect(jacobians.ndim == 4, "jacobians", "shape [A, M, N, R]", tuple(jacobians.shape))
    finite = torch.ones(jacobians.shape[:2], dtype=torch.bool) if finite is None else finite
    kept = (finite.sum(1) >= 2).nonzero().flatten()
    expect(len(kept) >= 2, "jacobians", "2 architectures or more with 2 finite initialisations", len(kept))
    expect(steps >= 1, "steps", "1 or more", steps)
    expect(batch >= 2, "batch", "2 or more", batch)
    expect_positive("lr", lr)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = ArchitectureEncoder(
            jacobians.shape[3], hidden=hidden, dim=dim, num_extra=0 if extra is None else extra.shape[1]
        )
    scale = float(jacobians[finite].square().mean().sqrt())
    expect_positive("jacobians: root mean square", scale)
    encoder.scale.fill_(scale)
    optimiser = torch.optim.Adam(encoder.parameters(), lr=lr)
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.95 ** math.floor(30 * step / steps))
    for _ in range(steps):
        rows = kept[torch.randperm(len(kept), generator=generator)[:batch]]
        weight = torch.rand(len(rows), finite.shape[1], generator=generator).masked_fill(~finite[rows], -1.0)
        pair = weight.argsort(1, descending=True)[:, :2]
        own = None if extra is None else extra[rows].float()
        z = [encoder.project(encoder(jacobians[rows, pair[:, k]].float(), own)) for k in (0, 1)]
        optimiser.zero_grad()
        nt_xent(*z, temperature=temperature).backward()
        optimiser.step()
        falling.step()
    return encoder.eval()


@torch.no_grad()
def embed(
    encoder: ArchitectureEncoder, jacobians: Float[Tensor, "A M N R"], extra: Float[Tensor, "A X"] | None = None
) -> Float[Tensor, "A M E"]:
    """Embeddings of every initialisation of every architecture."""
    own = None if extra is None else extra.float()
    return torch.stack([encoder(jacobians[:, k].float(), own) for k in range(jacobians.shape[1])], 1)


def retrieval(embedding: Float[Tensor, "A M E"]) -> float:
    """Share of second initialisations whose nearest first one, by cosine, is of their architecture; by chance 1/A."""
    expect(embedding.ndim == 3 and embedding.shape[1] >= 2, "embedding", "shape [A, M, E], M >= 2",
           tuple(embedding.shape))  # fmt: skip
    first, second = (nn.functional.normalize(embedding[:, k], dim=1) for k in (0, 1))
    return float(((second @ first.T).argmax(1) == torch.arange(len(first))).double().mean())
