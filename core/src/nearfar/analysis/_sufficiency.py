"""What an encoder keeps of one view's information about another, on tables.

Legend: n1, n2 states of the two views; u a ratio of densities, s a score.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearfar.analysis import _tables
from nearfar.analysis.sufficient_statistics import Information, Sufficiency
from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.objectives import ranking_nce

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Divergence:
    """A convex phi with phi(1) = 0, its slope, and its conjugate phi*(s) = sup_u (s u - phi(u))."""

    value: Map
    slope: Map
    conjugate: Map


DIVERGENCES = {
    "kl": Divergence(lambda u: torch.xlogy(u, u), lambda u: 1 + torch.log(u), lambda s: torch.exp(s - 1)),
    "chi_square": Divergence(lambda u: (u - 1).square() / 2, lambda u: u - 1, lambda s: s + s.square() / 2),
    "jensen_shannon": Divergence(
        lambda u: torch.xlogy(u, u) - (u + 1) * torch.log((u + 1) / 2),
        lambda u: torch.log(2 * u / (1 + u)),
        lambda s: torch.where(s < math.log(2), -torch.log(2 - torch.exp(s.clamp_max(math.log(2)))), math.inf),
    ),
    "hellinger": Divergence(
        lambda u: (u.sqrt() - 1).square(),
        lambda u: 1 - u.rsqrt(),
        lambda s: torch.where(s < 1, 1 / (1 - s.clamp_max(1)) - 1, math.inf),
    ),
}


def _divergence(name: str) -> Divergence:
    expect_choice("divergence", name, DIVERGENCES)
    return DIVERGENCES[name]


def information(table: Float[Tensor, "n1 n2"], *, divergence: str = "kl") -> float:
    """f-information of the rows and columns of a joint law.

    I_phi = sum_ij p_i q_j phi( t_ij / (p_i q_j) )

    Args:
        table: t [n1, n2], probabilities that sum to 1 within 1e-8.
        divergence: "kl" (phi = u log u), "chi_square" ((u - 1)^2 / 2), "jensen_shannon" (u log u - (u + 1)
            log((u + 1) / 2), twice the divergence of that name) or "hellinger" ((sqrt(u) - 1)^2).

    Returns:
        Nats for "kl" and "jensen_shannon".
    """
    phi = _divergence(divergence)
    t = _tables.joint("table", table)
    return float((_tables.independent(t) * phi.value(_tables.ratio(t))).sum())


def risk(table: Float[Tensor, "n1 n2"], scores: Float[Tensor, "n1 n2"], *, divergence: str = "kl") -> float:
    """Variational risk of scores, whose least value is minus the f-information.

    R_phi(S) = E_{p x q}[ phi*(S) ] - E_t[ S ]

    Args:
        table: t [n1, n2].
        scores: S [n1, n2]; read where they have mass.
        divergence: as `information`.

    Returns:
        The risk; infinite where a score leaves the domain of phi*.
    """
    phi = _divergence(divergence)
    t = _tables.joint("table", table)
    expect(scores.shape == t.shape, "scores", f"the shape of table, {tuple(t.shape)}", tuple(scores.shape))
    s, apart = scores.detach().cpu().double(), _tables.independent(t)
    repelled = torch.where(apart > 0, apart * phi.conjugate(torch.where(apart > 0, s, 0.0)), 0.0)
    attracted = torch.where(t > 0, t * torch.where(t > 0, s, 0.0), 0.0)
    return float(repelled.sum() - attracted.sum())


def sufficiency(table: Float[Tensor, "n1 n2"], ids: Int[Tensor, " n1"], *, divergence: str = "kl") -> Sufficiency:
    """What an encoder of the rows loses of their f-information about the columns, in three equivalent forms.

    Suff = I_phi(z1; z2) - I_phi(f(z1); z2) = E_{p x q}[ B_phi(r, r_f) ] = min_{S of (f(z1), z2)} R_phi(S) - min_S R_phi

    with the ratio r = t / (p q), that of codes r_f = E[ r | f, z2 ], and the gap of phi from its tangent,
    B_phi(a, b) = phi(a) - phi(b) - phi'(b) (a - b).

    Args:
        table: t [n1, n2], the joint law of two views.
        ids: code f(z1) of each row, [n1] integers.
        divergence: as `information`.

    Raises:
        ValueError: a table that is no joint law, or codes that do not fit it.

    Notes:
        The three are computed apart from each other, so that their agreement tells of rounding. 0: f is sufficient.

    Source: Lin, Mei, "A Statistical Theory of Contrastive Learning via Approximate Sufficient Statistics", 2025.
    """
    phi = _divergence(divergence)
    t = _tables.joint("table", table)
    code = _tables.codes("ids", ids, len(t))
    merged = _tables.merge(t, code)
    apart, r, r_f = _tables.independent(t), _tables.ratio(t), _tables.ratio(merged)[code]
    whole, kept = information(t, divergence=divergence), information(merged, divergence=divergence)
    # where r_f is 0 so is r, and no gap is left
    cell = phi.value(r) - phi.value(r_f) - phi.slope(r_f) * (r - r_f)
    return Sufficiency(
        divergence=divergence,
        information=whole,
        kept=kept,
        gap=whole - kept,
        bregman=float((apart * torch.where(r_f > 0, cell, 0.0)).sum()),
        variational=risk(t, phi.slope(r_f), divergence=divergence) - risk(t, phi.slope(r), divergence=divergence),
    )


def prediction_gap(table: Float[Tensor, "n1 n2"], ids: Int[Tensor, " n1"], target: Float[Tensor, " n2"]) -> float:
    """What predicting a function of the second view loses by the code, in squared error.

    E[ ( E[m(z2) | z1] - E[m(z2) | f(z1)] )^2 ] <= 2 max|m|^2 Suff_KL(f), by Pinsker's inequality

    Args:
        table, ids: as `sufficiency`.
        target: m, [n2].
    """
    t = _tables.joint("table", table)
    code = _tables.codes("ids", ids, len(t))
    expect(target.shape == (t.shape[1],), "target", f"shape ({t.shape[1]},)", tuple(target.shape))
    m, merged = target.detach().cpu().double(), _tables.merge(t, code)

    def given(joint: Tensor) -> Tensor:
        return (joint @ m) / joint.sum(1).clamp_min(torch.finfo(torch.float64).tiny)

    return float((t.sum(1) * (given(t) - given(merged)[code]).square()).sum())


def downstream_bound(sufficiency_kl: float, augmentation: float = 0.0, size: float = 1.0) -> float:
    """Bound on the squared error of the best prediction of a target from the code of one view.

    E[ ( h(x) - E[m(z2) | f(z1)] )^2 ] <= 3 eps_aug + 4 B^2 Suff_KL

    with m(z) = E[ h(x) | z ], the same function for both views, and eps_aug = E[ (h(x) - m(z))^2 ].

    Args:
        sufficiency_kl: Suff_KL in nats.
        augmentation: eps_aug, what either view lost of the target.
        size: B, the largest value of |m|.

    Notes:
        h - m(z1) is orthogonal to functions of z1, and costs eps_aug; m(z1) - E[m(z2) | z1] costs at most eps_aug
        again, E[m(z2) | z1] - E[m(z2) | f(z1)] at most 2 B^2 Suff_KL, and the square of their sum at most twice both.
        The paper's constants may be better.
    """
    expect(sufficiency_kl >= 0, "sufficiency_kl", "0 or more", sufficiency_kl)
    expect(augmentation >= 0, "augmentation", "0 or more", augmentation)
    expect_positive("size", size)
    return 3 * augmentation + 4 * size**2 * sufficiency_kl


def info_nce_information(
    table: Float[Tensor, "n1 n2"],
    scores: Float[Tensor, "n1 n2"] | None = None,
    *,
    num_candidates: int,
    limit: int = 10_000_000,
    draws: int = 100_000,
    seed: int = 0,
) -> Information:
    """-R_K, the information that InfoNCE with K candidates reports for scores of a known joint law.

    R_K(S) = E[ -log( exp S(z1, z2_1) / ( 1/K sum_j exp S(z1, z2_j) ) ) ],  z2_1 the partner, z2_2 ... z2_K of p(z2)

    Args:
        table: the joint law, [n1, n2].
        scores: S [n1, n2]; None: log r, the best there are up to a function of z1.
        num_candidates: K.
        limit: visit every combination of states where there are at most so many.
        draws: else so many draws.
        seed: of the draws.

    Returns:
        -R_K, never above min(I, log K).

    Notes:
        Combinations: n1 n2^K. `ranking_nce` less log K, negated.
    """
    expect(num_candidates >= 1, "num_candidates", "1 or more", num_candidates)
    expect(draws >= 2, "draws", "2 or more", draws)
    t = _tables.joint("table", table)
    s = torch.log(_tables.ratio(t)) if scores is None else scores.detach().cpu().double()
    expect(s.shape == t.shape, "scores", f"the shape of table, {tuple(t.shape)}", tuple(s.shape))
    whole = information(t)
    ceiling = min(whole, math.log(num_candidates))
    if num_candidates == 1:
        found = _tables.Estimate(0.0, 0.0, True)
    else:
        flat, second, n2 = t.flatten(), t.sum(0), t.shape[1]

        def value(pair: Tensor, *others: Tensor) -> Tensor:
            row = pair // n2
            rest = s[row.unsqueeze(1), torch.stack(others, 1)]
            return math.log(num_candidates) - ranking_nce(s[row, pair % n2], rest, reduction="none")

        laws = [flat, *[second] * (num_candidates - 1)]
        if _tables.num_combinations([len(p) for p in laws]) <= limit:
            found = _tables.Estimate(float(_tables.expectation(value, laws)), 0.0, True)
        else:
            # The partner's score has a mean that is known; what is left to draw varies little, least for large K.
            flat_s = torch.where(flat > 0, s.flatten(), 0.0)
            rest = _draw(
                lambda pair, *others: value(pair, *others) - flat_s[pair],
                laws,
                draws,
                torch.Generator().manual_seed(seed),
            )
            found = _tables.mean_of(float(flat @ flat_s) + rest)
    return Information(
        num_candidates=num_candidates, value=found.value, error=found.error, exact=found.exact, ceiling=ceiling,
        saturated=whole > math.log(num_candidates),
    )  # fmt: skip


def _draw(value: Callable[..., Tensor], laws: list[Tensor], draws: int, generator: torch.Generator) -> Tensor:
    """Values of independent draws from the laws, in chunks that bound memory."""
    size, found = max(1, _tables.CHUNK * 8 // len(laws)), []
    for start in range(0, draws, size):
        num = min(size, draws - start)
        first = torch.multinomial(laws[0], num, replacement=True, generator=generator)
        others = torch.multinomial(laws[1], num * (len(laws) - 1), replacement=True, generator=generator)
        found.append(value(first, *others.view(len(laws) - 1, num)))
    return torch.cat(found)
