"""Parity of a digit (class), the digit (subclass) and a bright bar code that tells neither: which does contrast keep?

Legend: N images, V views, P width of the embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

STEPS, QUICK_STEPS, BATCH = 400, 20, 256
BETA = {"supcon": 1.0, "joint": 0.5, "simclr": 0.0}
SIDE, BARS = 8, 3  # pixels of a digit, and rows of the bar code below it


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Linear probes of parity and digit on the embedding of held-out images that carry a bar code of their own.

    Args:
        name: LOSS_WIDTH, or LOSS_WIDTH_broken where every view draws its bar code anew.
        seed: of weights, bar codes, views and order.
        quick: 20 steps instead of 400.
    """
    from nearfar.analysis.feature_bias import joint, subclass_share
    from nearfar.data import digits
    from nearfar.evaluate import linear_probe
    from nearfar.models import ConvNet

    loss, width, *more = name.split("_")
    torch.manual_seed(seed)
    source = digits()
    image = torch.stack([torch.from_numpy(source[i]["image"]) for i in range(len(source))]).float() / 255
    digit = torch.as_tensor(source.labels)
    bars = torch.randint(0, 2, (len(image), SIDE)).float()
    test = torch.arange(len(image)) % 4 == 3
    train_rows = (~test).nonzero().flatten()
    encoder = nn.Sequential(ConvNet(1, width=16, dim=64), nn.Linear(64, int(width)))
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=2e-3)
    steps = 0 if loss == "untrained" else QUICK_STEPS if quick else STEPS
    for _ in range(steps):
        rows = train_rows[torch.randperm(len(train_rows))[:BATCH]]
        views = torch.cat([_view(image[rows], bars[rows], broken=bool(more)) for _ in range(2)])
        z_VBP = encoder(views).unflatten(0, (2, -1))
        optimiser.zero_grad()
        joint(z_VBP, digit[rows] % 2, beta=BETA[loss], temperature=0.2).backward()
        optimiser.step()
    encoder.eval()
    with torch.no_grad():
        z = encoder(_with_bars(image, bars))
    found = {
        f"probe_{what}": linear_probe(z[~test], y[~test], z[test], y[test]).value
        for what, y in (("class", digit % 2), ("subclass", digit))
    }
    share = subclass_share(z[test].double().numpy(), (digit[test] % 2).numpy(), digit[test].numpy())
    return found | {"subclass_share": share}


def _with_bars(image: Tensor, bars: Tensor) -> Tensor:
    """Images [N, 1, 8 + 3, 8] with a bar for every bit [N, 8]."""
    return torch.cat([image, bars[:, None, None].expand(-1, 1, BARS, -1)], 2)


def _view(image: Tensor, bars: Tensor, *, broken: bool) -> Tensor:
    """The digit shifted by up to a pixel, lighter or darker, with noise; its bar code as it is, or drawn anew."""
    num, wide = len(image), pad(image, (1, 1, 1, 1))
    shifts = torch.randint(0, 3, (num, 2))
    row = shifts[:, :1] + torch.arange(SIDE)
    column = shifts[:, 1:] + torch.arange(SIDE)
    moved = wide[torch.arange(num)[:, None, None], 0, row[:, :, None], column[:, None, :]].unsqueeze(1)
    moved = moved * (0.6 + 0.8 * torch.rand(num, 1, 1, 1)) + 0.1 * torch.randn_like(moved)
    return _with_bars(moved, torch.randint_like(bars, 0, 2) if broken else bars)
