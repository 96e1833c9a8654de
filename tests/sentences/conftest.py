"""Small sentence encoders and data for the plugin's tests."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from nearfar.config import TrainerConfig
from nearfar.data import Data, without_test
from nearfar.plugin import load_recipe
from nearfar_sentences import templates
from nearfar_sentences.config import TextEncoderConfig, TextRecipe
from nearfar_sentences.data import TextSource

SMALL = TextEncoderConfig(layers=2, dim=16, heads=2, vocabulary=200, max_length=16)


def tiny(name: str, output: Any = "", **changes: Any) -> TextRecipe:
    """A recipe with an encoder that any processor trains at once; `changes` are fields of its method."""
    recipe = load_recipe(f"sentences/{name}")
    trainer = TrainerConfig(
        epochs=1, batch_size=8, log_every=1, evaluate_every=0, evaluate_before=False, progress=False, report=False,
        device="cpu", output=str(output),
    )  # fmt: skip
    return dataclasses.replace(
        recipe, encoder=SMALL, trainer=trainer, method=dataclasses.replace(recipe.method, **changes)
    )


def triplet_data() -> Data:
    """Sixteen triplets of the grammar."""
    text, positive, negative = templates.triplets(16, 0)
    return without_test(TextSource(text, positive=positive, negative=negative))


def corpus_data() -> Data:
    """Sixteen sentences of the grammar."""
    return without_test(TextSource(templates.corpus(16, 0)[0]))


@pytest.fixture
def triplets() -> Data:
    return triplet_data()


@pytest.fixture
def corpus() -> Data:
    return corpus_data()
