from __future__ import annotations

import math

import pytest

from nearfar.config import OptimiserConfig
from nearfar.schedules import Schedule, scaled_lr


@pytest.mark.parametrize("warmup", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
def test_closed_form(shape: str, warmup: float) -> None:
    schedule = Schedule(OptimiserConfig(schedule=shape, warmup_epochs=warmup, final_lr=0.1), 100, 10)
    w = 10 * warmup
    for step in range(100):
        if step < w:
            expected = step / w
        else:
            t = (step - w) / (100 - w)
            expected = {"cosine": 0.55 + 0.45 * math.cos(math.pi * t), "linear": 1 - 0.9 * t, "constant": 1.0}[shape]
        assert schedule(step) == pytest.approx(expected, abs=1e-12)
    assert schedule(100) == schedule(500) == pytest.approx(1.0 if shape == "constant" else 0.1)


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
def test_held_at_the_peak_before_it_falls(shape: str) -> None:
    options = {"schedule": shape, "warmup_epochs": 1.0, "final_lr": 0.2}
    held = Schedule(OptimiserConfig(hold=0.5, **options), 110, 10)
    plain = Schedule(OptimiserConfig(**options), 60, 10)
    for step in range(60):
        assert held(step) == pytest.approx(min(step / 10, 1.0))
    for step in range(60, 120):  # from here on the whole fall, in half of the steps
        assert held(step) == pytest.approx(plain(step - 50))
    with pytest.raises(ValueError, match=r"optimiser.hold: expected a share in \[0, 1\), received 1"):
        OptimiserConfig(hold=1.0)


def test_a_run_shorter_than_its_warmup_only_warms_up() -> None:
    schedule = Schedule(OptimiserConfig(warmup_epochs=10.0), 5, 2)
    assert [schedule(step) for step in range(6)] == [step / 20 for step in range(6)]
    exact = Schedule(OptimiserConfig(warmup_epochs=1.0), 5, 5)
    assert exact(4) == 0.8
    assert exact(5) == 0.0


def test_scaled_lr() -> None:
    for scaling, factor in (("none", 1.0), ("linear", 4.0), ("sqrt", 2.0)):
        assert scaled_lr(OptimiserConfig(lr=0.3, lr_scaling=scaling), 1024) == pytest.approx(0.3 * factor)


def test_bad_input_is_named() -> None:
    config = OptimiserConfig()
    with pytest.raises(ValueError, match="steps: expected 1 or more, received 0"):
        Schedule(config, 0, 1)
    with pytest.raises(ValueError, match="steps_per_epoch"):
        Schedule(config, 1, 0)
    with pytest.raises(ValueError, match="step: expected 0 or more"):
        Schedule(config, 1, 1)(-1)
    with pytest.raises(ValueError, match="batch_size"):
        scaled_lr(config, 0)
