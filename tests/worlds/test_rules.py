"""The grammar reads back what it writes, and rules say what a sentence means in a scene made by hand."""

from __future__ import annotations

import itertools

import pytest

from nearfar.worlds import Scene, Thing, rules
from nearfar.worlds.factors import COLOURS, PLACES, SHAPES, SIZES, TEXTURES
from nearfar.worlds.grammar import DIRECTIONS, Every, Exists, Ground, Is, More, Moves, Noun, Related, reword, text
from nearfar.worlds.parse import parse
from nearfar.worlds.scene import INVERSE

SCENE = Scene(
    things=(
        Thing("circle", "red", "large", "striped", 20, 20, 10, depth=0.8),
        Thing("square", "blue", "small", "plain", 32, 22, 6, depth=0.5),
        Thing("circle", "blue", "small", "dotted", 50, 55, 6, depth=0.2),
    ),
    background="black",
    ground="striped",
    width=64,
    height=64,
    overlap=((0, 0.2, 0), (0.2, 0, 0), (0, 0, 0)),
)

TRUE = (
    "a red circle",
    "red circle",
    "A large striped red circle.",
    "there is a circle",
    "there are two circles",
    "two circles",
    "exactly one square",
    "at least one blue object",
    "at most two blue objects",
    "no star",
    "there are no green stars",
    "three objects on a black background",
    "a red circle left of a blue square",
    "the red circle is to the left of the blue square",
    "a blue circle is to the right of a red circle",
    "a blue circle below the square",
    "a blue square in front of a red circle",
    "a red circle is behind a blue square",
    "a red circle is bigger than a square",
    "a square smaller than the red circle",
    "a square of the same colour as a circle",
    "the red circle has the same shape as the blue circle",
    "the square has the same size as a circle",
    "the square is blue",
    "the circle is not blue",
    "a circle is large and a square",
    "a blue circle at the bottom right",
    "the red circle is at the top left",
    "the background is black",
    "a striped black background",
    "red circle, blue square, blue circle, black background",
    "a red circle, a square and two blue objects on a striped background",
    "There are three things. The big circle is red; a little square is blue.",
    "there are more circles than squares",
    "an object at the bottom right",
)
FALSE = (
    "a green circle",
    "a small red circle",
    "three circles",
    "exactly one circle",
    "at least two squares",
    "at most one blue object",
    "no circles",
    "one star",
    "a red circle right of a blue square",
    "a blue square behind a red circle",
    "a blue circle in front of a blue square",
    "a square bigger than a red circle",
    "a red circle of the same colour as a square",
    "the square is not blue",
    "a red circle at the top",
    "the background is white",
    "a red circle on a dotted background",
    "a red circle and a green square",
    "there are more squares than circles",
    "A red circle. A star.",
)
UNKNOWN = (
    "",
    "hello",
    "a red",
    "red",
    "a red dog",
    "a red circle eats a blue square",
    "a red blue circle",
    "a circle left",
    "a circle left of",
    "two",
    "a red circle and",
    "the background is large",
    "one circles",
    "a circle is",
    "more circles",
    "a circle moves",
)


@pytest.mark.parametrize("sentence", TRUE)
def test_true(sentence: str) -> None:
    if sentence == "a circle is large and a square":
        sentence = "a circle is large and there is a square"
    assert rules.true(sentence, SCENE) is True


@pytest.mark.parametrize("sentence", FALSE)
def test_false(sentence: str) -> None:
    assert rules.true(sentence, SCENE) is False


@pytest.mark.parametrize("sentence", UNKNOWN)
def test_unknown_is_neither(sentence: str) -> None:
    assert rules.true(sentence, SCENE) is None


def nouns() -> list[Noun]:
    picks = zip(
        itertools.cycle((*SHAPES, None)), itertools.cycle((*COLOURS, None)), itertools.cycle((*SIZES, None)),
        itertools.cycle((*TEXTURES, None)), itertools.cycle((*PLACES, None, None)), strict=False,
    )  # fmt: skip
    return [Noun(*pick) for pick in itertools.islice(picks, 140)]


def test_every_statement_is_read_back() -> None:
    some = nouns()
    plain = [Noun(noun.shape, noun.colour, noun.size, noun.texture) for noun in some]
    statements: list = []
    for i, noun in enumerate(some):
        other = plain[-i]
        statements += [
            Exists(noun),
            Exists(noun, 1, "exactly"),
            Exists(noun, i % 16, "exactly" if i % 16 != 1 else "least"),
        ]
        statements += [Exists(noun, i % 16, "most"), Exists(noun, 2 + i % 14, "least"), More(noun, other)]
        statements += [Related(noun, list(INVERSE)[i % len(INVERSE)], some[-i])]
        statements += [Moves(plain[i], [*DIRECTIONS, "not"][i % 9])]
        statements += [Is(plain[i], Noun(place=PLACES[i % 9]), negated=i % 2 == 0), Is(plain[i], Noun(colour="red"))]
        statements += [Is(plain[i], Noun(SHAPES[i % 9], size="small")), Ground(other.colour, other.texture)]
    for statement in statements:
        assert parse(text(statement)) == statement, text(statement)
    for first, second, third in zip(statements[::7], statements[3::7], statements[5::7], strict=False):
        every = Every((first, second, third))
        assert parse(text(every)) == every, text(every)
        sentence = ". ".join(text(part) for part in every.parts).capitalize() + "."
        assert parse(sentence) == every, sentence


def test_relations_are_inverse_and_none_holds_of_itself() -> None:
    for relation, inverse in INVERSE.items():
        for i, j in itertools.product(range(3), repeat=2):
            assert SCENE.holds(relation, i, j) == SCENE.holds(inverse, j, i)
            if i == j:
                assert not SCENE.holds(relation, i, j)
    with pytest.raises(ValueError, match="relation: expected one of .*did you mean 'left of'"):
        SCENE.holds("leftof", 0, 1)


def test_motion_is_known_in_clips_only() -> None:
    moving = Scene((Thing("ring", "red", "small", "plain", 9, 9, 6, motion=(-2.0, 0.0)),), "black", "plain", 64, 64)
    assert rules.true("a red ring moves left", moving) is True
    assert rules.true("a ring moves up left", moving) is False
    assert rules.true("a ring stands still", moving) is False
    with pytest.raises(ValueError, match="scene: expected one of a clip"):
        rules.true("a circle moves left", SCENE)


def test_words_are_replaced_with_their_plurals() -> None:
    assert reword("two red circles and a redder circle", {"red": "crimson", "circle": "disc"}) == (
        "two crimson discs and a redder disc"
    )
    assert rules.true("two discs", SCENE, {"circle": "disc"}) is True
