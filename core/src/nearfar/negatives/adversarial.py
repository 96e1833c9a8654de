"""Negatives that climb a loss: vectors, noise to begin with, that become as hard as a few steps make them.

Legend: M negatives, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nearfar.checks import expect


def adversarial_negatives(
    loss: Callable[[Tensor], Tensor], start: Tensor, *, num_steps: int = 4, step_size: float = 1e-3
) -> Tensor:
    """Vectors after some steps of normalised gradient ascent of a loss.

    n_m <- n_m + b g_m / |g_m|,  g_m = dL / dn_m

    Args:
        loss: from negatives [M, D] to a scalar L; what else it reads stays as it is and gets no gradient, since only
            the derivative in the negatives is taken.
        start: [M, D], e.g. draws of a normal distribution; not changed.
        num_steps: of all negatives at once; 0 gives them back as they came.
        step_size: b, the length of each vector's step.

    Returns:
        [M, D] without gradient. A vector whose gradient is 0 or not finite stays where it is.

    Raises:
        ValueError: another shape; a number of steps below 0; a step size that is no finite number above 0; a loss that
            does not depend on the negatives.

    Notes:
        A forward and a backward of the loss a step; first derivatives only. No vector moves further than num_steps b.
        Where the loss sees directions alone, as with cosines, a step is orthogonal to its vector, which gets longer.

    Example:
        >>> import torch
        >>> adversarial_negatives(lambda n: n[:, 0].sum(), torch.zeros(1, 2), num_steps=3, step_size=0.5).tolist()
        [[1.5, 0.0]]

    Source: Zhou, Zhang, Zhao, Wen, "Debiased Contrastive Learning of Unsupervised Sentence Representations", ACL 2022.
    """
    expect(start.ndim == 2 and start.is_floating_point(), "start", "floating point [M, D]", tuple(start.shape))
    expect(num_steps >= 0, "num_steps", "0 or more", num_steps)
    expect(math.isfinite(step_size) and step_size > 0, "step_size", "a finite number > 0", step_size)
    found = start.detach().clone()
    if len(found) == 0:
        return found
    for _ in range(num_steps):
        with torch.enable_grad():
            at = found.requires_grad_()
            value = loss(at)
            expect(value.ndim == 0 and value.requires_grad, "loss", "a scalar that depends on the negatives", value)
            (slope,) = torch.autograd.grad(value, at)
        norm = torch.linalg.vector_norm(slope, dim=1, keepdim=True)
        moves = torch.isfinite(norm) & (norm > 0)
        step = torch.where(moves, slope / torch.where(moves, norm, 1.0), 0.0)
        found = at.detach() + step_size * step
    return found.detach()
