"""ViT analysis: how a vision transformer attends, what its blocks represent, what they are good for."""

from __future__ import annotations

from nearfar.catalog import Claim, Demonstration, System, Taxonomy

CARD = System(
    slug="vit_analysis",
    title="Teaching Matters: Investigating the Role of Supervision in Vision Transformers",
    authors="Matthew Walmer, Saksham Suri, Kamal Gupta, Abhinav Shrivastava",
    year=2023,
    venue="CVPR",
    plugin="images",
    kind="analysis",
    summary="looks at a vision transformer block by block: attention, similarity to another, scores of its features",
    entry="nearfar_images.vit_command:vit",
    taxonomy=Taxonomy(positive="transformation", negative="batch", key="shared", loss="probabilistic"),
    evidence="code",
    oracles=(
        "uniform attention has the mean pairwise distance, identity attention 0; a head that looks at its right "
        "neighbour peaks at shift (0, +1), with an offset close to 1/(n-1)",
        "CKA(X, X) is 1; orthogonal maps and scaling change nothing; independent Gaussians are near 0; it equals brute "
        "force for 8 samples",
        "purity, NMI and ARI agree with scikit-learn; purity is 1 for perfect clusters and 1/k for a single one",
        "the mask of uniform attention over m patches keeps ceil(0.6 m); a mask's IoU with itself is 1; an empty union "
        "is handled",
        "statistics of two batches equal those of their union",
    ),
    claim=Claim(metric="cka_supervised_last", order=("simclr", "mae"), margin=0.05),
    export=("none: an analysis leaves a report, not an encoder",),
)

RECIPES = {}
DEMONSTRATION = Demonstration(
    arms=("supervised", "simclr", "mae", "untrained"),
    run="nearfar_images.demonstrations.vit_analysis:arm",
    data="scikit-learn's digits on 32 x 32 pixels in 8 x 8 patches, 1,347 to learn from and 450 held out",
)
