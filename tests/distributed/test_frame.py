"""The declarative frame over two processes with uneven batches: every loss, store and similarity equals one process."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distributed.launch import launch
from images.vectors import DIM, make
from nearfar import distributed
from nearfar.config import ContrastConfig, HeadConfig, WMSEConfig
from nearfar.method import Progress
from nearfar.rng import Rng

SIZES, STEPS = (4, 7), 3
HEAD = HeadConfig(hidden=12, dim=4, norm="layer")
KEYS: dict[str, Any] = {"key_encoder": "ema", "momentum": 0.9, "queue": 20}
CONFIGS: dict[str, dict[str, Any]] = {
    "info_nce": {"loss": "info_nce"},
    "one way": {"loss": "info_nce", "symmetric": False, "predictor": HEAD},
    "ring": {"loss": "info_nce", "candidates": "ring"},
    "bilinear": {"loss": "info_nce", "similarity": "bilinear", "temperature": 1.0, **KEYS},
    "bank": {"loss": "info_nce", "bank": True, "momentum": 0.5},
    "binary": {"loss": "binary_nce", "learnable_temperature": True},
    "binary labels": {"loss": "binary_nce", "pairs": "labels", **KEYS},
    "supcon queue": {"loss": "supcon", "pairs": "labels", **KEYS},
    "triplet": {"loss": "triplet"},
    "triplet queue": {"loss": "triplet", "pairs": "labels", **KEYS},
    "triplet bank": {"loss": "triplet", "bank": True, "momentum": 0.5},
    "pair_margin": {"loss": "pair_margin", "margin": 1.0, "pairs": "labels"},
    "jensen_shannon": {"loss": "jensen_shannon", "similarity": "distance"},
    "jensen_shannon queue": {"loss": "jensen_shannon", **KEYS},
    "donsker_varadhan": {"loss": "donsker_varadhan"},
    "donsker_varadhan queue": {"loss": "donsker_varadhan", **KEYS, "symmetric": False},
    "byol": {"loss": "regression", "predictor": HEAD, "key_encoder": "ema"},
    "simsiam": {"loss": "regression", "predictor": HEAD, "regression": "cosine"},
    "barlow": {"loss": "barlow"},
    "vicreg": {"loss": "vicreg"},
    "wmse": {"loss": "wmse", "wmse": WMSEConfig(size=5, rounds=2)},
}


def learn(name: str) -> tuple[list[float], dict[str, Tensor]]:
    """Three steps by hand on this process's part of every batch: losses of all, and the state after them."""
    method = make(ContrastConfig(**{"head": HEAD} | CONFIGS[name]), num_samples=2 * sum(SIZES)).double()
    parameters = list(method.optimisers()["main"])
    losses = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        index = torch.randperm(2 * sum(SIZES), generator=generator)[: sum(SIZES)]
        image = torch.randn(sum(SIZES), DIM, generator=generator, dtype=torch.float64)
        whole = {"index": index, "image": image, "label": index % 3}
        several = distributed.world() > 1
        raw = {k: v.split(list(SIZES))[distributed.rank()] if several else v for k, v in whole.items()}
        progress = Progress(step=step, steps=STEPS)
        viewed = method.views(raw, Rng(0, step))
        viewed["views"] = [type(view)(view.data.double()) for view in viewed["views"]]
        targets = method.targets(viewed, progress)
        z = method.encode(viewed)
        terms = method.loss(z, viewed, targets, progress)
        (value,), (count,) = terms.values.values(), terms.counts.values()
        every = distributed.reduce_sum(torch.tensor([count], dtype=torch.float64))
        share = value * (count / every[0].clamp_min(1.0))
        for p, grad in zip(parameters, torch.autograd.grad(share, parameters, allow_unused=True), strict=True):
            p.data.sub_(0.5 * distributed.reduce_sum(torch.zeros_like(p) if grad is None else grad))
        losses.append(float(distributed.reduce_sum(share.detach().reshape(1))))
        method.after_update({k: v.detach() for k, v in z.items()}, targets, progress)
    return losses, method.state_dict()


def learn_all() -> dict[str, Any]:
    return {name: learn(name) for name in CONFIGS}


def test_two_processes_equal_one() -> None:
    expected, results = learn_all(), launch(learn_all, 2)
    for name, (losses, state) in expected.items():
        for result in results:
            torch.testing.assert_close(result[name][0], losses, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
            for key, value in state.items():
                torch.testing.assert_close(
                    result[name][1][key], value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name, k=key: f"{n}, {k}: {m}"
                )
