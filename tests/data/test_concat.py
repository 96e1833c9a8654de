"""Several sources as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.pictures import write
from nearfar.batch import Ragged, by_source, collate, size, split, take
from nearfar.data import ArraySource, BadSample, Concat, Fault, ImageFolder, Loader, Source, Subset, column, labelled
from nearfar.samplers import Sequential

RNG = np.random.default_rng(0)
FIRST = ArraySource(RNG.integers(0, 256, (5, 3, 4, 4), dtype=np.uint8), np.arange(5) % 2, name="first")
SECOND = ArraySource(RNG.integers(0, 256, (3, 3, 4, 4), dtype=np.uint8), np.array([2, 0, 2]), name="second")
BARE = ArraySource(RNG.integers(0, 256, (2, 3, 6, 6), dtype=np.uint8), name="bare")


def test_samples_stand_one_after_another() -> None:
    both = Concat([FIRST, SECOND])
    assert isinstance(both, Source)
    assert (len(both), both.num_classes, both.shape, both.name) == (8, 3, (3, 4, 4), "first + second")
    assert both.labels is not None
    assert both.labels.tolist() == [0, 1, 0, 1, 0, 2, 0, 2]
    for i in range(8):
        own = FIRST[i] if i < 5 else SECOND[i - 5]
        sample = both[i]
        np.testing.assert_array_equal(sample["image"], own["image"])
        assert (sample["index"], sample["group"], sample["label"]) == (i, int(i >= 5), own["label"])
    assert both.path(6) == SECOND.path(1)
    assert both.fingerprint() != Concat([SECOND, FIRST]).fingerprint()


def test_columns() -> None:
    both = Concat([FIRST, SECOND])
    assert column(both, "group").tolist() == [0] * 5 + [1] * 3
    assert column(Subset(both, np.array([6, 0])), "group").tolist() == [1, 0]
    assert column(Subset(both, np.array([7, 0])), "label").tolist() == [2, 0]
    with pytest.raises(ValueError, match=r"sampler.column: expected a column of first, received path"):
        column(both, "path")
    assert column(Concat([both, FIRST]), "group").tolist() == [0] * 8 + [1] * 5


def test_samples_without_a_label_are_no_class() -> None:
    mixed = Concat([BARE, FIRST])
    assert mixed.labels is not None
    assert mixed.labels.tolist() == [-1, -2, 0, 1, 0, 1, 0]
    assert mixed.num_classes == 2
    assert [mixed[i]["label"] for i in range(7)] == mixed.labels.tolist()
    assert [mixed[i]["present.label"] for i in range(7)] == [False] * 2 + [True] * 5
    assert mixed.shape == ()
    assert Concat([BARE, BARE]).labels is None
    assert "label" not in Concat([BARE, BARE])[0]
    some = labelled(mixed)
    assert isinstance(some, Subset)
    assert some.positions.tolist() == [2, 3, 4, 5, 6]
    assert labelled(FIRST) is FIRST
    assert labelled(BARE) is BARE
    assert Concat([Concat([FIRST, BARE]), BARE]).labels.tolist() == [0, 1, 0, 1, 0, -6, -7, -8, -9]  # type: ignore


class Texts:
    """Sentences without pictures, of which the first cannot be read; some have a score."""

    name, num_classes, class_names, shape, labels = "texts", 0, (), (), None

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> dict[str, Any]:
        if i == 0:
            raise BadSample(Fault(0, "texts[0]", "empty"))
        more = {"score": 0.5 * i, "flag": True, "tokens": torch.arange(3), "boxes": np.ones((i, 4), np.float32)}
        return {"index": i, "text": f"no {i}", "present.score": i > 1, **more}

    def path(self, i: int) -> str:
        return f"texts[{i}]"

    def fingerprint(self) -> str:
        return "texts"


def test_fields_that_a_source_lacks_are_filled_and_marked() -> None:
    both = Concat({"pictures": FIRST, "texts": Texts()})
    assert (both.names, both.name, both.shape) == (("pictures", "texts"), "pictures + texts", (3, 4, 4))
    batch = collate([both[i] for i in (1, 6, 7, 0)])
    assert batch["sources"] == ("pictures", "texts")
    assert batch["group"].tolist() == [0, 1, 1, 0]
    assert batch["image"].shape == (4, 3, 4, 4)
    assert batch["image"][1:3].sum() == 0
    assert torch.equal(batch["image"][0], torch.from_numpy(FIRST[1]["image"]))
    assert batch["label"].tolist() == [1, -7, -8, 0]
    assert batch["text"] == ["", "no 1", "no 2", ""]
    assert batch["score"].tolist() == [0.0, 0.5, 1.0, 0.0]
    assert batch["flag"].tolist() == [False, True, True, False]
    assert batch["tokens"].tolist() == [[0, 0, 0], [0, 1, 2], [0, 1, 2], [0, 0, 0]]
    assert batch["present.image"].tolist() == batch["present.label"].tolist() == [True, False, False, True]
    assert batch["present.text"].tolist() == batch["present.tokens"].tolist() == [False, True, True, False]
    assert batch["present.score"].tolist() == [False, False, True, False]  # what a source says itself is kept
    assert isinstance(batch["boxes"], Ragged)


def test_a_batch_comes_apart_by_source() -> None:
    both = Concat({"pictures": FIRST, "texts": Texts()})
    parts = by_source(collate([both[i] for i in (1, 6, 7, 0)]))
    assert list(parts) == ["pictures", "texts"]
    pictures, texts = parts["pictures"], parts["texts"]
    assert set(pictures) == {"index", "group", "sources", "image", "label"}
    plain = {"index", "group", "sources", "text", "score", "present.score", "flag", "tokens", "boxes"}
    assert set(texts) == plain
    assert pictures["index"].tolist() == [1, 0]
    assert pictures["label"].tolist() == [1, 0]
    assert texts["index"].tolist() == [6, 7]
    assert texts["boxes"][1].shape == (2, 4)
    assert texts["present.score"].tolist() == [False, True]


def test_a_part_without_rows_is_there_with_all_its_fields() -> None:
    both = Concat({"labelled": FIRST, "bare": Texts()})
    batch = collate([both[6], both[7]])
    for one in (batch, take(batch, [])):
        part = by_source(one)["labelled"]
        assert size(part) == 0
        assert part["image"].shape == (0, 3, 4, 4)
        assert part["label"].dtype == torch.int64
    halves = split(collate([both[0], both[6]]), 1)
    assert [list(by_source(half)) for half in halves] == [["labelled", "bare"]] * 2
    with pytest.raises(ValueError, match="batch: expected fields group and sources, as Concat gives"):
        by_source({"index": torch.arange(2)})


def test_label_maps_and_pictures_of_several_sizes() -> None:
    class Maps(Texts):
        def __getitem__(self, i: int) -> dict[str, Any]:
            image = np.ones((3, 4 + i, 5), np.uint8)
            return {"index": i, "image": image, "label": np.ones((2, 2), np.uint8)}

    batch = collate([Concat([Maps(), Texts()])[i] for i in (0, 1, 5)])
    assert batch["label"].tolist() == [[[1, 1], [1, 1]]] * 2 + [[[255, 255], [255, 255]]]
    assert [tuple(batch["image"][i].shape) for i in range(3)] == [(3, 4, 5), (3, 5, 5), (3, 1, 1)]


def test_nested_sources() -> None:
    inner = Concat({"a": FIRST, "b": BARE})
    outer = Concat({"inner": inner, "second": SECOND, "none": Subset(FIRST, np.zeros(0, int))})
    batch = collate([outer[i] for i in (0, 6, 7)])
    assert batch["sources"] == ("inner", "second", "none")
    assert batch["present.label"].tolist() == [True, False, True]
    assert batch["label"].tolist() == [0, -7, 2]
    assert batch["group"].tolist() == [0, 0, 1]


def test_a_loader_reads_it() -> None:
    both = Concat([FIRST, SECOND])
    batches = list(Loader(both, Sequential(8, 3)).epoch(0))
    assert [b["group"].tolist() for b in batches] == [[0, 0, 0], [0, 0, 1], [1, 1]]


def test_refuses() -> None:
    with pytest.raises(ValueError, match="sources: expected one or more"):
        Concat([])
    with pytest.raises(IndexError, match="sample: expected a number from 0 to 7, received 8"):
        Concat([FIRST, SECOND])[8]
    images = RNG.integers(0, 256, (2, 3, 4, 4), dtype=np.uint8)
    names = [ArraySource(images, np.array([0, 1]), class_names=c) for c in (("a", "b"), ("b", "a"))]
    with pytest.raises(ValueError, match="the same class names in all"):
        Concat(names)
    with pytest.raises(ValueError, match="texts: expected a sample that can be read, received none of 1"):
        Concat([FIRST, Subset(Texts(), np.array([0]))])[0]

    class Odd(Texts):
        def __getitem__(self, i: int) -> dict[str, Any]:
            return {"index": i, "box": [1, 2]}

    with pytest.raises(TypeError, match="box: expected an array, a tensor, a number or a text, received list"):
        Concat([FIRST, Odd()])[0]


def test_names_are_part_of_the_fingerprint() -> None:
    assert Concat({"a": FIRST, "b": BARE}).fingerprint() != Concat({"a": FIRST, "c": BARE}).fingerprint()


def test_a_constant_is_the_same_in_all_samples() -> None:
    with pytest.raises(ValueError, match=r"field 'sources': expected the constant \('a',\) as in sample 0, received"):
        collate([{"index": 0, "sources": ("a",)}, {"index": 1, "sources": ("b",)}])


def test_another_of_the_same_source_stands_in_for_a_broken_one(tmp_path: Path) -> None:
    for name in ("one", "two"):
        for i in range(4):
            write(tmp_path / name / f"{i}.png", i)
        (tmp_path / name / "3.png").write_bytes(b"broken")
    source = Concat({name: ImageFolder(tmp_path / name) for name in ("one", "two")})
    loader = Loader(Subset(source, np.array([3, 0, 5, 7])), Sequential(4, 4), max_bad_share=0.5)
    (batch,) = loader.epoch(0)
    assert batch["group"].tolist() == [0, 0, 1, 1]
    assert batch["index"].tolist() == [0, 0, 5, 5]
    assert [(fault.index, Path(fault.path).parent.name) for fault in loader.faults] == [(3, "one"), (7, "two")]
