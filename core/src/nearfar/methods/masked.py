"""The frame as a function: any of its losses from masks of positives and negatives.

Legend: Q queries, K keys, D embedding.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from nearfar._similarity import accumulation, normalize
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.contrast import contrast
from nearfar.objectives import binary_nce
from nearfar.objectives.pair_margin import pair_hinges
from nearfar.objectives.triplet import all_hinges

LOSSES = ("info_nce", "supcon", "binary_nce", "jensen_shannon", "donsker_varadhan", "triplet", "pair_margin")


@torch.compiler.disable()
def pair_loss(
    query: Tensor,
    key: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    loss: str = "info_nce",
    similarity: str = "cosine",
    temperature: float | Tensor = 0.1,
    margin: float = 0.2,
) -> Tensor:
    """A loss of the frame over queries and keys whose pairs are told by two masks.

    With s_ik = similarity / temperature, P_i and N_i the positives and negatives of query i, sp = softplus:

        info_nce          mean_{p in P_i} [ log( exp(s_ip) + sum_{n in N_i} exp(s_in) ) - s_ip ]
        supcon            log sum_{k in P_i, N_i} exp(s_ik) - mean_{p in P_i} s_ip
        binary_nce        sum_{p in P_i} sp(log|N_i| - s_ip) + sum_{n in N_i} sp(s_in - log|N_i|)
        jensen_shannon    mean_{P} sp(-s) + mean_{N} sp(s)                          over all pairs at once
        donsker_varadhan  log mean_{N} exp(s) - mean_{P} s                          over all pairs at once
        triplet           max(0, d_ip - d_in + m)                                   mean over triplets above 0
        pair_margin       mean_{p in P_i} e_ip^2 + mean_{n in N_i} max(0, m - e_in)^2

    where e is the Euclidean distance and d its square, of unit vectors for the cosine, for which d is halved: 1 - cos.

    Args:
        query: [Q, D].
        key: [K, D]; whether it carries gradient is the caller's choice.
        positive: P, bool [Q, K].
        negative: N, bool [Q, K], apart from P; a key in neither counts for nothing.
        loss: one of the seven.
        similarity: "cosine", "dot" (not for distances), or "distance", minus d; `q' W k` is "dot" of `query @ W`.
        temperature: divides similarities, of "distance" not; a number, or a tensor [] that gets a gradient.
        margin: m of triplet and pair_margin.

    Returns:
        The loss, the mean over queries with a positive (for pair_margin and triplet also a negative) where no other
        mean is said; 0 with gradient 0, and a warning, where there is none.

    Raises:
        ValueError: masks that overlap or do not fit, an unknown loss, a similarity that it has no use for.

    Notes:
        Stores Q x K matrices. Pairs told by ids or numbers need none: see `nearfar.contrast` and the objectives, which
        `Contrast` calls. binary_nce takes the noise for uniform over the sphere, hence log|N_i|; with one negative it
        is jensen_shannon.

    Example:
        >>> import torch
        >>> from nearfar.methods import pair_loss
        >>> z = torch.eye(3)
        >>> own = torch.eye(3, dtype=torch.bool)
        >>> round(float(pair_loss(z, z, own, ~own, temperature=0.5)), 4)  # log(1 + 2 exp(-1/0.5))
        0.2395

    Source: Le-Khac, Healy, Smeaton, "Contrastive Representation Learning: A Framework and Review", IEEE Access 2020.
    """
    _check(query, key, positive, negative, loss, similarity, temperature)
    distances = loss in ("triplet", "pair_margin")
    counted = positive.any(1) & negative.any(1) if distances else positive.any(1)
    if not bool(counted.any()):
        warnings.warn("pair_loss: no query has the pairs that the loss needs, so that nothing is learnt", stacklevel=2)
        return (query.sum() + key.sum()).to(accumulation(query, key)) * 0.0
    with no_autocast(query.device):
        kind = accumulation(query, key)
        q, k = query.to(kind), key.to(kind)
        if similarity == "cosine":
            q, k = normalize(q), normalize(k)
        s = q @ k.t()
        if similarity == "distance":
            s = 2 * s - q.square().sum(1)[:, None] - k.square().sum(1)
        if loss == "triplet":
            total, active, _ = all_hinges(1 - s if similarity == "cosine" else -s, positive, negative, margin)
            return total.sum() / active.sum().clamp_min(1)
        if loss == "pair_margin":
            square = 2 - 2 * s if similarity == "cosine" else -s
            loss_Q, valid = pair_hinges(square.clamp_min(0.0), positive, negative, margin)
            return loss_Q.sum() / valid.sum()
        return _of_scores(s if similarity == "distance" else s / temperature, positive, negative, loss)


def _of_scores(s: Tensor, positive: Tensor, negative: Tensor, loss: str) -> Tensor:
    """The losses of scores [Q, K]; at least one query has a positive."""
    if loss in ("info_nce", "supcon"):
        some = positive.any(1)  # with nothing to choose from the loss of a query is 0, and it counts
        positives = "each" if loss == "info_nce" else "mean"
        return contrast(
            None, logits=s[some], positive=positive[some], denominator=(positive | negative)[some], positives=positives
        )
    if loss == "binary_nce":
        shifted = s - negative.sum(1, keepdim=True).clamp_min(1).to(s.dtype).log()
        return binary_nce(shifted, shifted, positive_mask=positive, negative_mask=negative)
    expect(bool(negative.any()), "negative", f"at least one negative with loss {loss!r}", "none")
    pair, other = s[positive], s[negative]
    if loss == "jensen_shannon":
        return torch.nn.functional.softplus(-pair).mean() + torch.nn.functional.softplus(other).mean()
    return torch.logsumexp(other, 0) - torch.tensor(len(other), dtype=s.dtype).log() - pair.mean()


def _check(
    query: Tensor, key: Tensor, positive: Tensor, negative: Tensor, loss: str, similarity: str,
    temperature: float | Tensor,
) -> None:  # fmt: skip
    expect_choice("loss", loss, LOSSES)
    known = ("cosine", "distance") if loss in ("triplet", "pair_margin") else ("cosine", "dot", "distance")
    expect_choice(f"similarity of {loss}", similarity, known)
    expect(query.ndim == 2, "query", "shape [Q, D]", tuple(query.shape))
    expect(key.ndim == 2 and key.shape[1] == query.shape[1], "key", f"shape [K, {query.shape[1]}]", tuple(key.shape))
    shape = (len(query), len(key))
    for name, mask in (("positive", positive), ("negative", negative)):
        expect(tuple(mask.shape) == shape, name, f"shape {shape}", tuple(mask.shape))
        expect(mask.dtype == torch.bool, name, "dtype bool", mask.dtype, TypeError)
    both = int((positive & negative).sum())
    expect(both == 0, "positive, negative", "masks that are apart", f"{both} pairs in both")
    expect_positive("temperature", float(temperature.detach() if isinstance(temperature, Tensor) else temperature))
