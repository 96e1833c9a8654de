"""The image plugin's models: what they say they score is what they score, and the gate keeps the untrained out."""

from __future__ import annotations

from pathlib import Path

import pytest

from nearfar import zoo

NAMES = ["images/digits", "images/digits_supervised"]


def test_they_are_declared() -> None:
    assert set(NAMES) <= set(zoo.models())
    places = {zoo.place(name) for name in NAMES}
    assert len(places) == 2
    for name in NAMES:
        model = zoo.find(name)
        assert model.gate["knn"] >= 0.97
        assert model.seconds < 60
        recipe = model.recipe()
        assert recipe.data.source == "digits"  # which every machine has


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_real_gate(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nearfar_images import pipeline
    from nearfar_images.data import open_images

    monkeypatch.setenv("NEARFAR_CACHE", str(tmp_path))
    loaded = zoo.get(name)
    card, gate = zoo.card(name), zoo.find(name).gate
    data = open_images(loaded.recipe.data)
    scores = pipeline.evaluate(loaded.method, data, loaded.recipe.evaluate)
    assert not loaded.method.training
    for metric, least in gate.items():
        assert scores[metric].value == pytest.approx(card["scores"][metric]["value"], abs=1e-6)
        assert scores[metric].value >= least
    untrained = pipeline.evaluate(pipeline.untrained(loaded), data, loaded.recipe.evaluate)
    assert untrained["few_label"].value < gate["few_label"]
