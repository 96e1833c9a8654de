"""Dense contrast: positions of two views of an image, positive by where they lie.

Legend: B images, P and Q positions of the two views, D embedding, H x W a grid, c images of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.contrast import PLAIN, Stats, contrast
from nearfar.objectives._shared import Temperature

Pairs = Callable[[Tensor], Tensor]
"""gives bool [c, P, Q] for the numbers [c] of c images"""


def grid_centres(box: Tensor, height: int, width: int) -> Tensor:
    """Centres of a grid's cells in the coordinates of the source image.

    Args:
        box: crops [B, 4] as (left, top, right, bottom); left and right exchanged where the crop was mirrored.
        height, width: of the grid.

    Returns:
        [B, H W, 2] as (x, y), row after row.

    Raises:
        ValueError: boxes that are not [B, 4], not finite, or empty.
    """
    _expect_boxes(box)
    box = box if box.dtype == torch.float64 else box.float()
    x = (torch.arange(width, device=box.device, dtype=box.dtype) + 0.5) / width
    y = (torch.arange(height, device=box.device, dtype=box.dtype) + 0.5) / height
    left, top, right, bottom = (side[:, None] for side in box.unbind(1))
    xs, ys = left + x * (right - left), top + y * (bottom - top)
    return torch.stack(torch.broadcast_tensors(xs[:, None, :], ys[:, :, None]), -1).flatten(1, 2)


def near_cells(
    box_a: Tensor, box_b: Tensor, size_a: tuple[int, int], size_b: tuple[int, int], threshold: float = 0.7
) -> Pairs:
    """Cells of two crops of an image whose centres are nearer than a share of the larger cell's diagonal.

    Args:
        box_a, box_b: crops [B, 4], see `grid_centres`.
        size_a, size_b: (H, W) of the grids.
        threshold: share of the diagonal, above 0.

    Returns:
        A function from images' numbers [c] to bool [c, H W, H W], for `dense_contrast`.

    Source: Xie, Lin, Zhang, Cao, Lin, Hu, "Propagate Yourself: Exploring Pixel-Level Consistency for Unsupervised
    Visual Representation Learning", CVPR 2021.
    """
    expect_positive("threshold", threshold)
    a, b = grid_centres(box_a, *size_a), grid_centres(box_b, *size_b)
    diagonals = [
        torch.hypot((box[:, 2] - box[:, 0]) / size[1], (box[:, 3] - box[:, 1]) / size[0]).to(a.dtype)
        for box, size in ((box_a, size_a), (box_b, size_b))
    ]
    reach = threshold * torch.maximum(*diagonals)
    return lambda images: torch.cdist(a[images], b[images], compute_mode=EXACT) < reach[images, None, None]


def near_points(a: Tensor, b: Tensor, radius: float) -> Pairs:
    """Points of two views nearer than a radius, for instance to leave near-duplicates out of the negatives.

    Args:
        a, b: [B, P, 2] and [B, Q, 2], in common coordinates.
        radius: above 0.

    Returns:
        A function from images' numbers [c] to bool [c, P, Q], for `dense_contrast`.
    """
    expect_positive("radius", radius)
    return lambda images: torch.cdist(a[images].float(), b[images].float(), compute_mode=EXACT) < radius


EXACT = "donot_use_mm_for_euclid_dist"


@torch.no_grad()
def match_positions(query: Tensor, key: Tensor) -> Tensor:
    """The position of each image's key features that is most similar to each of its query features, by cosine.

    Args:
        query: [B, P, D], for instance backbone features, before the head.
        key: [B, Q, D].

    Returns:
        int64 [B, P], below Q; the lowest of equals.

    Notes:
        `info_nce(q.flatten(0, 1), k.gather(1, match[..., None].expand(-1, -1, k.shape[2])).flatten(0, 1), queue)` is
        then the dense loss of DenseCL.

    Source: Wang, Zhang, Shen, Kong, Li, "Dense Contrastive Learning for Self-Supervised Visual Pre-Training", CVPR
    2021.
    """
    expect(query.ndim == key.ndim == 3 and query.shape[::2] == key.shape[::2], "key",
           f"shape [{query.shape[0]}, Q, {query.shape[-1]}]", tuple(key.shape))  # fmt: skip
    key = nn.functional.normalize(key.float(), dim=2)
    return torch.bmm(query.float(), key.transpose(1, 2)).argmax(2)


@torch.compiler.disable()
def dense_contrast(
    query: Tensor,
    key: Tensor,
    positive: Tensor | Pairs,
    *,
    exclude: Tensor | Pairs | None = None,
    positives: str = "sum",
    temperature: float | Tensor = 0.3,
    directions: str = "row",
    extra: Tensor | None = None,
    allow_none: bool = False,
    with_stats: bool = False,
) -> Any:
    """Contrast of an image's positions in two views, whose positives are told by masks.

    L = mean over positions i with a positive of -log [ sum_{j in P_i} exp(s_ij) / sum_j exp(s_ij) ],  s = cos / t

    Args:
        query: [B, P, D].
        key: [B, Q, D]; pass a teacher's without gradient.
        positive: bool [B, P, Q], or a function from images' numbers to their part [c, P, Q], as `near_cells` gives.
        exclude: pairs that are no negatives either, in the same form; a positive stays one.
        positives: "sum" inside the logarithm (above), "mean" outside, or "each" against the negatives alone.
        temperature: t; a number, or a tensor [] that gets a gradient.
        directions: "row", or "both": half of the sum with that of keys looking for queries.
        extra: negatives [K, D] of every position, with "row".
        allow_none: a batch without any positive gives 0 with gradient 0; else it is refused.
        with_stats: also return Stats.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: shapes that do not fit; no positive in the whole batch, unless allow_none.

    Notes:
        A few images at a time, so that at most 2^16 logits stand side by side (or one image's strips) and no mask of
        the batch exists where functions give it. A softmax over B Q columns would cost B times as much.

    Relations:
        `patch_nce` where position i's only positive is i.

    Example:
        >>> import torch
        >>> from nearfar.objectives import dense_contrast
        >>> q = torch.eye(3).unsqueeze(0)
        >>> two = torch.tensor([[[True, True, False], [False, False, False], [False, False, True]]])
        >>> round(float(dense_contrast(q, q, two, temperature=0.5)), 4)  # log(1 + 2 exp(-2)), log(1 + 1 / (e^2 + 1))
        0.1761

    Source: Xie, Lin, Zhang, Cao, Lin, Hu, "Propagate Yourself: Exploring Pixel-Level Consistency for Unsupervised
    Visual Representation Learning", CVPR 2021 (PixContrast).
    """
    expect_choice("directions", directions, ("row", "both"))
    expect_choice("positives", positives, ("sum", "mean", "each"))
    expect(query.ndim == 3 and query.numel() > 0, "query", "shape [B, P, D], not empty", tuple(query.shape))
    images, num_p, dim = query.shape
    fits = key.ndim == 3 and key.shape[::2] == (images, dim) and key.shape[1] > 0
    expect(fits, "key", f"shape [{images}, Q, {dim}]", tuple(key.shape))
    num_q = key.shape[1]
    chunk = max(1, int((PLAIN / (num_p * num_q)) ** 0.5))
    sums, counts = [query.new_zeros((), dtype=torch.float32)] * 2, [0, 0]
    for part in torch.arange(images, device=query.device).split(chunk):
        mask = _block("positive", positive, part, (num_p, num_q))
        counted = mask.any(1), mask.any(0)
        if not counted[0].any():  # then no column has a positive either
            continue
        kept = "all" if exclude is None else mask | ~_block("exclude", exclude, part, (num_p, num_q))
        number = torch.arange(len(part), device=query.device)
        loss = contrast(
            query[part].flatten(0, 1), key[part].flatten(0, 1), positive=mask, denominator=kept, positives=positives,
            group=(number.repeat_interleave(num_p), number.repeat_interleave(num_q)), temperature=temperature,
            directions=directions, extra=() if extra is None else (extra,), reduction="none", empty="zero",
        )  # fmt: skip
        for k, side in enumerate(loss.split([len(part) * num_p, len(loss) - len(part) * num_p])):
            sums[k] = sums[k] + side.sum()
            counts[k] += int(counted[k].sum()) if k == 0 or directions == "both" else 0
    expect(allow_none or counts[0] > 0, "positive", "a positive in the batch (or allow_none)", "none")
    if counts[0] == 0:
        sums[0] = sums[0] + 0 * (query.sum() + key.sum())  # a gradient of 0, not none
    loss = sums[0] / max(1, counts[0])
    if directions == "both":
        loss = (loss + sums[1] / max(1, counts[1])) / 2
    empty = images * (num_p + (num_q if directions == "both" else 0)) - sum(counts)
    return (loss, Stats(sum(counts), empty, None)) if with_stats else loss


def _block(name: str, pairs: Tensor | Pairs, part: Tensor, size: tuple[int, int]) -> Tensor:
    """The pairs of some images as one matrix [c P, c Q], False between images."""
    found = pairs[part] if isinstance(pairs, Tensor) else pairs(part)
    shape = (len(part), *size)
    expect(tuple(found.shape) == shape, name, f"shape {list(shape)} for {len(part)} images", tuple(found.shape))
    expect(found.dtype == torch.bool, name, "dtype bool", found.dtype, TypeError)
    return torch.block_diag(*found.unbind(0)) if len(part) > 1 else found[0]


def _expect_boxes(box: Tensor) -> None:
    expect(box.ndim == 2 and box.shape[1] == 4, "box", "shape [B, 4]", tuple(box.shape))
    expect(bool(torch.isfinite(box).all()), "box", "finite numbers", box)
    some = bool(((box[:, 0] != box[:, 2]) & (box[:, 1] != box[:, 3])).all())
    expect(some, "box", "crops of some area", box)


class DenseContrast(nn.Module):
    """`dense_contrast` as a Module; see there.

    Args:
        temperature: fixed, or where a learnt one starts.
        learnable_temperature: learn it.
        positives: "sum", "mean" or "each".
        directions: "row" or "both".
        allow_none: a batch without any positive gives 0.
    """

    needs_negatives = True
    distributed = "local"
    symmetric = False

    def __init__(
        self,
        temperature: float = 0.3,
        *,
        learnable_temperature: bool = False,
        positives: str = "sum",
        directions: str = "row",
        allow_none: bool = False,
    ) -> None:
        super().__init__()
        expect_choice("positives", positives, ("sum", "mean", "each"))
        expect_choice("directions", directions, ("row", "both"))
        self.tau = Temperature(temperature, learnable_temperature)
        self.options: dict[str, Any] = {"positives": positives, "directions": directions, "allow_none": allow_none}

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in use."""
        return self.tau()

    def forward(self, query: Tensor, key: Tensor, positive: Tensor | Pairs, **options: Any) -> Any:
        """The loss; further options as `dense_contrast`."""
        return dense_contrast(query, key, positive, temperature=self.tau(), **self.options, **options)
