"""DCL and DCLW: NT-Xent with the positive taken out of the denominator, and its weighted form.

Legend: B batch, N gathered batch, V views, D embedding, K queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nearfar._similarity import normalize
from nearfar.checks import expect, expect_positive
from nearfar.contrast import contrast
from nearfar.objectives._shared import Place, Temperature, add_constant, gather_views, stack


def dcl(
    *views: Tensor,
    temperature: float | Tensor = 0.1,
    vmf_sigma: float | None = None,
    vmf_detach: bool = True,
    symmetric: bool = True,
    queue: Tensor | None = None,
    gathered: Tensor | Sequence[Tensor] | None = None,
    offset: int = 0,
    reduction: str = "mean",
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Decoupled contrastive loss: the positive attracts, and only negatives repel.

    L_i = -w_i cos(z_i, z_p(i)) / t + log sum_{k: other samples, both views} exp(cos(z_i, z_k) / t)

    w_i = 1 without `vmf_sigma`, else 2 - N softmax_i(cos(z_i, z_p(i)) / sigma) over the samples, whose mean is 1.

    Args:
        views: z0 [B, D], z1 [B, D], ...; or one tensor [V, B, D], V >= 2. With more than two views the positive term
            is the mean over the other views.
        temperature: t; a number, or a tensor [] that gets a gradient.
        vmf_sigma: sigma of the von Mises-Fisher weight (DCLW; 0.5 is usual), of two views; None: no weight.
        vmf_detach: the weight carries no gradient.
        symmetric: every view takes its turn as the anchor; else the first alone.
        queue: [K, D]; the denominator is then the queue alone, of two views.
        gathered: views [V, N, D] of all processes (or V tensors), the candidates of the local anchors; pass the result
            of a differentiable gather.
        offset: where this process's samples begin among the N gathered.
        reduction: "mean" over the anchors, "sum", or "none" (one value an anchor, view after view).
        tile: see `contrast`.
        with_stats: also return Stats.

    Returns:
        The loss, which may be negative, or (loss, Stats).

    Raises:
        ValueError: one sample alone (nothing in the denominator); fewer than two views; an option for two views with
            more; queue beside gathered.

    Notes:
        Computed in float32; costs what `nt_xent` costs.

    Relations:
        softplus(L_i) is the anchor's `nt_xent`.

    Example:
        >>> import torch
        >>> from nearfar.objectives import dcl
        >>> z0 = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> round(float(dcl(z0, z0, temperature=0.5)), 4)  # log 2 - 1/0.5
        -1.3069

    Source: Yeh, Hong, Hsu, Liu, Chen, LeCun, "Decoupled Contrastive Learning", ECCV 2022.
    """
    z, num_views = stack("views", views[0] if len(views) == 1 else views)
    if vmf_sigma is not None or queue is not None:
        expect(num_views == 2, "views", "2 with vmf_sigma or queue", num_views)
    expect(gathered is None or queue is None, "queue", "none beside gathered", "a tensor")
    candidate = z if gathered is None else gather_views(gathered, num_views)
    num_local, num_all = z.shape[0] // num_views, candidate.shape[0] // num_views
    expect(num_all > 1 or queue is not None, "views", "2 or more samples, since one has no negatives", num_all)
    place = Place(num_views, num_local, num_all, offset, z.device)
    options: dict[str, Any] = {"temperature": temperature, "reduction": reduction, "tile": tile}
    options |= {"denominator": "negatives", "with_stats": with_stats or "counts"}
    turns = num_views * num_local if symmetric else num_local
    if queue is not None:
        other = z.roll(num_local, 0)[:turns]
        loss, stats = contrast(z[:turns], own_positive=other.unsqueeze(1), extra=(queue,), **options)
    elif gathered is None and symmetric:
        form: dict[str, Any] = {"targets": place.partner()} if num_views == 2 else {"labels": place.sample()}
        loss, stats = contrast(z, directions="self", **form, **options)
    else:
        form = {name: _rows(ids, turns) for name, ids in place.positives().items()}
        loss, stats = contrast(z[:turns], candidate, own=place.own()[:turns], **form, **options)
    if vmf_sigma is not None:
        unit = normalize(candidate.to(loss.dtype))
        cosine_N = (unit[:num_all] * unit[num_all:]).sum(1)
        weight_N = vmf_weight(cosine_N.detach() if vmf_detach else cosine_N, vmf_sigma)
        local = slice(offset, offset + num_local)
        more = ((1.0 - weight_N) * cosine_N / temperature)[local].repeat(2 if symmetric else 1)
        loss = add_constant(loss, more, turns, reduction)
    return (loss, stats) if with_stats else loss


def _rows(ids: Tensor | tuple[Tensor, Tensor], num: int) -> Tensor | tuple[Tensor, Tensor]:
    return (ids[0][:num], ids[1]) if isinstance(ids, tuple) else ids[:num]


def vmf_weight(cosine_N: Tensor, sigma: float) -> Tensor:
    """Negative von Mises-Fisher weight of every pair, 2 - N softmax(cosine / sigma); its mean is 1.

    Args:
        cosine_N: cosines of the positive pairs [N].
        sigma: > 0; smaller tells hard pairs apart more sharply.

    Returns:
        [N]; above 1 for pairs less alike than the others, negative for an outlyingly easy one.

    Raises:
        ValueError: sigma is not positive.
    """
    expect_positive("vmf_sigma", sigma)
    return 2.0 - cosine_N.shape[0] * torch.softmax(cosine_N / sigma, 0)


class DCL(nn.Module):
    """`dcl` as a Module; see there.

    Args:
        temperature: fixed, or where a learnt one starts.
        learnable_temperature: learn it.
        vmf_sigma: width of the weight on positives (DCLW); None: no weight.
        vmf_detach: the weight carries no gradient.
        symmetric: every view takes its turn as the anchor.
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
        vmf_sigma: float | None = None,
        vmf_detach: bool = True,
        symmetric: bool = True,
        tile: int | None = None,
    ) -> None:
        super().__init__()
        self.tau = Temperature(temperature, learnable_temperature)
        self.options = {"vmf_sigma": vmf_sigma, "vmf_detach": vmf_detach, "symmetric": symmetric, "tile": tile}
        self.symmetric = symmetric

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in use."""
        return self.tau()

    def forward(
        self,
        *views: Tensor,
        queue: Tensor | None = None,
        gathered: Tensor | Sequence[Tensor] | None = None,
        offset: int = 0,
        with_stats: bool = False,
    ) -> Any:
        return dcl(
            *views, temperature=self.tau(), queue=queue, gathered=gathered, offset=offset, with_stats=with_stats,
            **self.options,
        )  # fmt: skip
