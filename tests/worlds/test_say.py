"""Captions promise what the pictures show: by rules, by pixels, and by a second checker that works on tensors."""

from __future__ import annotations

import re

import pytest
import torch

from nearfar.batch import Batch
from nearfar.worlds import DETAILS, Factors, Render, Say, Scenes, read, rules

WORLD = Scenes()
BATCH = WORLD.sample(200, seed=11)
SCENES = WORLD.scenes(BATCH)
NOUN = r"an? (?:(\w+) )?(\w+)"


def told(batch: Batch, row: int, colour: str | None, shape: str) -> list[int]:
    """The things of a row with this colour and shape, from the tensors."""
    factors = WORLD.factors
    colours, shapes = batch["colour"][row].tolist(), batch["shape"][row].tolist()
    return [
        k for k in range(len(shapes))
        if (shape == "object" or factors.shapes[shapes[k]] == shape)
        and (colour is None or factors.colours[colours[k]] == colour)
    ]  # fmt: skip


def short_holds(batch: Batch, row: int, caption: str) -> bool:
    """A short caption checked without grammar and rules."""
    one = re.fullmatch(NOUN, caption)
    if one:
        return bool(told(batch, row, *one.groups()))
    number = re.fullmatch(r"(two|three|four|five) (?:(\w+) )?(\w+?)(?:s|(?<=s)es)", caption)
    if number:
        wanted = ("two", "three", "four", "five").index(number[1]) + 2
        return len(told(batch, row, number[2], number[3])) == wanted
    pair = re.fullmatch(f"{NOUN} (left of|right of|above|below|in front of|behind) {NOUN}", caption)
    assert pair, caption
    firsts, seconds = told(batch, row, pair[1], pair[2]), told(batch, row, pair[4], pair[5])
    centre, overlap = batch["centre"][row], batch["overlap"][row]
    for i in firsts:
        for j in seconds:
            dx, dy = (centre[j] - centre[i]).tolist()
            margin = 0.08 * 64
            holds = {
                "left of": dx > margin, "right of": -dx > margin, "above": dy > margin, "below": -dy > margin,
                "in front of": i > j and overlap[i, j] > 0.03, "behind": i < j and overlap[i, j] > 0.03,
            }  # fmt: skip
            if i != j and holds[pair[3]]:
                return True
    return False


def test_short_captions_by_a_second_checker() -> None:
    for row, caption in enumerate(BATCH["caption"]):
        assert short_holds(BATCH, row, caption), caption
    relations = sum(
        any(r in c for r in ("left", "right", "above", "below", "front", "behind")) for c in BATCH["caption"]
    )
    assert relations > 100
    assert any("front" in caption or "behind" in caption for caption in BATCH["caption"])


def test_wrong_short_captions_by_a_second_checker() -> None:
    said = WORLD.captions(BATCH, Say("wrong"))
    assert not said.true.any()
    for row, (caption, original) in enumerate(zip(said.text, said.original, strict=True)):
        assert not short_holds(BATCH, row, caption), caption
        assert short_holds(BATCH, row, original), original


@pytest.mark.parametrize("kind", ["tags", "names", "short", "long"])
@pytest.mark.parametrize("mention", [(), ("shape",), ("colour",), ("size", "shape"), ("texture", "colour", "shape")])
def test_true_captions_are_true(kind: str, mention: tuple[str, ...]) -> None:
    said = WORLD.captions(BATCH, Say(kind, mention=mention))
    assert said.true.all()
    for caption, scene in zip(said.text, SCENES, strict=True):
        assert rules.true(caption, scene) is True, caption
    if mention == ("colour",):
        assert not re.search("circle|star|square", " ".join(said.text))


@pytest.mark.parametrize("base", ["names", "short", "long"])
def test_wrong_captions_are_false_in_one_told_detail(base: str) -> None:
    said = WORLD.captions(BATCH, Say("wrong", base=base))
    seen = set()
    for caption, original, detail, scene in zip(said.text, said.original, said.detail, SCENES, strict=True):
        assert rules.true(caption, scene) is False, caption
        assert rules.true(original, scene) is True, original
        changed = [pair for pair in zip(caption.split(), original.split(), strict=False) if pair[0] != pair[1]]
        if len(caption.split()) == len(original.split()) and detail not in ("swap", "count"):
            # The article before a changed word may change with it.
            assert len([pair for pair in changed if pair[0] not in ("a", "an", "A", "An")]) == 1, (caption, original)
        if detail == "swap":
            first, second = (re.findall(r"\w+", re.sub(r"\ban\b", "a", said)) for said in (caption, original))
            assert sorted(first) == sorted(second)
        seen.add(detail)
    assert seen >= {"names": {"colour", "shape", "swap", "count"}, "short": {"colour", "shape", "swap", "relation"},
                    "long": set(DETAILS) - {"count"}}[base]  # fmt: skip


@pytest.mark.parametrize("detail", ["colour", "shape", "relation", "swap", "size", "texture", "background"])
def test_only_the_details_that_are_allowed_are_wrong(detail: str) -> None:
    say = Say("wrong", base="long", details=(detail, "count"))
    said = WORLD.captions(BATCH, say)
    assert set(said.detail) <= {detail, "count"}
    assert said.detail.count(detail) > 20


def test_noisy_captions_name_what_is_there_or_not_as_told() -> None:
    said = WORLD.captions(BATCH, Say("noisy", noise=0.4))
    unrelated = [not true for true in said.true.tolist()]
    assert 0.3 < sum(unrelated) / len(unrelated) < 0.5
    assert [detail == "unrelated" for detail in said.detail] == unrelated
    for row, (caption, true) in enumerate(zip(said.text, said.true.tolist(), strict=True)):
        assert rules.true(caption, SCENES[row]) in (None, true)
        names = {WORLD.factors.colours[c] for c in BATCH["colour"][row].tolist()}
        names |= {WORLD.factors.shapes[s] for s in BATCH["shape"][row].tolist()}
        known = [w for w in re.findall("[a-z]+", caption) if w in (*WORLD.factors.colours, *WORLD.factors.shapes)]
        assert known
        if true:
            assert set(known) <= names
        else:
            assert not told(BATCH, row, known[0], known[1])
    assert WORLD.captions(BATCH, Say("noisy", noise=0)).true.all()
    assert not WORLD.captions(BATCH, Say("noisy", noise=1)).true.any()


def test_what_is_said_is_read_from_the_pixels() -> None:
    """True captions are true, wrong ones false, of the scene that `read` recovers."""
    found = [read(image, WORLD) for image in BATCH["image"][:40]]
    for kind in ("names", "short", "long", "wrong"):
        said = WORLD.captions(BATCH, Say(kind))
        right = [rules.true(c, s) == t for c, s, t in zip(said.text, found, said.true.tolist(), strict=False) if s]
        assert len(right) >= 39
        assert sum(right) >= 39, kind


def test_words_can_be_replaced() -> None:
    words = {"red": "crimson", "circle": "disc", "left": "west"}
    said = WORLD.captions(BATCH, Say("names", words=words))
    text = " ".join(said.text)
    assert "crimson" in text
    assert "disc" in text
    assert not re.search(r"\bred\b|\bcircle", text)
    for caption, scene in zip(said.text, SCENES, strict=True):
        assert rules.true(caption, scene, words) is True
    assert rules.true("a crimson disc", SCENES[0]) is None


def test_captions_depend_on_the_scene_and_the_seed_alone() -> None:
    again = WORLD.captions(WORLD.sample(5, seed=11, start=100), Say("short"), seed=11)
    assert again.text == BATCH["caption"][100:105]
    assert WORLD.captions(BATCH, Say("short"), seed=12).text != BATCH["caption"]


def test_a_world_may_carry_any_kind() -> None:
    batch = Scenes(render=Render(size=32), say=Say("wrong")).sample(8)
    assert not batch["caption_true"].any()
    assert batch["caption_true"].dtype == torch.bool


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kind": "shrt"}, "kind: expected one of .*did you mean 'short'"),
        ({"mention": ("place",)}, "mention: expected one of"),
        ({"details": ("hue",)}, "details: expected one of"),
        ({"details": ()}, "details: expected at least one"),
        ({"noise": 1.5}, "noise: expected from 0 to 1"),
        ({"base": "noisy"}, "base: expected one of"),
    ],
)
def test_say_refuses(options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Say(**options)


def test_details_that_cannot_be_wrong_are_refused() -> None:
    world = Scenes(Factors(shapes=("circle",), num=(1, 1)))
    with pytest.raises(ValueError, match="details: expected one that can be wrong"):
        world.captions(world.sample(3), Say("wrong", details=("shape", "relation")))
