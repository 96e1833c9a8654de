"""Sufficiency lab: how near an encoder of one view is to a sufficient statistic for the other."""

from __future__ import annotations

from nearfar.catalog import Claim, Demonstration, System, Taxonomy

CARD = System(
    slug="sufficient_statistics",
    title="A Statistical Theory of Contrastive Learning via Approximate Sufficient Statistics",
    authors="Licong Lin, Song Mei",
    year=2025,
    venue="arXiv 2503.17538",
    plugin="images",
    kind="analysis",
    summary="what an encoder loses of the views' mutual information: exactly, for Gaussians, or by critics",
    entry="nearfar.analysis.sufficient_statistics:main",
    taxonomy=Taxonomy(positive="transformation", negative="batch", key="shared", loss="mutual_information"),
    evidence="text",
    oracles=(
        "on random tables the three forms agree to 1e-10 for kl and chi square; the gap is 0 or more, 0 for an "
        "injective code, all of the information for a constant one, and larger for a coarser one",
        "for Gaussian views and the first p coordinates the gap is -1/2 sum of log(1 - rho_i^2) over the others",
        "merging rows of equal conditional law loses nothing",
        "with scores log r on a small table, -R_K is 0 for K = 1, grows with K and stays at or below I and log K; a "
        "function of z1 added to the scores changes nothing",
        "Pinsker's bound on predictions holds for 1000 random targets and codes",
    ),
    claim=Claim(metric="sufficiency", order=("trained", "early", "untrained"), direction="lower", margin=0.2),
    export=("none: an analysis leaves a report, not an encoder",),
)

RECIPES = {}
DEMONSTRATION = Demonstration(
    arms=(
        "untrained", "early", "trained", "weak_augmentation", "strong_augmentation", "topics_1", "topics_2", "topics_4",
        "topics_8",
    ),
    run="nearfar.analysis._demonstrations.sufficient_statistics:demonstrate_arm",
    data="Gaussian views in 20 dimensions with a linear encoder of width 5; documents of 4 topics in halves",
)  # fmt: skip
