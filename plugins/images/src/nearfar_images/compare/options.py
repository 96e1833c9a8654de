"""What a comparison is asked for. Loads no torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from nearfar.checks import expect
from nearfar.config import DataConfig, EncoderConfig, EvaluateConfig

HELP = """Systems side by side on your images: same encoder, views, budget and tuning, several seeds.

Each system tries the same learning rates on a part of the training data, then trains once a seed with the best, as
many epochs for every system as the budget allows. The test part is looked at once a seed, at the end. Stop it at any
time: the same command goes on where it was.

Examples:
  nearfar compare images --systems simclr,dcl,swav --data.root FOLDER --budget 30m
  nearfar compare images --systems all --data.source digits --epochs 20
"""

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of `nearfar compare images`."""

    systems: Annotated[str, tyro.conf.arg(metavar="A,B,C")] = "simclr,dcl,moco"
    """slugs; all: every system of this plugin that trains without labels"""
    data: DataConfig = field(default_factory=DataConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    budget: str = "10m"
    """time for everything, e.g. 90s, 10m, 2h; decides the epochs that each system gets"""
    epochs: int = 0
    """epochs of each system instead of a budget"""
    seeds: int = 3
    """runs of each system with the learning rate that was chosen"""
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3)
    """learning rates that each system tries, for a third of the epochs; a single one leaves the tuning out"""
    batch_size: int = 256
    """of every system; at most the images there are"""
    metric: str = "knn"
    """score that chooses the learning rate and orders the table"""
    out: str = "comparison"
    """folder of results and runs"""
    fresh: bool = False
    """begin anew even where the folder holds results"""
    json: bool = False
    """print JSON and nothing else"""

    def __post_init__(self) -> None:
        expect(self.epochs >= 0, "epochs", "0 or more", self.epochs)
        expect(self.seeds >= 2, "seeds", "2 or more, for an interval", self.seeds)
        expect(len(self.rates) >= 1 and all(r > 0 for r in self.rates), "rates", "numbers above 0", self.rates)
        expect(self.batch_size >= 2, "batch_size", "2 or more", self.batch_size)
        seconds(self.budget)


def seconds(text: str) -> float:
    """Seconds that a word such as 90s, 10m or 2h stands for.

    Raises:
        ValueError: it is no number with a unit.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    expect(found is not None, "budget", "a number with a unit, such as 90s, 10m or 2h", repr(text))
    assert found is not None
    value = float(found[1]) * UNITS[found[2]]
    expect(0 < value < math.inf, "budget", "more than nothing", repr(text))
    return value
