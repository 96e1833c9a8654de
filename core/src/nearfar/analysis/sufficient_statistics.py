"""Sufficiency lab: how much of one view's information about the other an encoder keeps, and what that bounds.

Reads a joint table, Gaussian parameters, or samples; importing it loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nearfar.checks import expect
from nearfar.flags import parse

if TYPE_CHECKING:
    from nearfar.analysis._critics import estimate_sufficiency
    from nearfar.analysis._gaussian import augmentation_error, gaussian_sufficiency
    from nearfar.analysis._sufficiency import (
        downstream_bound,
        info_nce_information,
        information,
        prediction_gap,
        risk,
        sufficiency,
    )

__all__ = [
    "EstimatedSufficiency",
    "GaussianSufficiency",
    "Information",
    "Sufficiency",
    "augmentation_error",
    "downstream_bound",
    "estimate_sufficiency",
    "gaussian_sufficiency",
    "info_nce_information",
    "information",
    "main",
    "prediction_gap",
    "risk",
    "sufficiency",
]


@dataclass(frozen=True, kw_only=True)
class Sufficiency:
    """What a code of the rows of a table loses, in one divergence and three forms that agree but for rounding.

    Args:
        divergence: its name.
        information: I_phi(z1; z2).
        kept: I_phi(f(z1); z2).
        gap: their difference.
        bregman: E[ B_phi(r, r_f) ].
        variational: the least risk of scores of (f(z1), z2) less that of scores of (z1, z2).
    """

    divergence: str
    information: float
    kept: float
    gap: float
    bregman: float
    variational: float


@dataclass(frozen=True, kw_only=True)
class GaussianSufficiency:
    """What a linear code of a Gaussian view loses, in nats.

    Args:
        information: I(z1; z2).
        kept: I(W z1; z2).
        gap: their difference.
        conditional: E KL( p(z2 | z1) || p(z2 | W z1) ), which equals it, from the covariances of z2 that are left.
    """

    information: float
    kept: float
    gap: float
    conditional: float


@dataclass(frozen=True, kw_only=True)
class Information:
    """-R_K of InfoNCE with K candidates, in nats.

    Args:
        num_candidates: K, the partner among them.
        value: -R_K.
        error: its standard error; 0 where every combination was visited.
        exact: whether every combination was.
        ceiling: min(I, log K).
        saturated: I lies above log K, so that -R_K says nothing of I.
    """

    num_candidates: int
    value: float
    error: float
    exact: bool
    ceiling: float
    saturated: bool


@dataclass(frozen=True, kw_only=True)
class EstimatedSufficiency:
    """What critics on samples say; an estimate, biased by what they failed to learn, and no bound.

    Args:
        critic: the variational bound that was maximised.
        divergence: whose f-information it bounds.
        information: of (z1, z2), on held-out samples.
        kept: of (f(z1), z2), on the same.
        gap: their difference; below zero where the critic of z1 learnt less than that of f(z1).
        num_held_out: samples that judge; log of it is the ceiling of "info_nce".
        saturated: whether "info_nce" stands at its ceiling.
    """

    critic: str
    divergence: str
    information: float
    kept: float
    gap: float
    num_held_out: int
    saturated: bool


_WHERE = {
    "estimate_sufficiency": "_critics",
    "augmentation_error": "_gaussian",
    "gaussian_sufficiency": "_gaussian",
    "downstream_bound": "_sufficiency",
    "info_nce_information": "_sufficiency",
    "information": "_sufficiency",
    "prediction_gap": "_sufficiency",
    "risk": "_sufficiency",
    "sufficiency": "_sufficiency",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"nearfar.analysis.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True, kw_only=True)
class SufficiencyOptions:
    """How near an encoder of one view is to a sufficient statistic for the other."""

    files: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILE ...")] = ()
    """.npz files; fields table [n1, n2] and encoder [n1] (codes of the rows), or variance [d], noise [] and encoder
    [p, d] (Gaussian views), or first [N, D], second [N, E] and feature [N, P] (samples of both views, and the encoder's
    output on the first)"""
    candidates: tuple[int, ...] = (2, 8, 64, 512)
    """of a table: K of InfoNCE"""
    limit: int = 10_000_000
    """of a table: visit every combination where there are at most so many, else draw"""
    draws: int = 20_000
    """of a table: draws of a K that is not enumerated"""
    critic: Literal["nwj", "info_nce", "donsker_varadhan", "chi_square", "jensen_shannon", "hellinger"] = "nwj"
    """of samples: the variational bound that critics maximise"""
    steps: int = 1000
    """of samples: gradient steps of each critic"""
    seed: int = 0
    """of draws, splits and critics"""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = ""
    """also write report.json and plot.svg there"""
    json: bool = False
    """print JSON and nothing else"""


def main(argv: list[str]) -> int:
    """`nearfar analyse sufficient_statistics FILE ...`."""
    options = parse(SufficiencyOptions, argv, "nearfar analyse sufficient_statistics")
    expect(bool(options.files), "files", "one or more .npz files", "none")
    from nearfar.analysis import _sufficiency_report as report

    return report.run(options)
