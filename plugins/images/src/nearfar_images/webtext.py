"""Texts around web images: smoothed over images that look alike, and used to choose images whose label is right.

anchors = choose_anchors(smooth_texts(text, visual), definition, label)
save_anchors("anchors.npz", index[anchors])

Legend: N images, C classes, E width of a text's embedding, F width of an image's feature.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nearfar.checks import expect
from nearfar.prototypes import k_reciprocal, neighbour_graph, smooth


@torch.no_grad()
def smooth_texts(
    text: Float[Tensor, "N E"], visual: Float[Tensor, "N F"], *, num_neighbours: int = 5, self_weight: float = 0.0,
    k1: int = 20, k2: int = 6, weight: float = 0.3,
) -> Float[Tensor, "N E"]:  # fmt: skip
    """Each image's text as the weighted mean of the texts of the images most like it.

    s'_i = (sum_j A_ij s_j / sum_j A_ij + w s_i) / (1 + w), with A_ij = 1 - d*(i, j) where either lists the other

    Args:
        text: embeddings of the texts; rows of zeros for missing ones.
        visual: features of the images, of any trained encoder.
        num_neighbours: images that each lists.
        self_weight: w; 0: neighbours alone.
        k1, k2, weight: of the re-ranking, see `nearfar.prototypes.k_reciprocal`.

    Source: Qin et al., "CAPro", NeurIPS 2023.
    """
    expect(len(text) == len(visual), "text", f"{len(visual)} rows, one an image", len(text))
    distance, index = k_reciprocal(visual, num=num_neighbours, k1=k1, k2=k2, weight=weight)
    return smooth(
        neighbour_graph((1 - distance).clamp(min=0), index, symmetric="either"), text, self_weight=self_weight
    )


@torch.no_grad()
def choose_anchors(
    text: Float[Tensor, "N E"], definition: Float[Tensor, "C E"], label: Int[Tensor, " N"], *, num_anchors: int = 50,
    k1: int = 20, k2: int = 6, weight: float = 0.3,
) -> Bool[Tensor, " N"]:  # fmt: skip
    """Of each class the images whose texts are nearest to its definition.

    Args:
        text: of the images, smoothed; rows of zeros are never chosen.
        definition: of the classes.
        label: classes as they came.
        num_anchors: of a class; fewer where it has fewer.
        k1, k2, weight: of the re-ranking, cut where a class has fewer images.

    Raises:
        ValueError: labels outside the classes.

    Source: Qin et al., "CAPro", NeurIPS 2023.
    """
    expect(len(label) == len(text), "label", f"{len(text)}, one a text", len(label))
    inside = bool(((label >= 0) & (label < len(definition))).all())
    expect(inside, "label", f"classes from 0 to {len(definition) - 1}", "others")
    expect(num_anchors >= 1, "num_anchors", "1 or more", num_anchors)
    chosen = torch.zeros(len(text), dtype=torch.bool, device=text.device)
    has_text = (text != 0).any(1)
    for c in range(len(definition)):
        member = ((label == c) & has_text).nonzero()[:, 0]
        if len(member) <= num_anchors:
            chosen[member] = True
            continue
        near = min(k1, len(member))
        _, order = k_reciprocal(definition[c : c + 1], text[member], num=num_anchors, k1=near, k2=min(k2, near + 1),
                                weight=weight)  # fmt: skip
        chosen[member[order[0]]] = True
    return chosen


def save_anchors(path: str | Path, index: Int[Tensor, " M"]) -> None:
    """Writes the indices of images in their source as `method.anchors` reads them."""
    np.savez(path, anchor=index.cpu().numpy())
