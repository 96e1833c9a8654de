"""What a second forward pass needs to be the first one again: random states of all devices, autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nearfar import _replay
from nearfar.gradcache import GradCache


class Devices:
    """Two accelerators' generators, as torch.cuda has them."""

    def __init__(self) -> None:
        self.generators = [torch.Generator().manual_seed(k) for k in (1, 2)]

    def get_rng_state(self) -> Tensor:
        return self.generators[0].get_state()

    def set_rng_state(self, state: Tensor) -> None:
        self.generators[0].set_state(state)

    def get_rng_state_all(self) -> list[Tensor]:
        return [generator.get_state() for generator in self.generators]

    def set_rng_state_all(self, states: list[Tensor]) -> None:
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)

    def rand(self) -> list[float]:
        return [float(torch.rand(1, generator=generator)) for generator in self.generators]


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Devices:
    fake = Devices()
    monkeypatch.setattr(_replay, "_device_random", lambda: fake)
    return fake


def test_every_device_draws_again_what_it_drew(devices: Devices) -> None:
    state = _replay.random_state()
    first = torch.rand(3), devices.rand()
    _replay.restore_random_state(state)
    assert torch.equal(torch.rand(3), first[0])
    assert devices.rand() == first[1]


def test_draws_within_leave_no_trace(devices: Devices) -> None:
    state = _replay.random_state()
    after = torch.rand(2), devices.rand()
    _replay.restore_random_state(state)
    with _replay.same_random_state_after():
        torch.rand(5)
        devices.rand()
    assert torch.equal(torch.rand(2), after[0])
    assert devices.rand() == after[1]


def test_the_cache_replays_draws_of_all_devices(devices: Devices) -> None:
    """An encoder with masks from a device's generator: the second pass must draw them again, and go on after them."""
    weight = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))

    def encode(chunk: Tensor) -> Tensor:
        mask = torch.rand(len(chunk), 4, generator=devices.generators[1], dtype=torch.float64) < 0.5
        return (chunk * mask) @ weight

    x = torch.randn(10, 4, dtype=torch.float64)
    state = _replay.random_state()
    whole = torch.cat([encode(chunk) for chunk in x.split(4)])
    (whole @ whole.T).logsumexp(1).sum().backward()
    after, expected = devices.rand(), weight.grad
    _replay.restore_random_state(state)
    weight.grad = None
    cache = GradCache(encode)
    z = cache(x.split(4))
    cache.backward((z @ z.T).logsumexp(1).sum())
    torch.testing.assert_close(weight.grad, expected)
    assert devices.rand() == after


@pytest.mark.parametrize("outside", [False, True])
def test_autocast_is_what_it_was(outside: bool) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = _replay.autocast_state()
    layer, x = nn.Linear(3, 3), torch.randn(2, 3)
    with torch.autocast("cpu", dtype=torch.float16, enabled=outside), _replay.autocast_again(states):
        assert layer(x).dtype == torch.bfloat16
    plain = _replay.autocast_state()
    with torch.autocast("cpu", dtype=torch.bfloat16), _replay.autocast_again(plain):
        assert layer(x).dtype == torch.float32


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_dropout_on_a_gpu_is_replayed() -> None:
    encoder: Any = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.3), nn.Linear(16, 8)).cuda().double()
    x = torch.randn(20, 6, dtype=torch.float64, device="cuda")
    torch.manual_seed(5)
    whole = torch.cat([encoder(chunk) for chunk in x.split(6)])
    (whole @ whole.T).logsumexp(1).sum().backward()
    expected = [p.grad for p in encoder.parameters()]
    encoder.zero_grad()
    torch.manual_seed(5)
    cache = GradCache(encoder)
    z = cache(x.split(6))
    cache.backward((z @ z.T).logsumexp(1).sum())
    torch.testing.assert_close([p.grad for p in encoder.parameters()], expected)
