from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import toy_plugin
from nearfar.catalog import KINDS, POSITIVES, Claim, System, Taxonomy, grouped, select, system, systems

TAXONOMY = Taxonomy(positive="label", negative="batch", key="shared", loss="probabilistic")


def card(slug: str = "alpha", **changes: Any) -> System:
    values = {
        "slug": slug, "title": "T", "authors": "A", "year": 2020, "venue": "V", "plugin": "toy", "kind": "train",
        "summary": "S", "recipe": f"toy/{slug}", "taxonomy": TAXONOMY,
    }  # fmt: skip
    return System(**values | changes)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_that_train_have_a_recipe_and_the_others_an_entry(kind: str):
    trains = kind in ("train", "pipeline", "baseline")
    made = card(kind=kind, recipe="toy/alpha" if trains else "", entry="" if trains else "toy:Alpha")
    assert made.trains == trains
    with pytest.raises(ValueError, match="card alpha: recipe: expected one exactly for kinds that train"):
        card(kind=kind, recipe="" if trains else "toy/alpha", entry="toy:Alpha")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slug": "Alpha"}, "card: slug: expected lower case letters"),
        ({"slug": "al-pha"}, "card: slug"),
        ({"slug": "1alpha"}, "card: slug"),
        ({"slug": ""}, "card: slug"),
        ({"kind": "trains"}, r"card alpha: kind: .*did you mean 'train'\?"),
        ({"evidence": "codes"}, r"card alpha: evidence: .*did you mean 'code'\?"),
        ({"kind": "tool", "recipe": "", "entry": ""}, "card alpha: entry: expected an entry"),
    ],
)
def test_cards_refuse_wrong_values(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        card(**{"slug": "alpha", **changes})


@pytest.mark.parametrize("field", ["positive", "negative", "key", "loss"])
def test_taxonomy_refuses_unknown_words(field: str):
    values = {
        "positive": "label",
        "negative": "batch",
        "key": "shared",
        "loss": "probabilistic",
        field: "nothing at all",
    }
    with pytest.raises(ValueError, match=f"taxonomy: {field}: expected one of"):
        Taxonomy(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": ("a",)}, "claim: order: expected two arms or more"),
        ({"order": ("a", "a")}, "claim: order: expected each arm once"),
        ({"margin": -0.1}, "claim: margin: expected 0 or more"),
        ({"direction": "up"}, "claim: direction: expected one of"),
    ],
)
def test_claims_refuse_wrong_values(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Claim(**{"metric": "knn", "order": ("a", "b"), **changes})


def test_a_card_is_plain_values():
    made = card(claim=Claim(metric="knn", order=("a", "b")))
    values = json.loads(json.dumps(made.to_dict()))
    assert values["taxonomy"]["positive"] == "label"
    assert values["claim"]["order"] == ["a", "b"]


def test_select_joins_conditions_and_knows_aliases():
    cards = [
        card("a", taxonomy=Taxonomy(positive="label", negative="none", key="shared", loss="energy")),
        card("b", plugin="other", kind="baseline", also=("toy",), taxonomy=None),
        card("c", plugin="other", kind="tool", recipe="", entry="x:y"),
    ]

    def slugs(**conditions: str) -> list[str]:
        return [found.slug for found in select(cards, **conditions)]

    assert slugs() == ["a", "b", "c"]
    assert slugs(plugin="toy") == ["a", "b"]
    assert slugs(kind="tool") == ["c"]
    assert slugs(positive="label") == ["a", "c"]
    assert slugs(plugin="toy", positive="label") == ["a"]
    assert slugs(positive="modality") == []
    with pytest.raises(ValueError, match=r"kind: .*did you mean 'train'\?"):
        slugs(kind="trian")
    with pytest.raises(ValueError, match=r"positive: .*did you mean 'label'\?"):
        slugs(positive="labels")


def test_cards_by_a_trait():
    other = Taxonomy(positive="label", negative="none", key="momentum", loss="energy")
    cards = [card("a"), card("b", taxonomy=None), card("c", taxonomy=other)]

    def slugs(by: str) -> dict[str, list[str]]:
        return {value: [found.slug for found in group] for value, group in grouped(cards, by).items()}

    assert slugs("positive") == {"label": ["a", "c"], "-": ["b"]}
    assert slugs("negative") == {"batch": ["a"], "none": ["c"], "-": ["b"]}
    assert list(slugs("key")) == ["shared", "momentum", "-"]  # in the taxonomy's order
    with pytest.raises(ValueError, match=r"by: .*did you mean 'loss'\?"):
        grouped(cards, "los")


def test_positives_are_those_of_the_taxonomy():
    assert POSITIVES == ("transformation", "label", "modality", "context", "sequence", "cluster")


def test_systems_of_installed_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    toy_plugin.write(tmp_path, monkeypatch)
    assert [found.slug for found in systems(["toy"])] == ["alpha", "beta"]
    every = systems()
    assert [(c.plugin, c.slug) for c in every] == sorted((c.plugin, c.slug) for c in every)
    assert {"alpha", "beta"} <= {c.slug for c in every}
    assert system("beta").title == "The beta paper [v2]"
    with pytest.raises(ValueError, match=r"system: .*did you mean 'alpha'\?"):
        system("alphaa")
