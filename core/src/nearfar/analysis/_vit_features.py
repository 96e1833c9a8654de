"""How alike the features of two networks are, and how well clusters and matches of features fit what is known.

Legend: N samples, D and E features, T tokens, L and M layers, P points.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from nearfar.checks import expect, expect_choice, expect_positive


def hsic(first: Float[Tensor, "N N"], second: Float[Tensor, "N N"]) -> Float[Tensor, ""]:
    """The unbiased Hilbert-Schmidt independence criterion of two kernel matrices, whose diagonals do not count.

    HSIC = [ tr(K L) + 1'K1 1'L1 / ((N - 1)(N - 2)) - 2 1'K L 1 / (N - 2) ] / (N (N - 3))

    Raises:
        ValueError: fewer than 4 samples, or another number of them in the second.

    Source: Song, Smola, Gretton, Bedo, Borgwardt, JMLR 2012.
    """
    num = len(first)
    expect(num >= 4, "features", "4 samples or more", num)
    expect(second.shape == first.shape, "second", f"shape {tuple(first.shape)}", tuple(second.shape))
    k, m = (x - torch.diag_embed(x.diagonal()) for x in (first, second))
    cross = (k.sum(0) * m.sum(1)).sum()
    total = (k * m.T).sum() + k.sum() * m.sum() / ((num - 1) * (num - 2)) - 2 * cross / (num - 2)
    return total / (num * (num - 3))


class CKA:
    """Centred kernel alignment between the layers of two networks, over batches.

    CKA = sum_b HSIC(K_b, L_b) / sqrt(sum_b HSIC(K_b, K_b) sum_b HSIC(L_b, L_b)),  K = X X'

    Notes:
        The unbiased estimate: about 0 for independent features, and it may be below. Batches of 4 samples or more.
        Source: Kornblith et al., ICML 2019; Nguyen et al., ICLR 2021 (batches).
    """

    def __init__(self) -> None:
        self._between: Tensor | None = None
        self._first: Tensor | None = None
        self._second: Tensor | None = None

    @torch.no_grad()
    def update(self, first: Sequence[Float[Tensor, "N ..."]], second: Sequence[Float[Tensor, "N ..."]]) -> None:
        """Adds a batch: features of every layer of both networks; all but the first dimension are flattened."""
        kernels = [[_linear(x) for x in part] for part in (first, second)]
        expect(all(kernels), "features", "one layer or more of both", [len(part) for part in kernels])
        between = torch.stack([torch.stack([hsic(k, m) for m in kernels[1]]) for k in kernels[0]])
        own = [torch.stack([hsic(k, k) for k in part]) for part in kernels]
        if self._between is None or self._first is None or self._second is None:
            self._between, self._first, self._second = between, own[0], own[1]
        else:
            self._between, self._first = self._between + between, self._first + own[0]
            self._second = self._second + own[1]

    def result(self) -> Float[Tensor, "L M"]:
        """The alignment of every layer of the first with every one of the second; 0 where a layer does not vary.

        Raises:
            ValueError: nothing was added.
        """
        expect(self._between is not None, "features", "a batch or more", "none")
        assert self._between is not None  # the line above
        assert self._first is not None
        assert self._second is not None
        scale = (self._first.clamp_min(0)[:, None] * self._second.clamp_min(0)).sqrt()
        return torch.where(scale > 0, self._between / scale.where(scale > 0, torch.ones_like(scale)), 0.0)


def cka(first: Float[Tensor, "N ..."], second: Float[Tensor, "N ..."]) -> float:
    """`CKA` of one layer of each in a single batch."""
    made = CKA()
    made.update([first], [second])
    return float(made.result())


def _linear(x: Tensor) -> Tensor:
    x = x.detach().flatten(1).double()
    return x @ x.T


def pooled(tokens: Float[Tensor, "N T D"], mode: str, num_prefix: int = 1) -> Tensor:
    """Tokens by mode: "all" [N, T, D], "cls" the first [N, D], "spatial" the patches [N, S, D], "mean" of those [N, D].

    Raises:
        ValueError: another mode, or "cls" without a token before the patches.
    """
    expect_choice("mode", mode, ("all", "cls", "spatial", "mean"))
    expect(mode != "cls" or num_prefix > 0, "mode", "another than 'cls' without a class token", repr(mode))
    if mode == "all":
        return tokens
    if mode == "cls":
        return tokens[:, 0]
    patches = tokens[:, num_prefix:]
    return patches if mode == "spatial" else patches.mean(1)


def purity(cluster: Int[Tensor, " N"], label: Int[Tensor, " N"]) -> float:
    """Share of the samples that are of the most frequent class of their cluster."""
    expect(len(cluster) > 0 and cluster.shape == label.shape, "label", f"shape {tuple(cluster.shape)}, not empty",
           tuple(label.shape))  # fmt: skip
    _, c = cluster.unique(return_inverse=True)
    _, y = label.unique(return_inverse=True)
    table = torch.zeros(int(c.max()) + 1, int(y.max()) + 1).index_put_((c, y), torch.ones(len(c)), accumulate=True)
    return float(table.amax(1).sum()) / len(c)


def keypoint_transfer(
    source: Float[Tensor, "D h w"],
    target: Float[Tensor, "D y x"],
    points: Float[Tensor, "P 2"],
    truth: Float[Tensor, "P 2"],
    *,
    alpha: float = 0.1,
) -> float:
    """PCK: share of keypoints whose nearest patch of the other image, by cosine, lies close to where it should.

    Args:
        source, target: patch features of two images.
        points, truth: (x, y) of the same keypoints in both, in [0, 1] of the image's sides.
        alpha: how close, as a share of the image's side.

    Raises:
        ValueError: no keypoints, some outside the images, unequal numbers, or alpha not above 0.
    """
    expect_positive("alpha", alpha)
    for name, given in (("points", points), ("truth", truth)):
        fits = given.ndim == 2 and given.shape[1] == 2 and len(given) == len(points) > 0
        expect(fits, name, "one point (x, y) or more, equally many in both", tuple(given.shape))
        expect(bool(((given >= 0) & (given <= 1)).all()), name, "numbers in [0, 1]", "others")
    h, w = source.shape[1:]
    column, row = (points[:, 0] * w).long().clamp_max(w - 1), (points[:, 1] * h).long().clamp_max(h - 1)
    near = F.normalize(source[:, row, column], dim=0).T @ F.normalize(target.flatten(1), dim=0)
    height, width = target.shape[1:]
    at = near.argmax(1)
    found = torch.stack([(at % width + 0.5) / width, (at // width + 0.5) / height], 1)
    return float(((found - truth).norm(dim=1) <= alpha).double().mean())
