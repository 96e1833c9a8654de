"""Harder negatives mixed from stored ones (MoCHi).

Legend: B anchors, N candidates, D embedding, P chosen negatives of an anchor, S mixtures of an anchor.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from nearfar.checks import expect
from nearfar.negatives.choose import hardest, wide


@torch.no_grad()
def mix_pairs(
    candidate: Float[Tensor, "N D"],
    index: Int[Tensor, "B P"],
    num: int,
    *,
    generator: torch.Generator | None = None,
    uniform: Float[Tensor, "B S 3"] | None = None,
) -> Float[Tensor, "B S D"]:
    """`num` mixtures of two of each anchor's chosen candidates.

    h = normalize(a n_i + (1 - a) n_j),  i and j uniform among the chosen (also the same), a uniform in (0, 1)

    Args:
        candidate: [N, D]; scaled to unit length before they are mixed.
        index: chosen candidates [B, P], from `hardest`.
        num: S, mixtures an anchor; the first ones do not depend on how many there are.
        generator: of the draws, on the device of `index`.
        uniform: in place of draws, numbers in [0, 1) that choose i, j and a, for instance those of
            `nearfar.rng.Rng.uniform`, which do not depend on the batch.

    Returns:
        [B, S, D] of unit length.

    Source: Kalantidis et al., "Hard negative mixing for contrastive learning", NeurIPS 2020.
    """
    first, second, share = _draws(index, num, 3, generator, uniform)
    one, two = (_unit(candidate, _pick(index, place)) for place in (first, second))
    return F.normalize(torch.lerp(two, one, share[..., None].to(one.dtype)), dim=-1)


@torch.no_grad()
def mix_with_query(
    query: Float[Tensor, "B D"],
    candidate: Float[Tensor, "N D"],
    index: Int[Tensor, "B P"],
    num: int,
    *,
    most: float = 0.5,
    generator: torch.Generator | None = None,
    uniform: Float[Tensor, "B S 2"] | None = None,
) -> Float[Tensor, "B S D"]:
    """`num` mixtures of each query with one of its chosen candidates, harder than the candidate itself.

    h = normalize(b q + (1 - b) n_j),  j uniform among the chosen, b uniform in (0, most)

    Args:
        query: [B, D]; like the candidates scaled to unit length before they are mixed.
        candidate: [N, D].
        index: chosen candidates [B, P], from `hardest`.
        num: S, mixtures a query; the first ones do not depend on how many there are.
        most: largest share of the query, in (0, 1); up to one half the candidate prevails.
        generator: of the draws, on the device of `index`.
        uniform: in place of draws, numbers in [0, 1) that choose j and b / most.

    Returns:
        [B, S, D] of unit length, without gradient to the query.

    Source: Kalantidis et al., "Hard negative mixing for contrastive learning", NeurIPS 2020.
    """
    expect(0 < most < 1, "most", "a number in (0, 1)", most)
    place, share = _draws(index, num, 2, generator, uniform)
    other = _unit(candidate, _pick(index, place))
    query = F.normalize(query.to(other.dtype), dim=1)[:, None].expand_as(other)
    return F.normalize(torch.lerp(other, query, (most * share)[..., None].to(other.dtype)), dim=-1)


def mochi(
    query: Float[Tensor, "B D"],
    candidate: Float[Tensor, "N D"],
    *,
    num_hardest: int = 1024,
    num_pairs: int = 1024,
    num_with_query: int = 128,
    allowed: Bool[Tensor, "B N"] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B S D"]:
    """Synthetic negatives of every query, mixed from its hardest candidates: first pairs, then with the query.

        synthetic = mochi(query, queue.view("key"), allowed=others(batch["index"], queue.view("id")))
        loss = contrast(query, key, targets=..., extra=(queue.view("key"),), per_anchor=synthetic)

    Args:
        query: [B, D].
        candidate: stored keys [N, D].
        num_hardest: candidates that are mixed.
        num_pairs: mixtures of two candidates; 0: none.
        num_with_query: mixtures with the query; 0: none.
        allowed: candidates that a query may take; None: all. Leave out those of the same sample with `others`.
        generator: of the draws.

    Returns:
        [B, num_pairs + num_with_query, D] of unit length, without gradient.

    Raises:
        ValueError: a query with fewer than num_hardest allowed candidates.

    Notes: start after a warm-up of some epochs, the mixtures with the query last. Draws of pairs come first from the
        generator. Memory 3 B D (num_pairs + num_with_query).

    Source: Kalantidis et al., "Hard negative mixing for contrastive learning", NeurIPS 2020.
    """
    expect(
        num_pairs >= 0 and num_with_query >= 0, "num_pairs, num_with_query", "0 or more", (num_pairs, num_with_query)
    )
    index = hardest(query, candidate, num_hardest, allowed=allowed).index
    pairs = mix_pairs(candidate, index, num_pairs, generator=generator)
    return torch.cat([pairs, mix_with_query(query, candidate, index, num_with_query, generator=generator)], dim=1)


def _unit(candidate: Tensor, index: Tensor) -> Tensor:
    """The rows [B, S, D], of unit length."""
    return F.normalize(wide(candidate[index]), dim=-1)


def _pick(index: Tensor, place: Tensor) -> Tensor:
    """Of every row of `index` [B, P] the entry that a number in [0, 1) points at, [B, S]."""
    return index.gather(1, (place * index.shape[1]).long().clamp(max=index.shape[1] - 1))


def _draws(
    index: Tensor, num: int, kinds: int, generator: torch.Generator | None, uniform: Tensor | None
) -> tuple[Tensor, ...]:
    """`kinds` uniform numbers [B, num] each; drawn mixture by mixture, so that more of them change no earlier one."""
    expect(num >= 0, "num", "0 or more", num)
    if uniform is not None:
        expect(generator is None, "uniform", "none beside generator", "both")
        shape = (len(index), num, kinds)
        expect(tuple(uniform.shape) == shape, "uniform", f"shape {list(shape)}", tuple(uniform.shape))
        return uniform.double().unbind(2)
    drawn = torch.rand(num, kinds, len(index), generator=generator, device=index.device, dtype=torch.float64)
    return tuple(drawn.permute(1, 2, 0))
