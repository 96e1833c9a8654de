"""Edited pairs differ in what is told and in nothing else."""

from __future__ import annotations

import pytest
import torch

from nearfar.batch import take
from nearfar.worlds import EDITS, Change, Factors, Scene, Scenes, read, rules
from nearfar.worlds.rules import which

WORLD = Scenes(Factors(num=(2, 4)))
BATCH = WORLD.sample(120, seed=7)
FACTOR = {"recolour": "colour", "reshape": "shape", "resize": "size", "retexture": "texture"}


def told(before: Scene, after: Scene, change: Change) -> None:
    """The one difference between two scenes is the change."""
    olds, news = list(before.things), list(after.things)
    keep = ("shape", "colour", "size", "texture", "x", "y", "radius", "angle", "contrast", "depth")
    differ: set[str] = set()
    if change.kind == "background":
        assert before.background != after.background == change.to
    else:
        assert before.background == after.background
    assert before.ground == after.ground
    if change.kind == "add":
        new = news.pop()
        assert rules.fits(change.noun, after, len(after.things) - 1)
        assert all(new.depth < old.depth for old in olds)
    elif change.kind == "remove":
        (i,) = which(change.noun, before)
        olds.pop(i)
    assert len(olds) == len(news)
    for i, (old, new) in enumerate(zip(olds, news, strict=True)):
        mine = {name for name in keep if getattr(old, name) != getattr(new, name)}
        if mine:
            assert not differ
            differ = mine
            assert which(change.noun, before) == [i]
            if change.kind in FACTOR:
                assert getattr(new, FACTOR[change.kind]) == change.to
            else:
                assert after.place(i) == change.to != before.place(i)
    expected = {"resize": {"size", "radius"}, "move": {"x", "y"}}
    assert differ == expected.get(change.kind, {FACTOR[change.kind]} if change.kind in FACTOR else set())


@pytest.mark.parametrize("kind", EDITS)
def test_one_change_is_the_only_difference(kind: str) -> None:
    edited = WORLD.edit(BATCH, (kind,))
    assert len(edited.changes) == len(edited.row) >= (110 if kind != "remove" else 100)
    assert torch.equal(edited.before["index"], edited.after["index"])
    assert torch.equal(edited.before["index"], edited.row)
    scenes = zip(WORLD.scenes(edited.before), WORLD.scenes(edited.after), edited.changes, strict=True)
    for before, after, changes in scenes:
        (change,) = changes
        assert change.kind == kind
        told(before, after, change)


def test_pixels_differ_about_the_changed_thing_alone() -> None:
    edited = WORLD.edit(BATCH, ("recolour", "reshape", "retexture", "resize"))
    before, after = edited.before, edited.after
    off = (before["image"].int() - after["image"].int()).abs().amax(dim=1) > 0
    new_scenes = WORLD.scenes(after)
    for row, scene in enumerate(WORLD.scenes(before)):
        (i,) = which(edited.changes[row][0].noun, scene)
        thing = scene.things[i]
        new = new_scenes[row].things[i]
        reach = max(thing.radius, new.radius) + 1.5
        y, x = off[row].nonzero(as_tuple=True)
        assert len(x) > 0
        assert ((x + 0.5 - thing.x).abs() <= reach).all()
        assert ((y + 0.5 - thing.y).abs() <= reach).all()


def test_kinds_are_equally_frequent() -> None:
    edited = WORLD.edit(WORLD.sample(400, seed=1))
    kinds = [change.kind for (change,) in edited.changes]
    for kind in EDITS:
        assert 0.06 < kinds.count(kind) / len(kinds) < 0.20, kind


def test_several_changes_are_of_different_things() -> None:
    world = Scenes(Factors(num=(4, 6), sizes=("small",), radii=(0.09,)))
    edited = world.edit(world.sample(60), ("recolour", "remove", "add", "move"), (2, 3))
    numbers = {len(changes) for changes in edited.changes}
    assert numbers == {2, 3}
    for row, (before, after) in enumerate(zip(world.scenes(edited.before), world.scenes(edited.after), strict=True)):
        changes = edited.changes[row]
        nouns = [change.noun for change in changes if change.kind != "add"]
        things = [tuple(which(noun, before)) for noun in nouns]
        assert len(set(things)) == len(things)
        delta = sum({"add": 1, "remove": -1}.get(change.kind, 0) for change in changes)
        assert len(after.things) == len(before.things) + delta
        assert edited.text[row].count(". ") == len(changes) - 1
        assert [Change.parse(part) for part in edited.text[row].split(". ")] == list(changes)


def test_edited_scenes_obey_the_factors() -> None:
    edited = WORLD.edit(BATCH, num=(1, 2))
    after = edited.after
    assert (after["visible"].values >= WORLD.factors.visible).all()
    for row, scene in enumerate(WORLD.scenes(after)):
        assert all(thing.colour != scene.background for thing in scene.things)
        assert after["boxes"][row].min() >= 0
        assert after["boxes"][row].max() <= 64


def test_changes_are_seen_by_reading_both_pictures() -> None:
    edited = WORLD.edit(take(BATCH, range(20)), ("recolour", "remove", "add", "background"))
    right = 0
    for row, (change,) in enumerate(edited.changes):
        before, after = (read(part["image"][row], WORLD) for part in (edited.before, edited.after))
        if before is None or after is None:
            continue
        gained = len(after.things) - len(before.things)
        wanted = {"add": 1, "remove": -1}.get(change.kind, 0)
        colours = [sorted(thing.colour for thing in scene.things) for scene in (before, after)]
        changed = before.background != after.background if change.kind == "background" else colours[0] != colours[1]
        right += gained == wanted and changed
    assert right >= 19


def test_edits_do_not_depend_on_their_batch() -> None:
    whole, one = WORLD.edit(BATCH, seed=3), WORLD.edit(take(BATCH, [40]), seed=3)
    at = whole.row.tolist().index(40)
    assert whole.text[at] == one.text[0]
    assert torch.equal(whole.after["image"][at], one.after["image"][0])
    assert WORLD.edit(BATCH, seed=4).text != whole.text


@pytest.mark.parametrize(
    "sentence",
    ["", "the circle", "the circle becomes", "the red circle becomes happy", "it appears",
     "the circle moves to the moon", "the background becomes large"],
)  # fmt: skip
def test_what_is_no_change_is_none(sentence: str) -> None:
    assert Change.parse(sentence) is None


def test_impossible_changes_are_refused() -> None:
    world = Scenes(Factors(num=(1, 1), backgrounds=("black",)))
    batch = world.sample(3)
    with pytest.raises(ValueError, match="kinds: expected changes that fit a scene"):
        world.edit(batch, ("remove",))
    with pytest.raises(ValueError, match="kinds: expected changes that fit a scene"):
        world.edit(batch, ("background",))
    with pytest.raises(ValueError, match="kinds: expected one of .*did you mean 'recolour'"):
        world.edit(batch, ("recolor",))
    with pytest.raises(ValueError, match="num: expected least <= most"):
        world.edit(batch, num=(2, 1))
