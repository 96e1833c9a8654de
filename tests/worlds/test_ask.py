"""Questions and answers against an evaluator that counts things in tensors."""

from __future__ import annotations

import re

import pytest

from nearfar.batch import Batch
from nearfar.worlds import PLACES, QUESTIONS, Factors, Noun, Scenes, answer, read

WORLD = Scenes(Factors(num=(2, 4)))
BATCH = WORLD.sample(150, seed=4)
SCENES = WORLD.scenes(BATCH)
ASKED = WORLD.questions(BATCH, num=6)


def words_of(batch: Batch, row: int) -> list[set[str]]:
    """The words that fit each thing of a row."""
    names = WORLD.factors.names
    fields = ("shape", "colour", "size", "texture")
    columns = [[names[field][i] for i in batch[field][row].tolist()] for field in fields]
    return [{*values, "object"} for values in zip(*columns, strict=True)]


def place_of(batch: Batch, row: int, k: int) -> str:
    x, y = (batch["centre"][row][k] / 64 * 3).long().tolist()
    return PLACES[3 * y + x]


def brute_force(batch: Batch, row: int, question: str) -> str:
    """An answer from words and numbers, without grammar, scenes or rules."""
    things = words_of(batch, row)

    def fitting(noun: str) -> list[int]:
        wanted = {re.sub(r"(?<=cross)es$|s$", "", word) if word != "cross" else word for word in noun.split()}
        return [k for k, words in enumerate(things) if wanted <= words]

    if question == "What colour is the background?":
        return WORLD.factors.backgrounds[batch["background"][row]]
    if found := re.fullmatch(r"How many (.*) are there\?", question):
        return str(len(fitting(found[1])))
    if found := re.fullmatch(r"Where is the (.*)\?", question):
        return place_of(batch, row, fitting(found[1])[0])
    if found := re.fullmatch(r"What (colour|shape|size|texture) is the (.*)\?", question):
        only = fitting(found[2])
        assert len(only) == 1
        return WORLD.factors.names[found[1]][batch[found[1]][row][only[0]]]
    if found := re.fullmatch(r"Are there more (.*) than (.*)\?", question):
        return "yes" if len(fitting(found[1])) > len(fitting(found[2])) else "no"
    relations = "left of|right of|above|below|in front of|behind|bigger than|smaller than"
    if found := re.fullmatch(rf"Is there an? (.*?) ({relations}) an? (.*)\?", question):
        rows = [(i, j) for i in fitting(found[1]) for j in fitting(found[3]) if i != j]
        centre, radius = batch["centre"][row], batch["radius"][row]
        overlap = batch["overlap"][row]
        tests = {
            "left of": lambda i, j: centre[j, 0] - centre[i, 0] > 5.12,
            "above": lambda i, j: centre[j, 1] - centre[i, 1] > 5.12,
            "in front of": lambda i, j: i > j and overlap[i, j] > 0.03,
            "bigger than": lambda i, j: radius[i] > 1.25 * radius[j],
        }
        turned = {"right of": "left of", "below": "above", "behind": "in front of", "smaller than": "bigger than"}
        name = found[2]
        if name in turned:
            rows, name = [(j, i) for i, j in rows], turned[name]
        return "yes" if any(tests[name](i, j) for i, j in rows) else "no"
    found = re.fullmatch(r"Is there an? (.*)\?", question)
    assert found, question
    return "yes" if fitting(found[1]) else "no"


def test_answers_equal_brute_force() -> None:
    for question, said, kind, row in zip(*ASKED[:3], ASKED.row.tolist(), strict=True):
        assert said == brute_force(BATCH, row, question), (kind, question)
        assert said == answer(question, SCENES[row]), question
    assert {kind: ASKED.kind.count(kind) > 20 for kind in QUESTIONS} == dict.fromkeys(QUESTIONS, True)


def test_answers_of_every_question_on_every_scene() -> None:
    """A question asked of other scenes gets their own answer, or none where its thing is not there or not alone."""
    for question in ASKED.text[::9]:
        for row in range(0, 150, 10):
            said = answer(question, SCENES[row])
            value = question.startswith(("What", "Where")) and "background" not in question
            if not value or said is not None:
                assert said == brute_force(BATCH, row, question), question


def test_a_scene_has_different_questions() -> None:
    for row in range(150):
        mine = [text for text, at in zip(ASKED.text, ASKED.row.tolist(), strict=True) if at == row]
        assert len(mine) == len(set(mine)) == 6


@pytest.mark.parametrize("yes", [0.0, 0.25, 0.5, 1.0])
def test_the_share_of_yes_is_as_told(yes: float) -> None:
    asked = WORLD.questions(BATCH, ("exist",), num=3, yes=yes)
    share = asked.answer.count("yes") / len(asked.answer)
    assert share == pytest.approx(yes, abs=0.06 if 0 < yes < 1 else 0)


def test_given_names_are_asked_for() -> None:
    nouns = (Noun("star"), Noun("ring"), Noun("circle"))
    asked = WORLD.questions(BATCH, ("exist",), num=2, yes=0.5, nouns=nouns)
    assert set(asked.text) <= {"Is there a star?", "Is there a ring?", "Is there a circle?"}
    assert {"yes", "no"} == set(asked.answer)
    for question, said, row in zip(asked.text, asked.answer, asked.row.tolist(), strict=True):
        assert said == brute_force(BATCH, row, question)


def test_questions_do_not_depend_on_their_batch() -> None:
    one = WORLD.questions(WORLD.sample(1, seed=4, start=60), num=6)
    mine = [text for text, row in zip(ASKED.text, ASKED.row.tolist(), strict=True) if row == 60]
    assert one.text == mine


def test_answers_are_read_from_the_pixels() -> None:
    scenes = [read(image, WORLD) for image in BATCH["image"][:25]]
    pairs = [
        (answer(question, scenes[row]), said)
        for question, said, row in zip(ASKED.text, ASKED.answer, ASKED.row.tolist(), strict=True)
        if row < 25 and scenes[row] is not None
    ]
    assert len(pairs) > 140
    assert sum(found == said for found, said in pairs) >= len(pairs) - 1


@pytest.mark.parametrize(
    "question",
    ["", "hello?", "Is there a red circle", "How many dogs are there?", "What colour is it?", "What colour is the sky?",
     "Where is?", "Is it there a circle?", "How many circles?"],
)  # fmt: skip
def test_what_is_no_question_has_no_answer(question: str) -> None:
    assert answer(question, SCENES[0]) is None


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("Is the background white?", None),
        ("Are there two circles?", None),
        ("Is there a circle and a star?", "refused"),
    ],
)
def test_other_yes_no_questions(question: str, said: str | None) -> None:
    for scene in SCENES[:30]:
        found = answer(question, scene)
        shapes = [thing.shape for thing in scene.things]
        if said == "refused":
            assert found is None
        elif "white" in question:
            assert found == ("yes" if scene.background == "white" else "no")
        else:
            assert found == ("yes" if shapes.count("circle") == 2 else "no")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kinds": ("exists",)}, "kinds: expected one of .*did you mean 'exist'"),
        ({"kinds": ()}, "kinds: expected at least one"),
        ({"num": 0}, "num: expected 1 or more, received 0"),
        ({"yes": 2.0}, "yes: expected from 0 to 1"),
    ],
)
def test_questions_refuse(options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        WORLD.questions(BATCH, **options)
