"""SimCLR on digits without labels, then fine-tuning with a tenth of the labels: by each part of Core-tuning's loss.

Legend: N images, D feature.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from nearfar_images.demonstrations._fit import fit

PRETRAIN, STEPS = 15, 200
QUICK_PRETRAIN, QUICK_STEPS = 1, 6
NOISE = 40.0  # standard deviation of the noise of "accuracy_noise", in grey levels of 255
ARMS: dict[str, dict[str, Any]] = {
    "core_tuning": {},
    "ce_focal": {"mixtures": False},
    "ce_supcon": {"mixtures": False, "gamma": 0.0},
    "ce": {"mixtures": False, "contrast_weight": 0.0},
}


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Accuracy of the fine-tuned classifier on held-out digits, as they are and under noise, and their spread.

    "spread" is the mean squared distance of unit features to their class's mean over that of class means to theirs.

    Args:
        name: "core_tuning"; "ce_focal" or "ce_supcon" without mixtures; "ce", cross-entropy alone.
        seed: of weights, labelled samples, views and order.
        quick: 1 epoch and 6 steps instead of 15 and 200.
    """
    from nearfar.batch import collate
    from nearfar.data import holdout
    from nearfar.plugin import load
    from nearfar_images.data import open_images

    recipe = load("images").recipe("core_tuning_digits")
    data = open_images(recipe.data)
    labelled = holdout(data.train, 0.9, seed).train
    recipe = dataclasses.replace(recipe, method=dataclasses.replace(recipe.method, **ARMS[name]))
    pretrained = _pretrained(seed, quick)
    method = fit(recipe, labelled, seed, steps=QUICK_STEPS if quick else STEPS,
                 before=lambda made: made.encoder.load_state_dict(pretrained))  # fmt: skip
    batch = collate([data.test[i] for i in range(len(data.test))])
    noise = NOISE * torch.randn(batch["image"].shape, generator=torch.Generator().manual_seed(seed))
    noisy = batch | {"image": (batch["image"] + noise).round().clamp(0, 255).to(torch.uint8)}
    found = {
        metric: float((method.classify(one).argmax(1) == batch["label"]).float().mean())
        for metric, one in (("accuracy", batch), ("accuracy_noise", noisy))
    }
    with torch.no_grad():
        return found | {"spread": _spread(method.features(batch), batch["label"])}


@lru_cache(maxsize=4)
def _pretrained(seed: int, quick: bool) -> dict[str, Tensor]:
    """SimCLR's encoder, the same for all arms of a seed."""
    from nearfar.plugin import load
    from nearfar_images.data import open_images

    recipe = load("images").recipe("simclr_digits")
    method = fit(recipe, open_images(recipe.data).train, seed, epochs=QUICK_PRETRAIN if quick else PRETRAIN)
    return {name: value.clone() for name, value in method.encoder.state_dict().items()}


def _spread(feature_ND: Tensor, label_N: Tensor) -> float:
    unit = torch.nn.functional.normalize(feature_ND.double(), dim=1)
    means = torch.stack([unit[label_N == c].mean(0) for c in label_N.unique()])
    within = (unit - means[torch.unique(label_N, return_inverse=True)[1]]).square().sum(1).mean()
    return float(within / (means - means.mean(0)).square().sum(1).mean())
