"""The commands as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nearfar.cli import main
from nearfar_sentences import pipeline, templates

FLAGS = [
    "--encoder.layers", "1", "--encoder.dim", "16", "--encoder.heads", "2", "--encoder.vocabulary", "200",
    "--encoder.max-length", "16", "--trainer.batch-size", "16", "--trainer.max-steps", "2",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a labelled file, pairs, scored pairs, and a run."""
    folder = tmp_path_factory.mktemp("sentences")
    texts, meanings = templates.corpus(64, 0)
    rows = [f"{text},{meaning.when}" for text, meaning in zip(texts, meanings, strict=True)]
    (folder / "labelled.csv").write_text("\n".join(["text,label", *rows]))
    text, positive, _ = templates.triplets(40, 1)
    lines = [json.dumps({"text": a, "positive": b}) for a, b in zip(text, positive, strict=True)]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    first, second, scores = templates.scored_pairs(30, 2)
    (folder / "sts" / "2099").mkdir(parents=True)
    scored = [f"{s}\t{a}\t{b}" for a, b, s in zip(first, second, scores, strict=True)]
    (folder / "sts" / "2099" / "grammar.tsv").write_text("\n".join(scored))
    data = ["--data.root", str(folder / "labelled.csv"), "--data.validation", "0.25"]
    assert main(["sentences", "train", "simcse", *data, *FLAGS, "--trainer.output", str(folder / "run")]) == 0
    return folder


def test_training_scores_and_resumes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = place / "run"
    assert json.loads((run / "status.json").read_text())["status"] == "finished"
    assert "knn" in json.loads((run / "scores.json").read_text())["after"]
    assert main(["sentences", "train", "--resume", str(run), "--data.root", str(place / "labelled.csv")]) == 0


def test_evaluate(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["sentences", "evaluate", "--run", str(place / "run"), "--data.source", "file"]
    words += ["--data.root", str(place / "labelled.csv"), "--data.validation", "0.25"]
    assert main([*words, "--sts", str(place / "sts"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert -100 <= found["sts"]["2099"]["all"] <= 100
    assert found["num_test"] == 16
    assert 0 <= found["scores"]["knn"]["value"] <= 1
    monkeypatch.setenv("NEARFAR_STS", str(place / "sts"))
    assert main([*words, "--sts-only"]) == 0
    assert "2099" in capsys.readouterr().out


def test_embed_and_search(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = place / "features.npz"
    words = ["--run", str(place / "run"), "--root", str(place / "labelled.csv")]
    assert main(["sentences", "embed", *words, "--out", str(out)]) == 0
    with np.load(out, allow_pickle=False) as found:
        assert found["features"].shape == (64, 16)
        assert found["text"][3] == templates.corpus(64, 0)[0][3]
    capsys.readouterr()
    query = templates.corpus(64, 0)[0][5]
    assert main(["sentences", "search", *words, "--query", query, "--k", "3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["row"] == 5
    assert rows[0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert len(rows) == 3


def test_mined_negatives_are_trained_on(place: Path) -> None:
    out = place / "mined.jsonl"
    words = ["--run", str(place / "run"), "--root", str(place / "pairs.jsonl"), "--out", str(out), "--margin", "0"]
    assert main(["sentences", "mine-negatives", *words, "--ceiling", "2"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows
    assert set(rows[0]) == {"text", "positive", "negative"}
    data = ["--data.root", str(out), "--data.negative", "negative", "--data.validation", "0"]
    flags = [*FLAGS, "--trainer.batch-size", "4", "--trainer.output", str(place / "supervised")]
    assert main(["sentences", "train", "simcse-supervised", *data, *flags]) == 0


@pytest.mark.filterwarnings("ignore")  # of torch's exporter
def test_an_exported_folder_loads_in_transformers(place: Path) -> None:
    pytest.importorskip("onnxruntime")
    from transformers import AutoModel, AutoTokenizer

    out = place / "encoder"
    assert main(["sentences", "export", "--run", str(place / "run"), "--out", str(out), "--formats", "onnx"]) == 0
    texts = [*templates.corpus(5, 9)[0], "An unknown Wörd, and!"]
    loaded = pipeline.load_run(place / "run")
    inputs = AutoTokenizer.from_pretrained(out)(texts, padding=True, truncation=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(out).eval()(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    torch.testing.assert_close((hidden * mask).sum(1) / mask.sum(1), loaded.embed(texts), rtol=1e-4, atol=1e-5)
    assert {"modules.json", "encoder.onnx"} <= {path.name for path in out.iterdir()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate"], "model: expected either --run RUN or --encoder.name NAME, received none"),
        (["embed", "--run", "RUN", "--root", "none.txt"], "data.root: expected a file of sentences"),
        (["embed", "--run", "RUN", "--root", "x", "--out", "f.bin"], "out: expected a file .npz or .npy"),
        (["search", "--run", "RUN", "--root", "FILE"], "query: expected a sentence or more, received none"),
        (["train", "simcse"], "data.root: expected a file of sentences"),
        (["train", "simcsee"], "simcse"),
    ],
)  # fmt: skip
def test_mistakes_are_named(place: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    known = {"RUN": str(place / "run"), "FILE": str(place / "labelled.csv")}
    assert main(["sentences", *(known.get(word, word) for word in words)]) != 0
    assert message in " ".join(capsys.readouterr().err.split())
