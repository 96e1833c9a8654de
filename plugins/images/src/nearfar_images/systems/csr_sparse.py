"""CSR: dense embeddings as sparse codes whose number of entries is chosen when they are used."""

from __future__ import annotations

from nearfar.catalog import Claim, Demonstration, System, Taxonomy

CARD = System(
    slug="csr_sparse",
    title="Beyond Matryoshka: Revisiting Sparse Coding for Adaptive Representation",
    authors="Tiansheng Wen, Yifei Wang, Zequn Zeng, Zhong Peng, Yudi Su, Xinyang Liu, Bo Chen, Hongwei Liu, "
    "Stefanie Jegelka, Chenyu You",
    year=2025,
    venue="ICML",
    plugin="images",
    also=("sentences", "image_text"),
    kind="tool",
    summary="turns stored embeddings into sparse codes of k entries, k chosen at search time; no encoder is retrained",
    entry="nearfar.analysis.csr_sparse:main",
    taxonomy=Taxonomy(positive="transformation", negative="batch", key="shared", loss="probabilistic"),
    evidence="code",
    oracles=(
        "a code has at most k entries, none negative; with k = H and a >= 0 the coder is W'W(x - c) + c, and with "
        "orthonormal W and no biases W' relu(W x)",
        "the entries of z_k are among those of z_4k, with equal values",
        "the contrast in closed form equals NT-Xent on the codes given twice; orthogonal codes give "
        "log(1 + 2 (B - 1) exp(-1/t))",
        "latents left out get no gradient of L_k, and the residual sends none into the coding of k entries",
        "a latent that is never used is dead after one step more than the threshold, and then gets gradient from the "
        "loss of dead latents alone",
    ),
    claim=Claim(metric="nearest_4", order=("csr", "matryoshka", "pca", "random"), margin=0.05),
    export=("safetensors",),
)

RECIPES = {}
DEMONSTRATION = Demonstration(
    arms=("csr", "csr_labels", "no_contrast", "no_wide", "no_dead", "matryoshka", "pca", "random"),
    run="nearfar.analysis._demonstrations.csr_sparse:demonstrate_arm",
    data="10,000 embeddings of 64 numbers made of 100 sparse atoms in 20 classes, 2,000 held out",
)
