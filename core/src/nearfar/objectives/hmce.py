"""HMCE: contrast on every level of a hierarchy in one space, where a coarse level pays at least what finer ones do.

Legend: B batch, V views, D embedding, H levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nearfar.checks import expect
from nearfar.objectives._shared import as_views, stack
from nearfar.objectives.hmlc import path_ids
from nearfar.objectives.supcon import supcon


def hmce(z: Tensor | Sequence[Tensor], labels: Tensor, *, temperature: float | Tensor = 0.07) -> Tensor:
    """Supervised contrast from the finest level to the coarsest, among ever fewer samples.

    L = 1 / (H + 1) sum_l 2^(1/l) max(L_l, L_1, ..., L_(l-1)),  L_l = `supcon` with the l-th finest level as classes

    L_1 is over the whole batch; L_l over one sample of each class of the level before.

    Args:
        z: V tensors [B, D], or [V, B, D]; V >= 2.
        labels: integers [B, H], column 0 the coarsest; made to paths, see `path_ids`.
        temperature: t; a number, or a tensor [] that gets a gradient.

    Returns:
        The loss.

    Raises:
        ValueError: fewer than two views, labels that are not [B, H].

    Notes:
        The largest of losses of whole levels stands inside, so over several processes every one computes the loss of
        the gathered batch. Of a class the first sample of the batch stays. The divisor is that of the authors' code,
        whose finest label is the sample itself.

    Relations:
        With one level, `supcon` (as 2 / 2 = 1).

    Example:
        >>> import torch
        >>> from nearfar.objectives import hmce
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> round(float(hmce([z, z], torch.tensor([[0], [1]]), temperature=0.5)), 4)  # log(1 + 2 exp(-1/0.5))
        0.2395

    Source: Zhang, Xu, Xiong, Ramaiah, "Use All The Labels: A Hierarchical Multi-Label Contrastive Learning
    Framework", CVPR 2022.
    """
    flat, num_views = stack("z", as_views(z))
    views_VBD = flat.reshape(num_views, -1, flat.shape[1])
    num = views_VBD.shape[1]
    expect(labels.ndim == 2 and len(labels) == num, "labels", f"shape [{num}, H]", tuple(labels.shape))
    ids = path_ids(labels)
    levels, rows = ids.shape[1], torch.arange(num, device=ids.device)
    total, largest = flat.new_zeros(()), None
    for place in range(1, levels + 1):
        column = ids[rows, levels - place]
        loss = supcon(views_VBD[:, rows], column, temperature=temperature)
        largest = loss if largest is None else torch.maximum(largest, loss)
        total = total + 2 ** (1 / place) * largest
        rows = rows[_first(column)]
    return total / (levels + 1)


def _first(ids: Tensor) -> Tensor:
    """The first row of every id."""
    known, number = ids.unique(return_inverse=True)
    first = torch.full((len(known),), len(ids), device=ids.device)
    return first.scatter_reduce(0, number, torch.arange(len(ids), device=ids.device), "amin")
