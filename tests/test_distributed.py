"""One process: everything is a no-op. Several processes: tests/distributed/test_gather.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nearfar import distributed
from nearfar.distributed import SyncBatchNorm, convert_sync_batch_norm


def test_one_process_costs_nothing() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    thing = object()
    assert (distributed.world(), distributed.rank(), distributed.is_main(), distributed.offset(7)) == (1, 0, True, 0)
    assert distributed.gather(x) is x
    quiet = distributed.gather(x, grad=False)
    assert quiet.data_ptr() == x.data_ptr()
    assert not quiet.requires_grad
    assert distributed.reduce_sum(x).data_ptr() == x.data_ptr()
    assert distributed.broadcast(thing) is thing
    assert distributed.gather_objects(thing) == [thing]
    assert distributed.shard(5) == slice(0, 5)
    distributed.barrier()


def test_gather_refuses_a_scalar() -> None:
    with pytest.raises(ValueError, match="x: expected a tensor with rows"):
        distributed.gather(torch.tensor(1.0))


def test_conversion_keeps_parameters_buffers_and_behaviour() -> None:
    net = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3, eps=1e-3), nn.Sequential(nn.BatchNorm1d(3).eval()))
    net.shared = net[1]
    before = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    keys = list(net.state_dict())
    x = torch.randn(4, 2, 5)
    expected = net(x)
    net.load_state_dict({k: v.clone() for k, v in net.state_dict().items()})
    assert convert_sync_batch_norm(net) is net
    assert isinstance(net[1], SyncBatchNorm)
    assert isinstance(net[2][0], SyncBatchNorm)
    assert net.shared is net[1]
    assert not net[2][0].training
    assert list(net.state_dict()) == keys
    after = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    assert all(after[name] is before[name] for name in before)
    assert torch.equal(net(x), expected)
    assert convert_sync_batch_norm(net)[1] is net[1]  # converting again changes nothing


def test_conversion_of_a_root_and_of_torchs_own() -> None:
    assert isinstance(convert_sync_batch_norm(nn.BatchNorm3d(2)), SyncBatchNorm)
    assert isinstance(convert_sync_batch_norm(nn.SyncBatchNorm(2)), SyncBatchNorm)
    assert isinstance(convert_sync_batch_norm(nn.LayerNorm(2)), nn.LayerNorm)


def test_conversion_refuses_a_batch_norm_with_its_own_forward() -> None:
    class Activated(nn.BatchNorm2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input).relu()

    with pytest.raises(TypeError, match=r"module\.0: expected a batch norm of torch itself.*Activated"):
        convert_sync_batch_norm(nn.Sequential(Activated(2)))
