"""The gradient of a large batch in chunks, cached or accumulated, beside that of the whole."""

from __future__ import annotations

import dataclasses

import torch

CHUNK = 16


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Error of the gradient of one batch of digits, relative to its norm, with the weights that SimCLR begins with."""
    from nearfar.batch import collate, split
    from nearfar.gradcache import GradCache
    from nearfar.method import Progress
    from nearfar.plugin import load
    from nearfar.rng import Rng
    from nearfar_images import pipeline

    recipe = load("images").recipe("gradcache_digits")
    recipe = dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, seed=seed))
    data, method = pipeline.build(recipe)
    num = 64 if quick else 256
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:num].tolist()
    batch = method.views(collate([data.train[i] for i in chosen]), Rng(seed))

    def gradient() -> torch.Tensor:
        grads = [p.grad.flatten().double() for p in method.parameters() if p.grad is not None]
        method.zero_grad()
        return torch.cat(grads)

    method.loss(method.encode(batch), batch, {}, Progress()).total.backward()
    whole = gradient()
    if name == "gradcache":
        cache = GradCache(method.encode, wrapper=method)
        cache.backward(method.loss(cache(split(batch, CHUNK)), batch, {}, Progress()).total)
    else:
        for part in split(batch, CHUNK):
            (method.loss(method.encode(part), part, {}, Progress()).total * CHUNK / num).backward()
    return {"relative_gradient_error": float((gradient() - whole).norm() / whole.norm())}
