"""SimCSE's arms: supervised, unsupervised, and unsupervised without dropout."""

from __future__ import annotations

import warnings

from torch import nn

from nearfar.plugin import load_recipe
from nearfar_sentences import demonstrations as shared


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """An arm and a seed to metrics."""
    if name != "simcse_no_dropout":
        return shared.arm(name, seed, quick)
    start = shared.pretrained(seed, quick=quick)
    for part in start.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that both copies are the same is the point of this arm
        method = shared.trained(load_recipe("sentences/simcse"), start, seed, quick=quick)
    return shared.scores(method, seed, quick=quick)
