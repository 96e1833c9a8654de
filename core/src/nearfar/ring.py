"""Objectives over several processes, none of which ever holds all candidates.

    loss = ring.nt_xent(z0, z1, temperature=0.1)      # as nearfar.objectives.nt_xent over the rows of all processes

Instead of gathering, blocks of candidates travel from process to process (`nearfar._ring`): memory O(B D + tile)
whatever the number of processes. Every function is a collective, in the backward too, and equals the objective of the
same name on the concatenated batch. The loss is the mean over this process's anchors; weigh it by `Stats.num_anchors`,
as the trainer does. In one process they work as well.

Legend: B rows of this process, N of all, V views, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nearfar import distributed
from nearfar._compile import eager
from nearfar._composed import part
from nearfar._ring import ClassSums, LogSums, Pairs, Softplus, around
from nearfar._similarity import accumulation, normalize
from nearfar._tiles import BOUND, Mask, no_autocast
from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.contrast import Stats
from nearfar.objectives._shared import Place, as_views, stack
from nearfar.objectives.siglip import checked_number

__all__ = ["clip", "contrast", "dcl", "info_nce", "nt_xent", "siglip", "supcon"]


@eager
def contrast(
    anchor: Tensor,
    candidate: Tensor | None = None,
    *,
    targets: Tensor | None = None,
    labels: Tensor | tuple[Tensor, Tensor] | None = None,
    own: Tensor | None = None,
    denominator: str = "all",
    directions: str = "row",
    temperature: float | Tensor = 0.1,
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """`nearfar.contrast.contrast` with cosine similarity against the candidates of all processes.

    Args:
        anchor: [B, D] of this process.
        candidate: [C, D] of this process; None: the anchors themselves, without each itself.
        targets: [B], the row of this process's candidates that is the anchor's positive; -1: none.
        labels: class ids, ([B], [C]) or one tensor where candidates are the anchors; equal is positive, on whichever
            process.
        own: [B], the row of this process's candidates that is the anchor itself; -1: none.
        denominator: "all" or "negatives" (without the positives).
        directions: "row", or "both" where anchor i and candidate i are each other's only positives.
        temperature: divides cosines; a number, or a tensor [] that gets a gradient; the same on every process.
        tile: side of a tile; None chooses.
        with_stats: also return Stats.

    Returns:
        The mean over this process's anchors with a positive (0 without any), or (loss, Stats).

    Raises:
        ValueError: arguments that do not fit each other.
    """
    expect_choice("denominator", denominator, ("all", "negatives"))
    expect_choice("directions", directions, ("row", "both"))
    expect((targets is None) != (labels is None), "targets, labels", "one of them", "both or none")
    if candidate is None:
        expect(own is None, "own", "none without candidates, since it follows", "a tensor")
        own = torch.arange(len(anchor), device=anchor.device)
    with no_autocast(anchor.device):
        a, c = _unit(anchor, candidate)
        number = float(temperature.detach() if isinstance(temperature, Tensor) else temperature)
        expect_positive("temperature", number)
        scaled = a / temperature
        num = distributed.gather(torch.tensor([len(c)]), grad=False).tolist()
        here, decoupled = distributed.rank(), denominator == "negatives"
        if targets is not None:
            found, has = _target(scaled, c, targets, own)
            left_out = tuple(x for x in (own, targets if decoupled else None) if x is not None)
            masks = [Mask(exclude=left_out if source == here else ()) for source in range(len(num))]
        else:
            x, ys, num_ids = _ids(labels, num)
            found, has = _class_term(scaled, c, x, ys, num_ids, own)
            itself = () if own is None else (own,)
            masks = [
                Mask(exclude=itself if source == here else (), differ=((x, y),) if decoupled else ())
                for source, y in enumerate(ys)
            ]
        bounded = 1.0 / number <= BOUND
        sums = LogSums(tuple(masks), both=directions == "both", bounded=bounded, tile=tile)
        rows, columns = around(sums, scaled, c)
        parts = [part(rows, found, has)]
        if columns is not None:
            expect(
                targets is not None and torch.equal(targets, torch.arange(len(a), device=targets.device)),
                "targets", "anchor i's positive at row i with directions='both'", targets,
            )  # fmt: skip
            parts.append(part(columns, found, has))
    counted = sum(int(one.counted.sum()) for one in parts)
    loss = torch.stack([one.loss.sum() for one in parts]).sum() / max(1, counted)
    stats = Stats(counted, sum(len(one.counted) for one in parts) - counted, None)
    return (loss, stats) if with_stats else loss


def nt_xent(*views: Any, temperature: float | Tensor = 0.1, tile: int | None = None, with_stats: bool = False) -> Any:
    """`nearfar.objectives.nt_xent` of two or more views [B, D] (or [V, B, D]) over the samples of all processes."""
    return _of_views(views, "all", temperature, tile, with_stats)


def dcl(*views: Any, temperature: float | Tensor = 0.1, tile: int | None = None, with_stats: bool = False) -> Any:
    """`nearfar.objectives.dcl`, symmetric and unweighted, over the samples of all processes."""
    return _of_views(views, "negatives", temperature, tile, with_stats)


def supcon(
    z: Tensor | Sequence[Tensor], labels: Tensor, *, temperature: float | Tensor = 0.1, tile: int | None = None,
    with_stats: bool = False,
) -> Any:  # fmt: skip
    """`nearfar.objectives.supcon` (positives outside the logarithm) of [B, D], or V views, and labels [B]."""
    flat, num_views = stack("z", as_views(z), least=1, least_samples=0)
    expect(labels.shape == (flat.shape[0] // num_views,), "labels", f"shape [{flat.shape[0] // num_views}]",
           tuple(labels.shape))  # fmt: skip
    return contrast(
        flat, labels=labels.repeat(num_views), temperature=temperature, tile=tile, with_stats=with_stats
    )  # fmt: skip


def info_nce(
    query: Tensor, key: Tensor, *, temperature: float | Tensor = 0.2, tile: int | None = None, with_stats: bool = False
) -> Any:
    """`nearfar.objectives.info_nce` with in-batch negatives: query i finds key i among the keys of all processes."""
    expect(query.shape == key.shape, "key", f"the shape of query, {tuple(query.shape)}", tuple(key.shape))
    rows = torch.arange(len(query), device=query.device)
    return contrast(query, key, targets=rows, temperature=temperature, tile=tile, with_stats=with_stats)


def clip(
    a: Tensor, b: Tensor, *, temperature: float | Tensor = 0.07, tile: int | None = None, with_stats: bool = False
) -> Any:
    """`nearfar.objectives.clip` over the rows of all processes; both directions from one pass over the blocks."""
    expect(a.shape == b.shape, "b", f"the shape of a, {tuple(a.shape)}", tuple(b.shape))
    rows = torch.arange(len(a), device=a.device)
    return contrast(
        a, b, targets=rows, directions="both", temperature=temperature, tile=tile, with_stats=with_stats
    )  # fmt: skip


@eager
def siglip(
    a: Tensor, b: Tensor, *, scale: float | Tensor = 10.0, bias: float | Tensor = -10.0, tile: int | None = None,
    with_stats: bool = False,
) -> Any:  # fmt: skip
    """`nearfar.objectives.siglip`: this process's rows of a against the rows of b of all processes."""
    expect(a.ndim == 2 and a.shape == b.shape, "b", f"the shape of a, {tuple(a.shape)}", tuple(b.shape))
    with no_autocast(a.device):
        scale, bias = checked_number("scale", scale), checked_number("bias", bias)
        u, v = _unit(a, b)
        # scale and bias within the product: what travels is plain rows
        shift = torch.as_tensor(bias, dtype=u.dtype, device=u.device).expand(len(u), 1)
        anchor, candidate = torch.cat([u * scale, shift], 1), torch.cat([v, v.new_ones(len(v), 1)], 1)
        pairs = Softplus(tuple(Mask() for _ in range(distributed.world())), tile=tile)
        loss_B = around(pairs, anchor, candidate)[0] - (anchor * candidate).sum(1)
    loss = loss_B.sum() / max(1, len(a))
    return (loss, Stats(len(a), 0, None)) if with_stats else loss


def _of_views(views: Any, denominator: str, temperature: Any, tile: int | None, with_stats: bool) -> Any:
    z, num_views = stack("views", views[0] if len(views) == 1 else views, least_samples=0)
    num = z.shape[0] // num_views
    if num_views == 2:
        form: dict[str, Any] = {"targets": Place(2, num, num, 0, z.device).partner()}
    else:
        samples = torch.arange(num, device=z.device) + distributed.offset(num)
        form = {"labels": samples.repeat(num_views)}
    return contrast(
        z, **form, denominator=denominator, temperature=temperature, tile=tile, with_stats=with_stats
    )  # fmt: skip


def _unit(anchor: Tensor, candidate: Tensor | None) -> tuple[Tensor, Tensor]:
    for name, x in (("anchor", anchor), ("candidate", anchor if candidate is None else candidate)):
        expect(x.ndim == 2 and x.shape[1] == anchor.shape[-1], name, "shape [rows, D]", tuple(x.shape))
        expect(x.is_floating_point(), name, "floating point", x.dtype, TypeError)
    kind = accumulation(anchor)
    a = normalize(anchor.to(kind))
    return a, a if candidate is None else normalize(candidate.to(kind))


def _target(scaled: Tensor, c: Tensor, targets: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
    expect(tuple(targets.shape) == (len(scaled),), "targets", f"shape [{len(scaled)}]", tuple(targets.shape))
    low, high = (int(x) for x in torch.aminmax(targets)) if len(targets) else (-1, -1)
    expect(low >= -1 and high < max(1, len(c)), "targets", f"rows of this process, -1 to {len(c) - 1}", (low, high))
    has = targets >= 0 if own is None else (targets >= 0) & (targets != own)
    found = (scaled * c.index_select(0, targets.clamp_min(0))).sum(1) if len(c) else scaled.sum(1)
    return found, has


def _ids(labels: Any, sizes: list[int]) -> tuple[Tensor, tuple[Tensor, ...], int]:
    """Class ids from 0 on of the anchors and of every block; ids are numbers, so all of them are held."""
    x, y = labels if isinstance(labels, tuple) else (labels, labels)
    every = distributed.gather(y, grad=False)
    joined = torch.unique(torch.cat([x, every]), return_inverse=True)[1]
    num = int(joined.max()) + 1 if len(joined) else 1
    return joined[: len(x)], joined[len(x) :].split(sizes), num


def _class_term(
    scaled: Tensor, c: Tensor, x: Tensor, ys: tuple[Tensor, ...], num: int, own: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Mean product with the candidates of one's class on all processes, oneself left out."""
    pairs: Pairs = ClassSums(x, ys, num)
    product, _ = around(pairs, scaled, c)
    count = torch.bincount(torch.cat(ys), minlength=num)[x]
    if own is not None:
        itself = (own >= 0) & (ys[distributed.rank()][own.clamp_min(0)] == x)
        product = product - torch.where(itself, (scaled * c.index_select(0, own.clamp_min(0))).sum(1), 0.0)
        count = count - itself.long()
    return product / count.clamp_min(1), count > 0
