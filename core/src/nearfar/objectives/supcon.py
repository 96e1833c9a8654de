"""SupCon: every sample of an anchor's class is its positive.

Legend: B batch, N gathered batch, V views, D embedding, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nearfar.checks import expect, expect_choice
from nearfar.contrast import contrast
from nearfar.objectives._shared import Place, Temperature, add_constant, as_views, gather_views, stack


def supcon(
    z: Tensor | Sequence[Tensor],
    labels: Tensor | None = None,
    *,
    positive: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    positives: str = "mean",
    anchors: str = "all",
    empty: str = "skip",
    base_temperature: float | None = None,
    gathered: tuple[Any, Tensor] | None = None,
    offset: int = 0,
    reduction: str = "mean",
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Supervised contrastive loss over all views of all samples.

    mean (L_out)  L_i = -1/|P_i| sum_{p in P_i} log [ exp(s_ip) / sum_{a != i} exp(s_ia) ],  s = cosine / t
    sum  (L_in)   L_i = -log [ 1/|P_i| sum_{p in P_i} exp(s_ip) / sum_{a != i} exp(s_ia) ],  L_in <= L_out

    Args:
        z: [B, D], [V, B, D], or V tensors [B, D].
        labels: class of each sample [B]; P_i are all other embeddings of the class, other views of i included.
        positive: bool [B, B] instead of labels, which samples are positives of which; the other views of a sample are
            among its positives where the diagonal says so. Neither: each sample is its own class.
        temperature: t; a number, or a tensor [] that gets a gradient.
        positives: "mean" over positives outside the logarithm, or "sum" inside.
        anchors: "all" views, or "one": the first view alone, against all views.
        empty: anchors without a positive leave the mean ("skip"), count as zero as in the authors' code ("zero") or are
            refused ("raise").
        base_temperature: multiply the loss by t / base_temperature, as the authors' code does with 0.07.
        gathered: (z, labels) of all processes, z as above with N for B; pass the result of a differentiable gather.
        offset: where this process's samples begin among the N gathered. A part whose anchors all lack positives then
            gives 0 and Stats.num_anchors 0.
        reduction: "mean", "sum" or "none" (one value an anchor, view after view).
        tile: see `contrast`.
        with_stats: also return Stats.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: labels and positive both given; lengths that differ; no anchor has a positive, unless empty="zero";
            positive beside gathered.

    Notes:
        Computed in float32. The positive term of L_out is linear in the similarities: with labels it costs O(V B D),
        from the sum of each class. Tiled as `nt_xent`; L_in takes a second, sparser pass; a mask `positive` stores
        all logits.

    Relations:
        `nt_xent` where every label is its own.

    Example:
        >>> import torch
        >>> from nearfar.objectives import supcon
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> round(float(supcon(z, torch.tensor([0, 0, 1, 1]), temperature=0.5)), 4)  # log(1 + 2 exp(-1/0.5))
        0.2395

    Source: Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020.
    """
    expect_choice("positives", positives, ("mean", "sum"))
    expect_choice("anchors", anchors, ("all", "one"))
    expect(labels is None or positive is None, "labels, positive", "one of them at most", "both")
    flat, num_views = _flat("z", z)
    num_local = flat.shape[0] // num_views
    turns = flat.shape[0] if anchors == "all" else num_local
    candidate, other_labels = flat, labels
    if gathered is not None:
        expect(labels is not None, "labels", "a tensor [B] beside gathered", labels)
        candidate, other_labels = gather_views(as_views(gathered[0]), num_views), gathered[1]
    num_all = candidate.shape[0] // num_views
    place = Place(num_views, num_local, num_all, offset, flat.device)
    options: dict[str, Any] = {"temperature": temperature, "positives": positives, "tile": tile}
    options["with_stats"] = with_stats or "counts"
    # One part of a batch may be without positives where the whole is not: it then has the weight 0, and no complaint.
    in_part = gathered is not None and empty == "skip"
    options["empty"] = "zero" if in_part else empty
    options["reduction"] = "sum" if in_part and reduction == "mean" else reduction
    if positive is not None:
        expect(tuple(positive.shape) == (num_local, num_local), "positive", f"shape [{num_local}, {num_local}]",
               tuple(positive.shape))  # fmt: skip
        options["positive"] = positive.repeat(num_views, num_views)[:turns]
    else:
        x, y = (
            _labels("labels", labels, place.sample(), num_views),
            _labels("gathered", other_labels, place.samples(), num_views),
        )
        options["labels"] = (x[:turns], y)
    if gathered is None and anchors == "all":
        if positive is None:
            options["labels"] = options["labels"][0]
        loss, stats = contrast(flat, directions="self", **options)
    else:
        loss, stats = contrast(flat[:turns], candidate, own=place.own()[:turns], **options)
    if positives == "sum":
        counts = _log_counts(options, place.own()[:turns], loss.dtype)
        loss = add_constant(loss, counts, stats.num_anchors, options["reduction"])
    if in_part:
        _expect_some(other_labels, num_views)
        stats = stats._replace(num_anchors=stats.num_anchors - stats.num_empty)
        loss = loss / max(1, stats.num_anchors) if reduction == "mean" else loss
    if base_temperature is not None:
        loss = loss * (temperature / base_temperature)
    return (loss, stats) if with_stats else loss


def _flat(name: str, z: Tensor | Sequence[Tensor]) -> tuple[Tensor, int]:
    return stack(name, as_views(z), least=1)


def _labels(name: str, labels: Tensor | None, default: Tensor, num_views: int) -> Tensor:
    if labels is None:
        return default
    num = default.shape[0] // num_views
    expect(tuple(labels.shape) == (num,), name, f"labels of shape [{num}]", tuple(labels.shape))
    return labels.repeat(num_views)


def _expect_some(labels: Tensor | None, num_views: int) -> None:
    num_classes = torch.unique(labels).shape[0]  # type: ignore[arg-type]
    expect(
        num_views > 1 or num_classes < labels.shape[0],  # type: ignore[union-attr]
        "positives", "at least one anchor with a positive (or empty='zero')", "none in the whole batch",
    )  # fmt: skip


def _log_counts(options: dict[str, Any], own: Tensor, dtype: torch.dtype) -> Tensor:
    """log |P_i|, and 0 for an anchor without a positive."""
    if "positive" in options:
        positive = options["positive"]
        count = positive.sum(1) - positive.gather(1, own.unsqueeze(1)).squeeze(1).long()
    else:
        x, y = options["labels"] if isinstance(options["labels"], tuple) else (options["labels"],) * 2
        classes, ids = torch.unique(y, return_inverse=True)
        count = torch.bincount(ids, minlength=classes.shape[0])[ids][own] - 1
        expect(torch.equal(y[own], x), "labels", "those of the local rows among the gathered", "others")
    return count.clamp_min(1).to(dtype).log()


class SupCon(nn.Module):
    """`supcon` as a Module; see there.

    Args:
        temperature: fixed, or where a learnt one starts.
        learnable_temperature: learn it.
        positives: "mean" (L_out) or "sum" (L_in).
        anchors: "all" views or "one".
        empty: what becomes of anchors without a positive.
        base_temperature: multiply the loss by temperature / base_temperature.
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
        positives: str = "mean",
        anchors: str = "all",
        empty: str = "skip",
        base_temperature: float | None = None,
        tile: int | None = None,
    ) -> None:
        super().__init__()
        expect_choice("positives", positives, ("mean", "sum"))
        self.tau = Temperature(temperature, learnable_temperature)
        self.options: dict[str, Any] = {
            "positives": positives, "anchors": anchors, "empty": empty, "base_temperature": base_temperature,
            "tile": tile,
        }  # fmt: skip

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in use."""
        return self.tau()

    def forward(
        self,
        z: Tensor | Sequence[Tensor],
        labels: Tensor | None = None,
        *,
        positive: Tensor | None = None,
        gathered: tuple[Any, Tensor] | None = None,
        offset: int = 0,
        with_stats: bool = False,
    ) -> Any:
        return supcon(
            z, labels, positive=positive, temperature=self.tau(), gathered=gathered, offset=offset,
            with_stats=with_stats, **self.options,
        )  # fmt: skip
