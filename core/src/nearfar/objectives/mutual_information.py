"""Lower bounds on the information that two views have of each other, as losses of their products.

Legend: B batch, N gathered batch, D embedding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from nearfar._sigmoid import softplus_sum
from nearfar._tiles import Mask, no_autocast
from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.contrast import Stats, contrast
from nearfar.objectives._shared import Temperature
from nearfar.objectives.spectral import own_rows, squares, vectors

BOUNDS = ("info_nce", "donsker_varadhan", "nwj", "interpolated", "jensen_shannon", "chi_square", "hellinger")


@torch.compiler.disable()
def mutual_information(
    a: Tensor,
    b: Tensor,
    queue: Tensor | None = None,
    *,
    bound: str = "jensen_shannon",
    temperature: float | Tensor = 1.0,
    normalize: bool = False,
    share: float = 0.5,
    log_baseline: float | Tensor = 1.0,
    gathered: Tensor | None = None,
    offset: int = 0,
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Minus a variational bound on an f-information of pairs (a_i, b_i) against (a_i, b_j).

    With scores T_ij = a_i . b_j / t, P the mean over pairs of i = j, Q that over i != j, and the best T of ratio r:

        info_nce          P T - P log mean_j exp(T_ij), j = i too         at most log N      log r + c(a)
        donsker_varadhan  P T - log Q exp(T)                              KL                 log r + c
        nwj               P T - Q exp(T - 1)                              KL                 1 + log r
        interpolated      1 + P[T - log m] - P[e / (s e + (1 - s) q)]     KL, from nwj (s = 0) to info_nce (s = 1)
        jensen_shannon    -P softplus(-T) - Q softplus(T)                 2 JS - log 4       log r
        chi_square        P T - Q T^2 / 2 - 1/2                           chi^2 / 2          r
        hellinger         P[1 - exp(-T)] - Q[exp(T) - 1]                  Hellinger^2        log(r) / 2

    where e is the mean of exp(T_ij) over j != i, and m is s times that over all j plus (1 - s) q.

    Args:
        a, b: [B, D] each; row i of one belongs to row i of the other.
        queue: [K, D], further rows that belong to none; N and Q are then over them too.
        bound: one of the seven.
        temperature: t; a number, or a tensor [] that gets a gradient.
        normalize: scale embeddings to unit length first; scores are then at most 1 / t.
        share: s in [0, 1], of "interpolated"; more of it, less variance and a lower ceiling.
        log_baseline: log q of "interpolated"; a number or a tensor [] or [B] that gets a gradient.
        gathered: b [N, D] of all processes; pass the result of a differentiable gather.
        offset: where this process's rows begin among the N gathered.
        tile: see `contrast`.
        with_stats: also return Stats.

    Returns:
        The loss, minus the bound in nats, or (loss, Stats).

    Raises:
        ValueError: unequal shapes or a single row; gathered with "donsker_varadhan", whose logarithm stands outside the
            mean over anchors, so that parts of a batch do not add up.

    Notes:
        Never a B x N matrix: log sums as `contrast`, softplus as `siglip`, squares from the D x D second moment. The
        estimate of a batch of "donsker_varadhan" is biased, "nwj" and "hellinger" have heavy tails, so bound the
        scores; "info_nce" cannot exceed log N. "interpolated" leaves one of N candidates out of e, and so is exact up
        to 1/N.

    Relations:
        "info_nce" is `info_nce` with in-batch negatives less log N; "chi_square" is `spectral`, halved and shifted.

    Example:
        >>> import torch
        >>> from nearfar.objectives import mutual_information
        >>> a = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> round(float(mutual_information(a, a, bound="nwj")), 4)  # -(1 - exp(-1))
        -0.6321

    Source: Nowozin, Cseke, Tomioka, "f-GAN", NeurIPS 2016; Poole, Ozair, van den Oord, Alemi, Tucker, "On Variational
    Bounds of Mutual Information", ICML 2019; Hjelm et al., "Learning Deep Representations by Mutual Information
    Estimation and Maximization", ICLR 2019.
    """
    _check(bound, share)
    rows = own_rows(a, b, gathered, offset)
    expect(
        gathered is None or bound != "donsker_varadhan", "gathered", "none with bound='donsker_varadhan'", "a tensor"
    )
    c = b if gathered is None else gathered
    kept = 0 if queue is None else len(queue)
    num = len(c) - 1 + kept
    expect(num > 0, "a", "2 or more rows", len(a))
    with no_autocast(a.device):
        x, y = vectors(a, c if queue is None else torch.cat([c, queue.to(c.dtype)]), normalize)
        x = x / _temperature(temperature)
        pair_B = (x * y[rows]).sum(1)

        def others() -> Tensor:
            """log mean of exp(T_ij) over j != i."""
            decoupled = contrast(x, y, targets=rows, denominator="negatives", similarity="dot", normalize=(),
                                 temperature=1.0, reduction="none", tile=tile)  # fmt: skip
            return decoupled + pair_B - math.log(num)

        if bound == "jensen_shannon":
            mask = Mask(exclude=(rows,))
            repelled = softplus_sum(x, y, mask, weight_B=torch.ones_like(pair_B), tile=tile) / num
            bound_B = -torch.nn.functional.softplus(-pair_B) - repelled
        elif bound == "chi_square":
            bound_B = pair_B - (squares(x, y) - pair_B.square()) / (2 * num) - 0.5
        elif bound == "donsker_varadhan":
            every = others()
            bound_B = pair_B - (torch.logsumexp(every, 0) - math.log(len(every)))
        elif bound == "nwj":
            bound_B = pair_B - torch.exp(others() - 1)
        elif bound == "hellinger":
            bound_B = -torch.expm1(-pair_B) - torch.expm1(others())
        else:
            far = others()
            log_mean = torch.logaddexp(far + math.log(num), pair_B) - math.log(num + 1)
            s = 1.0 if bound == "info_nce" else share
            bound_B = pair_B - log_mean if s == 1 else _interpolated(pair_B, far, log_mean, s, log_baseline)
        loss = -bound_B.mean()
    return (loss, Stats(len(a), 0, None)) if with_stats else loss


def _interpolated(pair: Tensor, far: Tensor, log_mean: Tensor, share: float, log_baseline: float | Tensor) -> Tensor:
    base = torch.as_tensor(log_baseline, dtype=pair.dtype, device=pair.device).expand(pair.shape)
    base = base + math.log1p(-share)
    if share == 0:
        return 1 + pair - base - torch.exp(far - base)
    log_share = math.log(share)
    own = torch.logaddexp(log_mean + log_share, base)
    return 1 + pair - own - torch.exp(far - torch.logaddexp(far + log_share, base))


def _temperature(t: float | Tensor) -> float | Tensor:
    expect_positive("temperature", float(t.detach()) if isinstance(t, Tensor) else t)
    return t


def _check(bound: str, share: float) -> None:
    expect_choice("bound", bound, BOUNDS)
    expect(0 <= share <= 1, "share", "a number in [0, 1]", share)


def gaussian_information(a: Tensor, b: Tensor, *, ridge: float = 0.0) -> Tensor:
    """Mutual information of two sets of vectors if they were jointly Gaussian.

    I = 1/2 ( log det S_aa + log det S_bb - log det S ),  S the covariance of (a, b)

    Args:
        a: [B, D].
        b: [B, E].
        ridge: added to the diagonal of every covariance; above 0 where B <= D + E.

    Returns:
        Nats, in float64; differentiable.

    Raises:
        ValueError: as many rows are not in both; a covariance that is singular.

    Notes:
        O(B (D + E)^2 + (D + E)^3). It sees linear dependence alone.

    Example:
        >>> import torch
        >>> from nearfar.objectives import gaussian_information
        >>> a = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
        >>> b = torch.tensor([[2.0], [0.0], [0.0], [-2.0]])  # correlation sqrt(1/2)
        >>> round(float(gaussian_information(a, b)), 4)  # -1/2 log(1 - 1/2)
        0.3466
    """
    expect(a.ndim == b.ndim == 2 and len(a) == len(b) > 1, "b", f"shape [{len(a)}, E], two or more rows",
           tuple(b.shape))  # fmt: skip
    expect(ridge >= 0, "ridge", "a number of 0 or more", ridge)
    joint = torch.cat([a, b], 1).double()
    joint = joint - joint.mean(0)
    cov = joint.t() @ joint / len(joint) + ridge * torch.eye(joint.shape[1], dtype=joint.dtype, device=joint.device)
    width = a.shape[1]
    signs, logs = zip(*(torch.linalg.slogdet(part) for part in (cov[:width, :width], cov[width:, width:], cov)),
                      strict=True)  # fmt: skip
    expect(
        all(float(s.detach()) > 0 for s in signs), "a, b", "covariances that are not singular (or a ridge)", "others"
    )
    return (logs[0] + logs[1] - logs[2]) / 2


class MutualInformation(nn.Module):
    """`mutual_information` as a Module; see there.

    Args:
        bound: one of the seven.
        temperature: fixed, or where a learnt one starts.
        learnable_temperature: learn it.
        normalize: scale embeddings to unit length first.
        share, log_baseline: of "interpolated".
        tile: see `contrast`.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = False

    def __init__(
        self,
        bound: str = "jensen_shannon",
        temperature: float = 1.0,
        *,
        learnable_temperature: bool = False,
        normalize: bool = False,
        share: float = 0.5,
        log_baseline: float = 1.0,
        tile: int | None = None,
    ) -> None:
        super().__init__()
        _check(bound, share)
        self.tau = Temperature(temperature, learnable_temperature)
        self.options: dict[str, Any] = {
            "bound": bound, "normalize": normalize, "share": share, "log_baseline": log_baseline, "tile": tile,
        }  # fmt: skip

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in use."""
        return self.tau()

    def forward(self, a: Tensor, b: Tensor, **options: Any) -> Any:
        """The loss; further options as `mutual_information`."""
        return mutual_information(a, b, temperature=self.tau(), **self.options, **options)
