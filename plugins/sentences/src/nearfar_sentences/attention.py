"""How much two readings of a sentence attend alike: mutual information of their attention maps, as log-normals.

Legend: B sentences, S layers, H heads, L tokens (twice: query, key), C chunks of layers, E entries, M rows of all
processes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nearfar.checks import expect
from nearfar.objectives import correlation_information

LEAST = 3
"""entries below which a row has no correlation worth the name"""


class AttentionInformation(NamedTuple):
    """The mean over the rows kept, the scale that weighs it, how many rows are kept, and the entries drawn of each."""

    information: Tensor
    scale: Tensor
    num_rows: Tensor
    num_entries: Tensor


def valid_entries(maps_BVSHLL: Tensor, mask_BL: Tensor) -> Tensor:
    """Where both maps are above 0 and neither query nor key is padding, bool [B, S, H, L, L]."""
    expect(maps_BVSHLL.ndim == 6 and maps_BVSHLL.shape[1] == 2, "maps", "shape [B, 2, S, H, L, L]",
           tuple(maps_BVSHLL.shape))  # fmt: skip
    real = mask_BL > 0
    inside = (real[:, :, None] & real[:, None, :])[:, None, None]
    return (maps_BVSHLL > 0).all(1) & inside


def row_sizes(valid_BSHLL: Tensor, chunks: int) -> Tensor:
    """Of every row, which is a chunk of a head of a sentence: valid entries, layers, and tokens [C * B * H, 3]."""
    length, found = valid_BSHLL.shape[-1], []
    for part in _chunks(valid_BSHLL, chunks):
        count = part.sum(-1).flatten()
        layers = part.shape[-1] // length**2
        found.append(torch.stack([count, torch.full_like(count, layers), torch.full_like(count, length)], 1))
    return torch.cat(found)


def attention_information(
    maps: Tensor,
    mask: Tensor,
    draws: Tensor,
    *,
    num_samples: int = 150,
    chunks: int = 2,
    gathered: Tensor | None = None,
    eps: float = 1e-6,
) -> AttentionInformation:
    """Mean mutual information of the attention of two readings of a sentence, over heads and chunks of layers.

    A row is one head of one sentence with every C-th layer, flattened over layers, queries and keys. Of its entries
    where both maps are above 0, n are drawn without replacement, the same of both:

    I = mean_r -1/2 log max(1 - rho_r^2, eps),  rho_r the correlation of log x and log y;  c = (valid / all)^2 + 1e-6

    Rows with fewer than n valid entries are left out; where no row has n, n is the fewest that a row has. Rows with
    fewer than three are never kept.

    Args:
        maps: [B, 2, S, H, L, L], attention of both readings after dropout; zeros, of dropout or padding, do not count.
        mask: [B, L], 0 at padding; entries with a padded query do not count either.
        draws: [B, S, H, L, L] of [0, 1); the valid entries of a row with the largest draws are taken.
        num_samples: n.
        chunks: C; layers are dealt to chunks in turn. With fewer layers than chunks there are as many as layers.
        gathered: `row_sizes` of all processes [M, 3], since n and c are of the whole batch.
        eps: see `correlation_information`.

    Returns:
        I [], the c of the rows kept in all processes [], the number of rows kept here [], and n []; I is 0 where no row
        is kept.

    Raises:
        ValueError: shapes that do not belong together; num_samples below 3; chunks below 1.

    Notes:
        c counts all L^2 entries of a batch padded to L tokens, as the authors' code does. Costs a `topk` of every row.

    Source: Klein, Nabi, "miCSE: Mutual Information Contrastive Learning for Low-shot Sentence Embeddings", ACL 2023.
    """
    valid = valid_entries(maps, mask)
    expect(draws.shape == valid.shape, "draws", f"shape {tuple(valid.shape)}", tuple(draws.shape))
    expect(num_samples >= LEAST, "num_samples", f"{LEAST} or more", num_samples)
    expect(chunks >= 1, "chunks", "1 or more", chunks)
    sizes = row_sizes(valid, chunks) if gathered is None else gathered
    counts = sizes[:, 0]
    enough = counts[counts >= LEAST]
    if len(enough) == 0:
        nothing = torch.zeros((), dtype=torch.int64, device=maps.device)
        return AttentionInformation((maps * 0.0).sum().float(), maps.new_tensor(1e-6), nothing, nothing)
    num = torch.where(enough.max() >= num_samples, num_samples, enough.min())
    kept = counts >= num
    share = counts[kept].sum() / (sizes[kept, 1] * sizes[:, 2].max() ** 2).sum()

    total, rows = maps.new_zeros((), dtype=torch.float32), torch.zeros((), dtype=torch.int64, device=maps.device)
    for x, y, real, draw in zip(
        _chunks(maps[:, 0], chunks), _chunks(maps[:, 1], chunks), _chunks(valid, chunks), _chunks(draws, chunks),
        strict=True,
    ):  # fmt: skip
        place = torch.where(real, draw, -1.0).topk(min(int(num), real.shape[-1])).indices
        chosen = real.gather(2, place)
        u, v = (_log(one.gather(2, place), chosen) for one in (x, y))
        information = correlation_information(u.flatten(0, 1), v.flatten(0, 1), chosen.flatten(0, 1), eps=eps)
        own = real.sum(-1).flatten() >= num
        total = total + torch.where(own, information, 0.0).sum()
        rows = rows + own.sum()
    return AttentionInformation(total / rows.clamp_min(1), share.float().square() + 1e-6, rows, num)


def _chunks(x_BSHLL: Tensor, chunks: int) -> list[Tensor]:
    """Every C-th layer from the first, second, ... on: [B, H, E] each."""
    num = min(chunks, x_BSHLL.shape[1])
    return [x_BSHLL[:, first::num].transpose(1, 2).flatten(2) for first in range(num)]


def _log(x: Tensor, chosen: Tensor) -> Tensor:
    """Logarithms in full precision, 0 where not chosen, so that no gradient is infinite."""
    return torch.where(chosen, x, 1.0).float().log()
