"""From a SamplerConfig to a sampler of a source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from nearfar.checks import expect, expect_choice
from nearfar.config import SamplerConfig
from nearfar.config.inputs import GROUPED, parse_shares
from nearfar.samplers.balanced import Balanced
from nearfar.samplers.base import Sampler
from nearfar.samplers.classes import Hierarchical, PerClass
from nearfar.samplers.grouped import Length, MixedGroups, SingleGroup
from nearfar.samplers.lengths import ByLength
from nearfar.samplers.order import Shuffle
from nearfar.samplers.shards import Shards
from nearfar.samplers.unique import NoDuplicates, hash_keys
from nearfar.samplers.zipped import Zipped

if TYPE_CHECKING:
    from nearfar.data import Source

COLUMNS = {
    "per-class": "label", "balanced": "label", "hierarchical": "path", "single-group": "group", "mixed-groups": "group",
    "zipped": "group", "no-duplicates": "key", "shards": "shard",
    "by-length": "length",
}  # fmt: skip


def make_sampler(
    config: SamplerConfig, source: Source, batch_size: int, *, seed: int = 0, drop_last: bool = True, epochs: int = 1
) -> Sampler:
    """The sampler that a config describes.

    Args:
        config: kind and options.
        source: whose column of labels, paths, groups or keys it reads, without reading samples.
        batch_size: samples of a batch over all processes.
        seed: 0 or more.
        drop_last: of the kinds that show every sample once.
        epochs: of the whole run, over which "progressive" moves.

    Raises:
        ValueError: the source has no such column; numbers that do not make up the batch size.
    """
    from nearfar.data import column, whole  # which read batches by samplers themselves

    kind = config.kind
    if kind == "shuffle":
        return Shuffle(len(source), batch_size, seed, drop_last)
    name = config.column or COLUMNS[kind]
    values = column(source, name)
    named: tuple[str, ...] = getattr(whole(source), "names", ()) if name == "group" else ()
    if values.dtype.kind in "OUS":  # texts stand for groups, or keys, that are equal
        if kind == "no-duplicates":
            values = hash_keys(values.tolist())[:, 0]
        else:
            texts, values = np.unique(values, return_inverse=True)
            named = tuple(map(str, texts))
    if kind == "per-class":
        per_class = config.num_per_class
        expect(batch_size % per_class == 0, "trainer.batch_size", f"a multiple of sampler.num_per_class {per_class}",
               batch_size)  # fmt: skip
        return PerClass(values, batch_size // per_class, per_class, seed=seed)
    if kind == "hierarchical":
        found = Hierarchical(values, config.nums, seed=seed)
        expect(found.batch_size == batch_size, "trainer.batch_size", f"{found.batch_size}, the product of sampler.nums",
               batch_size)  # fmt: skip
        return found
    if kind == "balanced":
        return Balanced(values, batch_size, balance=config.balance, beta=config.beta, num_epochs=epochs, seed=seed)
    if kind in GROUPED:
        return _grouped(config, values, named, batch_size, seed=seed, drop_last=drop_last)
    if kind == "shards":
        return Shards(values, batch_size, lanes=config.lanes, window=config.window, seed=seed, drop_last=drop_last)
    if kind == "by-length":
        return ByLength(values, batch_size, window=config.window, budget=config.budget, seed=seed, drop_last=drop_last)
    return NoDuplicates(values, batch_size, seed=seed, drop_last=drop_last)


def _grouped(
    config: SamplerConfig, values: np.ndarray, named: tuple[str, ...], batch_size: int, *, seed: int, drop_last: bool
) -> Sampler:
    """A sampler of groups whose shares and length may name them."""
    ids = np.unique(values[values >= 0]).tolist()
    names = [named[i] if i < len(named) else str(i) for i in ids]
    numbers: list[float] | None = None
    if config.shares:
        found = parse_shares(config.shares)
        expect(sorted(found) == sorted(names), "sampler.shares", f"a number for each of {', '.join(names)}",
               ", ".join(config.shares))  # fmt: skip
        numbers = [found[name] for name in names]
    if config.kind == "single-group":
        return SingleGroup(
            values, batch_size, shares=numbers, power=config.power, order=config.order, drop_last=drop_last, seed=seed
        )
    length: Any = config.length
    if length not in get_args(Length):
        expect_choice("sampler.length", length, [*get_args(Length), *names])
        length = ids[names.index(length)]
    if config.kind == "mixed-groups":
        return MixedGroups(values, batch_size, shares=numbers, power=config.power, length=length, seed=seed)
    nums = [int(number) for number in numbers or ()]
    whole = nums == numbers and sum(nums) == batch_size
    expect(whole, "sampler.shares", f"whole numbers whose sum is trainer.batch_size {batch_size}", config.shares)
    return Zipped(values, nums, length=length, seed=seed)
