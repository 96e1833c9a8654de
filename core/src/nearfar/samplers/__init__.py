"""Which samples stand in which batch: a pure function of seed and epoch, so that a resumed run repeats its batches.

    Shuffle, Sequential    every sample once
    PerClass, Hierarchical so many classes of so many samples, also along a path of levels
    Balanced, Weighted     samples drawn more or less often by class size or by a weight of their own
    SingleGroup            every batch from one group: a data set, a style, a bucket of lengths
    MixedGroups            every batch from all groups in fixed proportions
    Zipped                 every batch a stated number of each source, each at its own pace
    NoDuplicates           no two samples of a batch share a text, an image or another key
    Shards                 every sample once, from few shards at a time
    ByLength               every sample once, beside others of its length

All yield global batches of positions; where several sources stand one after another, `groups_of` numbers them.
"""

from nearfar.samplers.balanced import Balanced, Weighted
from nearfar.samplers.base import Sampler
from nearfar.samplers.classes import Hierarchical, PerClass
from nearfar.samplers.grouped import MixedGroups, SingleGroup, groups_of
from nearfar.samplers.lengths import ByLength
from nearfar.samplers.make import make_sampler
from nearfar.samplers.order import Sequential, Shuffle
from nearfar.samplers.shards import Shards
from nearfar.samplers.unique import NoDuplicates, hash_keys
from nearfar.samplers.zipped import Zipped

__all__ = [
    "Balanced", "ByLength", "Hierarchical", "MixedGroups", "NoDuplicates", "PerClass", "Sampler", "Sequential",
    "Shards", "Shuffle", "SingleGroup", "Weighted", "Zipped", "groups_of", "hash_keys", "make_sampler",
]  # fmt: skip
