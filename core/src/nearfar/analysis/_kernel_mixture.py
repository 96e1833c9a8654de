"""Contrast as spectral clustering: the identity, the spectrum of a similarity graph, and embeddings of its nodes.

Legend: N nodes or rows, D dimensions, C clusters.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearfar.checks import expect, expect_positive
from nearfar.objectives.kernel_mixture import ExponentialKernel, KernelSum
from nearfar.prototypes import kmeans, knn_graph


def checked_graph(graph: Tensor) -> Tensor:
    """A graph [N, N] as float64 without its diagonal, or an error: square, finite, not negative, no node alone."""
    square = graph.ndim == 2 and graph.shape[0] == graph.shape[1] and len(graph) >= 2
    expect(square, "graph", "shape [N, N], N >= 2", tuple(graph.shape))
    graph = graph.detach().double().clone()
    expect(bool(graph.isfinite().all()) and float(graph.min()) >= 0, "graph", "finite weights of 0 or more",
           float(graph.min()))  # fmt: skip
    graph.fill_diagonal_(0)
    alone = ((graph.sum(0) + graph.sum(1)) == 0).nonzero().flatten()
    expect(
        len(alone) == 0, "graph", "an edge at every node", f"{len(alone)} nodes alone, the first {alone[:1].tolist()}"
    )
    return graph


def transition(graph: Float[Tensor, "N N"]) -> Float[Tensor, "N N"]:
    """pi, the graph with rows that sum to 1: how likely j is drawn as the positive of i.

    Raises:
        ValueError: a node without an edge of its own.
    """
    graph = checked_graph(graph)
    total = graph.sum(1, keepdim=True)
    empty = (total.flatten() == 0).nonzero().flatten()
    expect(
        len(empty) == 0, "graph", "a weight above 0 in every row", f"none in {len(empty)}, first {empty[:1].tolist()}"
    )
    return graph / total


def laplacian(graph: Float[Tensor, "N N"], *, normalized: bool = False) -> Float[Tensor, "N N"]:
    """D - S of the symmetric part S = (W + W')/2, or I - D^(-1/2) S D^(-1/2); D holds the row sums of S."""
    weight = checked_graph(graph)
    weight = (weight + weight.t()) / 2
    degree = weight.sum(1)
    if not normalized:
        return torch.diag(degree) - weight
    root = degree.rsqrt()
    return torch.eye(len(weight), dtype=weight.dtype, device=weight.device) - root[:, None] * weight * root


def identities(
    graph: Float[Tensor, "N N"],
    z: Float[Tensor, "N D"],
    *,
    temperature: float = 1.0,
    side: Int[Tensor, " N"] | None = None,
) -> dict[str, float]:
    """Both sides of the theorem: expected InfoNCE is a spectral cut of the graph and a repulsion.

    With K_ij = exp(-|z_i - z_j|^2 / t), R_i = sum_{l != i} K_il and pi the graph with rows that sum to 1:

    -sum_ij pi_ij log(K_ij / R_i) = 2/t tr(Z' Lap Z) + sum_i log R_i,  Lap the Laplacian of (pi + pi')/2

    Args:
        graph: weights >= 0; the diagonal is left out.
        z: embeddings of the nodes, taken as they are.
        temperature: t, twice the paper's tau; that of `nearfar.objectives.kernel_info_nce` with gamma 2.
        side: 0 or 1 of every node of a graph between two kinds, such as images and texts; candidates are then the nodes
            of the other side, and the loss is CLIP's in both directions.

    Returns:
        "loss", the left side, and "cut" and "repulsion", which add up to it up to rounding; all are sums over nodes,
        and "gap" is the difference.

    Raises:
        ValueError: a graph that is not square, has negative weights, an empty row, or edges within a side.

    Notes:
        O(N^2 D) in float64; [N, N] is stored.

    Source: Tan, Zhang, Yang, Yuan, "Contrastive Learning Is Spectral Clustering On Similarity Graph", ICLR 2024.
    """
    expect_positive("temperature", temperature)
    share = transition(graph)
    expect(z.ndim == 2 and len(z) == len(share), "z", f"shape [{len(share)}, D]", tuple(z.shape))
    z = z.detach().double()
    barred = torch.eye(len(z), dtype=torch.bool, device=z.device)
    if side is not None:
        expect(side.shape == (len(z),) and set(side.tolist()) == {0, 1}, "side", f"{len(z)} numbers, both 0 and 1",
               tuple(side.shape))  # fmt: skip
        same = side[:, None] == side
        expect(float(share[same].sum()) == 0, "graph", "edges between the sides only", "some within a side")
        barred = barred | same
    logits = (-(z[:, None] - z).square().sum(2) / temperature).masked_fill(barred, -math.inf)
    repulsion = torch.logsumexp(logits, 1)
    loss = -(share * (logits - repulsion[:, None]).masked_fill(barred, 0.0)).sum()
    cut = 2 / temperature * torch.trace(z.t() @ laplacian(share) @ z)
    found = {"loss": float(loss), "cut": float(cut), "repulsion": float(repulsion.sum())}
    return found | {"gap": found["loss"] - found["cut"] - found["repulsion"]}


def spectrum(graph: Float[Tensor, "N N"], num: int | None = None) -> tuple[Tensor, Tensor]:
    """The least eigenvalues of the normalised Laplacian, rising from 0, and their eigenvectors [N, num].

    Args:
        graph: weights >= 0, made symmetric.
        num: how many; None: all.

    Notes:
        O(N^3) in float64. As many eigenvalues are 0 as the graph has parts without an edge between them; all lie in
        [0, 2].
    """
    value, vector = torch.linalg.eigh(laplacian(graph, normalized=True))
    return value[:num].clamp(0, 2), vector[:, :num]


def eigengap(value: Float[Tensor, " K"], most: int = 10) -> int:
    """The number of clusters from 2 to `most` after which rising eigenvalues make their largest step."""
    expect(len(value) >= 3, "value", "3 eigenvalues or more", len(value))
    step = value[2 : most + 1] - value[1:most]
    return int(step.argmax()) + 2


def spectral_clusters(graph: Float[Tensor, "N N"], num_clusters: int, *, seed: int = 0) -> Int[Tensor, " N"]:
    """Clusters of the nodes: k-means of the rows of the least eigenvectors, scaled to unit length.

    Args:
        graph: weights >= 0, made symmetric.
        num_clusters: C, from 2 to N - 1.
        seed: of k-means, which starts 10 times.

    Source: Ng, Jordan, Weiss, "On Spectral Clustering: Analysis and an Algorithm", NeurIPS 2001.
    """
    expect(2 <= num_clusters < len(graph), "num_clusters", f"2 to {len(graph) - 1}", num_clusters)
    _, vector = spectrum(graph, num_clusters)
    return kmeans(vector, num_clusters, num_restarts=10, seed=seed).label


def similarity_graph(z: Float[Tensor, "N D"], num_neighbours: int = 10) -> Float[Tensor, "N N"]:
    """Rows and their nearest neighbours by cosine: 1 where either lists the other, else 0; float64."""
    graph = knn_graph(z, num_neighbours, symmetric="either").coalesce()
    dense = torch.zeros(len(z), len(z), dtype=torch.float64, device=z.device)
    row, column = graph.indices()
    dense[row, column] = 1.0
    return dense


def embed(
    graph: Float[Tensor, "N N"],
    dim: int,
    *,
    gamma: float = 2.0,
    mixing: float = 1.0,
    temperature: float = 1.0,
    num_steps: int = 300,
    seed: int = 0,
) -> Float[Tensor, "N D"]:
    """Free embeddings of the nodes with the least expected InfoNCE of the graph.

    min_Z -1/N sum_ij pi_ij log( k(z_i, z_j) / sum_{l != i} k(z_i, z_l) )

    with k = m exp(-d^gamma / t) + (1 - m) exp(-d^2 / t) of the distance d

    Args:
        graph: weights >= 0.
        dim: D.
        gamma: exponent of the first kernel in (0, 2].
        mixing: m in [0, 1], the share of that kernel; the rest is Gaussian.
        temperature: t of both; with one kernel it only scales the embedding.
        num_steps: of L-BFGS with line search.
        seed: of the normal start.

    Returns:
        Centred embeddings [N, D], float64.

    Notes:
        O(N^2 D) a step; [N, N] is stored.
    """
    expect(dim >= 1, "dim", "1 or more", dim)
    expect(num_steps >= 1, "num_steps", "1 or more", num_steps)
    expect(0 <= mixing <= 1, "mixing", "a number in [0, 1]", mixing)
    expect_positive("temperature", temperature)
    share = transition(graph)
    if 0 < mixing < 1:
        kernel, t = KernelSum(gamma, mixing, temperature, temperature), 1.0
    else:
        kernel, t = ExponentialKernel(gamma if mixing == 1 else 2.0), temperature
    start = torch.randn(len(share), dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z = start.to(share.device).requires_grad_()
    own = torch.eye(len(share), dtype=torch.bool, device=share.device)
    optimiser = torch.optim.LBFGS([z], max_iter=num_steps, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def loss() -> Tensor:
        optimiser.zero_grad()
        log_share = (kernel.tile(z, z) / t).masked_fill(own, -math.inf).log_softmax(1).masked_fill(own, 0.0)
        value = -(share * log_share).sum() / len(share)
        value.backward()
        return value

    optimiser.step(loss)
    return (z - z.mean(0)).detach()


def principal_angles(a: Float[Tensor, "N P"], b: Float[Tensor, "N Q"]) -> Float[Tensor, " R"]:
    """Angles in radians between the spans of two sets of columns, rising; R = min(P, Q)."""
    expect(a.ndim == b.ndim == 2 and len(a) == len(b), "b", f"shape [{len(a)}, Q]", tuple(b.shape))
    bases = [torch.linalg.qr(x.detach().double())[0] for x in (a, b)]
    return torch.linalg.svdvals(bases[0].t() @ bases[1]).clamp(max=1).arccos()


def leading_eigenspace(graph: Float[Tensor, "N N"], num: int) -> Float[Tensor, "N K"]:
    """Eigenvectors of the theorem's Laplacian after the constant one, which the cut alone would take."""
    expect(1 <= num < len(graph), "num", f"1 to {len(graph) - 1}", num)
    return torch.linalg.eigh(laplacian(transition(graph)))[1][:, 1 : num + 1]


def block_graph(
    sizes: tuple[int, ...], inside: float, between: float, *, seed: int = 0
) -> tuple[Float[Tensor, "N N"], Int[Tensor, " N"]]:
    """A random graph of groups and each node's group: edges of chance `inside` a group and `between` groups.

    A node that drew no edge is tied to the next of its group.
    """
    expect(len(sizes) >= 1 and min(sizes) >= 2, "sizes", "groups of 2 nodes or more", sizes)
    for name, chance in (("inside", inside), ("between", between)):
        expect(0 <= chance <= 1, name, "a probability", chance)
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    chance = torch.where(group[:, None] == group, inside, between).double()
    drawn = torch.rand(chance.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) < chance
    upper = drawn.double().triu(1)
    graph = upper + upper.t()
    for node in (graph.sum(1) == 0).nonzero().flatten().tolist():
        mates = (group == group[node]).nonzero().flatten().tolist()
        other = mates[(mates.index(node) + 1) % len(mates)]
        graph[node, other] = graph[other, node] = 1.0
    return graph, group
