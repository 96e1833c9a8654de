"""Sufficiency from samples: two critics, one of the view itself and one of its code, judged on held-out pairs.

Legend: N samples; D, E widths of the views, P of the code; B batch.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nearfar.analysis.sufficient_statistics import EstimatedSufficiency
from nearfar.checks import expect, expect_choice
from nearfar.evaluate import inputs
from nearfar.objectives import mutual_information

# critic -> (divergence, what its bound lacks of the f-information)
CRITICS = {
    "nwj": ("kl", 0.0),
    "info_nce": ("kl", 0.0),
    "donsker_varadhan": ("kl", 0.0),
    "chi_square": ("chi_square", 0.0),
    "jensen_shannon": ("jensen_shannon", math.log(4)),
    "hellinger": ("hellinger", 0.0),
}
CHECK_EVERY = 50
NEAR_CEILING = 0.9


class Critic(nn.Module):
    """Scores g(x) . h(y) + u(x) + v(y) of a product of two small networks, as vectors whose products they are."""

    def __init__(self, dim_x: int, dim_y: int, width: int, dim: int) -> None:
        super().__init__()
        self.x, self.y = (
            nn.Sequential(nn.Linear(d, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim + 1))
            for d in (dim_x, dim_y)
        )
        with torch.no_grad():
            for last in (self.x[-1], self.y[-1]):
                last.weight.mul_(0.1)  # type: ignore[union-attr]

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.x(x), self.y(y)
        one = torch.ones_like(a[:, :1])
        return torch.cat([a, one], 1), torch.cat([b[:, :-1], one, b[:, -1:]], 1)


def estimate_sufficiency(
    first: Float[Tensor, "N D"],
    second: Float[Tensor, "N E"],
    feature: Float[Tensor, "N P"],
    *,
    critic: str = "nwj",
    steps: int = 1000,
    batch_size: int = 256,
    width: int = 64,
    dim: int = 16,
    lr: float = 1e-3,
    seed: int = 0,
) -> EstimatedSufficiency:
    """Information that critics find between the views, less what they find between code and view.

    Suff ~ min_S R_phi(S(f(z1), z2)) - min_S R_phi(S(z1, z2))

    Args:
        first: z1 [N, D].
        second: z2 [N, E], row i the other view of row i.
        feature: f(z1) [N, P].
        critic: the bound of `nearfar.objectives.mutual_information` that both maximise.
        steps: gradient steps of each.
        batch_size: pairs of a step.
        width, dim: hidden units of a critic, and width of its product.
        lr: of Adam.
        seed: of split, critics and batches.

    Returns:
        An estimate. A fifth of the samples chooses the step at which each critic is judged, another fifth judges it.

    Raises:
        ValueError: fewer than 50 samples, rows that do not belong together, values that are not finite.

    Notes:
        Critics have equal shape and budget. What they fail to learn biases both figures downwards and the difference
        either way; "info_nce" cannot exceed the logarithm of the number of held-out samples.
    """
    expect_choice("critic", critic, CRITICS)
    expect(steps >= 1, "steps", "1 or more", steps)
    expect(batch_size >= 2, "batch_size", "2 or more", batch_size)
    views = [inputs.features(name, x).cpu().float() for name, x in
             (("first", first), ("second", second), ("feature", feature))]  # fmt: skip
    num = len(views[0])
    expect(num >= 50, "first", "50 or more samples", num)
    for name, view in zip(("second", "feature"), views[1:], strict=True):
        expect(len(view) == num, name, f"{num} rows, as first", len(view))
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(num, generator=generator).split([num - 2 * (num // 5), num // 5, num // 5])
    z1, z2, code = (_standardised(view, rows[0]) for view in views)
    divergence, lacking = CRITICS[critic]
    found = [
        lacking + _best(x, z2, rows, critic, steps, min(batch_size, len(rows[0])), width, dim, lr, seed)
        for x in (z1, code)
    ]
    return EstimatedSufficiency(
        critic=critic,
        divergence=divergence,
        information=found[0],
        kept=found[1],
        gap=found[0] - found[1],
        num_held_out=len(rows[2]),
        saturated=critic == "info_nce" and found[0] > NEAR_CEILING * math.log(len(rows[2])),
    )


def _standardised(view: Tensor, rows: Tensor) -> Tensor:
    std, mean = torch.std_mean(view[rows], 0, correction=0)
    return (view - mean) / torch.where(std > 0, std, 1.0)


def _best(
    x: Tensor, y: Tensor, rows: tuple[Tensor, ...], bound: str, steps: int, batch_size: int, width: int, dim: int,
    lr: float, seed: int,
) -> float:  # fmt: skip
    """The bound on the last rows, of the critic at the step that is best on the middle ones."""
    train, choose, judge = rows
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic = Critic(x.shape[1], y.shape[1], width, dim)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(critic.parameters(), lr=lr)

    def value(at: Tensor) -> float:
        with torch.no_grad():
            return -float(mutual_information(*critic(x[at], y[at]), bound=bound))

    best, judged = value(choose), value(judge)
    for step in range(1, steps + 1):
        at = train[torch.randperm(len(train), generator=generator)[:batch_size]]
        optimiser.zero_grad()
        mutual_information(*critic(x[at], y[at]), bound=bound).backward()
        optimiser.step()
        if (step % CHECK_EVERY == 0 or step == steps) and value(choose) > best:
            best, judged = value(choose), value(judge)
    return judged
