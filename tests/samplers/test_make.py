"""Samplers from configs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nearfar.config import SamplerConfig
from nearfar.data import ArraySource, Concat, Subset
from nearfar.samplers import (
    Balanced,
    Hierarchical,
    MixedGroups,
    NoDuplicates,
    PerClass,
    Shuffle,
    SingleGroup,
    Zipped,
    make_sampler,
)  # fmt: skip


class Columns(ArraySource):
    """Twelve samples of three classes with a path and a key."""

    def column(self, name: str) -> np.ndarray | None:
        labels = np.arange(12) % 3
        return {"path": np.stack([labels % 2, labels], 1), "key": np.arange(12) % 6, "style": labels}.get(name)


class Texts(ArraySource):
    """Twelve samples with a style that has a name."""

    def column(self, name: str) -> np.ndarray:
        return np.array(["s0", "s1"])[np.arange(12) % 2]


SOURCE = Columns(np.zeros((12, 1, 4, 4), np.uint8), np.arange(12) % 3)
BOTH = Concat([SOURCE, SOURCE])
NAMED = Concat({"a": SOURCE, "b": SOURCE})
GROUP = np.arange(24) // 12
KINDS: list[tuple[dict[str, Any], Any, Any]] = [
    ({}, SOURCE, Shuffle(12, 6, 1)),
    ({"kind": "per-class", "num_per_class": 2}, SOURCE, PerClass(np.arange(12) % 3, 3, 2, seed=1)),
    ({"kind": "per-class", "num_per_class": 2, "column": "style"}, SOURCE, PerClass(np.arange(12) % 3, 3, 2, seed=1)),
    (
        {"kind": "hierarchical", "nums": (2, 1, 3)}, SOURCE,
        Hierarchical(SOURCE.column("path"), (2, 1, 3), seed=1),
    ),
    (
        {"kind": "balanced", "balance": "progressive"}, SOURCE,
        Balanced(np.arange(12) % 3, 6, balance="progressive", num_epochs=4, seed=1),
    ),
    ({"kind": "single-group", "order": "interleave"}, BOTH,
     SingleGroup(np.arange(24) // 12, 6, order="interleave", seed=1)),
    ({"kind": "mixed-groups", "power": 0.5, "length": "longest"}, BOTH,
     MixedGroups(np.arange(24) // 12, 6, power=0.5, length="longest", seed=1)),
    ({"kind": "zipped", "shares": ("b=5", "a=1")}, NAMED, Zipped(GROUP, [1, 5], length="total", seed=1)),
    ({"kind": "zipped", "shares": ("0=2", "1=4"), "length": "1"}, BOTH, Zipped(GROUP, [2, 4], length=1, seed=1)),
    ({"kind": "zipped", "shares": ("b=3", "a=3"), "length": "b"}, Subset(NAMED, np.arange(4, 24)),
     Zipped(GROUP[4:], [3, 3], length=1, seed=1)),
    ({"kind": "single-group", "order": "interleave", "shares": ("b=2", "a=1")}, NAMED,
     SingleGroup(GROUP, 6, shares=[1, 2], order="interleave", seed=1)),
    ({"kind": "mixed-groups", "shares": ("b=2", "a=1"), "length": "a"}, NAMED,
     MixedGroups(GROUP, 6, shares=[1, 2], length=0, seed=1)),
    ({"kind": "mixed-groups", "shares": ("s0=1", "s1=1"), "column": "text"}, Texts(np.zeros((12, 1, 4, 4), np.uint8)),
     MixedGroups(np.arange(12) % 2, 6, shares=[1, 1], seed=1)),
    ({"kind": "no-duplicates"}, SOURCE, NoDuplicates(np.arange(12) % 6, 6, seed=1)),
]  # fmt: skip


@pytest.mark.parametrize(("options", "source", "expected"), KINDS, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_kinds(options: dict[str, Any], source: Any, expected: Any) -> None:
    found = make_sampler(SamplerConfig(**options), source, 6, seed=1, epochs=4)
    assert type(found) is type(expected)
    assert found.state_dict() == expected.state_dict()
    for epoch in (0, 1):
        batches = list(found.batches(epoch)), list(expected.batches(epoch))
        np.testing.assert_array_equal(np.concatenate(batches[0]), np.concatenate(batches[1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "per-class"}, "trainer.batch_size: expected a multiple of sampler.num_per_class 4, received 6"),
        ({"kind": "hierarchical", "nums": (2, 1, 2)}, "trainer.batch_size: expected 4, the product of sampler.nums"),
        ({"kind": "single-group"}, "sampler.column: expected a column of .*, received group"),
        ({"kind": "no-duplicates", "column": "text"}, "sampler.column: expected a column of .*, received text"),
    ],
)
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_sampler(SamplerConfig(**options), SOURCE, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": ("a=1",)}, "sampler.shares: expected a number for each of a, b, received a=1"),
        ({"shares": ("a=1", "c=5")}, "sampler.shares: expected a number for each of a, b, received a=1, c=5"),
        ({"shares": ("a=1", "b=4")}, "sampler.shares: expected whole numbers whose sum is trainer.batch_size 6"),
        ({"shares": ("a=1.5", "b=4.5")}, "sampler.shares: expected whole numbers whose sum is trainer.batch_size 6"),
        ({"shares": ("a=3", "b=3"), "length": "c"}, "length: expected one of 'total', .*'a', 'b', received 'c'"),
    ],
)
def test_names_and_numbers_must_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_sampler(SamplerConfig(kind="zipped", **options), NAMED, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "zipped"}, "sampler.shares: expected NAME=NUMBER of every source with kind 'zipped'"),
        ({"shares": ("a=1",)}, "sampler.kind with shares: expected one of 'single-group', 'mixed-groups', 'zipped'"),
        ({"kind": "zipped", "shares": ("a",)}, "sampler.shares: expected NAME=NUMBER .*, received a$"),
        ({"kind": "zipped", "shares": ("a=x",)}, "sampler.shares: expected NAME=NUMBER .*, received a=x"),
        ({"kind": "zipped", "shares": ("a=0",)}, "sampler.shares: expected NAME=NUMBER .*, received a=0"),
        ({"kind": "zipped", "shares": ("a=1", "a=2")}, "each name once, received a=2"),
        ({"kind": "mixed-groups", "shares": ("a=1",), "power": 0.5}, "sampler.power: expected 1 with sampler.shares"),
    ],
)
def test_shares_are_checked_before_any_data(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplerConfig(**options)


def test_numbers_belong_to_the_hierarchy() -> None:
    for options in ({"nums": (2, 3)}, {"kind": "hierarchical"}):
        with pytest.raises(ValueError, match="sampler.nums: expected numbers exactly with kind 'hierarchical'"):
            SamplerConfig(**options)
