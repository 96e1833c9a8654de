"""PatchNCE: a patch of the output finds the patch of the input at its place among the others of the same image.

Legend: B images, P patches of an image, D embedding, K further negatives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nearfar.checks import expect
from nearfar.contrast import contrast
from nearfar.objectives._shared import Temperature


def patch_nce(
    query: Tensor,
    key: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    across: bool = False,
    within: bool = True,
    detach_key: bool = True,
    extra: Tensor | None = None,
    reduction: str = "mean",
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Softmax over the keys of an image, whose target is the key of the query's own patch.

    L = 1/(B P) sum_bp -log [ exp(q_bp . k_bp / t) / sum_j exp(q_bp . k_bj / t) ],  cosines

    Args:
        query: q [B, P, D], features at P places of each output.
        key: k [B, P, D], features at the same places of each input.
        temperature: t; a number, or a tensor [] that gets a gradient.
        across: keys of other images are negatives too, for instance crops of a single picture.
        within: keys of the same image are negatives; False, for comparison, needs `across` or `extra`.
        detach_key: no gradient to the keys.
        extra: negatives [K, D] of every patch.
        reduction: "mean", "sum" or "none" ([B P], image after image).
        tile: see `contrast`.
        with_stats: also return Stats.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: unequal shapes; a patch without any negative.

    Notes:
        Groups stand in order, so that only the products within images are computed: 6 B P^2 D FLOP, memory O(B P D +
        tile). The average over layers is the caller's.

    Relations:
        `info_nce` with in-batch negatives where B is 1 or `across`; `dense_contrast` where several keys are positive.

    Example:
        >>> import torch
        >>> from nearfar.objectives import patch_nce
        >>> q = torch.eye(3).unsqueeze(0)
        >>> round(float(patch_nce(q, q, temperature=0.5)), 4)  # log(1 + 2 exp(-1/0.5))
        0.2395

    Source: Park, Efros, Zhang, Zhu, "Contrastive Learning for Unpaired Image-to-Image Translation", ECCV 2020.
    """
    expect(query.ndim == 3 and query.shape == key.shape and query.numel() > 0, "key",
           f"the shape of query, [B, P, D], {tuple(query.shape)}", tuple(key.shape))  # fmt: skip
    images, patches = query.shape[:2]
    negatives = within * (patches - 1) + across * (images - 1) * patches + (0 if extra is None else len(extra))
    expect(negatives > 0, "query", "a negative for every patch: 2 or more patches an image (with across: 2 or more "
           "images), or extra", f"{images} images of {patches} patches, across={across}, within={within}")  # fmt: skip
    rows = torch.arange(images * patches, device=query.device)
    flat = key.flatten(0, 1)
    image = rows // patches
    return contrast(
        query.flatten(0, 1), flat.detach() if detach_key else flat, targets=rows, group=None if across else image,
        ignore=None if within else image, extra=() if extra is None else (extra,), temperature=temperature,
        reduction=reduction, tile=tile, with_stats=with_stats,
    )  # fmt: skip


class PatchNCE(nn.Module):
    """`patch_nce` as a Module; see there.

    Args:
        temperature: fixed, or where a learnt one starts.
        learnable_temperature: learn it.
        across: keys of other images are negatives too.
        within: keys of the same image are.
        detach_key: no gradient to the keys.
        tile: see `contrast`.
    """

    needs_negatives = True
    distributed = "local"
    symmetric = False

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        learnable_temperature: bool = False,
        across: bool = False,
        within: bool = True,
        detach_key: bool = True,
        tile: int | None = None,
    ) -> None:
        super().__init__()
        self.tau = Temperature(temperature, learnable_temperature)
        self.options: dict[str, Any] = {
            "across": across, "within": within, "detach_key": detach_key, "tile": tile,
        }  # fmt: skip

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in use."""
        return self.tau()

    def forward(self, query: Tensor, key: Tensor, **options: Any) -> Any:
        """The loss; further options as `patch_nce`."""
        return patch_nce(query, key, temperature=self.tau(), **self.options, **options)
