"""Samplers from configs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nearfar.config import SamplerConfig
from nearfar.data import ArraySource, Concat
from nearfar.samplers import (
    Balanced,
    Hierarchical,
    MixedGroups,
    NoDuplicates,
    PerClass,
    Shuffle,
    SingleGroup,
    make_sampler,
)  # fmt: skip


class Columns(ArraySource):
    """Twelve samples of three classes with a path and a key."""

    def column(self, name: str) -> np.ndarray | None:
        labels = np.arange(12) % 3
        return {"path": np.stack([labels % 2, labels], 1), "key": np.arange(12) % 6, "style": labels}.get(name)


SOURCE = Columns(np.zeros((12, 1, 4, 4), np.uint8), np.arange(12) % 3)
BOTH = Concat([SOURCE, SOURCE])
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


def test_numbers_belong_to_the_hierarchy() -> None:
    for options in ({"nums": (2, 3)}, {"kind": "hierarchical"}):
        with pytest.raises(ValueError, match="sampler.nums: expected numbers exactly with kind 'hierarchical'"):
            SamplerConfig(**options)
