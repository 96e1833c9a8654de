"""Swapped prediction: every view predicts the balanced codes of other views of its image.

Legend: V views, B samples, K prototypes, A views that are assigned, L queued rows; b x K one block of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nearfar._similarity import accumulation
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_positive
from nearfar.prototypes._balance import Plan, rows_of, solve


def swapped_prediction(
    scores: Float[Tensor, "V B K"],
    *,
    num_assigned: int = 2,
    queue: Sequence[Tensor] = (),
    temperature: float = 0.1,
    eps: float = 0.05,
    num_iterations: int = 3,
    distributed: bool = False,
) -> Float[Tensor, ""]:
    """SwAV's loss: codes of the assigned views against the predictions of all other views, codes never stored.

    L = mean over assigned i and views v != i of -1/B sum_bk q_ibk log softmax_k(s_vbk / temperature)

    with q_i the codes that `sinkhorn` gives to view i.

    Args:
        scores: similarities to the prototypes [V, B, K], the assigned views first.
        num_assigned: A, from 1 to V.
        queue: for each assigned view scores [L, K] of former embeddings against the present prototypes; they share in
            the balance and get no loss. Empty: none.
        temperature: divides the scores of the predicting side only.
        eps, distributed: see `sinkhorn`; the mean stays one over this process's samples.
        num_iterations: of `sinkhorn`; 0 leaves the balance out, so that codes are softmax(scores / eps) and nothing
            keeps all samples from the same prototype.

    Returns:
        The loss, float32 (float64 for float64 scores). Gradients flow through predictions only, never through codes.

    Raises:
        ValueError: fewer than two views, num_assigned outside 1 to V, no sample, a queue for another number of views or
            of another width, and as `sinkhorn`.

    Notes:
        One visit of every block of rows makes its codes, the loss and the gradient, so that beside the scores only
        their gradient is kept, where autograd would keep A codes and V log-softmaxes. First derivatives only.

    Source: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020.
    """
    expect(scores.ndim == 3, "scores", "shape [V, B, K]", tuple(scores.shape))
    num_views, batch, width = scores.shape
    expect(num_views >= 2, "scores", "2 views or more", num_views)
    expect(batch >= 1, "scores", "1 sample or more", batch)
    expect(1 <= num_assigned <= num_views, "num_assigned", f"a number from 1 to {num_views}", num_assigned)
    expect(
        len(queue) in (0, num_assigned), "queue", f"none, or one for each of {num_assigned} assigned views", len(queue)
    )
    for rows in queue:
        expect(rows.ndim == 2 and rows.shape[1] == width, "queue", f"shape [L, {width}]", tuple(rows.shape))
    expect_positive("temperature", temperature)
    expect(num_iterations >= 0, "num_iterations", "0 or more", num_iterations)
    with no_autocast(scores.device), torch.no_grad():
        plans = []
        for view in range(num_assigned):
            parts = (queue[view].detach(), scores[view].detach()) if queue else (scores[view].detach(),)
            plan = solve(parts, eps, max(num_iterations, 1), None, None, "auto", distributed)
            price_K = plan.price_K if num_iterations else torch.zeros_like(plan.price_K)
            plans.append(Plan(price_K, plan.eps, plan.top))  # without the matrix, which would wait for the others
    return _Swapped.apply(scores, plans, temperature)


class _Swapped(torch.autograd.Function):
    """The loss, and its gradient while a block is at hand."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, plans: list[Plan], temperature: float) -> Tensor:
        num_views, batch = scores.shape[:2]
        dtype = accumulation(scores)
        factor = 1 / (batch * len(plans) * (num_views - 1))
        grad = torch.empty_like(scores) if ctx.needs_input_grad[0] else None
        total = scores.new_zeros((), dtype=dtype)
        size = rows_of(scores[0])
        with no_autocast(scores.device):
            for start in range(0, batch, size):
                rows = slice(start, start + size)
                codes = [plan.codes(scores[view, rows]) for view, plan in enumerate(plans)]
                every = sum(codes[1:], codes[0])
                for view in range(num_views):
                    assigned = view < len(codes)
                    count = len(codes) - assigned
                    if count == 0:  # the only assigned view predicts nothing
                        if grad is not None:
                            grad[view, rows] = 0
                        continue
                    target = every - codes[view] if assigned else every
                    logits = scores[view, rows].to(dtype) / temperature
                    share = logits.softmax(1)
                    norm = logits.amax(1) - share.amax(1).log()  # log sum exp, at the price of two maxima
                    total += count * norm.sum() - torch.linalg.vecdot(target, logits).sum()
                    if grad is not None:
                        part = share.mul_(count).sub_(target).mul_(factor / temperature)
                        grad[view, rows] = part.to(grad.dtype)
        if grad is not None:
            ctx.save_for_backward(grad)
        return total * factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grad_loss.to(grad.dtype), None, None
