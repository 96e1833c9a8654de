"""The primer: what the losses over labels are and where they lead, the catalogue, and training on pseudo-labels."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, softplus

from distributed.launch import launch
from nearfar.batch import Batch
from nearfar.cli import main
from nearfar.config import DataInfo, TrainerConfig
from nearfar.data import without_test
from nearfar.method import Progress
from nearfar.objectives import binary_nce, ranking_nce
from nearfar.plugin import load, load_recipe, locate
from nearfar.rng import Rng
from nearfar.testing import check_method
from nearfar_sentences import labels as lb
from nearfar_sentences import pipeline, primer, templates
from nearfar_sentences.bags import words_in
from nearfar_sentences.config import TextEncoderConfig
from nearfar_sentences.data import TextSource
from nearfar_sentences.encoder import build_encoder
from nearfar_sentences.methods.input_label import InputLabel
from nearfar_sentences.negation import negation, negations
from nearfar_sentences.systems.nlp_primer import InputLabelConfig

SMALL = TextEncoderConfig(layers=1, dim=16, heads=2, vocabulary=200, max_length=16)
TEXTS, MEANINGS = templates.corpus(60, 0)
CLASSES = ("car", "sofa", "stone wall")
PROGRESS = Progress(0, 0, 0.0, 10)


def method(**changes: Any) -> InputLabel:
    torch.manual_seed(0)
    encoder = build_encoder(SMALL, [*TEXTS, *CLASSES])
    return InputLabel(InputLabelConfig(**changes), encoder, DataInfo(num_samples=60, class_names=CLASSES))


def batch(num: int = 8) -> Batch:
    return {"index": torch.arange(num) + 3, "text": TEXTS[:num], "label": torch.arange(num) % 3}


# -- oracles -----------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("nlp_primer", 1)
def test_one_negative_costs_softplus_of_the_difference():
    scores = torch.randn(5, 2, dtype=torch.float64)
    torch.testing.assert_close(ranking_nce(scores[:, 0], scores[:, 1:]), softplus(scores[:, 1] - scores[:, 0]).mean())
    positive = torch.tensor([[True, False]] * 5)
    found = lb.label_contrast(scores, positive, loss="ranking")
    torch.testing.assert_close(found, softplus(scores[:, 1] - scores[:, 0]).mean())


@pytest.mark.oracle("nlp_primer", 2)
def test_even_noise_with_as_many_draws_is_binary_cross_entropy():
    scores, num = torch.randn(4, 6, dtype=torch.float64), 6
    target = torch.zeros(4, num, dtype=torch.bool)
    target[torch.arange(4), torch.tensor([0, 2, 5, 2])] = True
    even = torch.full((4, num), -math.log(num), dtype=torch.float64)
    first = binary_nce(
        scores, scores, positive_mask=target, negative_mask=~target, positive_noise=even, negative_noise=even,
        num_noise=num,
    )  # fmt: skip
    expected = binary_cross_entropy_with_logits(scores, target.double(), reduction="none").sum(1).mean()
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(lb.label_contrast(scores, target, log_noise=even[0]), expected)
    torch.testing.assert_close(lb.label_contrast(scores, target), expected)


@pytest.mark.oracle("nlp_primer", 3)
@pytest.mark.parametrize("loss", ["ranking", "binary"])
def test_free_scores_find_the_conditional_distribution(loss: str):
    """Expectations over one positive and K draws are taken whole, so that the optimum is exact."""
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    q = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    scores, draws = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True), 2
    cases = list(itertools.product(range(2), range(4), itertools.product(range(4), repeat=draws)))
    row, first = torch.tensor([c[0] for c in cases]), torch.tensor([c[1] for c in cases])
    drawn = torch.tensor([c[2] for c in cases])
    weight = p[row, first] * q[drawn].prod(1)
    optimiser = torch.optim.LBFGS([scores], lr=0.5, max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure() -> Tensor:
        optimiser.zero_grad()
        s, n = scores[row, first], scores[row.unsqueeze(1), drawn]
        noise = {"positive_noise": q.log()[first], "negative_noise": q.log()[drawn]}
        each = ranking_nce(s, n, reduction="none") if loss == "ranking" else binary_nce(s, n, **noise, reduction="none")
        total = (weight * each).sum()
        total.backward()
        return total

    optimiser.step(closure)
    with torch.no_grad():
        if loss == "binary":
            torch.testing.assert_close(scores.exp(), p, rtol=0.02, atol=0)
        else:
            expected = (p / q).log()
            shift = (scores - expected).mean(1, keepdim=True)
            torch.testing.assert_close((scores - shift).exp(), expected.exp(), rtol=0.02, atol=0)


@pytest.mark.oracle("nlp_primer", 4)
def test_all_other_labels_make_it_the_cross_entropy():
    scores, target = torch.randn(5, 7, dtype=torch.float64), torch.tensor([0, 6, 3, 3, 1])
    positive = torch.nn.functional.one_hot(target, 7).bool()
    torch.testing.assert_close(lb.label_contrast(scores, positive, loss="ranking"), cross_entropy(scores, target))


@pytest.mark.oracle("nlp_primer", 5)
def test_every_registered_system_has_its_axes_and_a_class():
    entries = primer.catalogue()
    assert [entry.slug for entry in entries] == sorted(card.slug for card in load("sentences").cards())
    for entry in entries:
        for field in dataclasses.fields(primer.Axes):
            assert getattr(entry.axes, field.name), (entry.slug, field.name)
        found = locate(entry.config)
        assert isinstance(found, type)
        assert callable(found.build)


# -- losses over labels ------------------------------------------------------------------------------------------------


def test_several_positives_and_drawn_negatives_by_hand():
    scores = torch.randn(3, 6, dtype=torch.float64)
    positive = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0]]).bool()
    drawn = torch.tensor([1, 3, 4, 3])
    rank, binary, margin, pairs = [], [], [], []
    for i in range(3):
        negatives = [scores[i, k] for k in drawn.tolist() if not positive[i, k]]
        own = [scores[i, c] for c in range(6) if positive[i, c]]
        for s in own:
            rank.append(torch.logsumexp(torch.stack([s, *negatives]), 0) - s)
            margin += [max(0.0, float(0.5 - s + n)) for n in negatives]
            pairs += negatives
        if own:
            binary.append(sum(softplus(-s) for s in own) + sum(softplus(n) for n in negatives))
    torch.testing.assert_close(lb.label_contrast(scores, positive, drawn, loss="ranking"), torch.stack(rank).mean())
    torch.testing.assert_close(lb.label_contrast(scores, positive, drawn), torch.stack(binary).mean())
    found = lb.label_contrast(scores, positive, drawn, loss="margin", margin=0.5)
    assert float(found) == pytest.approx(sum(margin) / len(pairs))


def test_accidental_hits_are_an_inputs_own_labels():
    positive = torch.tensor([[True, False, False], [False, True, True]])
    assert lb.accidental_hits(torch.tensor([0, 2, 0]), positive).tolist() == [[True, False, True], [False, True, False]]
    own = torch.tensor([[0, 1], [0, 1]])
    assert lb.accidental_hits(own, positive).tolist() == [[True, False], [False, True]]


def test_labels_are_drawn_as_their_noise_says():
    noise = lb.LabelNoise(torch.tensor([16.0, 1.0, 0.0]), 0.75)
    assert noise.log_probability.exp().tolist() == pytest.approx([8 / 9, 1 / 9, 0.0])
    drawn = noise.draw(9000, torch.Generator().manual_seed(0))
    assert torch.bincount(drawn, minlength=3).tolist()[2] == 0
    assert float((drawn == 0).double().mean()) == pytest.approx(8 / 9, abs=0.02)
    assert lb.LabelNoise(torch.tensor([5, 1]), 0.0).log_probability.exp().tolist() == pytest.approx([0.5, 0.5])
    assert torch.equal(drawn, noise.draw(9000, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("kind", ["cosine", "dot", "mlp"])
def test_scores(kind: Any):
    scorer = lb.LabelScorer(kind, 4, temperature=0.2)
    h, e = torch.randn(3, 4), torch.randn(5, 4)
    found = scorer(h, e)
    for i, j in itertools.product(range(3), range(5)):
        if kind == "mlp":
            expected = scorer.mlp(torch.cat([h[i], e[j], h[i] * e[j]]))[0]
        else:
            expected = h[i] @ e[j] if kind == "dot" else torch.cosine_similarity(h[i], e[j], dim=0) / 0.2
        torch.testing.assert_close(found[i, j], expected)


# -- the method --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"labels": "both", "loss": "ranking"}, {"labels": "classes", "score": "dot"},
                                     {"label_encoder": "text", "score": "mlp", "hidden": 0.5}])  # fmt: skip
def test_the_contract(changes: dict[str, Any]):
    check_method(method(**changes), batch())


@pytest.mark.parametrize("loss", ["binary", "ranking"])
def test_the_method_costs_what_the_objective_says(loss: Any):
    """The texts' own words are told by reading the texts again."""
    model = method(loss=loss, num_positives=3, num_negatives=9).eval()
    viewed = model.views(batch(), Rng(1))
    z = model.encode(viewed)
    keys = viewed["label_key"].flatten()
    order = viewed["label_draw"].flatten().argsort()
    first: dict[int, int] = {}
    for place in order.tolist():
        if int(keys[place]):
            first.setdefault(int(keys[place]), place)
    kept = list(first.values())
    tokens = model.encoder.tokenizer.fast
    names = [tokens.decode(row.tolist()).replace(" ##", "") for row in viewed["label_ids"].flatten(0, 1)[kept]]
    positive = torch.tensor([[name in words_in(text) for name in names] for text in TEXTS[:8]])
    scores = model.scorer(z["embedding"][:, 0], z["label"].flatten(0, 1)[kept])
    expected = lb.label_contrast(scores, positive, torch.arange(9), loss=loss)
    torch.testing.assert_close(model.loss(z, viewed, {}, PROGRESS).values["words"], expected)


def test_hidden_words_are_not_in_the_text():
    model = method(hidden=1.0, num_positives=3)
    viewed, shown = model.views(batch(), Rng(1)), []
    tokens = model.encoder.tokenizer.fast
    for row, ids in enumerate(viewed["tokens"]["input_ids"][:, 0]):
        shown = set(words_in(tokens.decode(ids.tolist()).replace(" ##", "")))
        hidden = {tokens.decode(ids.tolist()).replace(" ##", "") for ids in viewed["label_ids"][row]}
        assert len(hidden) == 3
        assert not shown & hidden
        assert shown | hidden == set(words_in(TEXTS[row]))
    everything = method(hidden=1.0, num_positives=50).views(batch(2), Rng(1))["tokens"]["input_ids"]
    assert torch.equal(everything[:, 0], model.encoder.tokenise(TEXTS[:2])["input_ids"]), "a text is never left empty"


def test_a_text_without_words_is_passed_over():
    model = method().eval()
    rows = {"index": torch.arange(3), "text": [*TEXTS[:2], "..."]}
    viewed = model.views(rows, Rng(0))
    assert (viewed["label_key"][2] == 0).all()
    terms = model.loss(model.encode(viewed), viewed, {}, PROGRESS)
    assert terms.counts["words"] == 2
    alone = model.views({"index": torch.arange(1), "text": ["..."]}, Rng(0))
    terms = model.loss(model.encode(alone), alone, {}, PROGRESS)
    assert (float(terms.total.detach()), terms.counts["words"]) == (0.0, 0)


def run(output: Path, recipe: str = "input_label", epochs: int = 2, **changes: Any) -> Any:
    found = load_recipe(f"sentences/{recipe}")
    return dataclasses.replace(
        found, encoder=SMALL, method=dataclasses.replace(found.method, **changes),
        trainer=TrainerConfig(epochs=epochs, batch_size=20, progress=False, report=False, evaluate_before=False,
                              evaluate_every=0, device="cpu", log_every=1, drop_last=False, output=str(output)),
    )  # fmt: skip


def source() -> TextSource:
    return TextSource(TEXTS, labels=[templates.WHAT[m.what][0] for m in MEANINGS])


@pytest.mark.parametrize("recipe", ["input_label", "input_label_classes"])
def test_a_run_goes_on_to_the_bit_and_scores_any_label(tmp_path: Path, recipe: str):
    from nearfar.train import Interrupted, Trainer

    def fit(folder: Path, stop: int = 0, resume: bool = False) -> None:
        chosen = run(folder, recipe)
        data, built = pipeline.build(chosen, without_test(source()))

        def callback(trainer: Trainer, row: dict[str, Any]) -> None:
            if trainer.step == stop:
                trainer._leave(15)

        Trainer(built, data, chosen.trainer, optimiser=chosen.optimiser, recipe=chosen, callbacks=[callback]).fit(
            resume
        )

    fit(tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(tmp_path / "parts", stop=2)
    fit(tmp_path / "parts", resume=True)
    whole, parts = (pipeline.load_run(tmp_path / name, "last") for name in ("whole", "parts"))
    for name, value in whole.method.state_dict().items():
        assert torch.equal(value, parts.method.state_dict()[name]), name
    scores = whole.method.zero_shot(TEXTS[:4], ["a car", "never seen"])
    assert scores.shape == (4, 2)
    torch.testing.assert_close(scores[:, 1:], whole.method.zero_shot(TEXTS[:4], ["never seen"]))


def steps(output: str) -> dict[str, Any]:
    recipe = run(Path(output), epochs=1)
    recipe = dataclasses.replace(recipe, encoder=dataclasses.replace(SMALL, dropout=0.0))
    data, built = pipeline.build(recipe, without_test(source()))
    from nearfar.train import Trainer

    done = Trainer(built, data, recipe.trainer, optimiser=recipe.optimiser).fit()
    return {"losses": [row["loss"] for row in done.metrics if "loss" in row]}


def test_two_processes_equal_one(tmp_path: Path):
    one = steps(str(tmp_path / "one"))
    for found in launch(steps, 2, str(tmp_path / "two")):
        assert found["losses"] == pytest.approx(one["losses"], rel=1e-4)


# -- catalogue, negation, commands -------------------------------------------------------------------------------------


def test_the_catalogue_from_the_command_line(capsys: pytest.CaptureFixture[str]):
    assert main(["sentences", "methods", "--json", "--contrast", "input-label"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["slug"] for row in rows} >= {"mlm", "nlp_primer"}
    assert all(row["axes"]["contrast"] == "input-label" and row["advice"] for row in rows)
    assert main(["sentences", "methods", "--advice"]) == 0
    assert "false negatives" in capsys.readouterr().out


def test_negations_differ_by_one_word_and_are_told_where_they_are_seen():
    texts, others, negated = negations(20, 0)
    for text, other, turned in zip(texts, others, negated, strict=True):
        words = turned.split()
        assert [word for word in words if word != "never"] == text.split()
        assert len(words) == len(text.split()) + 1
        assert "never" not in other

    def sees(rows: Any) -> Tensor:
        return torch.tensor([[1.0, 0.0] if "never" in row else [0.0, 1.0] for row in rows])

    assert negation(sees, texts, others, negated) == {"told": 1.0, "same": 1.0, "negated": 0.0}
    assert negation(lambda rows: torch.ones(len(rows), 2), texts, others, negated)["told"] == 0.0


def test_negations_of_a_run_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pipeline.train(run(tmp_path / "run", epochs=1), data=without_test(source()))
    capsys.readouterr()
    command = ["sentences", "methods", "--negation", "--run", str(tmp_path / "run"), "--num-sentences", "9"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"told", "same", "negated"}
    assert np.isfinite(list(found.values())).all()
    assert main(command) == 0
    assert "of 9 sentences" in capsys.readouterr().out


def test_bad_input():
    scores, positive = torch.randn(2, 3), torch.tensor([[True, False, False], [False, True, False]])
    log_noise = torch.tensor([0.0, -math.inf, 0.0])
    with pytest.raises(ValueError, match="logarithms of probabilities above 0"):
        lb.label_contrast(scores, positive, log_noise=log_noise)
    with pytest.raises(ValueError, match="at least one anchor with a positive"):
        lb.label_contrast(scores, torch.zeros_like(positive))
    with pytest.raises(ValueError, match="positive: expected an input with a positive"):
        lb.label_contrast(scores, torch.zeros_like(positive), loss="ranking")
    with pytest.raises(ValueError, match="loss: expected one of"):
        lb.label_contrast(scores, positive, loss="triplet")
    with pytest.raises(ValueError, match="positive: expected shape"):
        lb.label_contrast(scores, positive[:, :2])
    with pytest.raises(ValueError, match="drawn: expected numbers of 3 labels"):
        lb.label_contrast(scores, positive, torch.tensor([3]))
    with pytest.raises(ValueError, match="with noise or stats"):
        lb.label_contrast(scores, positive, loss="margin", with_stats=True)
    with pytest.raises(ValueError, match="counts: expected"):
        lb.LabelNoise(torch.zeros(3))
    with pytest.raises(ValueError, match="labels: expected width 4"):
        lb.LabelScorer("dot", 4)(torch.ones(2, 4), torch.ones(2, 3))
    with pytest.raises(ValueError, match="data.label: expected names of two classes"):
        InputLabel(InputLabelConfig(labels="classes"), build_encoder(SMALL, TEXTS), DataInfo(num_samples=2))
    with pytest.raises(ValueError, match="data.label: expected a column of labels"):
        pipeline.build(run(Path("none"), "input_label_classes"), without_test(TextSource(TEXTS)))
    with pytest.raises(ValueError, match="labels: expected texts"):
        method().zero_shot(["a text"], ["a label", " "])
    with pytest.raises(ValueError, match="one or more"):
        method().zero_shot(["a text"], [])
    for changes, told in (
        ({"num_positives": 0}, "num_positives: expected 1 or more"),
        ({"num_negatives": 0}, "num_negatives: expected 1 or more"),
        ({"hidden": 1.5}, "hidden: expected a share"),
    ):
        with pytest.raises(ValueError, match=told):
            InputLabelConfig(**changes)
    with pytest.raises(ValueError, match="axes: use: expected one or more"):
        dataclasses.replace(primer.AXES["mlm"], use=())
    with pytest.raises(ValueError, match="axes: stage: expected one of"):
        dataclasses.replace(primer.AXES["mlm"], stage="before")
    card = dataclasses.replace(load("sentences").module("mlm").CARD, slug="unheard_of")
    with pytest.raises(ValueError, match="axes: expected an entry of unheard_of"):
        primer.describe(card)
