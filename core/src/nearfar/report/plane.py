"""A map of the embedding in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from nearfar.checks import expect

MAX_TSNE = 2000
PRINCIPAL = 30


class Embedding(TypedDict):
    """What the map draws: `points` [N, 2] from `map2d`, `labels` [N] or None, and the classes' names."""

    points: np.ndarray
    labels: Sequence[int] | np.ndarray | None
    class_names: Sequence[str]


def drawn(embedding: Embedding) -> tuple[list[list[float]], list[int], list[str]]:
    """Points, labels (-1 without) and names as plain values, their shapes checked."""
    points, labels = np.asarray(embedding["points"], dtype=float), embedding["labels"]
    expect(points.ndim == 2 and points.shape[1] == 2, "embedding: points", "shape [N, 2]", points.shape)
    kinds = [-1] * len(points) if labels is None else [int(label) for label in labels]
    expect(len(kinds) == len(points), "embedding: labels", f"{len(points)} labels", len(kinds))
    return points.tolist(), kinds, [str(name) for name in embedding["class_names"]]


def map2d(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """Features in the plane, for the eye only: distances between far groups mean little.

    Principal components, 30 at most; then t-SNE (van der Maaten and Hinton, 2008) up to 2000 rows, and the first two
    components alone for more. The same features and seed give the same map.

    Args:
        features: [N, D], finite.
        seed: of t-SNE.

    Returns:
        float32 [N, 2].
    """
    x = np.asarray(features, dtype=np.float64)
    expect(x.ndim == 2, "features", "shape [N, D]", x.shape)
    expect(bool(np.isfinite(x).all()), "features", "finite numbers", "non-finite ones")
    x = _principal(x)
    # t-SNE needs a perplexity below N; below a handful of points the components say as much.
    if len(x) < 10 or len(x) > MAX_TSNE or not x.any():
        plane = np.zeros((len(x), 2))
        plane[:, : min(2, x.shape[1])] = x[:, :2]
        return plane.astype(np.float32)
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(x) - 1) / 3)
    start = x[:, :2] if x.shape[1] >= 2 else np.hstack([x, np.zeros_like(x)])
    start = start / start[:, 0].std() * 1e-4
    tsne = TSNE(perplexity=perplexity, init=start.astype(np.float32), random_state=seed, learning_rate="auto")
    return tsne.fit_transform(x.astype(np.float32)).astype(np.float32)


def _principal(x: np.ndarray) -> np.ndarray:
    """The leading principal components; each one's sign makes its largest weight positive, so that maps repeat."""
    if not len(x):
        return x[:, :PRINCIPAL]
    x = x - x.mean(axis=0)
    u, s, v = np.linalg.svd(x, full_matrices=False)
    k = min(PRINCIPAL, len(s))
    sign = np.sign(v[np.arange(k), np.abs(v[:k]).argmax(axis=1)])
    return u[:, :k] * s[:k] * np.where(sign == 0, 1, sign)
