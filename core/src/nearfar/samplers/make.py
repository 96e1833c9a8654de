"""From a SamplerConfig to a sampler of a source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nearfar.checks import expect
from nearfar.config import SamplerConfig
from nearfar.samplers.balanced import Balanced
from nearfar.samplers.base import Sampler
from nearfar.samplers.classes import Hierarchical, PerClass
from nearfar.samplers.grouped import MixedGroups, SingleGroup
from nearfar.samplers.order import Shuffle
from nearfar.samplers.shards import Shards
from nearfar.samplers.unique import NoDuplicates, hash_keys

if TYPE_CHECKING:
    from nearfar.data import Source

COLUMNS = {
    "per-class": "label", "balanced": "label", "hierarchical": "path", "single-group": "group", "mixed-groups": "group",
    "no-duplicates": "key", "shards": "shard",
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
    from nearfar.data import column  # which reads batches by samplers itself

    kind = config.kind
    if kind == "shuffle":
        return Shuffle(len(source), batch_size, seed, drop_last)
    values = column(source, config.column or COLUMNS[kind])
    if values.dtype.kind in "OUS":  # texts stand for groups, or keys, that are equal
        values = (
            hash_keys(values.tolist())[:, 0] if kind == "no-duplicates" else np.unique(values, return_inverse=True)[1]
        )
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
    if kind == "single-group":
        return SingleGroup(
            values, batch_size, power=config.power, order=config.order, drop_last=drop_last, seed=seed
        )  # fmt: skip
    if kind == "mixed-groups":
        return MixedGroups(values, batch_size, power=config.power, length=config.length, seed=seed)
    if kind == "shards":
        return Shards(values, batch_size, lanes=config.lanes, window=config.window, seed=seed, drop_last=drop_last)
    return NoDuplicates(values, batch_size, seed=seed, drop_last=drop_last)
