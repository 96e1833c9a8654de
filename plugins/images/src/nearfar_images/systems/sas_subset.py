"""SAS: which samples to keep for contrastive pretraining, so that little is lost."""

from __future__ import annotations

from nearfar.catalog import Claim, Demonstration, System, Taxonomy

CARD = System(
    slug="sas_subset",
    title="Data-Efficient Contrastive Self-supervised Learning: Most Beneficial Examples for Supervised Learning "
    "Contribute the Least",
    authors="Siddharth Joshi, Baharan Mirzasoleiman",
    year=2023,
    venue="ICML",
    plugin="images",
    kind="tool",
    summary="chooses the samples that contrastive pretraining needs most: similar to their class, not to each other",
    entry="nearfar.analysis.sas_subset:main",
    taxonomy=Taxonomy(positive="transformation", negative="batch", key="shared", loss="probabilistic"),
    evidence="code",
    oracles=(
        "lazy greedy equals naive greedy, which recomputes all gains at every step, for every objective",
        "F by its brute-force double sum equals the accumulated gains along the greedy order",
        "row_sum equals a stable sort by row sums",
        "a share of 1 returns all rows; every class gives int(share |V|); permuting rows permutes the answer",
        "of two tight groups of sizes a > b graph_cut takes from the larger until a - 2t < b, then alternates; row_sum "
        "exhausts the larger first",
    ),
    claim=Claim(metric="linear", order=("sas_30", "random_30", "reversed_30"), margin=0.01),
    export=("none: it chooses samples and trains no encoder",),
)

RECIPES = {}
DEMONSTRATION = Demonstration(
    arms=("sas_30", "random_30", "reversed_30", "row_sum_30", "sas_50", "random_50", "reversed_50", "full"),
    run="nearfar_images.demonstrations.sas_subset:arm",
    data="scikit-learn's digits, 1,347 to choose from and 450 held out; clusters of a short run's embeddings",
)
