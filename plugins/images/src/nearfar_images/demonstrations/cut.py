"""Grey digits become thick, orange ones on violet: are they still the same digits?"""

from __future__ import annotations

import dataclasses
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

QUICK_STEPS = 6
CONTENT_EPOCHS, STYLE_EPOCHS = 15, 3


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Of held-out grey digits after translation: are they read as what they are, and held for the other style?

    "content" is the share whose class a classifier tells that has learnt the digits in the second style; "style" the
    share that a second classifier holds for that style, and not for grey digits or digits in any other colours.

    Args:
        name: "cut"; "cut_external", negatives from other images; "cut_gan", no contrast; "untrained", a generator
            before any step; "untranslated", the grey digits; "true", the same digits drawn in the second style.
        seed: of weights and order, of the classifiers' too.
        quick: six steps instead of six epochs, and classifiers that have learnt little.
    """
    from nearfar.data import digits, holdout
    from nearfar_images.styles import styled

    parts = holdout(digits(), 0.25)
    test = {style: _pixels(styled(parts.test, style)) for style in "ab"}
    labels = torch.from_numpy(parts.test.labels)  # type: ignore[arg-type]
    made = test["b" if name == "true" else "a"]
    if name.startswith("cut") or name == "untrained":
        method = _trained("cut_digits" if name == "untrained" else f"{name}_digits", seed, quick, name != "untrained")
        made = torch.cat([method.translate(part) for part in made.split(128)])
        made = (made * 255).round() / 255
    content, style = _judges(seed, quick)
    with torch.no_grad():
        read, held = content(made).argmax(1), style(made).argmax(1)
    return {"content": float((read == labels).float().mean()), "style": float(held.float().mean())}


def _trained(recipe_name: str, seed: int, quick: bool, train: bool) -> Any:
    from nearfar.data import without_test
    from nearfar.plugin import load
    from nearfar_images import pipeline

    recipe = load("images").recipe(recipe_name)
    with tempfile.TemporaryDirectory() as folder:
        trainer = dataclasses.replace(
            recipe.trainer, max_steps=QUICK_STEPS if quick else 0, seed=seed, checkpoint_every=10**6,
            report=False, progress=False, output=str(Path(folder) / "run"),
        )  # fmt: skip
        recipe = dataclasses.replace(recipe, trainer=trainer)
        data, method = pipeline.build(recipe)
        if train:  # nothing is scored on the way
            pipeline.fit(pipeline.resolve(recipe, data.train), without_test(data.train), method)
    return method.cpu().eval()


@cache
def _judges(seed: int, quick: bool) -> tuple[nn.Module, nn.Module]:
    """Classifiers of the ten digits in the second style, and of that style, from the training digits."""
    from nearfar.data import digits, holdout
    from nearfar_images.styles import painted, styled, thick

    train = holdout(digits(), 0.25).train
    labels = torch.from_numpy(train.labels)  # type: ignore[arg-type]
    a, b = (_pixels(styled(train, style)) for style in "ab")
    draws = torch.Generator().manual_seed(seed)
    thin = a[:, :1]
    others = [
        painted(stroke, *torch.rand(2, len(stroke), 3, 1, 1, generator=draws).unbind())
        for stroke in (thin, thick(thin))
    ]
    domain = (torch.arange(4) == 3).long().repeat_interleave(len(labels))
    content = _classifier(b, labels, 10, seed, 2 if quick else CONTENT_EPOCHS)
    return content, _classifier(torch.cat([a, *others, b]), domain, 2, seed, 1 if quick else STYLE_EPOCHS)


def _pixels(source: Any) -> Tensor:
    return torch.stack([torch.as_tensor(source[i]["image"]) for i in range(len(source))]).float() / 255


def _classifier(x: Tensor, y: Tensor, num: int, seed: int, epochs: int) -> nn.Module:
    from nearfar.models import ConvNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(ConvNet(3, width=16, dim=64), nn.Linear(64, num))
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-4)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=order).split(128):
            loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.eval()
