"""The joint distribution of the factors: one table of probabilities, changed by a few verbs.

Axes of the table are those of `Factors.names`: background and ground of the scene, then shape, colour, size, texture
and, if it is a factor, place of a thing. A scene draws its ground from the margin, then its things from the table
given the ground. Shapes: B scenes, K things, S cells of the ground, C cells of a thing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.rng import Rng
from nearfar.worlds.factors import SCENE_FACTORS, Factors
from nearfar.worlds.tables import columns, columns_given, cumulative


@dataclass(frozen=True)
class Together:
    """In scenes with a thing that is `given`, one that is `also` occurs with probability `share`."""

    given: Mapping[str, str]
    also: Mapping[str, str]
    share: float


class Joint:
    """How often which combination occurs; uniform to begin with. Every verb returns a new one.

    Args:
        factors: their values; things of the ground's colour have probability 0.
        table: float64, probabilities with one axis a factor; by default all alike.
        counts: float64 [most + 1], probabilities of the number of things; by default all alike.
        rules: what occurs together.
        unique: factors in which no two things of a scene agree.

    >>> joint = Joint(Factors()).long_tail("shape", 100).hold_out(("colour", "shape"), [("red", "circle")])
    >>> joint.probability(colour="red", shape="circle")
    0.0
    """

    def __init__(
        self,
        factors: Factors,
        table: Tensor | None = None,
        counts: Tensor | None = None,
        rules: tuple[Together, ...] = (),
        unique: tuple[str, ...] = (),
    ) -> None:
        names = factors.names
        if table is None:
            same = torch.tensor([[b == c for c in names["colour"]] for b in names["background"]])
            shape = [len(values) if name in ("background", "colour") else 1 for name, values in names.items()]
            table = torch.ones([len(values) for values in names.values()], dtype=torch.float64) * ~same.view(shape)
        if counts is None:
            low, high = factors.num
            counts = torch.zeros(high + 1, dtype=torch.float64)
            counts[low:] = 1 / (high + 1 - low)
        expect(bool(table.sum() > 0), "joint", "a combination that can occur", "none")
        self.factors, self.table, self.counts = factors, table / table.sum(), counts
        self.rules, self.unique = rules, unique

    def _with(self, **changes: Any) -> Joint:
        parts = {name: getattr(self, name) for name in ("factors", "table", "counts", "rules", "unique")}
        return Joint(**{**parts, **changes})

    def weigh(self, factor: str, weights: Mapping[str, float] | Sequence[float]) -> Joint:
        """Sets the margin of a factor in proportion to the weights, others staying as they are given it.

        Args:
            factor: its name, or "num" for the number of things, whose values are "1", "2", ...
            weights: one a value, in their order, or by name; names that are left out get 1.
        """
        values = self._values(factor)
        if isinstance(weights, Mapping):
            for value in weights:
                expect_choice(f"weights of {factor}", value, values)
            weights = [weights.get(value, 1.0) for value in values]
        expect(len(weights) == len(values), f"weights of {factor}", f"{len(values)} numbers", len(weights))
        w = torch.tensor(list(weights), dtype=torch.float64)
        fine = bool(torch.isfinite(w).all() and (w >= 0).all() and w.sum() > 0)
        expect(fine, f"weights of {factor}", "finite numbers from 0, not all 0", w.tolist())
        if factor == "num":
            counts = torch.zeros_like(self.counts)
            counts[self.factors.num[0] :] = w / w.sum()
            return self._with(counts=counts)
        margin = self.marginal(factor)
        expect(bool((margin[w > 0] > 0).all()), f"weights of {factor}", "0 for what cannot occur", w.tolist())
        return self._with(table=self.table * self._along(factor, w / margin.clamp_min(1e-300)))

    def long_tail(self, factor: str, ratio: float) -> Joint:
        """A margin that falls geometrically in the order of the values, the first `ratio` times as often as the last.

        p_k = ratio^(-k / (K - 1)) up to a constant.
        """
        expect_positive("ratio", ratio)
        num = len(self._values(factor))
        return self.weigh(factor, [ratio ** (-k / max(num - 1, 1)) for k in range(num)])

    def correlate(self, factor: str, given: str, pairs: Mapping[str, str], strength: float) -> Joint:
        """P(factor = pairs[g] | given = g) = strength for every g in `pairs`; the margin of `given` stays.

        Raises:
            ValueError: a pair that cannot occur, or that is all that can occur while strength < 1.
        """
        expect(0 <= strength <= 1, "strength", "from 0 to 1", strength)
        expect(factor != given, "given", f"another factor than {factor!r}", repr(given))
        table = self.table.clone()
        for when, then in pairs.items():
            here = self._mask({given: when})
            hit = here & self._mask({factor: then})
            total, share = float(table[here].sum()), float(table[hit].sum())
            expect(
                total > 0 and (share > 0 or strength == 0) and (share < total or strength == 1),
                "pairs", "combinations that can occur beside others", f"{given} {when!r} with {factor} {then!r}",
            )  # fmt: skip
            rest = here & ~hit
            if share > 0:
                table[hit] *= strength * total / share
            if share < total:
                table[rest] *= (1 - strength) * total / (total - share)
        return self._with(table=table)

    def hold_out(self, of: Sequence[str], combinations: Iterable[Sequence[str]]) -> Joint:
        """Combinations of the factors `of` that never occur, e.g. of ("colour", "shape")."""
        return self._with(table=self.table * ~self._any(of, combinations))

    def only(self, of: Sequence[str], combinations: Iterable[Sequence[str]]) -> Joint:
        """Nothing but these combinations: the complement of `hold_out`, in the same proportions as before."""
        return self._with(table=self.table * self._any(of, combinations))

    def together(self, given: Mapping[str, str], also: Mapping[str, str], share: float) -> Joint:
        """Scenes with a thing that is `given` hold one that is `also` with probability `share`.

        A thing that is missing takes the place of another one, or comes in addition where there is no other, as long as
        the most things of a scene allow it. Things that must be missing are drawn again from all others. Scenes without
        a thing that is `given` are as chance has it.
        """
        expect(0 <= share <= 1, "share", "from 0 to 1", share)
        expect(self.factors.num[1] >= 2, "factors.num", "2 or more for things together", self.factors.num)
        for name, values in (("given", given), ("also", also)):
            for factor in values:
                self._thing_factor(factor)
            possible = float(self.table[self._mask(values)].sum()) > 0
            expect(len(values) > 0 and possible, name, "values that can occur", dict(values))
        both = self._mask(given) & self._mask(also)
        expect(not bool((self.table[both] > 0).any()), "also", "things that are not `given` too", dict(also))
        return self._with(rules=(*self.rules, Together(dict(given), dict(also), share)))

    def distinct(self, *of: str) -> Joint:
        """No two things of a scene agree in all of these factors, e.g. "colour", "shape"."""
        expect(len(of) > 0, "of", "at least one factor", of)
        num = 1
        for factor in of:
            self._thing_factor(factor)
            num *= len(self.factors.names[factor])
        expect(num >= self.factors.num[1], "of", f"{self.factors.num[1]} or more combinations", num)
        return self._with(unique=of)

    def probability(self, **values: str) -> float:
        """Of a thing, or of a ground, with these values."""
        return float(self.table[self._mask(values)].sum())

    def marginal(self, *of: str) -> Tensor:
        """float64, one axis a factor in the order given."""
        names = list(self.factors.names)
        for factor in of:
            expect_choice("factor", factor, names)
        rest = [i for i, name in enumerate(names) if name not in of]
        margin = self.table.sum(dim=rest) if rest else self.table
        kept = [name for name in names if name in of]
        return margin.permute([kept.index(factor) for factor in of])

    def draw(self, index: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Ids [B, K] of things and [B] of grounds by factor, and `present` bool [B, K]; K is the most things."""
        num_rows, most = len(index), self.factors.num[1]
        names = self.factors.names
        num_scene = math.prod(len(names[factor]) for factor in SCENE_FACTORS)
        table = self.table.reshape(num_scene, -1)
        u = rng.uniform(index, "worlds.num", 2)
        num = torch.searchsorted(cumulative(self.counts), u[:, 0].double(), right=True)
        ground = torch.searchsorted(cumulative(table.sum(dim=1)), u[:, 1].double(), right=True)
        u_BK = rng.uniform(index, "worlds.things", most).double()
        keys = self._keys() if self.unique else None
        if keys is None:
            cells = columns_given(table, ground[:, None].expand(-1, most), u_BK)
        else:
            cells = torch.empty((num_rows, most), dtype=torch.int64)
            weight = table[ground]
            for k in range(most):
                cells[:, k] = columns(weight, u_BK[:, k])
                weight = weight * (keys[None] != keys[cells[:, k]][:, None])
        present = torch.arange(most) < num[:, None]
        for number, rule in enumerate(self.rules):
            v = rng.uniform(index, f"worlds.together.{number}", most + 1).double()
            cells, present = self._apply(rule, table, ground, cells, present, v)
        sizes = {name: len(values) for name, values in names.items()}
        drawn = {"background": ground // sizes["ground"], "ground": ground % sizes["ground"], "present": present}
        for factor in reversed([name for name in names if name not in SCENE_FACTORS]):
            drawn[factor] = cells % sizes[factor]
            cells = cells // sizes[factor]
        return drawn

    def _apply(
        self, rule: Together, table: Tensor, ground: Tensor, cells: Tensor, present: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One rule: puts things in, or draws them again."""
        of_given, of_also = self._cells(rule.given), self._cells(rule.also)
        given, also = of_given[cells] & present, of_also[cells] & present
        wanted = v[:, 0] < rule.share
        most = cells.shape[1]
        # The first place without a given thing: another thing's if there is one, else the first empty one.
        order = torch.arange(most) + most * (~present).long()
        place = torch.where(given, 2 * most, order).argmin(dim=1)
        room = ~given[torch.arange(len(cells)), place]
        add = given.any(dim=1) & ~also.any(dim=1) & wanted & room
        add &= (table[ground] * of_also).sum(dim=1) > 0
        cells, present = cells.clone(), present.clone()
        rows = add.nonzero()[:, 0]
        if len(rows):
            slots = place[rows]
            free = self._free(cells[rows], present[rows], slots)
            cells[rows, slots] = columns(table[ground[rows]] * of_also * free, v[rows, 1])
            present[rows, slots] = True
        again = also & (given.any(dim=1) & ~wanted)[:, None]
        for k in range(most):
            rows = again[:, k].nonzero()[:, 0]
            if len(rows):
                free = self._free(cells[rows], present[rows], torch.full_like(rows, k))
                cells[rows, k] = columns(table[ground[rows]] * (~of_also & ~of_given) * free, v[rows, 1 + k])
        return cells, present

    def _cells(self, values: Mapping[str, str]) -> Tensor:
        """bool [C], the cells of a thing that have these values."""
        for factor in values:
            self._thing_factor(factor)
        return self._mask(values)[0, 0].reshape(-1)

    def _free(self, cells: Tensor, present: Tensor, slots: Tensor) -> Tensor:
        """bool [B, C]: what a slot may hold beside the other things, when things of a scene are distinct."""
        if not self.unique:
            return torch.ones((len(cells), 1), dtype=torch.bool)
        keys = self._keys()
        other = present.clone()
        other[torch.arange(len(cells)), slots] = False
        taken = torch.where(other, keys[cells], -1)
        return (keys[None, None] != taken[:, :, None]).all(dim=1)

    def _keys(self) -> Tensor:
        """int64 [C], equal where cells agree in the factors of `unique`."""
        key = torch.zeros_like(self.table, dtype=torch.int64)
        for factor in self.unique:
            num = len(self.factors.names[factor])
            key = key * num + self._along(factor, torch.arange(num))
        return key[0, 0].reshape(-1)

    def _values(self, factor: str) -> list[str]:
        if factor == "num":
            return [str(num) for num in range(self.factors.num[0], self.factors.num[1] + 1)]
        expect_choice("factor", factor, [*self.factors.names, "num"])
        return list(self.factors.names[factor])

    def _thing_factor(self, factor: str) -> None:
        expect_choice("factor of a thing", factor, [name for name in self.factors.names if name not in SCENE_FACTORS])

    def _along(self, factor: str, values: Tensor) -> Tensor:
        """Values of one factor, shaped to broadcast over the table."""
        return values.view([-1 if name == factor else 1 for name in self.factors.names])

    def _mask(self, values: Mapping[str, str]) -> Tensor:
        mask = torch.ones_like(self.table, dtype=torch.bool)
        for factor, value in values.items():
            number = self.factors.id(factor, value)
            mask &= self._along(factor, torch.arange(len(self.factors.names[factor])) == number)
        return mask

    def _any(self, of: Sequence[str], combinations: Iterable[Sequence[str]]) -> Tensor:
        mask = torch.zeros_like(self.table, dtype=torch.bool)
        for values in combinations:
            expect(len(values) == len(of), "combinations", f"one value of each of {tuple(of)}", values)
            mask |= self._mask(dict(zip(of, values, strict=True)))
        return mask
