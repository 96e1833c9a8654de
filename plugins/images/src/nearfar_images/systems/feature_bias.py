"""Feature bias: which features contrast keeps, from class collapse to feature suppression."""

from __future__ import annotations

from collections.abc import Callable

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.recipe import Recipe

CARD = System(
    slug="feature_bias",
    title="Which Features are Learnt by Contrastive Learning? On the Role of Simplicity Bias in Class Collapse and "
    "Feature Suppression",
    authors="Yihao Xue, Siddharth Joshi, Eric Gan, Pin-Yu Chen, Baharan Mirzasoleiman",
    year=2023,
    venue="ICML",
    plugin="images",
    kind="analysis",
    summary="tells which features supervised, unsupervised and joint contrast keep, in closed form and of embeddings",
    entry="nearfar.analysis.feature_bias:main",
    taxonomy=Taxonomy(positive="label", negative="batch", key="shared", loss="energy"),
    evidence="text",
    oracles=(
        "the loss by Monte-Carlo batches equals the trace formula; its gradient 2W(-2A + 2SGS) equals autograd's",
        "gradient descent reaches -sum of the squared top eigenvalues, and S^1/2 G S^1/2 the closed form",
        "supervised, balanced population: the subclass feature has weight 0; a component off the span changes no "
        "training loss and restores the subclass at training points",
        "unsupervised without augmentation noise: a narrow embedding keeps the directions of largest variance, a wide "
        "one keeps all",
        "beta 1 and 0 are the pure losses; between them class directions have eigenvalue 1 and all others 1 - beta",
    ),
    claim=Claim(metric="probe_subclass", order=("joint_8", "supcon_8"), margin=0.05),
    export=("none: it analyses embeddings and trains none",),
)

RECIPES: dict[str, Callable[[], Recipe]] = {}
DEMONSTRATION = Demonstration(
    arms=(
        "untrained_8", "supcon_8", "joint_8", "simclr_2", "simclr_8", "simclr_64", "simclr_2_broken", "simclr_8_broken",
    ),
    run="nearfar_images.demonstrations.feature_bias:arm",
    data="scikit-learn's digits with a bright bar code below, a quarter held out; class: parity, subclass: the digit",
)  # fmt: skip
