"""Topic-MOO: the mixture of gradients, sets, the topic model's parts against closed forms, and training."""

from __future__ import annotations

import copy
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

from distributed.launch import launch
from nearfar.batch import Batch
from nearfar.config import TrainerConfig
from nearfar.data import Data, without_test
from nearfar.method import Progress
from nearfar.plugin import load_recipe
from nearfar.rng import Rng
from nearfar.testing import check_method
from nearfar.train import Trainer, min_norm_weights, minnorm
from nearfar_sentences import bags, pipeline, topic_scores
from nearfar_sentences import topics as t
from nearfar_sentences.config import TextEncoderConfig
from nearfar_sentences.data import TextSource
from nearfar_sentences.demonstrations.topic_moo import documents, recovery
from nearfar_sentences.encoder import build_encoder
from nearfar_sentences.methods.topic_moo import TopicMOO
from nearfar_sentences.systems.topic_moo import TopicMOOConfig

TEXTS = documents(60, 0)[0]
PROGRESS = Progress(0, 0, 0.0, 10)


def method(**changes: Any) -> TopicMOO:
    torch.manual_seed(0)
    config = TopicMOOConfig(**({"num_topics": 5, "hidden": 16, "max_share": 1.0} | changes))
    return TopicMOO(config, config.own_encoder(TextEncoderConfig(), TEXTS, None))


def batch(num: int = 16) -> Batch:
    return {"index": torch.arange(num) + 3, "text": TEXTS[:num]}


def alpha(g1: Tensor, g2: Tensor) -> float:
    stack = torch.stack([g1, g2])
    return float(min_norm_weights(stack @ stack.t())[0])


# -- the mixture of gradients ------------------------------------------------------------------------------------------


@pytest.mark.oracle("topic_moo", 1)
def test_the_mixture_has_its_closed_form():
    grid = torch.linspace(0, 1, 10001, dtype=torch.float64)
    for seed in range(10):
        g1, g2 = torch.randn(2, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        norms = (grid[:, None] * g1 + (1 - grid)[:, None] * g2).norm(dim=1)
        assert alpha(g1, g2) == pytest.approx(float(grid[norms.argmin()]), abs=1e-4)
    g = torch.randn(6, dtype=torch.float64)
    mixed = alpha(g, g) * g + (1 - alpha(g, g)) * g
    torch.testing.assert_close(mixed, g)
    x, y = torch.eye(2, dtype=torch.float64)
    assert alpha(x, y) == 0.5
    assert alpha(2 * g, g) == 0.0
    assert alpha(g, 2 * g) == 1.0


@pytest.mark.oracle("topic_moo", 2)
def test_the_mixture_lowers_both():
    """The gradients are the method's own, and what lies on the encoder afterwards is their mixture."""
    model = method(dropout=0.0)
    viewed = model.views(batch(), Rng(1))
    _, terms = model.terms(viewed, {}, PROGRESS)
    shared = model.model.encoder_parameters()
    g1, g2 = (
        torch.cat([g.flatten() for g in torch.autograd.grad(terms.values[name], shared, retain_graph=True)]).double()
        for name in ("sets", "elbo")
    )
    weights = minnorm.min_norm_backward(terms, shared, [model.model.topics])
    d = torch.cat([p.grad.flatten() for p in shared]).double()
    torch.testing.assert_close(d, weights["sets"] * g1 + weights["elbo"] * g2, rtol=1e-4, atol=1e-5)
    assert weights["sets"] == pytest.approx(alpha(g1, g2), abs=1e-6)
    for g in (g1, g2):
        assert float(d @ g) >= float(d @ d) * (1 - 1e-4)


# -- sets --------------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("topic_moo", 3)
def test_a_set_does_not_know_the_order_of_its_documents():
    anchor, positive, negative = torch.rand(3, 12, 5)
    sets = torch.randperm(12).view(3, 4)
    mixed = torch.stack([row[torch.randperm(4)] for row in sets])
    for how in ("min", "max"):
        torch.testing.assert_close(t.set_pool(anchor, sets, how), t.set_pool(anchor, mixed, how))
        alone = torch.arange(12).view(12, 1)
        assert torch.equal(t.set_pool(anchor, alone, how), anchor)
    one, other = (t.set_contrast(anchor, positive, negative, s) for s in (sets, mixed))
    torch.testing.assert_close(one, other)


def by_hand(x: Tensor, p: Tensor, n: Tensor, sets: list[list[int]], tau: float, beta: float, cross: bool) -> float:
    def pooled(z: Tensor, members: list[int], how: Any) -> np.ndarray:
        v = how(z[members].double().numpy(), axis=0)
        return v / np.linalg.norm(v)

    total = 0.0
    kept = [pooled(p, s, np.min) for s in sets]
    for i, s in enumerate(sets):
        low, high = pooled(x, s, np.min), pooled(x, s, np.max)
        first = math.exp(low @ kept[i] / tau)
        rest = beta * math.exp(high @ pooled(n, s, np.max) / tau)
        rest += sum(math.exp(low @ kept[j] / tau) for j in range(len(sets)) if j != i) if cross else 0.0
        total -= math.log(first / (first + rest))
    return total


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("size", [1, 3])
def test_the_contrast_of_sets_by_hand(size: int, cross: bool):
    x, p, n = torch.rand(3, 6, 5)
    sets = torch.randperm(6).view(-1, size)
    found = t.set_contrast(x, p, n, sets, temperature=0.3, beta=0.7, cross_set=cross)
    expected = by_hand(x, p, n, sets.tolist(), 0.3, 0.7, cross)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    mean = t.set_contrast(x, p, n, sets, temperature=0.3, beta=0.7, cross_set=cross, reduction="mean")
    assert float(mean) == pytest.approx(expected / len(sets), rel=1e-5)


def test_sets_follow_the_draw_and_leave_the_rest_out():
    draw = torch.tensor([0.9, 0.1, 0.5, 0.3, 0.7])
    assert t.draw_sets(draw, 2).tolist() == [[1, 3], [2, 4]]
    valid = torch.tensor([True, True, False, True, True])
    assert t.draw_sets(draw, 2, valid).tolist() == [[1, 3], [4, 0]]
    assert t.draw_sets(draw, 9).tolist() == [[1, 3, 2, 4, 0]]
    with pytest.raises(ValueError, match="documents: expected one or more"):
        t.draw_sets(draw, 2, torch.zeros(5, dtype=torch.bool))


# -- the topic model ---------------------------------------------------------------------------------------------------


@pytest.mark.oracle("topic_moo", 4)
def test_beta_nothing_costs_nothing_and_the_prior_has_no_divergence():
    x, p, n = torch.randn(3, 6, 5)
    assert float(t.set_contrast(x, p, n, torch.arange(6).view(3, 2), beta=0.0)) == 0.0
    variance = t.dirichlet_prior(7, 0.5)
    none = t.gaussian_kl(torch.zeros(3, 7), torch.full((3, 7), math.log(variance)), variance)
    torch.testing.assert_close(none, torch.zeros(3), rtol=0, atol=1e-6)
    mean, log_variance = torch.randn(2, 3, 7)
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (log_variance / 2).exp()),
        torch.distributions.Normal(torch.zeros(7), variance**0.5),
    ).sum(1)
    torch.testing.assert_close(t.gaussian_kl(mean, log_variance, variance), theirs)


@pytest.mark.oracle("topic_moo", 4)
def test_the_topics_gradient_is_that_of_a_softmax_regression():
    model = t.TopicModel(11, 4, norm=False).double()
    theta, counts = torch.rand(6, 4).softmax(1).double(), torch.randint(0, 4, (6, 11)).double()
    log_words = model.log_words(theta)
    (-(counts * log_words).sum(1)).mean().backward()
    expected = theta.t() @ (counts.sum(1, keepdim=True) * log_words.detach().exp() - counts) / 6
    torch.testing.assert_close(model.topics.grad, expected)


def test_the_prior_of_a_dirichlet():
    """Of the softmax's inverse of Dirichlet draws with a large concentration, where the two agree."""
    draws = np.random.default_rng(0).dirichlet(np.full(6, 40.0), 200_000)
    logs = np.log(draws) - np.log(draws).mean(1, keepdims=True)
    assert t.dirichlet_prior(6, 40.0) == pytest.approx(logs.var(0).mean(), rel=0.02)


def test_what_is_replaced():
    counts = torch.tensor([[4.0, 1.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    model, idf = torch.full((2, 4), 0.25), torch.tensor([1.0, 3.0, 1.0, 9.0])
    largest = t.replace_words(counts, model, idf, 0.3, largest=True)  # 4, 3, 2: the first goes
    torch.testing.assert_close(largest[0], torch.tensor([0.25, 1 / 7, 2 / 7, 0.0]))
    smallest = t.replace_words(counts, model, idf, 0.6, largest=False)
    torch.testing.assert_close(smallest[0], torch.tensor([4 / 7, 0.25, 0.25, 0.0]))
    assert torch.equal(largest[1], torch.zeros(4))
    nothing = t.replace_words(counts, model, idf, 0.0, largest=True)
    torch.testing.assert_close(nothing[0], largest[0], msg="one at least")


# -- steps -------------------------------------------------------------------------------------------------------------


def fitted(tmp_path: Path, *, epochs: int = 1, texts: list[str] = TEXTS, **changes: Any) -> tuple[TopicMOO, Any]:
    recipe = load_recipe("sentences/topic_moo")
    config = dataclasses.replace(recipe.method, num_topics=5, hidden=16, max_share=1.0, **changes)
    trainer = TrainerConfig(
        epochs=epochs, batch_size=20, progress=False, report=False, evaluate_before=False, evaluate_every=0,
        device="cpu", log_every=1, drop_last=False, output=str(tmp_path),
    )  # fmt: skip
    recipe = dataclasses.replace(recipe, method=config, trainer=trainer)
    data, model = pipeline.build(recipe, without_test(TextSource(texts)))
    torch.manual_seed(0)
    run = Trainer(model, data, trainer, optimiser=recipe.optimiser, recipe=recipe).fit()
    return model, run


@pytest.mark.oracle("topic_moo", 5)
def test_all_weight_on_likelihood_is_the_plain_topic_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plain, _ = fitted(tmp_path / "plain", contrast_weight=0.0, dropout=0.0)
    # terms come in the order elbo, sets
    monkeypatch.setattr(minnorm, "min_norm_weights", lambda _: torch.tensor([1.0, 0.0], dtype=torch.float64))
    forced, run = fitted(tmp_path / "forced", dropout=0.0)
    assert {row["alpha"] for row in run.metrics if "alpha" in row} == {0.0}
    for name, value in plain.model.named_parameters():
        torch.testing.assert_close(value, dict(forced.model.named_parameters())[name], rtol=1e-4, atol=1e-6)


def test_the_topics_follow_likelihood_alone():
    model = method(dropout=0.0)
    _, terms = model.terms(model.views(batch(), Rng(1)), {}, PROGRESS)
    (none,) = torch.autograd.grad(terms.values["sets"], [model.model.topics], allow_unused=True, retain_graph=True)
    assert none is None
    terms.values["elbo"].backward()
    assert float(model.model.topics.grad.abs().max()) > 0


def test_the_method_costs_what_its_parts_say():
    model = method(dropout=0.0, batch_norm=False, num_shuffles=2, kl_warmup=0.5)
    viewed = model.views(batch(), Rng(1))
    z = model.encode(viewed)
    terms = model.loss(z, viewed, {}, Progress(0, 0, 0.25, 10))
    counts, noise = viewed["counts"], viewed["noise"]
    mean, log_variance = model.model.posterior(counts / counts.sum(1, keepdim=True))
    theta = (mean + (log_variance / 2).exp() * noise[:, 0]).softmax(1)
    log_words = (theta @ model.model.topics).log_softmax(1)
    kl = t.gaussian_kl(mean, log_variance, t.dirichlet_prior(5, 1.0))
    expected = (-(counts * log_words).sum(1) + 0.5 * kl).mean()
    torch.testing.assert_close(terms.values["elbo"], expected)
    each = [t.set_contrast(theta, z["positive"], z["negative"], t.draw_sets(order, 4)) for order in viewed["order"].t()]
    torch.testing.assert_close(terms.values["sets"], torch.stack(each).mean())


@pytest.mark.parametrize("changes", [{}, {"combine": "sum", "cross_set_negatives": True}, {"contrast_weight": 0.0},
                                     {"feature": "latent", "batch_norm": False, "prior": "normal"}])  # fmt: skip
def test_the_contract(changes: dict[str, Any]):
    check_method(method(**changes), batch())


def test_the_vocabulary_is_the_encoders():
    config = TopicMOOConfig(max_share=1.0, min_documents=1)
    assert config.own_encoder(TextEncoderConfig(vocabulary=100), TEXTS, None).feature_dim == 100


def test_changed_documents_of_your_own():
    rows = {**batch(6), "positive": TEXTS[6:12], "negative": TEXTS[12:18]}
    model = method(dropout=0.0, batch_norm=False)
    viewed = model.views(rows, Rng(1))
    assert torch.equal(viewed["changed"][:, 1], model.encoder(TEXTS[12:18]))
    counts = viewed["changed"][:, 0]
    mean, log_variance = model.model.posterior(counts / counts.sum(1, keepdim=True))
    expected = (mean + (log_variance / 2).exp() * viewed["noise"][:, 1]).softmax(1)
    torch.testing.assert_close(model.encode(viewed)["positive"], expected)
    with pytest.raises(ValueError, match="data: expected both columns"):
        model.views({**batch(6), "positive": TEXTS[6:12]}, Rng(1))


def test_documents_without_known_words_count_for_nothing():
    model = method(dropout=0.0, batch_norm=False)
    rows = {"index": torch.arange(6), "text": TEXTS[:6]}
    more = {"index": torch.arange(8), "text": [*TEXTS[:6], "unheard of", "never seen"]}
    values = []
    for some in (rows, more):
        viewed = model.views(some, Rng(1))
        values.append(model.loss(model.encode(viewed), viewed, {}, PROGRESS))
    assert torch.equal(values[0].values["sets"], values[1].values["sets"])
    torch.testing.assert_close(values[0].values["elbo"], values[1].values["elbo"])
    assert values[1].logs["without_known_words"] == 2


def test_changed_documents_leave_running_statistics_alone():
    model, plain = method(dropout=0.0), method(dropout=0.0, contrast_weight=0.0)
    for one in (model, plain):
        one.encode(one.views(batch(), Rng(1)))
    for name in ("mean_norm", "variance_norm"):
        assert torch.equal(getattr(model.model, name).running_mean, getattr(plain.model, name).running_mean)
        assert getattr(model.model, name).momentum == 0.1


# -- bags and scores ---------------------------------------------------------------------------------------------------


def test_a_vocabulary_leaves_rare_and_common_words_out():
    texts = ["The cat's mat.", "the cat 12 sat", "the dog sat", "the dog"]
    bag = bags.read_bag(texts, min_documents=2, max_share=0.6)
    assert bag.words == ("dog", "sat")
    assert bag(["Dog, dog sat! cat"]).tolist() == [[2.0, 1.0]]
    again = bags.restore_bag(bytes(bag.description.numpy()))
    assert (again.words, again.num_documents) == (bag.words, 4)
    torch.testing.assert_close(again.inverse_frequency, torch.tensor([math.log(2), math.log(2)]))
    every = bags.read_bag(texts, vocabulary=2, min_documents=1, max_share=1.0, common=frozenset())
    assert every.words == ("dog", "the")
    assert "the" not in bags.read_bag(texts, min_documents=1, max_share=1.0).words
    with pytest.raises(ValueError, match="two words or more that 5 to 4 of the 4 documents have"):
        bags.read_bag(texts, min_documents=5, max_share=1.0)
    with pytest.raises(ValueError, match="text 1: expected a document"):
        bag(["dog", " "])
    with pytest.raises(ValueError, match="expected one of a topic model"):
        bags.restore_bag(b"{}")


def test_coherence_by_counting():
    counts = torch.tensor([[1, 1, 0, 1], [2, 1, 0, 1], [0, 0, 1, 1], [1, 0, 0, 1.0]])
    expected = []
    for v, w in itertools.combinations((0, 1, 2), 2):
        both = float(((counts[:, v] > 0) & (counts[:, w] > 0)).float().mean())
        own = [float((counts[:, x] > 0).float().mean()) for x in (v, w)]
        expected.append(-1.0 if both == 0 else math.log(both / (own[0] * own[1])) / -math.log(both))
    assert topic_scores.npmi([[0, 1, 2]], counts) == pytest.approx([sum(expected) / 3])
    assert topic_scores.npmi([[0, 2]], counts) == [-1.0]
    assert topic_scores.npmi([[3, 3]], counts) == [1.0]
    with pytest.raises(ValueError, match="topic 0: expected two words"):
        topic_scores.npmi([[1]], counts)


def test_diversity_and_perplexity():
    assert topic_scores.diversity([[1, 2], [2, 3]]) == 0.75
    with pytest.raises(ValueError, match="top_words: expected words"):
        topic_scores.diversity([])
    even = torch.full((3, 8), math.log(1 / 8))
    counts = torch.randint(1, 5, (3, 8)).float()
    assert topic_scores.perplexity(even, counts) == pytest.approx(8.0)
    assert topic_scores.perplexity(even, counts, torch.ones(3)) == pytest.approx(8 * math.exp(3 / float(counts.sum())))
    with pytest.raises(ValueError, match="counts: expected words"):
        topic_scores.perplexity(even, torch.zeros(3, 8))


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_to_the_bit_and_stands_alone(tmp_path: Path):
    from nearfar.train import Interrupted

    def fit(folder: Path, stop: int = 0, resume: bool = False) -> None:
        recipe = load_recipe("sentences/topic_moo")
        config = dataclasses.replace(recipe.method, num_topics=5, hidden=16, max_share=1.0)
        trainer = TrainerConfig(epochs=2, batch_size=20, progress=False, report=False, evaluate_before=False,
                                evaluate_every=0, monitor="npmi", device="cpu", output=str(folder))  # fmt: skip
        recipe = dataclasses.replace(recipe, method=config, trainer=trainer)
        data = Data(train=TextSource(TEXTS[:50]), test=TextSource(TEXTS[50:]), holdout=True)
        data, model = pipeline.build(recipe, data)

        def callback(trainer: Trainer, row: dict[str, Any]) -> None:
            if trainer.step == stop:
                trainer._leave(15)

        trainer = dataclasses.replace(trainer, log_every=1)
        Trainer(model, data, trainer, optimiser=recipe.optimiser, recipe=recipe, callbacks=[callback]).fit(resume)

    fit(tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(tmp_path / "parts", stop=3)
    fit(tmp_path / "parts", resume=True)
    whole, parts = (pipeline.load_run(tmp_path / name, "last") for name in ("whole", "parts"))
    for name, value in whole.method.state_dict().items():
        assert torch.equal(value, parts.method.state_dict()[name]), name
    shares = whole.embed(TEXTS[:4])
    torch.testing.assert_close(shares.sum(1), torch.ones(4))
    from nearfar.train import Run

    scores = Run(tmp_path / "whole").scores["after"]
    assert set(scores) == {"npmi", "diversity", "perplexity"}
    from nearfar_sentences.export import export

    with pytest.raises(TypeError, match="run: expected one of a sentence encoder"):
        export(whole, tmp_path / "out")


def test_known_topics_are_found(tmp_path: Path):
    texts, _, topics = documents(400, 1)
    recipe = load_recipe("sentences/topic_moo")
    config = dataclasses.replace(recipe.method, num_topics=10, max_share=1.0)
    trainer = TrainerConfig(epochs=40, batch_size=50, progress=False, report=False, evaluate_before=False,
                            evaluate_every=0, device="cpu", output=str(tmp_path))  # fmt: skip
    recipe = dataclasses.replace(recipe, method=config, trainer=trainer)
    data, model = pipeline.build(recipe, without_test(TextSource(texts)))
    before = recovery(copy.deepcopy(model).eval(), topics)
    Trainer(model, data, trainer, optimiser=dataclasses.replace(recipe.optimiser, lr=5e-3)).fit()
    assert before < 0.35
    assert recovery(model.eval(), topics) > 0.5


def test_bad_input():
    recipe = load_recipe("sentences/topic_moo")
    for changes, told in (({"name": "bert"}, "encoder.name: expected 'tiny' with"), ({"pooling": "cls"}, "pooling")):
        with pytest.raises(ValueError, match=told):
            recipe.method.own_encoder(TextEncoderConfig(**changes), TEXTS, None)
    with pytest.raises(TypeError, match="encoder: expected a BagOfWords, received TextEncoder"):
        recipe.method.build(None, build_encoder(TextEncoderConfig(layers=1, dim=16, heads=2), TEXTS), None)
    for changes, told in (
        ({"num_topics": 1}, "num_topics: expected 2 or more"),
        ({"set_size": 0}, "set_size: expected 1 or more"),
        ({"beta": -1.0}, "beta: expected 0 or more"),
        ({"max_share": 1.5}, "max_share: expected a share"),
        ({"concentration": 0.0}, "concentration: expected a number above 0"),
        ({"head": "tanh"}, "head: expected 'none'"),
        ({"dropout": 1.0}, "dropout: expected a share"),
    ):
        with pytest.raises(ValueError, match=told):
            TopicMOOConfig(**changes)
    x = torch.rand(4, 3)
    sets = torch.arange(4).view(2, 2)
    with pytest.raises(ValueError, match="negative: expected the shape of anchor"):
        t.set_contrast(x, x, x[:3], sets)
    with pytest.raises(ValueError, match="temperature"):
        t.set_contrast(x, x, x, sets, temperature=0.0)
    with pytest.raises(ValueError, match="beta: expected 0 or more"):
        t.set_contrast(x, x, x, sets, beta=-0.1)
    with pytest.raises(ValueError, match="num_topics: expected 2 or more"):
        t.dirichlet_prior(1, 1.0)
    with pytest.raises(ValueError, match="how: expected one of"):
        t.set_pool(x, sets, "mean")


def steps(output: str) -> dict[str, Any]:
    """Parameters and alphas of a run without dropout."""
    model, run = fitted(Path(output), dropout=0.0)
    rows = [row["alpha"] for row in run.metrics if "alpha" in row]
    return {"state": {name: p.detach().clone() for name, p in model.named_parameters()}, "alpha": rows}


def test_two_processes_equal_one(tmp_path: Path):
    one = steps(str(tmp_path / "one"))
    for found in launch(steps, 2, str(tmp_path / "two")):
        assert found["alpha"] == pytest.approx(one["alpha"], rel=1e-3)
        for name, value in one["state"].items():
            torch.testing.assert_close(found["state"][name], value, rtol=1e-3, atol=2e-4)


def test_topics_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from nearfar.cli import main

    fitted(tmp_path / "run")
    file = tmp_path / "held.txt"
    file.write_text("\n".join(TEXTS[:20]))
    assert main(["sentences", "topics", "--run", str(tmp_path / "run"), "--root", str(file), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 5
    assert all(len(set(row["words"])) == 10 for row in rows)
    assert sum(row["share"] for row in rows) == pytest.approx(1.0, abs=1e-5)
    assert main(["sentences", "topics", "--run", str(tmp_path / "run"), "--num-words", "3"]) == 0
    assert rows[0]["words"][0] in capsys.readouterr().out


@pytest.mark.parametrize("option", ["cache", "accumulate"])
def test_a_batch_that_is_cut_is_refused(tmp_path: Path, option: str):
    recipe = load_recipe("sentences/topic_moo")
    trainer = TrainerConfig(epochs=1, batch_size=20, progress=False, report=False, evaluate_before=False,
                            device="cpu", output=str(tmp_path), **{option: 2})  # fmt: skip
    config = dataclasses.replace(recipe.method, num_topics=5, hidden=16, max_share=1.0)
    recipe = dataclasses.replace(recipe, method=config, trainer=trainer)
    data, model = pipeline.build(recipe, without_test(TextSource(TEXTS)))
    with pytest.raises(ValueError, match=f"trainer.{option}"):
        Trainer(model, data, trainer, recipe=recipe).fit()
