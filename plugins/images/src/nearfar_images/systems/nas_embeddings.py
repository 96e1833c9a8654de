"""Contrastive embeddings of architectures: networks as vectors, whatever the space they are written in."""

from __future__ import annotations

from nearfar.catalog import Claim, Demonstration, System, Taxonomy

CARD = System(
    slug="nas_embeddings",
    title="Contrastive Embeddings for Neural Architectures",
    authors="Daniel Hesslow, Iacopo Poli",
    year=2021,
    venue="arXiv 2102.04208",
    plugin="images",
    kind="tool",
    summary="turns network architectures into vectors by what untrained ones do to a few images, and searches by them",
    entry="nearfar.analysis.nas_embeddings:main",
    taxonomy=Taxonomy(positive="transformation", negative="batch", key="shared", loss="probabilistic"),
    evidence="code",
    oracles=(
        "for y = W x every row of J is the sum of W's rows, so J has rank 1 and E one column that is not zero",
        "E E' is J J' but for the discarded tail; permuting probes permutes E's rows and leaves e; the last layer's "
        "weights times c give E times c",
        "J by one backward equals jacrev of the summed output, sample by sample, without batch norm",
        "the contrast is SimCLR's loss; orthogonal embeddings of identical pairs give log(1 + (2B - 2) exp(-1/t))",
        "expected improvement matches a Monte-Carlo estimate, and vanishes where the mean lies far below",
    ),
    claim=Claim(metric="best_found", order=("contrast", "random"), margin=0.0),
    export=("safetensors",),
)

RECIPES = {}
DEMONSTRATION = Demonstration(
    arms=("contrast", "untrained", "description", "random"),
    run="nearfar.analysis._demonstrations.nas_embeddings:demonstrate_arm",
    data="288 small networks (depth, width, activation, skips, batch norm) for scikit-learn's digits",
)
