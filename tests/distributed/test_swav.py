"""SwAV's queue over two processes: each balances its part of it, and the loss is that of one process."""

from __future__ import annotations

import pytest
import torch

from distributed.launch import launch


def steps() -> dict[str, torch.Tensor]:
    """Three batches of uneven parts with a queue that is full from the third on."""
    from images import vectors
    from nearfar import batch, distributed
    from nearfar.config import HeadConfig
    from nearfar.method import Progress
    from nearfar_images.systems.swav import SwAVConfig

    head = HeadConfig(layers=1, dim=6, norm="none")
    method = vectors.make(SwAVConfig(num_prototypes=4, head=head, code_queue=14), num_views=3)
    losses = []
    for step in range(3):
        raw = batch.take(vectors.batch(7, step=step), torch.arange(7)[distributed.shard(7)])
        progress = Progress(step, steps=3)
        z_VBD, targets, terms = vectors.forward(method, raw, progress)
        share = terms.total.detach() * len(raw["index"]) / 7
        losses.append(distributed.reduce_sum(share))
        with torch.no_grad():
            method.after_update({"embedding": z_VBD.transpose(0, 1).detach()}, targets, progress)
    return {"losses": torch.stack(losses), **method.former.state_dict()}


@pytest.mark.slow
def test_two_processes_equal_one() -> None:
    one = steps()
    assert int(one["filled"]) == 14
    for found in launch(steps, 2):
        for name, value in one.items():
            torch.testing.assert_close(found[name], value, msg=lambda m, n=name: f"{n}: {m}")
