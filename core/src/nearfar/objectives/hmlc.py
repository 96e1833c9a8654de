"""HMLC: labels on several levels, each contrasted in features of its own.

Legend: B batch, N gathered batch, V views, D embedding, H levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nearfar.checks import expect, expect_choice
from nearfar.contrast import Stats
from nearfar.objectives._shared import Temperature, as_views, stack
from nearfar.objectives.supcon import supcon


def path_ids(labels: Tensor) -> Tensor:
    """Ids of the paths from the coarsest level down to each, so that children of different parents never match.

    Args:
        labels: integers [B, H], column 0 the coarsest.

    Returns:
        int64 [B, H]; two entries of a column are equal exactly if the labels of that level and all coarser ones are.

    Raises:
        ValueError: labels that are not [B, H] with H >= 1.
    """
    expect(labels.ndim == 2 and labels.shape[1] >= 1, "labels", "shape [B, H], H >= 1", tuple(labels.shape))
    expect(not labels.is_floating_point(), "labels", "integers", labels.dtype, TypeError)
    columns = [torch.unique(labels[:, : h + 1], dim=0, return_inverse=True)[1] for h in range(labels.shape[1])]
    return torch.stack(columns, 1)


@torch.compiler.disable()
def hmlc(
    z: Tensor | Sequence[Tensor],
    labels: Tensor,
    masks: Tensor | None = None,
    *,
    level_weight: str | Sequence[float] | Tensor = "uniform",
    temperature: float | Tensor = 0.1,
    balanced: bool | Sequence[bool] = False,
    empty: str = "skip",
    gathered: tuple[Any, ...] | None = None,
    offset: int = 0,
    tile: int | None = None,
    with_levels: bool = False,
    with_stats: bool = False,
) -> Any:
    """Supervised contrast on every level of a hierarchy, each in the features that a mask leaves it.

    L = sum_h lambda_h L_h,  L_h = `supcon` of z * m_h with the paths down to level h as classes

    Args:
        z: [B, D], [V, B, D], or V tensors [B, D].
        labels: integers [B, H], column 0 the coarsest; made to paths, see `path_ids`.
        masks: m, [H, D] for all embeddings or [H, V, B, D] for each, 0 or above; may carry gradient. None: ones.
        level_weight: lambda, H numbers; "uniform" 1 / H, or "halving", 2^(1 / l) with l = 1 for the finest level.
        temperature: t; a number, or a tensor [] that gets a gradient.
        balanced: average anchors within each class first, then classes; for all levels, or a flag a level.
        empty: anchors of a level without a positive leave its mean ("skip") or count as zero ("zero").
        gathered: (z, labels) of all processes, or (z, labels, masks) where masks are [H, V, B, D].
        offset: where this process's samples begin among the N gathered.
        tile: see `contrast`.
        with_levels: also return the losses of the levels, [H], without gradient.
        with_stats: also return Stats, whose anchors are all embeddings of this process.

    Returns:
        The loss, followed by the levels' losses and Stats where asked for.

    Raises:
        ValueError: labels that are not [B, H]; masks or weights of another number of levels; a mask of zeros; a level
            on which no anchor of the whole batch has a positive, unless empty="zero".

    Notes:
        H times the cost of `supcon`. With disjoint masks of zeros and ones a level's gradient is exactly zero in the
        features of the others. Losses of levels weigh anchors by counts over the whole batch, so that several processes
        give what one does.

    Relations:
        `supcon` with one level and without masks; a constant factor of a mask changes nothing.

    Example:
        >>> import torch
        >>> from nearfar.objectives import hmlc
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> labels = torch.tensor([[0, 0], [0, 0], [1, 0], [1, 0]])  # both levels tell the pairs apart
        >>> round(float(hmlc(z, labels, temperature=0.5)), 4)  # log(1 + 2 exp(-1/0.5))
        0.2395

    Source: Ott, Vysotskaya, Sun, Servadei, Wille, "Feature Identification for Hierarchical Contrastive Learning", 2025.
    """
    expect_choice("empty", empty, ("skip", "zero"))
    views, num_views = _views("z", z)
    num = views.shape[1]
    expect(len(labels) == num, "labels", f"shape [{num}, H]", tuple(labels.shape))
    whole = (views, labels, masks) if gathered is None else (_views("gathered", gathered[0])[0], *gathered[1:])
    all_views, all_labels = whole[0], whole[1]
    all_masks = whole[2] if len(whole) > 2 else masks
    num_all, levels = all_views.shape[1], labels.shape[1]
    ids = path_ids(all_labels)
    expect(ids.shape[1] == levels, "gathered", f"labels of {levels} levels", ids.shape[1])
    expect(0 <= offset <= num_all - num, "offset", f"0 to {num_all - num}", offset)
    weights = _level_weights(level_weight, levels).to(views.device)
    flags = [balanced] * levels if isinstance(balanced, bool) else list(balanced)
    expect(len(flags) == levels, "balanced", f"{levels} flags, one a level", flags)
    losses = []
    for h in range(levels):
        mine = ids[offset : offset + num, h]
        loss = supcon(
            _masked("masks", views, masks, h, levels), mine, temperature=temperature, empty="zero", reduction="none",
            gathered=None if gathered is None else (_masked("gathered", all_views, all_masks, h, levels), ids[:, h]),
            offset=offset, tile=tile,
        )  # fmt: skip
        share_B = _shares(ids[:, h], num_views, flags[h], empty)[offset : offset + num]
        expect(empty == "zero" or bool((_sizes(ids[:, h]) * num_views > 1).any()), "positives",
               f"at least one anchor with a positive on level {h} (or empty='zero')", "none")  # fmt: skip
        losses.append((loss.reshape(num_views, num) * share_B).sum() * (num_all / num))
    levels_H = torch.stack(losses)
    total = (weights.to(levels_H.dtype) * levels_H).sum()
    found = (total, *((levels_H.detach(),) if with_levels else ()), *((Stats(num_views * num, 0, None),) * with_stats))
    return found if len(found) > 1 else total


def _views(name: str, z: Tensor | Sequence[Tensor]) -> tuple[Tensor, int]:
    """Views as [V, B, D]."""
    flat, num = stack(name, as_views(z), least=1)
    return flat.reshape(num, -1, flat.shape[1]), num


def _masked(name: str, views: Tensor, masks: Tensor | None, level: int, levels: int) -> Tensor:
    if masks is None:
        return views
    shapes = ((levels, views.shape[2]), (levels, *views.shape))
    expect(tuple(masks.shape) in shapes, name, f"masks of shape {list(shapes[0])} or {list(shapes[1])}",
           tuple(masks.shape))  # fmt: skip
    some = bool((masks.detach()[level] > 0).any(-1).all()) and bool((masks.detach()[level] >= 0).all())
    expect(some, name, f"masks of 0 or more that leave level {level} a feature", "others")
    return views * masks[level].to(views.dtype)


def _sizes(ids: Tensor) -> Tensor:
    return torch.bincount(ids)[ids]


def _shares(ids: Tensor, num_views: int, balanced: bool, empty: str) -> Tensor:
    """What part of a level's loss an anchor of each sample is, [N]; they sum to 1 over all anchors that count."""
    size = _sizes(ids)
    counts = torch.ones_like(size, dtype=torch.bool) if empty == "zero" else size * num_views > 1
    if not balanced:
        return counts / (counts.sum() * num_views).clamp_min(1)
    classes = (counts / size).sum().clamp_min(1)
    return torch.where(counts, 1 / (size * num_views * classes), 0.0)


def _level_weights(weight: str | Sequence[float] | Tensor, levels: int) -> Tensor:
    if isinstance(weight, str):
        expect_choice("level_weight", weight, ("uniform", "halving"))
        order = torch.arange(levels, 0, -1, dtype=torch.float64)
        return 2 ** (1 / order) if weight == "halving" else torch.full((levels,), 1 / levels, dtype=torch.float64)
    found = torch.as_tensor(weight, dtype=torch.float64)
    expect(tuple(found.shape) == (levels,), "level_weight", f"{levels} numbers, one a level", weight)
    return found


class HMLC(nn.Module):
    """`hmlc` as a Module; see there.

    Args:
        temperature: fixed, or where a learnt one starts.
        learnable_temperature: learn it.
        level_weight: "uniform", "halving" or a number a level.
        balanced: average anchors within classes first.
        empty: what becomes of anchors without a positive.
        tile: see `contrast`.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = True

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        learnable_temperature: bool = False,
        level_weight: str | Sequence[float] = "uniform",
        balanced: bool | Sequence[bool] = False,
        empty: str = "skip",
        tile: int | None = None,
    ) -> None:
        super().__init__()
        expect_choice("empty", empty, ("skip", "zero"))
        self.tau = Temperature(temperature, learnable_temperature)
        self.options: dict[str, Any] = {
            "level_weight": level_weight, "balanced": balanced, "empty": empty, "tile": tile,
        }  # fmt: skip

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in use."""
        return self.tau()

    def forward(self, z: Tensor | Sequence[Tensor], labels: Tensor, masks: Tensor | None = None, **options: Any) -> Any:
        """The loss; further options as `hmlc`."""
        return hmlc(z, labels, masks, temperature=self.tau(), **self.options, **options)
