"""CURL theory: what contrast over latent classes promises of the mean classifier, computed for a given encoder."""

from __future__ import annotations

from nearfar.catalog import Claim, Demonstration, System, Taxonomy

CARD = System(
    slug="curl_theory",
    title="A Theoretical Analysis of Contrastive Unsupervised Representation Learning",
    authors="Sanjeev Arora, Hrishikesh Khandeparkar, Mikhail Khodak, Orestis Plevrakis, Nikunj Saunshi",
    year=2019,
    venue="ICML",
    plugin="images",
    kind="analysis",
    summary="losses of contrast over classes, collisions, and the bounds they put on an encoder's classifiers",
    entry="nearfar.analysis.curl_theory:main",
    taxonomy=Taxonomy(positive="label", negative="batch", key="shared", loss="probabilistic"),
    evidence="text",
    oracles=(
        "in a world of 4 classes with 5 points each, enumerated whole, 1000 random encoders and both losses never "
        "break bound A, nor the looser bound B",
        "the loss splits exactly into its parts without and with collision; where an encoder is constant within "
        "classes the bound is tight, the first part being the mean classifier's loss and the second 1",
        "the intraclass deviation is 0 exactly where an encoder is constant within classes, and scales as its square",
        "blocks of one point give the plain loss, and blocks of two a lower one, in expectation by enumeration",
        "with one negative the chance of a collision is the sum of squared priors; with many it tends to 1",
    ),
    claim=Claim(metric="accuracy", order=("block_5", "negatives_1", "untrained"), margin=0.01),
    export=("none: an analysis leaves a report, not an encoder",),
)

RECIPES = {}
DEMONSTRATION = Demonstration(
    arms=("negatives_1", "negatives_4", "negatives_10", "negatives_50", "block_5", "untrained"),
    run="nearfar.analysis._demonstrations.curl_theory:demonstrate_arm",
    data="scikit-learn's digits, pairs of one class, 450 of 1797 held out; 2-way accuracy of the mean classifier",
)
