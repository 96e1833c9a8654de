"""Collating, and functions that keep the rows of a batch together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distributed.launch import launch
from nearfar.batch import Batch, Pairs, Ragged, View, collate, gather, pin, size, split, take, to


@dataclass(frozen=True)
class Where:
    matrix: Tensor
    size: int


def sample(i: int, **fields: Any) -> dict[str, Any]:
    return {"index": i, "image": np.full((3, 4, 5), i, dtype=np.uint8), **fields}


def mixed(num: int, first: int = 0) -> Batch:
    """A batch with every kind of field; each row can be told from its index."""
    index = torch.arange(first, first + num)
    images = [torch.full((1, 2 + i % 3, 3), i, dtype=torch.uint8) for i in index.tolist()]
    where = Where(index.float()[:, None, None].expand(num, 2, 3).contiguous(), 8)
    return {
        "index": index,
        "image": Ragged.of(images),
        "tokens": Ragged.of([torch.full((1 + i % 4,), i) for i in index.tolist()]),
        "views": [View(index[:, None] * 10.0, where), View(index[:, None] * 20.0, role="local")],
        "name": [f"é{i}" for i in index.tolist()],
        "pairs": Pairs(torch.arange(num - 1), torch.arange(1, num), torch.arange(num - 1.0)),
        "places": Pairs(torch.tensor([[0, 7], [1, 8]]), torch.tensor([[1, 5], [0, 6]])),
        "crop": (3, 4),
        "extra": {"scale": 2.0, "nothing": None, "mask": index % 2 == 0},
    }


def check(batch: Batch, index: list[int]) -> None:
    """Every field but the pairs holds the rows of these indices."""
    assert batch["index"].tolist() == index
    for i, image in zip(index, batch["image"], strict=True):
        assert torch.equal(image, torch.full((1, 2 + i % 3, 3), i, dtype=torch.uint8))
    assert [item.tolist() for item in batch["tokens"]] == [[i] * (1 + i % 4) for i in index]
    assert batch["views"][0].data[:, 0].tolist() == [10.0 * i for i in index]
    assert batch["views"][0].geometry.matrix[:, 1, 2].tolist() == index
    assert (batch["views"][0].geometry.size, batch["views"][1].geometry, batch["views"][1].role) == (8, None, "local")
    assert batch["views"][1].data[:, 0].tolist() == [20.0 * i for i in index]
    assert batch["name"] == [f"é{i}" for i in index]
    assert batch["extra"]["mask"].tolist() == [i % 2 == 0 for i in index]
    assert (batch["extra"]["scale"], batch["extra"]["nothing"], batch["crop"]) == (2.0, None, (3, 4))


def test_collate_gives_each_type_its_tensor() -> None:
    batch = collate([
        sample(i, label=np.int32(i), target=0.5 * i, present=i > 0, note="ab"[i], depth=torch.tensor([i, 1]),
               tokens=np.arange(i + 1), xyz=np.full((2, 3), i, dtype=np.float64))
        for i in range(2)
    ])  # fmt: skip
    assert batch["index"].dtype == batch["label"].dtype == torch.int64
    assert batch["image"].shape == (2, 3, 4, 5)
    assert batch["image"].dtype == torch.uint8
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 1]
    assert batch["target"].dtype == torch.float32
    assert batch["target"].tolist() == [0.0, 0.5]
    assert batch["present"].dtype == torch.bool
    assert batch["present"].tolist() == [False, True]
    assert batch["note"] == ["a", "b"]
    assert batch["depth"].tolist() == [[0, 1], [1, 1]]
    assert batch["xyz"].dtype == torch.float64
    assert isinstance(batch["tokens"], Ragged)
    assert batch["tokens"].shapes is None
    assert batch["tokens"].values.tolist() == [0, 0, 1]
    assert batch["tokens"].offsets.tolist() == [0, 1, 3]


def test_collate_keeps_images_of_several_sizes_ragged() -> None:
    images = [np.random.default_rng(i).integers(0, 256, (3, 2 + i, 4), dtype=np.uint8) for i in range(3)]
    ragged = collate([{"index": i, "image": image} for i, image in enumerate(images)])["image"]
    assert isinstance(ragged, Ragged)
    assert ragged.shapes.tolist() == [[3, 2, 4], [3, 3, 4], [3, 4, 4]]
    for item, image in zip(ragged, images, strict=True):
        np.testing.assert_array_equal(item.numpy(), image)


def test_collate_takes_arrays_that_may_not_be_written_and_tensors_together() -> None:
    frozen = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    frozen.flags.writeable = False
    batch = collate([{"index": 0, "image": frozen}, {"index": 1, "image": torch.from_numpy(frozen.copy())}])
    batch["image"][0] += 1
    assert frozen[0, 0, 0] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((3, 4, 5), np.int8)}, r"sample 1 \(index 1\), field 'image': expected uint8 .* int8"),
        ({"image": np.zeros((4, 5), np.uint8)}, r"sample 1 .*'image': expected shape \[C, H, W\], received \(4, 5\)"),
        ({"image": np.zeros((1, 4, 5), np.uint8)}, "sample 1 .*'image': expected 3 channels as .*, received 1"),
        ({"label": 1.5}, "sample 1 .*'label': expected int as in sample 0, received float"),
        ({"label": "cat"}, "sample 1 .*'label': expected int as in sample 0, received str"),
        ({"x": torch.zeros(2, dtype=torch.float64)}, "sample 1 .*'x': expected float32 as .*received float64"),
        ({"x": torch.zeros(2, 1)}, r"sample 1 .*'x': expected 1 dimensions, received \(2, 1\)"),
        ({"more": 1}, r"sample 1 \(index 1\): field 'more' is not in sample 0"),
    ],
)  # fmt: skip
def test_collate_names_sample_field_and_fault(change: dict[str, Any], message: str) -> None:
    good = [sample(i, label=i, x=torch.zeros(2)) for i in range(3)]
    good[1].update(change)
    with pytest.raises(ValueError, match=message):
        collate(good)


def test_collate_refuses_what_no_batch_can_hold() -> None:
    with pytest.raises(ValueError, match="samples: expected at least one"):
        collate([])
    with pytest.raises(ValueError, match="sample 0: expected a field 'index'"):
        collate([{"image": 1}])
    with pytest.raises(ValueError, match=r"sample 1 \(index 1\): field 'label' is missing"):
        collate([sample(0, label=1), sample(1)])
    with pytest.raises(ValueError, match=r"sample 0 \(index 0\), field 'image': expected uint8, received int64"):
        collate([{"index": 0, "image": np.zeros((1, 2, 2), np.int64)}])
    with pytest.raises(TypeError, match=r"sample 0 \(index 0\), field 'box': expected a tensor.*received dict"):
        collate([sample(0, box={})])
    with pytest.raises(TypeError, match=r"field 'box': .*received ndarray"):
        collate([sample(0, box=np.array([object()]))])


@pytest.mark.parametrize("rows", [[4, 0, 2], [], [1], [0, 1, 2, 3, 4, 5]])
def test_take_keeps_rows_together(rows: list[int]) -> None:
    check(take(mixed(6), rows), rows)
    check(take(mixed(6), torch.tensor(rows, dtype=torch.int64)), rows)
    check(take(mixed(6), np.array(rows, dtype=np.int64)), rows)


def test_take_by_mask_and_with_repeats() -> None:
    check(take(mixed(5), torch.tensor([True, False, False, True, True])), [0, 3, 4])
    plain = {name: value for name, value in mixed(5).items() if name not in ("pairs", "places")}
    check(take(plain, [3, 3, 1]), [3, 3, 1])


def test_pairs_follow_their_samples() -> None:
    taken = take(mixed(6), [3, 2, 0, 1])
    # of the chain 0-1-2-3-4-5 those with both ends: 0-1, 1-2, 2-3; rows 3,2,0,1 now stand at 0,1,2,3
    assert taken["pairs"].first.tolist() == [2, 3, 1]
    assert taken["pairs"].second.tolist() == [3, 1, 0]
    assert taken["pairs"].weight.tolist() == [0.0, 1.0, 2.0]
    assert taken["places"].first.tolist() == [[2, 7], [3, 8]]
    assert taken["places"].second.tolist() == [[3, 5], [2, 6]]
    with pytest.raises(ValueError, match=r"rows of batch.pairs: expected no row twice"):
        take(mixed(6), [1, 1])


@pytest.mark.parametrize(("sizes", "expected"), [(4, [4, 4, 2]), (10, [10]), (99, [10]), ([3, 0, 7], [3, 0, 7])])
def test_split_cuts_and_shares_memory(sizes: Any, expected: list[int]) -> None:
    batch = mixed(10)
    parts = split(batch, sizes)
    assert [size(part) for part in parts] == expected
    start = 0
    for part, length in zip(parts, expected, strict=True):
        check(part, list(range(start, start + length)))
        assert len(part["pairs"]) == max(length - 1, 0)
        start += length
    batch["index"][0] = 99
    assert parts[0]["index"][0] == 99


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda b: take(b, [4]), ValueError, r"rows: expected numbers from 0 to 3, received \[4, 4\]"),
        (lambda b: take(b, [-1]), ValueError, "rows: expected numbers from 0 to 3"),
        (lambda b: take(b, np.array([0.5])), TypeError, "rows: expected integers"),
        (lambda b: take(b, torch.ones(3, dtype=torch.bool)), ValueError, r"rows: expected a mask of shape \[4\]"),
        (lambda b: split(b, 0), ValueError, "sizes: expected 1 or more, received 0"),
        (lambda b: split(b, [1, 2]), ValueError, r"sizes: expected parts that sum to 4, received \[1, 2\]"),
        (lambda b: split({**b, "x": object()}, 2), TypeError, "batch.x: expected a tensor.*received object"),
        (lambda b: take({**b, "x": [1, 2, 3, 4]}, [0]), TypeError, r"batch.x\[0\]: expected rows in a tensor"),
        (lambda b: take({**b, "x": torch.ones(5)}, [0]), ValueError, "batch.x: expected 4 rows, received 5"),
        (lambda b: take({**b, "x": torch.tensor(1.0)}, [0]), ValueError, "batch.x: expected 4 rows, received a scalar"),
        (lambda b: take({**b, "x": ["a"]}, [0]), ValueError, "batch.x: expected 4 rows, received 1"),
        (lambda b: take({**b, "v": [View(torch.ones(3, 2))]}, [0]), ValueError, r"batch.v\[0\].data: expected 4 rows"),
        (lambda b: to({"x": {1, 2}}, "cpu"), TypeError, "batch.x: expected a tensor.*received set"),
        (lambda b: size({"a": 3}), ValueError, "batch: expected a field with rows"),
    ],
)
def test_refuses_by_name(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call({"index": torch.arange(4)})


def test_size_to_and_pin() -> None:
    assert size({"x": torch.ones(3, 2)}) == 3
    assert size({"pairs": Pairs(torch.arange(2), torch.arange(2)), "name": ["a"]}) == 1
    meta = to(mixed(3), "meta")
    assert meta["views"][0].geometry.matrix.device.type == meta["image"].values.device.type == "meta"
    assert meta["pairs"].weight.device.type == meta["extra"]["mask"].device.type == "meta"
    assert list(meta) == list(mixed(3))
    check(to(mixed(3), "cpu"), [0, 1, 2])
    check(pin(mixed(3)), [0, 1, 2])


def test_ragged_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="items: expected at least one tensor"):
        Ragged.of([])
    with pytest.raises(ValueError, match=r"items\[1\]: expected torch.float32 as items\[0\], received torch.int64"):
        Ragged.of([torch.ones(1), torch.arange(2)])
    with pytest.raises(ValueError, match=r"items\[1\]: expected 1 dimensions, received 2"):
        Ragged.of([torch.ones(1), torch.ones(1, 2)])
    with pytest.raises(ValueError, match=r"items\[1\]: expected rows of shape \(3,\)"):
        Ragged.of([torch.ones(1, 3), torch.ones(1, 2)], rows=True)
    with pytest.raises(TypeError, match="offsets: expected integers"):
        Ragged(torch.ones(3), torch.ones(2))
    with pytest.raises(ValueError, match=r"shapes: expected shape \[1, k\]"):
        Ragged(torch.ones(3), torch.tensor([0, 3]), torch.tensor([[1, 2], [1, 1]]))
    ragged = Ragged.of([torch.ones(1, 3), torch.zeros(2, 3)], rows=True)
    assert ragged.values.shape == (3, 3)
    assert torch.equal(ragged[-1], torch.zeros(2, 3))
    with pytest.raises(IndexError, match="item: expected a number below 2, received 2"):
        ragged[2]


def test_pairs_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="second: expected 2 rows as in first, received 3"):
        Pairs(torch.arange(2), torch.arange(3))
    with pytest.raises(TypeError, match="first: expected integers"):
        Pairs(torch.ones(2), torch.arange(2))
    with pytest.raises(ValueError, match=r"weight: expected shape \[2\]"):
        Pairs(torch.arange(2), torch.arange(2), torch.ones(3))


def test_gather_is_nothing_in_one_process() -> None:
    batch = mixed(3)
    assert gather(batch) is batch


def _gathered(sizes: list[int]) -> list[list[Any]]:
    from nearfar import distributed

    rank = distributed.rank()
    batch = gather(mixed(sizes[rank], sum(sizes[:rank])))
    check(batch, list(range(sum(sizes))))
    return [batch["pairs"].first.tolist(), batch["pairs"].second.tolist(), batch["places"].second.tolist()]


def test_gather_over_uneven_processes() -> None:
    for first, second, places in launch(_gathered, 2, [2, 5]):
        assert first == [0, 2, 3, 4, 5]
        assert second == [1, 3, 4, 5, 6]
        assert places == [[1, 5], [0, 6], [3, 5], [2, 6]]
