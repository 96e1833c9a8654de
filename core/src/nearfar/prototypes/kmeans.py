"""k-means, spherical or Euclidean, in one process or several, whole or in minibatches, with small clusters repaired.

Legend: N rows of this process, D features, K clusters, R restarts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from nearfar._similarity import accumulation
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice
from nearfar.prototypes import _faiss
from nearfar.prototypes._lloyd import Lloyd
from nearfar.prototypes._rows import checked, nearest
from nearfar.prototypes._seeding import initial
from nearfar.rng import Rng


@dataclass(frozen=True)
class Clusters:
    """A partition of rows around K centroids.

    Args:
        centroid: [K, D], of unit length for spherical k-means; equal on all processes.
        label: int64 [N], the cluster of every row of this process.
        size: int64 [K], rows of every cluster, of all processes.
        inertia: sum over the rows of all processes of the squared distance to their centroid (2 - 2 cosine where
            spherical).
        num_iterations: passes over the rows until the centroids stood still.
    """

    centroid: Tensor
    label: Tensor
    size: Tensor
    inertia: float
    num_iterations: int


@torch.no_grad()
def kmeans(
    x: Float[Tensor, "N D"],
    num_clusters: int,
    *,
    spherical: bool = True,
    init: str | Float[Tensor, "K D"] = "k-means++",
    num_iterations: int = 100,
    tolerance: float = 1e-4,
    num_restarts: int = 1,
    batch_size: int | None = None,
    min_size: int = 1,
    seed: int = 0,
    backend: str = "torch",
    distributed: bool = False,
) -> Clusters:
    """Clusters rows around centroids so that squared distances to them are small.

    inertia = sum_n min_k |x_n - c_k|^2, with unit rows and unit centroids where spherical

    Args:
        x: rows [N, D] of any floating type; not all zero where spherical, since they are then scaled to unit length.
        num_clusters: K, at most the rows there are.
        spherical: centroids are directions; False: Euclidean.
        init: "k-means++" (greedy: the best of 2 + log K draws each), "random" rows, or centroids [K, D].
        num_iterations: most passes over the rows.
        tolerance: stop when the centroids move, summed and squared, by less than this times the mean variance of a
            feature.
        num_restarts: R starts from other seeds; the smallest inertia wins.
        batch_size: rows of a minibatch, over all processes; None: every step sees all rows.
        min_size: clusters with fewer rows are given up, and the largest one is split instead; see `repair_clusters`.
        seed: of every draw; the same seed gives the same clusters, on any number of processes up to rounding.
        backend: "torch", or "faiss" for the iterations (one process, whole batches; `pip install faiss-cpu`).
        distributed: cluster the rows of all processes, of which there may be different numbers, even none. A
            collective.

    Returns:
        Clusters; every label is the nearest centroid except where a last repair split a cluster.

    Raises:
        ValueError: more clusters than rows, rows that are not finite (or zero where spherical), an unknown option,
            min_size times K above the rows there are, faiss with batch_size or distributed.
        TypeError: x of another type.
        ImportError: backend="faiss" without faiss.

    Notes:
        A pass costs 2 N K D FLOP; memory O(N D + K D + tile), N x K distances never exist. Between processes travel
        K (D + 1) sums a pass. Seeding by k-means++ looks at 64 K rows at most and costs 128 K^2 D (2 + log K) FLOP:
        above some thousand clusters take "random".

    Source: Dhillon, Modha, "Concept decompositions for large sparse text data using clustering", Machine Learning 2001;
        Arthur, Vassilvitskii, "k-means++", SODA 2007; Sculley, "Web-scale k-means clustering", WWW 2010.

    Example:
        >>> import torch
        >>> from nearfar.prototypes import kmeans
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> found = kmeans(x, 2)
        >>> bool(found.label[0] == found.label[1]), bool(found.label[1] == found.label[2]), found.size.tolist()
        (True, False, [2, 2])
    """
    expect_choice("backend", backend, ("torch", "faiss"))
    expect(num_iterations >= 1, "num_iterations", "1 or more", num_iterations)
    expect(tolerance >= 0, "tolerance", "0 or more", tolerance)
    expect(num_restarts >= 1, "num_restarts", "1 or more", num_restarts)
    expect(batch_size is None or batch_size >= 1, "batch_size", "None or 1 or more", batch_size)
    if backend == "faiss":
        expect(batch_size is None, "batch_size", "None with backend='faiss'", batch_size)
        expect(not distributed, "distributed", "False with backend='faiss'", distributed)
    with no_autocast(x.device):
        rows = checked("x", x, normalize=spherical, distributed=distributed)
        expect(1 <= num_clusters <= rows.total, "num_clusters", f"a number from 1 to {rows.total}, the rows there are",
               num_clusters)  # fmt: skip
        most = rows.total // num_clusters
        expect(1 <= min_size <= most, "min_size", f"a number from 1 to {most}, rows over clusters", min_size)
        run = Lloyd(rows, num_clusters, spherical, num_iterations, tolerance, batch_size, min_size, distributed)
        best: Clusters | None = None
        for restart in range(num_restarts):
            rng = Rng(seed, epoch=restart)
            centroid = initial(rows, num_clusters, init, spherical, rng, distributed)
            passes = num_iterations
            if backend == "faiss":
                centroid = _faiss.train(rows.x, centroid, spherical, num_iterations)
            elif batch_size is None:
                centroid, passes = run.whole(centroid)
            else:
                centroid, passes = run.batches(centroid, rng.generator("batches"))
            found = Clusters(*run.finish(centroid), passes)
            if best is None or found.inertia < best.inertia:
                best = found
    assert best is not None  # one restart or more
    return best


@torch.no_grad()
def assign(
    x: Float[Tensor, "N D"], centroid: Float[Tensor, "K D"], *, spherical: bool = True
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """The nearest centroid of every row, the first among equals, and its squared distance.

    Args:
        x: rows [N, D].
        centroid: [K, D].
        spherical: by direction: both sides are scaled to unit length first (a zero row is at distance 2 of all).

    Returns:
        (labels int64 [N], squared distances [N], 2 - 2 cosine where spherical).

    Raises:
        ValueError: unequal widths, no centroid.

    Notes: blocks of rows; memory O(N + tile) beside the operands.
    """
    expect(centroid.ndim == 2 and len(centroid) >= 1, "centroid", "shape [K, D]", tuple(centroid.shape))
    expect(x.ndim == 2 and x.shape[1] == centroid.shape[1], "x", f"shape [N, {centroid.shape[1]}]", tuple(x.shape))
    dtype = accumulation(x)
    with no_autocast(x.device):
        x, centroid = x.detach().to(dtype), centroid.detach().to(dtype)
        if spherical:
            x, centroid = F.normalize(x, dim=1), F.normalize(centroid, dim=1)
        return nearest(x, centroid)
