"""A vision transformer block by block: attention, similarity of features, residual branches, and scores by labels.

Legend: N images, B of a batch, L blocks, T tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearfar.analysis._vit_attention import AttentionMetrics
from nearfar.analysis._vit_features import CKA, pooled, purity
from nearfar.batch import collate
from nearfar.checks import expect
from nearfar.data import Source
from nearfar.evaluate import clustering, knn, retrieval
from nearfar.prototypes import kmeans
from nearfar_images.vit import Taps, tapped

PARTS = ("attention", "mlp")
DRAWS = 3


@torch.no_grad()
def analyse(
    method: Any, source: Source, rows: Sequence[int], *, other: Any = None, mode: str = "all", batch_size: int = 32,
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:  # fmt: skip
    """What the blocks of a method's encoder do with some images.

    Args:
        method: its `encoder` is a vision transformer, its `make_views.plain` makes the images.
        source: of the images; labels, where it has them, are for the scores.
        rows: which images; 4 or more.
        other: another such method, whose blocks are compared with; its images may have another size.
        mode: tokens that are compared: "all", "cls" or "spatial".
        batch_size: images at a time, 8 or more; similarity is averaged over batches.
        seed: of the clusterings.

    Returns:
        The report: `num_images`, `grid`, `num_prefix`, `blocks` (a list of distance, offset_heads, head_deviation,
        residual parts, and with labels knn, nmi, ari, purity and map); and arrays: everything of `AttentionMetrics`,
        `cka` [L, L] and with `other` `cka_other` [L, M].

    Raises:
        ValueError: too few images, patches that are no square, class tokens asked for where there are none.
        TypeError: the encoder is no known vision transformer.
    """
    expect(len(rows) >= 4, "images", "4 or more", len(rows))
    expect(batch_size >= 8, "batch", "8 or more", batch_size)
    metrics: AttentionMetrics | None = None
    own, between = CKA(), CKA()
    residual: list[dict[str, Any]] = []
    kept: list[list[Tensor]] = []
    for part in np.array_split(np.asarray(rows), math.ceil(len(rows) / batch_size)):
        batch = collate([source[int(i)] for i in part])
        taps = _forward(method, batch)
        if metrics is None:
            side = math.isqrt(taps.attention[0].shape[-1] - taps.num_prefix)
            metrics = AttentionMetrics((side, side), num_prefix=taps.num_prefix)
            residual = [{} for _ in taps.tokens]
        metrics.update(taps.stacked())
        layers = [pooled(x, mode, taps.num_prefix) for x in taps.tokens]
        own.update(layers, layers)
        if other is not None:
            theirs = _forward(other, batch)
            between.update(layers, [pooled(x, mode, theirs.num_prefix) for x in theirs.tokens])
        _count_branches(taps, residual)
        kept.append([pooled(x, "cls" if taps.num_prefix else "mean", taps.num_prefix) for x in taps.tokens])
    assert metrics is not None  # there is a batch
    found = {name: value.numpy() for name, value in metrics.result().items()} | {"cka": own.result().numpy()}
    if other is not None:
        found["cka_other"] = between.result().numpy()
    blocks = [_block(found, k, residual[k], len(rows)) for k in range(len(residual))]
    if source.labels is not None:
        label = torch.as_tensor(source.labels[np.asarray(rows)])
        for k, features in enumerate(zip(*kept, strict=True)):
            blocks[k] |= scores(torch.cat(features), label, seed)
    report = {"num_images": len(rows), "grid": list(metrics.grid), "num_prefix": metrics.num_prefix, "blocks": blocks}
    return report, found


def scores(x: Tensor, y: Tensor, seed: int = 0) -> dict[str, float]:
    """How well one block's features tell classes: kNN of one half among the other, clusters, retrieval.

    Raises:
        ValueError: a single class, or fewer than 4 images.
    """
    num = len(y.unique())
    expect(num >= 2, "labels", "2 classes or more", num)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    bank, query = order[: len(x) // 2], order[len(x) // 2 :]
    k = min(5, len(bank))
    agree = clustering(x, y, draws=DRAWS, seed=seed)
    pure = [purity(kmeans(x, num, seed=seed + draw).label, y) for draw in range(DRAWS)]
    return {
        "knn": knn(x[bank], y[bank], x[query], y[query], k=k).value,
        "nmi": agree["nmi"].value,
        "ari": agree["ari"].value,
        "purity": sum(pure) / DRAWS,
        "map": retrieval(x, y, ks=(1,))["map"].value,
    }


def _forward(method: Any, batch: Any) -> Taps:
    with tapped(method.encoder) as taps:
        method.encoder(method.make_views.plain(batch["image"]))
    return taps


def _count_branches(taps: Taps, residual: list[dict[str, Any]]) -> None:
    """Adds a batch's norms and similarities of what branches add to what they are added to."""
    for block, (skip, attention, between, mlp) in zip(residual, taps.branches, strict=True):
        for part, base, added in zip(PARTS, (skip, between), (attention, mlp), strict=True):
            for kind in ("cls", "spatial") if taps.num_prefix else ("spatial",):
                x, y = (pooled(t, kind, taps.num_prefix) for t in (base, added))
                ratio = y.norm(dim=-1) / x.norm(dim=-1).clamp_min(1e-12)
                sums = block.setdefault(f"{part}_{kind}", {"ratio": 0.0, "cka": CKA()})
                sums["ratio"] += float(ratio.double().reshape(len(x), -1).mean(1).sum())
                sums["cka"].update([x], [y])


def _block(found: dict[str, np.ndarray], k: int, residual: dict[str, Any], num: int) -> dict[str, Any]:
    return {
        "distance": float(found["distance"][k].mean()),
        "nearest_head": float(found["distance"][k].min()),
        "offset_heads": int(found["is_offset"][k].sum()),
        "head_deviation": float(found["head_deviation"][k]),
        "residual": {
            name: {"norm_ratio": sums["ratio"] / num, "cka": float(sums["cka"].result())}
            for name, sums in residual.items()
        },
    }
