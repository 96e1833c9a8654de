"""A small transformer learnt with labels, by SimCLR, and by filling in masked patches, looked at block by block.

Legend: B images, S patches, D width, p pixels of a patch.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEPS, QUICK_STEPS, BATCH, SIDE, PATCH, DIM, DEPTH = 200, 3, 64, 32, 4, 48, 4
MASKED = 0.6


class Model(nn.Module):
    """The transformer as `encoder`, and the images it sees."""

    def __init__(self, encoder: nn.Module, views: Any) -> None:
        super().__init__()
        self.encoder, self.make_views = encoder, views


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """What the blocks of a transformer of depth 4 do with 450 held-out digits.

    Args:
        name: "supervised", "simclr", "mae" or "untrained".
        seed: of weights, views, masks and order.
        quick: 3 steps instead of 200.

    Returns:
        distance_K and knn_K of block K, `cka_supervised_first` and `cka_supervised_last`, the similarity of the first
        and the last block to the same block of the supervised transformer of that seed, and `best_block` by kNN.
    """
    from nearfar_images.vit_report import analyse

    source, _ = _data()
    rows = [i for i in range(len(source)) if i % 4 == 3]
    rows = rows[: 64 if quick else None]
    report, arrays = analyse(_trained(name, seed, quick), source, rows, other=_trained("supervised", seed, quick))
    blocks, like = report["blocks"], arrays["cka_other"]
    found = {f"{what}_{k + 1}": row[what] for what in ("distance", "knn") for k, row in enumerate(blocks)}
    return found | {
        "cka_supervised_first": float(like[0, 0]),
        "cka_supervised_last": float(like[-1, -1]),
        "best_block": float(np.argmax([row["knn"] for row in blocks]) + 1),
    }


@cache
def _data() -> tuple[Any, Any]:
    from nearfar.config import ImageViewConfig
    from nearfar.data import digits
    from nearfar.views import ImageViews
    from nearfar_images.systems._views import digits as views

    source = digits(channels=1)
    return source, (ImageViews(views(), SIDE, 1), ImageViews(ImageViewConfig(), SIDE, 1))


@cache
def _trained(name: str, seed: int, quick: bool) -> Model:
    from nearfar.batch import collate
    from nearfar.models import TinyViT
    from nearfar.rng import Rng

    source, (random, _) = _data()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = TinyViT(1, SIDE, patch=PATCH, dim=DIM, depth=DEPTH, heads=4)
        head = nn.Linear(DIM, {"supervised": 10, "mae": PATCH**2}.get(name, DIM))
        token = nn.Parameter(torch.zeros(DIM))
        optimiser = torch.optim.AdamW([*encoder.parameters(), *head.parameters(), token], lr=1e-3, weight_decay=0.05)
        train = np.array([i for i in range(len(source)) if i % 4 != 3])
        generator = np.random.default_rng(seed)
        steps = 0 if name == "untrained" else QUICK_STEPS if quick else STEPS
        for step in range(steps):
            batch = collate([source[int(i)] for i in generator.choice(train, BATCH, replace=False)])
            views = [view.data for view in random(batch["image"], batch["index"], Rng(seed, step))]
            optimiser.zero_grad()
            _loss(name, encoder, head, token, views, batch["label"]).backward()
            optimiser.step()
    return Model(encoder.eval(), _data()[1][1]).eval()


def _loss(name: str, encoder: Any, head: nn.Module, token: Tensor, views: list[Tensor], label: Tensor) -> Tensor:
    """Of one step; each sees two views of every image."""
    from nearfar.objectives import nt_xent

    x = torch.cat(views)
    if name == "supervised":
        return F.cross_entropy(head(encoder(x)), label.repeat(len(views)))
    if name == "simclr":
        return nt_xent(head(encoder(x)).unflatten(0, (len(views), -1)), temperature=0.2)
    pixels = F.unfold(x, PATCH, stride=PATCH).transpose(1, 2)
    mask = torch.rand(pixels.shape[:2]).argsort(1) < MASKED * pixels.shape[1]
    guess = head(encoder.tokens(x, mask, token)[1])
    return F.mse_loss(guess[mask], pixels[mask])
