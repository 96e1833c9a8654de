"""A row for every sample."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from nearfar.memory import Bank


def test_random_writes_equal_one_row_at_a_time() -> None:
    generator = torch.Generator().manual_seed(0)
    bank = Bank(12, key=3, label=(0, torch.long))
    key, label, seen = torch.zeros(12, 3), torch.zeros(12, dtype=torch.long), set()
    for step in range(60):
        momentum, normalize = (0.0, 0.5, 0.9)[step % 3], step % 2 == 0
        index = torch.randint(0, 10, (int(torch.randint(0, 9, (), generator=generator)),), generator=generator)
        new, ids = torch.randn(len(index), 3, generator=generator), torch.arange(len(index)) + 10 * step
        bank.write(index, momentum=momentum, normalize=normalize, key=new, label=ids)
        last = {int(i): row for row, i in enumerate(index)}
        for i, row in last.items():
            mixed = momentum * key[i] + (1 - momentum) * new[row] if i in seen else new[row]
            key[i] = mixed / mixed.norm() if normalize else mixed
            label[i] = ids[row]
            seen.add(i)
        assert torch.allclose(bank.view("key"), key, atol=1e-6)
        assert torch.equal(bank.view("label"), label)
        assert bank.seen.nonzero().flatten().tolist() == sorted(seen)


@pytest.mark.oracle("interclr", 5)
def test_plain_replacement_stores_the_normalised_key_exactly() -> None:
    bank = Bank(5, key=8)
    key = F.normalize(torch.randn(3, 8), dim=1)
    bank.write(torch.tensor([4, 0, 2]), key=torch.randn(3, 8))
    bank.write(torch.tensor([4, 0, 2]), key=key)
    assert torch.equal(bank.read("key", torch.tensor([4, 0, 2])), key)


def test_view_copies_nothing_and_read_takes_any_shape() -> None:
    bank = Bank(6, key=2)
    bank.write(torch.tensor([1]), key=torch.ones(1, 2, requires_grad=True))
    assert bank.view("key").data_ptr() == bank.key.data_ptr()
    assert bank.view("key").shape == (6, 2)
    assert not bank.view("key").requires_grad
    index = torch.tensor([[1, 0], [5, 1]])
    assert torch.equal(bank.read("key", index), bank.key[index])


def test_snapshot_stays_and_state_dict_goes_on() -> None:
    bank, other = Bank(4, key=2), Bank(4, key=2)
    bank.write(torch.tensor([0, 3]), key=torch.ones(2, 2))
    then = bank.snapshot()
    other.load_state_dict(bank.state_dict())
    for one in (bank, other):
        one.write(torch.tensor([3, 1]), momentum=0.5, key=torch.full((2, 2), 3.0))
    assert all(torch.equal(a, b) for a, b in zip(bank.buffers(), other.buffers(), strict=True))
    assert bank.key.tolist() == [[1, 1], [3, 3], [0, 0], [2, 2]]
    assert then["key"].tolist() == [[1, 1], [0, 0], [0, 0], [1, 1]]
    assert then["seen"].tolist() == [True, False, False, True]
    bank.clear()
    assert not bank.seen.any()
    assert not bank.key.any()


def test_bad_input_is_named() -> None:
    bank = Bank(4, key=2)
    index, key = torch.tensor([0, 1]), torch.zeros(2, 2)
    with pytest.raises(ValueError, match="index: expected values from 0 to 3, received 1 to 4"):
        bank.write(torch.tensor([4, 1]), key=key)
    with pytest.raises(ValueError, match=r"index: expected shape \(2,\), received \(1,\)"):
        bank.write(index[:1], key=key)
    with pytest.raises(TypeError, match="index: expected integers, received torch.bool"):
        bank.write(index.bool(), key=key)
    with pytest.raises(ValueError, match=r"momentum: expected a number in \[0, 1\), received 1.0"):
        bank.write(index, momentum=1.0, key=key)
    with pytest.raises(ValueError, match=r"write key: expected shape \(2, 2\)"):
        bank.write(index, key=torch.zeros(2, 3))
    with pytest.raises(TypeError, match="write key: expected torch.float32"):
        bank.write(index, key=key.half())
    with pytest.raises(ValueError, match=r"bank fields: expected \['key'\]"):
        bank.write(index, keys=key)
    with pytest.raises(ValueError, match="index: expected values from 0 to 3, received -1 to 0"):
        bank.read("key", torch.tensor([[0], [-1]]))
    assert not bank.seen.any()
    with pytest.raises(ValueError, match="num_samples: expected 1 or more, received 0"):
        Bank(0, key=2)
    for name in ("index", "momentum", "normalize", "seen", "read"):
        with pytest.raises(ValueError, match="names that a module does not use itself"):
            Bank(3, **{name: 2})
