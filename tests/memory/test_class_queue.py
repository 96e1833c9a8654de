"""A ring for every class."""

from __future__ import annotations

import collections
import random

import pytest
import torch

from nearfar.contrast import contrast
from nearfar.memory import ClassQueue


@pytest.mark.parametrize("sizes", [[1, 1, 1], [4, 4, 4], [2, 7, 3]])
def test_random_pushes_equal_a_deque_a_class(sizes: list[int]) -> None:
    draw = random.Random(sum(sizes))
    queue = ClassQueue(3, sizes, key=2, id=(0, torch.long))
    reference = [collections.deque(maxlen=size) for size in sizes]
    generator = torch.Generator().manual_seed(0)
    written = 0
    for _ in range(150):
        num = draw.choice([0, 1, 2, 5, 11, 30])
        key, label = torch.randn(num, 2, generator=generator), torch.randint(0, 3, (num,), generator=generator)
        ids = torch.arange(written, written + num)
        queue.push(label, key=key, id=ids)
        written += num
        for c, i, k in zip(label.tolist(), ids.tolist(), key.tolist(), strict=True):
            reference[c].append((i, k))
        assert len(queue) == sum(map(len, reference)) == int(queue.filled.sum())
        for c, rows in enumerate(reference):
            order = queue.view("id", c).argsort()
            assert queue.view("id", c)[order].tolist() == [i for i, _ in rows]
            assert queue.view("key", c)[order].tolist() == [k for _, k in rows]
            if rows:  # the newest stands before the pointer
                assert queue.view("id", c)[(int(queue.pointer[c]) - 1) % sizes[c]] == rows[-1][0]
        stored = queue.labels() >= 0
        assert sorted(queue.flat("id")[stored].tolist()) == sorted(i for rows in reference for i, _ in rows)


@pytest.mark.oracle("gml_longtail", 5)
def test_layout_and_views_copy_nothing() -> None:
    queue = ClassQueue(3, [2, 3, 1], key=4)
    queue.push(torch.tensor([1, 0, 1]), key=torch.randn(3, 4, requires_grad=True))
    assert queue.labels().tolist() == [0, -1, 1, 1, -1, -1]
    assert queue.flat("key").data_ptr() == queue.key.data_ptr()
    assert queue.view("key", 1).data_ptr() == queue.key[2:].data_ptr()
    assert [queue.view("key", c).shape for c in range(3)] == [(1, 4), (2, 4), (0, 4)]
    assert not queue.view("key", 1).requires_grad
    queue.push(torch.tensor([1, 1]), key=torch.full((2, 4), 7.0))
    assert queue.view("key", 1)[[0, 2]].tolist() == [[7.0] * 4] * 2
    assert queue.labels().tolist() == [0, -1, 1, 1, 1, -1]


def test_labels_and_group_leave_empty_slots_out_of_a_contrast() -> None:
    queue = ClassQueue(3, 4, key=5)
    generator = torch.Generator().manual_seed(0)
    queue.push(torch.tensor([0, 1, 1, 2, 0]), key=torch.randn(5, 5, generator=generator))
    anchor, target = torch.randn(3, 5, generator=generator), torch.tensor([0, 2, 1])
    stored = queue.labels()
    group = torch.zeros_like(target), (stored < 0).long()
    loss = contrast(anchor, queue.flat("key"), labels=(target, stored), group=group)
    kept = stored >= 0
    assert torch.allclose(loss, contrast(anchor, queue.flat("key")[kept], labels=(target, stored[kept])))


def test_sample_takes_different_slots_of_every_class() -> None:
    queue = ClassQueue(4, [6, 5, 9, 5], id=(0, torch.long))
    queue.push(torch.tensor([0] * 6 + [1] * 2 + [2] * 7), id=torch.arange(15))
    seen = torch.zeros(7)
    for seed in range(300):
        slots = queue.sample(4, torch.Generator().manual_seed(seed))
        assert slots.shape == (4, 4)
        assert (slots >= 0).sum(1).tolist() == [4, 2, 4, 0]
        for c in range(3):
            taken = slots[c][slots[c] >= 0]
            assert taken.unique().numel() == taken.numel()
            assert (queue.labels()[taken] == c).all()
        seen += torch.bincount(queue.flat("id")[slots[2]] - 8, minlength=7)
    expected = 300 * 4 / 7
    assert ((seen - expected) ** 2 / expected).sum() < 22.5  # 6 degrees of freedom, p = 0.001
    assert torch.equal(
        queue.sample(4, torch.Generator().manual_seed(1)), queue.sample(4, torch.Generator().manual_seed(1))
    )


def test_draw_is_uniform_in_the_class_of_each_label() -> None:
    queue = ClassQueue(3, [4, 2, 3], id=(0, torch.long))
    queue.push(torch.tensor([0, 0, 0, 2]), id=torch.arange(4))
    label = torch.tensor([[0, 1, 2]]).expand(3000, 3)
    slots = queue.draw(label, torch.Generator().manual_seed(0))
    assert slots.shape == (3000, 3)
    assert (slots[:, 1] == -1).all()
    assert (queue.flat("id")[slots[:, 2]] == 3).all()
    counts = torch.bincount(slots[:, 0], minlength=9)
    assert counts[3:].sum() == 0
    assert ((counts[:3] - 1000) ** 2 / 1000).sum() < 13.8  # 2 degrees of freedom, p = 0.001


def test_state_dict_round_trip_goes_on_where_it_stopped() -> None:
    first, second = (ClassQueue(2, [3, 2], key=2, seen=(0, torch.bool)) for _ in range(2))
    rows = {"key": torch.randn(6, 2), "seen": torch.rand(6) > 0.5}
    first.push(torch.tensor([0, 1, 1, 0, 1, 0]), **rows)
    assert set(first.state_dict()) == {"key", "seen", "slots", "pointer", "filled"}
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    for queue in (first, second):
        queue.push(torch.tensor([1, 0, 0, 0, 0, 1]), **rows)
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))
    second.clear()
    assert len(second) == 0
    assert second.labels().tolist() == [-1] * 5
    assert second.view("key", 0).shape == (0, 2)


def test_bad_input_is_named() -> None:
    queue = ClassQueue(3, 4, key=2)
    key, label = torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match="label: expected values from 0 to 2, received 0 to 3"):
        queue.push(torch.tensor([0, 3, 1]), key=key)
    with pytest.raises(ValueError, match="label: expected values from 0 to 2, received -1 to 1"):
        queue.push(torch.tensor([0, -1, 1]), key=key)
    with pytest.raises(ValueError, match=r"label: expected shape \(3,\), received \(2,\)"):
        queue.push(label[:2], key=key)
    with pytest.raises(TypeError, match="label: expected integers, received torch.float32"):
        queue.push(label.float(), key=key)
    with pytest.raises(TypeError, match="push key: expected torch.float32, received torch.float64"):
        queue.push(label, key=key.double())
    with pytest.raises(ValueError, match=r"classqueue fields: expected \['key'\], received \['keys'\]"):
        queue.push(label, keys=key)
    with pytest.raises(ValueError, match="label: expected a class from 0 to 2, received 3"):
        queue.view("key", 3)
    with pytest.raises(ValueError, match="classqueue fields"):
        queue.flat("label")
    with pytest.raises(ValueError, match="num: expected a number from 1 to 4, received 5"):
        queue.sample(5)
    with pytest.raises(ValueError, match="label: expected values from 0 to 2, received 3 to 3"):
        queue.draw(torch.tensor([[3]]))
    assert len(queue) == 0  # a refused push leaves nothing behind
    with pytest.raises(ValueError, match="num_classes: expected 1 or more, received 0"):
        ClassQueue(0, 2, key=2)
    with pytest.raises(ValueError, match=r"size: expected 1 or more slots, or 2 such numbers, received \[3\]"):
        ClassQueue(2, [3], key=2)
    with pytest.raises(ValueError, match="size: expected 1 or more slots"):
        ClassQueue(2, 0, key=2)
    with pytest.raises(ValueError, match=r"state: slots: expected \[3, 5\], received \[4, 4\]"):
        ClassQueue(2, [3, 5], key=2).load_state_dict(ClassQueue(2, 4, key=2).state_dict())
    for name in ("label", "slots", "pointer", "filled", "draw", "fields", "_class"):
        with pytest.raises(ValueError, match="names that a module does not use itself"):
            ClassQueue(2, 3, **{name: 2})
