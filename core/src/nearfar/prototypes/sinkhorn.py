"""Balanced assignment of samples to prototypes by Sinkhorn and Knopp's scaling of rows and columns.

Every sample ends with a code that sums to one, so a softmax holds it: q_n = softmax_k(s_nk / eps - g_k). The whole plan
is the K numbers g, the log price of each prototype; a crowded prototype costs more.

Legend: N samples of this process, K prototypes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar._tiles import no_autocast
from nearfar.prototypes._balance import solve


@torch.no_grad()
def sinkhorn(
    scores: Float[Tensor, "N K"],
    *,
    eps: float = 0.05,
    num_iterations: int = 3,
    prototype_share: Float[Tensor, " K"] | None = None,
    sample_weight: Float[Tensor, " N"] | None = None,
    hard: bool = False,
    form: str = "auto",
    distributed: bool = False,
) -> Float[Tensor, "N K"]:
    """Codes of samples over prototypes that use all prototypes as much as asked.

    Q_nk = exp(s_nk / eps) u_n v_k with sum_k Q_nk = 1 and, in the limit, sum_n w_n Q_nk = share_k sum_n w_n

    Each iteration scales columns (prototypes), then rows (samples), from u = 1: row sums are exact after any number of
    iterations, column sums in the limit.

    Args:
        scores: similarities, usually cosines [N, K].
        eps: smoothness in units of the scores; larger is flatter, smaller nearer to one prototype a sample.
        num_iterations: T >= 1; SwAV uses 3.
        prototype_share: positive [K], scaled to sum 1; None: 1/K each.
        sample_weight: w, non-negative [N]; a weight of 2 counts as two equal rows, one of 0 gets a code but takes no
            part in the balance. None: 1 each.
        hard: one-hot rows at the largest entry, the first among equals; column sums then hold only roughly.
        form: "scaling" multiplies by vectors, "log" adds potentials; "auto" takes scaling where the spread of the
            scores over eps fits the type (60 in fp32), else log.
        distributed: balance over the rows of all processes, of which there may be different numbers, even none. A
            collective: all processes call it with the same options.

    Returns:
        [N, K] float32 (float64 for float64 scores), without gradient.

    Raises:
        ValueError: scores that are not finite (on every process), no row at all, a share or weight of another shape,
            negative or all zero; eps or num_iterations not positive; form="scaling" beyond its spread.

    Notes:
        The matrix is never divided: T + 1 reads of N x K numbers and one extra matrix, the result. Blocks of rows that
        fit the cache are scaled and summed in one visit. Computed in fp32 whatever the input's type or the surrounding
        autocast. Between processes travel T times K sums (T times W K in log form) and 4 numbers before.
        With N < K some prototypes cannot be filled, and columns only approach their share slowly.

    Source: Cuturi, "Sinkhorn Distances", NeurIPS 2013; Caron et al., "Unsupervised Learning of Visual Features by
        Contrasting Cluster Assignments", NeurIPS 2020.

    Example:
        >>> import torch
        >>> from nearfar.prototypes import sinkhorn
        >>> sinkhorn(torch.tensor([[1.0, 0.9], [1.0, 0.1]]), num_iterations=500).round(decimals=2)
        tensor([[0., 1.],
                [1., 0.]])
    """
    with no_autocast(scores.device):
        plan = solve((scores,), eps, num_iterations, prototype_share, sample_weight, form, distributed)
        codes_NK = plan.take(scores)
        if hard:
            return torch.zeros_like(codes_NK).scatter_(1, codes_NK.argmax(1, keepdim=True), 1.0)
        return codes_NK
