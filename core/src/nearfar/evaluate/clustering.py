"""Whether clusters of frozen features are the classes.

Letters: N rows, D features.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from nearfar.checks import expect
from nearfar.evaluate import inputs
from nearfar.evaluate.score import Score, exact, mean_interval
from nearfar.prototypes import kmeans


def clustering(
    x: Float[Tensor, "N D"],
    y: Int[Tensor, " N"],
    *,
    num_clusters: int = 0,
    draws: int = 3,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Score]:
    """Agreement of spherical k-means with the classes: "nmi" and "ari".

    NMI is the mutual information of clusters and classes over the mean of their entropies, in [0, 1]; ARI is the share
    of pairs that both put together or apart, corrected for chance: 0 for random clusters, 1 for equal partitions.

    Args:
        x, y: features and class ids.
        num_clusters: 0: as many as there are classes.
        draws: k-means from other seeds; the interval is Student's over them, none for a single one.
        seed: of the first.

    Raises:
        ValueError: non-finite features, a single class, more clusters than rows, fewer than one draw.

    Notes:
        Sources: Strehl and Ghosh, JMLR 2002 (NMI); Hubert and Arabie, Journal of Classification 1985 (ARI), both from
        scikit-learn.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    x = inputs.features("x", x)
    y = inputs.labels("y", y, len(x)).cpu()
    ids, _ = inputs.classes("y", y)
    num = num_clusters or len(ids)
    expect(2 <= num <= len(x), "num_clusters", f"2 to the {len(x)} rows", num)
    expect(draws >= 1, "draws", "1 or more", draws)
    found: dict[str, list[float]] = {"nmi": [], "ari": []}
    for draw in range(draws):
        label = kmeans(x, num, seed=seed + draw).label.cpu().numpy()
        found["nmi"].append(float(normalized_mutual_info_score(y.numpy(), label)))
        found["ari"].append(float(adjusted_rand_score(y.numpy(), label)))
    bounds = {"nmi": (0.0, 1.0), "ari": (-1.0, 1.0)}
    return {
        name: exact(values[0], len(x)) if draws == 1 else mean_interval(values, confidence, bounds[name])
        for name, values in found.items()
    }
