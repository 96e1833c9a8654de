from __future__ import annotations

import collections
import random

import pytest
import torch

from nearfar.memory import Queue


@pytest.mark.parametrize("size", [1, 5, 8])
def test_random_pushes_equal_a_deque(size: int) -> None:
    draw = random.Random(size)
    queue = Queue(size, key=3, label=(0, torch.long), seen=(2, torch.bool))
    reference: collections.deque = collections.deque(maxlen=size)
    generator = torch.Generator().manual_seed(size)
    written = 0
    for _ in range(200):
        num = draw.choice([0, 1, 2, 3, size - 1, size, size + 1, 3 * size + 2])
        key = torch.randn(num, 3, generator=generator)
        label = torch.arange(written, written + num)
        queue.push(key=key, label=label, seen=key[:, :2] > 0)
        reference.extend(zip(label.tolist(), key.tolist(), strict=True))
        written += num
        assert len(queue) == len(reference)
        order = queue.view("label").argsort()
        assert queue.view("label")[order].tolist() == [i for i, _ in reference]
        assert queue.view("key")[order].tolist() == [k for _, k in reference]
        assert torch.equal(queue.view("seen"), queue.view("key")[:, :2] > 0)
        assert written == 0 or queue.view("label")[(int(queue.pointer) - 1) % size] == written - 1  # newest before it


def test_view_copies_nothing_and_has_no_gradient() -> None:
    queue = Queue(4, key=2)
    assert queue.view("key").shape == (0, 2)
    queue.push(key=torch.randn(3, 2, requires_grad=True))
    view = queue.view("key")
    assert view.data_ptr() == queue.key.data_ptr()
    assert view.shape == (3, 2)
    assert not view.requires_grad
    queue.push(key=torch.full((2, 2), 7.0))
    assert view[0].tolist() == [7.0, 7.0]


def test_a_push_before_the_backward_is_noticed() -> None:
    queue = Queue(4, key=2)
    queue.push(key=torch.randn(4, 2))
    anchor = torch.randn(3, 2, requires_grad=True)
    loss = (anchor @ queue.view("key").T).square().sum()
    queue.push(key=torch.randn(1, 2))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_state_dict_round_trip_goes_on_where_it_stopped() -> None:
    first = Queue(5, key=2, label=(0, torch.long))
    first.push(key=torch.randn(7, 2), label=torch.arange(7))
    second = Queue(5, key=2, label=(0, torch.long))
    assert set(first.state_dict()) == {"key", "label", "pointer", "filled"}
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    rows = {"key": torch.randn(4, 2), "label": torch.arange(7, 11)}
    for queue in (first, second):
        queue.push(**rows)
    assert len(second) == 5
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))
    second.clear()
    assert len(second) == 0
    assert second.view("key").shape == (0, 2)


def test_bad_input_is_named() -> None:
    queue = Queue(4, key=2, label=(0, torch.long))
    key, label = torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"queue fields: expected \['key', 'label'\], received \['key', 'lable'\]"):
        queue.push(key=key, lable=label)
    with pytest.raises(ValueError, match="queue fields"):
        queue.push(key=key)
    with pytest.raises(ValueError, match="queue fields"):
        queue.view("keys")
    with pytest.raises(ValueError, match=r"push label: expected shape \(3,\)"):
        queue.push(key=key, label=label[:2])
    with pytest.raises(ValueError, match=r"push key: expected shape \(3, 2\).*received \(3, 3\)"):
        queue.push(key=torch.zeros(3, 3), label=label)
    with pytest.raises(TypeError, match=r"push key: expected torch.float32, received torch.float16"):
        queue.push(key=key.half(), label=label)
    assert len(queue) == 0  # a refused push leaves nothing behind
    with pytest.raises(ValueError, match="size: expected 1 or more rows, received 0"):
        Queue(0, key=2)
    with pytest.raises(ValueError, match="fields: expected at least one"):
        Queue(3)
    for name in ("view", "pointer", "training", "_filled"):
        with pytest.raises(ValueError, match="names that a module does not use itself"):
            Queue(3, **{name: 2})
    with pytest.raises(ValueError, match="field 'key': expected a width of 0 or more"):
        Queue(3, key=-1)
