"""Shards over two processes: together the batches of one, each process at its own shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from data.shardfiles import shards
from distributed.launch import launch


def read(root: str, kind: str, start: int) -> list[dict[str, Any]]:
    """This process's part of every batch of an epoch from `start`, and a sum over all processes after each."""
    from nearfar import distributed
    from nearfar.config import SamplerConfig
    from nearfar.data import Loader, TarShards, open_shards
    from nearfar.samplers import make_sampler

    torch.set_num_threads(1)
    source = open_shards(root, cache=f"{root}/cache")
    assert isinstance(source, TarShards)
    sampler = make_sampler(SamplerConfig(kind=kind, lanes=2, window=4), source, 6, seed=1, drop_last=False)
    loader = Loader(source, sampler, rank=distributed.rank(), world=distributed.world())
    batches = []
    for batch in loader.epoch(1, start=start):
        total = distributed.reduce_sum(torch.tensor(float(len(batch["index"]))))
        shard = source.column("shard")[batch["index"].numpy()]
        batches.append(
            {"index": batch["index"], "image": batch["image"], "shard": shard.tolist(), "total": float(total)}
        )
    return batches


@pytest.mark.slow
def test_two_processes_read_the_batches_of_one(tmp_path: Path) -> None:
    shards(tmp_path, (5, 1, 12, 3, 9, 7, 2))
    for kind, start in (("shards", 0), ("shuffle", 2)):
        one, two = read(str(tmp_path), kind, start), launch(read, 2, str(tmp_path), kind, start)
        assert len(one) == len(two[0]) == len(two[1]) == 7 - start
        for whole, *parts in zip(one, *two, strict=True):
            for name in ("index", "image"):
                assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])
            assert [part["total"] for part in parts] == [whole["total"]] * 2
        if kind == "shards" and not start:
            mine, other = ({shard for batch in part for shard in batch["shard"]} for part in two)
            assert len(mine & other) <= 1
            assert mine | other == set(range(7))
