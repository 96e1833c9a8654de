"""Which stored rows are the anchors themselves."""

from __future__ import annotations

import pytest
import torch

from nearfar.contrast import contrast
from nearfar.memory import Queue, others, own_rows


@pytest.mark.parametrize("num_stored", [0, 1, 7, 40])
def test_own_rows_equal_a_search(num_stored: int) -> None:
    generator = torch.Generator().manual_seed(num_stored)
    stored = torch.randperm(60, generator=generator)[:num_stored]
    anchor = torch.randint(0, 70, (50,), generator=generator)
    places = {int(i): row for row, i in enumerate(stored)}
    assert own_rows(anchor, stored).tolist() == [places.get(i, -1) for i in anchor.tolist()]
    assert others(anchor, stored).tolist() == [[i != s for s in stored.tolist()] for i in anchor.tolist()]


def test_own_and_mask_leave_the_same_rows_out_of_a_contrast() -> None:
    queue = Queue(12, key=4, id=(0, torch.long), label=(0, torch.long))
    queue.push(key=torch.randn(10, 4), id=torch.arange(10) * 3, label=torch.arange(10) % 3)
    anchor, index, label = torch.randn(5, 4), torch.tensor([3, 4, 27, 0, 50]), torch.tensor([0, 1, 2, 2, 1])
    bank, stored = queue.view("key"), (label, queue.view("label"))
    by_own = contrast(anchor, bank, labels=stored, own=own_rows(index, queue.view("id")))
    apart = others(index, queue.view("id"))
    positive = (label[:, None] == queue.view("label")) & apart
    assert torch.allclose(by_own, contrast(anchor, bank, positive=positive, denominator=apart))
    assert not torch.allclose(by_own, contrast(anchor, bank, labels=stored))


def test_an_id_stored_twice_is_refused() -> None:
    assert own_rows(torch.tensor([1]), torch.tensor([1, 2, 2])).tolist() == [0]
    with pytest.raises(ValueError, match=r"stored: expected ids that occur once \(or `others`\), received \[2\]"):
        own_rows(torch.tensor([1, 2]), torch.tensor([2, 1, 2]))
