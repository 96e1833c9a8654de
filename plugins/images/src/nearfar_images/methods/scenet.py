"""Masked sub-spaces of one embedding, weighed by what the images themselves tell of the notion of similarity.

Legend: B pairs or triplets, N rows of all processes, V views, D embedding, M masks, H notions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.method import Progress, Terms, Views
from nearfar.methods import Frame
from nearfar.rng import Rng

if TYPE_CHECKING:
    from nearfar_images.systems.scenet import SCENetConfig

TINY = 1e-10


class Conditions(nn.Module):
    """M masks over the D features, and weights over them for two or three embeddings that are compared.

    v_c(x) = e relu(m_c) / (|e relu(m_c)| + 1e-10),  u(x) = sum_c w_c v_c(x)
    w = softmax of two linear layers on the normalised embeddings side by side; in pairs the mean of both orders

    Args:
        dim: D.
        num_conditions: M.
        form: "pair", or "triplet" in the order anchor, far, close.
        hidden: between the two layers.
        masks: how they start; "learnt": drawn from N(0.9, 0.7^2); "disjoint": 1 in a part of its own, 0.1 elsewhere.
    """

    def __init__(
        self, dim: int, num_conditions: int = 4, *, form: Literal["pair", "triplet"] = "pair", hidden: int = 32,
        masks: Literal["learnt", "disjoint"] = "learnt",
    ) -> None:  # fmt: skip
        super().__init__()
        expect(num_conditions >= 1, "num_conditions", "1 or more", num_conditions)
        expect(masks == "learnt" or num_conditions <= dim, "num_conditions", f"at most {dim}, one a feature, for "
               "disjoint masks", num_conditions)  # fmt: skip
        self.form = form
        if masks == "learnt":
            start = torch.empty(num_conditions, dim).normal_(0.9, 0.7)
        else:
            owner = torch.arange(dim) * num_conditions // dim
            start = torch.where(owner == torch.arange(num_conditions)[:, None], 1.0, 0.1)
        self.masks = nn.Parameter(start)
        sides = 2 if form == "pair" else 3
        self.branch = nn.Sequential(nn.Linear(sides * dim, hidden), nn.ReLU(), nn.Linear(hidden, num_conditions))

    def masked(self, e: Float[Tensor, "B D"]) -> Float[Tensor, "B M D"]:
        """v [B, M, D]; zero for a mask without a positive entry."""
        kept = e[:, None] * self.masks.relu()
        return kept / (torch.linalg.vector_norm(kept, dim=-1, keepdim=True) + TINY)

    def weights(self, *e: Float[Tensor, "B D"]) -> Float[Tensor, "B M"]:
        """w [B, M] of the embeddings compared: two of a pair in any order, three of a triplet in theirs."""
        expect(len(e) == (2 if self.form == "pair" else 3), "e", f"the embeddings of a {self.form}", f"{len(e)}")
        unit = [x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + TINY) for x in e]
        weights = self.branch(torch.cat(unit, -1)).softmax(-1)
        if self.form == "triplet":
            return weights
        return (weights + self.branch(torch.cat(unit[::-1], -1)).softmax(-1)) / 2

    def distance(
        self, first: Float[Tensor, "B D"], second: Float[Tensor, "B D"], weights: Float[Tensor, "B M"]
    ) -> Float[Tensor, " B"]:
        """|u(x) - u(y)| with weights of the comparison."""
        u = [(weights[..., None] * self.masked(e)).sum(1) for e in (first, second)]
        return torch.linalg.vector_norm(u[0] - u[1], dim=-1)

    def norm(self) -> Float[Tensor, ""]:
        """Mean L1 norm of the rectified masks."""
        return self.masks.relu().sum(1).mean()


class Triplets(NamedTuple):
    """Rows of anchors, of farther and of closer ones, and the notion by which they are, each int64 [B]."""

    anchor: Tensor
    far: Tensor
    close: Tensor
    notion: Tensor


def triplets(notions: Int[Tensor, "N H"], draws: Float[Tensor, "N 3"], own: Int[Tensor, " N"]) -> Triplets:
    """A triplet for every row: a notion, a row that agrees in it, and one that does not.

    Args:
        notions: ids of every row under each notion.
        draws: in [0, 1), for notion, farther and closer.
        own: sample of every row; a sample's other views are not drawn.

    Returns:
        Those that exist: a row whose value nobody shares, or everybody, has none.
    """
    num_notions = notions.shape[1]
    chosen = (draws[:, 0] * num_notions).long().clamp_max(num_notions - 1)
    values = notions[:, chosen].T  # [N, N]: of all rows, under the notion of each
    same = values == values.diagonal()[:, None]
    close, found_close = _pick(same & (own[:, None] != own), draws[:, 2])
    far, found_far = _pick(~same, draws[:, 1])
    rows = (found_close & found_far).nonzero().flatten()
    return Triplets(rows, far[rows], close[rows], chosen[rows])


def _pick(mask: Bool[Tensor, "N N"], draw: Float[Tensor, " N"]) -> tuple[Tensor, Tensor]:
    """One of the true columns of every row; and whether there is any."""
    count = mask.sum(1)
    number = torch.minimum((draw * count).long(), (count - 1).clamp_min(0))
    return (mask.cumsum(1) > number[:, None]).int().argmax(1), count > 0


class SCENet(Frame):
    """Triplets of a batch under notions that the network does not see, in masked sub-spaces that it weighs itself.

    L = mean max(0, d_close - d_far + margin) + norm_weight L_e + mask_weight L_m

    with L_e the mean over the three roles of the root mean squared length of embeddings, and L_m the mean L1 norm of
    the rectified masks. Notions and draws of all processes meet, so that several see the triplets of one.

    Args:
        config: masks, weights, margin.
        encoder: from a view to features.
        views: one random view is enough; every view is a row of its own.

    Source: Tan, Vasileva, Saenko, Plummer, "Learning Similarity Conditions Without Explicit Supervision", ICCV 2019.
    """

    config: SCENetConfig

    def __init__(self, config: SCENetConfig, encoder: nn.Module, views: Views) -> None:
        super().__init__(config, encoder, views)
        self.conditions: Conditions | None = None
        if config.conditions != "none":
            self.conditions = Conditions(
                self.head.dim, config.num_conditions, form=config.form, hidden=config.hidden, masks=config.masks
            )
            if config.conditions == "known":
                self.conditions.branch.requires_grad_(False)

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """The views, and the draws of every row's triplet, [B, 3 V]."""
        made = super().views(batch, rng)
        return made | {"draws": rng.uniform(batch["index"], "triplet", 3 * len(made["views"]))}

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """The three terms over the triplets of all processes' rows."""
        config, field = self.config, self.config.notions
        expect(field in batch, "method.notions", f"a field of the batch, among {', '.join(sorted(batch))}", repr(field))
        e_VND = self.everyone(z["embedding"].transpose(0, 1)).float()
        notions_NH = distributed.gather(batch[field], grad=False)
        draws = distributed.gather(batch["draws"], grad=False).unflatten(1, (len(e_VND), 3)).transpose(0, 1)
        views = len(e_VND)
        own = torch.arange(len(notions_NH), device=notions_NH.device).repeat(views)
        rows = triplets(notions_NH.repeat(views, 1), draws.flatten(0, 1), own)
        e = e_VND.flatten(0, 1)
        anchor, far, close = e[rows.anchor], e[rows.far], e[rows.close]
        num = max(len(anchor), 1)
        d_far, d_close = self.distances(anchor, far, close, notion=rows.notion)
        hinge = (d_close - d_far + config.margin).relu().sum() / num
        length = torch.stack([torch.linalg.vector_norm(x) / num**0.5 for x in (anchor, far, close)]).mean()
        terms = Terms().add("triplet", hinge, count=num).log(accuracy=(d_far > d_close).float().sum() / num)
        terms.add("norm", length, weight=config.norm_weight, count=num)
        if self.conditions is not None:
            expect(bool((self.conditions.masks > 0).any()), "masks", "a positive entry", "none: all distances are 0")
            terms.add("masks", self.conditions.norm(), weight=config.mask_weight, count=num)
        return terms

    def distances(
        self,
        anchor: Float[Tensor, "B D"],
        far: Float[Tensor, "B D"],
        close: Float[Tensor, "B D"],
        *,
        notion: Int[Tensor, " B"] | None = None,
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Distances of anchors to two candidates each, from embeddings.

        With form "triplet" the weights depend on the candidates' order; in judging hand them over in random order.

        Args:
            anchor, far, close: embeddings, as the head gives them.
            notion: by which they are compared; needed where conditions are known, and unused elsewhere.

        Raises:
            ValueError: unequal shapes, or a notion that is missing or has no mask.
        """
        for name, x in (("far", far), ("close", close)):
            expect(x.shape == anchor.shape, name, f"shape {tuple(anchor.shape)}", tuple(x.shape))
        if self.conditions is None:
            unit = [F.normalize(x, dim=-1) for x in (anchor, far, close)]
            return tuple(torch.linalg.vector_norm(unit[0] - x, dim=-1) for x in unit[1:])  # type: ignore[return-value]
        if self.config.conditions == "known":
            expect(notion is not None, "notion", "one a triplet, where conditions are known", "none")
            assert notion is not None  # the line above
            num = self.config.num_conditions
            expect(bool((notion < num).all()), "method.num_conditions", "one a notion or more", num)
            weights = [F.one_hot(notion, num).to(anchor.dtype)] * 2
        elif self.config.form == "triplet":
            weights = [self.conditions.weights(anchor, far, close)] * 2
        else:
            weights = [self.conditions.weights(anchor, far), self.conditions.weights(anchor, close)]
        d_far = self.conditions.distance(anchor, far, weights[0])
        return d_far, self.conditions.distance(anchor, close, weights[1])
