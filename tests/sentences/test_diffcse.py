"""DiffCSE: replaced tokens, the injected vector, where gradients go, generators, and the system."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nearfar.batch import Batch, collate, take
from nearfar.data import Data
from nearfar.method import Progress
from nearfar.objectives import simcse
from nearfar.rng import Rng
from nearfar.testing import check_method
from nearfar.train import Interrupted, Run, Trainer
from nearfar_sentences import pipeline, templates
from nearfar_sentences.encoder import build_encoder
from nearfar_sentences.generator import Generator, learn_generator, load_generator
from nearfar_sentences.methods.diffcse import DiffCSE
from nearfar_sentences.replaced import COUNTS, Discriminator, detection, inject, replace
from sentences.conftest import SMALL, tiny

PROGRESS = Progress(0, 0, 0.0, 1)
TEXTS = templates.corpus(60, 0)[0]


class Copies(Generator):
    """A generator that says what it reads."""

    def __init__(self, num_words: int) -> None:
        nn.Module.__init__(self)
        self.num_words = num_words

    def forward(self, ids_NL: Tensor, mask_NL: Tensor) -> Tensor:
        return nn.functional.one_hot(ids_NL, self.num_words).float()


def make(data: Data, **changes: Any) -> DiffCSE:
    _, method = pipeline.build(tiny("diffcse", **{"generator_steps": 2, **changes}), data)
    assert isinstance(method, DiffCSE)
    return method.train()


def batch_of(data: Data, num: int = 8) -> Batch:
    return collate([data.train[i] for i in range(num)])


def value(method: DiffCSE, batch: Batch, seed: int = 3) -> Any:
    torch.manual_seed(seed)
    return method.loss(method.encode(batch), batch, {}, PROGRESS)


@pytest.mark.oracle("diffcse", 1)
@pytest.mark.parametrize("head", ["mlp", "tanh"])
def test_without_weight_it_is_simcse(corpus: Data, head: str) -> None:
    method = make(corpus, detection_weight=0.0, head=head)
    _, other = pipeline.build(tiny("simcse", head=head), corpus)
    assert method.state_dict().keys() == other.state_dict().keys()
    assert (method.generator, method.discriminator) == (None, None)
    found = []
    for one in (method, other.train()):
        batch = one.views(batch_of(corpus), Rng(0))
        assert "edit" not in batch
        found.append(value(one, batch))
    assert torch.equal(found[0].total, found[1].total)
    assert found[0].values.keys() == {"contrast"}


@pytest.mark.oracle("diffcse", 1)
def test_the_contrast_beside_detection_is_simcse(triplets: Data) -> None:
    method = make(triplets, hard_negative_weight=0.5)
    batch = method.views(batch_of(triplets), Rng(0))
    torch.manual_seed(3)
    z = method.encode(batch)
    terms = method.loss(z, batch, {}, PROGRESS)
    torch.testing.assert_close(terms.values["contrast"], simcse(*z["embedding"].unbind(1), hard_negative_weight=0.5))
    sums = z["detection"].sum((0, 1))
    torch.testing.assert_close(terms.total, (terms.values["contrast"] + 0.005 * sums[0] / sums[1]).float())
    assert z["detection"].shape == (8, 3, len(COUNTS))
    assert terms.counts["detection"] == float(batch["tokens"]["attention_mask"].sum())


@pytest.mark.oracle("diffcse", 2)
@pytest.mark.parametrize("count_padding", [False, True])
def test_a_generator_that_copies_replaces_nothing(corpus: Data, count_padding: bool) -> None:
    method = make(corpus, share=0.0, count_padding=count_padding)
    method.generator = Copies(method.encoder.tokenizer.size)
    batch = method.views(batch_of(corpus), Rng(0))
    assert torch.equal(batch["edit"]["input_ids"], batch["tokens"]["input_ids"])
    kept: list[Tensor] = []
    method.discriminator.answer.register_forward_hook(lambda module, args, output: kept.append(output.detach()))
    terms = value(method, batch)
    assert float(terms.logs["replaced"]) == 0.0
    costs = -kept[0].log_softmax(-1)[..., 0]
    mask = batch["tokens"]["attention_mask"].flatten(0, 1)
    assert (mask == 0).any()
    expected = costs.mean() if count_padding else costs[mask > 0].mean()
    torch.testing.assert_close(terms.values["detection"].detach(), expected)


@pytest.mark.oracle("diffcse", 3)
@pytest.mark.parametrize("condition", ["embedding", "feature", "detached"])
def test_where_the_gradient_of_detection_goes(corpus: Data, condition: str) -> None:
    method = make(corpus, condition=condition)
    z = method.encode(method.views(batch_of(corpus), Rng(0)))
    z["embedding"].retain_grad()
    z["detection"][..., 0].sum().backward()
    sizes = {name: 0.0 if p.grad is None else float(p.grad.abs().max()) for name, p in method.named_parameters()}
    encoder = [size for name, size in sizes.items() if name.startswith("encoder.")]
    head = [size for name, size in sizes.items() if name.startswith("head.")]
    if condition == "detached":
        assert z["embedding"].grad is None
        assert max(encoder + head) == 0.0
    else:
        assert max(encoder) > 0.0
        assert (z["embedding"].grad is not None) == (max(head) > 0.0) == (condition == "embedding")
    assert max(size for name, size in sizes.items() if name.startswith("discriminator.")) > 0.0
    generator = dict(method.generator.named_parameters())
    assert generator
    assert all(p.grad is None and not p.requires_grad for p in generator.values())


@pytest.mark.oracle("diffcse", 4)
def test_labels_made_by_hand() -> None:
    ids, mask = torch.tensor([[101, 5, 6, 102, 0]]), torch.tensor([[1, 1, 1, 1, 0]])
    found, labels = replace(torch.tensor([[101, 5, 9, 102, 0]]), ids, mask, pad=0)
    assert labels.tolist() == [[0, 0, 1, 0, 0]]
    assert found.tolist() == [[101, 5, 9, 102, 0]]
    wild = torch.tensor([[7, 5, 9, 8, 3]])
    found, labels = replace(wild, ids, mask, pad=0)
    assert (found.tolist(), labels.tolist()) == ([[101, 5, 9, 8, 0]], [[0, 0, 1, 1, 0]])
    found, labels = replace(wild, ids, mask, pad=1, special=(101, 102))
    assert (found.tolist(), labels.tolist()) == ([[101, 5, 9, 102, 1]], [[0, 0, 1, 0, 0]])
    with pytest.raises(ValueError, match=r"filled: expected shape \(1, 5\), received \(1, 4\)"):
        replace(wild[:, :4], ids, mask, pad=0)


@pytest.mark.oracle("diffcse", 5)
@pytest.mark.parametrize("kind", ["tiny", "distilbert", "roberta", "mpnet"])
def test_the_first_id_does_not_matter(kind: str) -> None:
    backbone, dim = backbone_of(kind), 16
    tokens = {"input_ids": torch.randint(5, 90, (3, 7)), "attention_mask": torch.ones(3, 7, dtype=torch.int64)}
    model, vector = Discriminator(backbone).eval(), torch.randn(3, dim)
    with torch.no_grad():
        expected = model(tokens, vector)
        other = tokens["input_ids"].clone()
        other[:, 0] = 91
        torch.testing.assert_close(model({**tokens, "input_ids": other}, vector), expected)
        changed = tokens["input_ids"].clone()
        changed[:, 1] = 91
        assert not torch.allclose(model({**tokens, "input_ids": changed}, vector), expected)
        moved = (model(tokens, vector + 1) - expected).abs().amax(2)
        assert (moved > 1e-6).all(), "all places see the vector"
        plain = backbone(**tokens).last_hidden_state
        embedded: list[Tensor] = []
        place = backbone.embeddings.register_forward_hook(lambda module, args, output: embedded.append(output))
        backbone(**tokens)
        place.remove()
        torch.testing.assert_close(inject(backbone, tokens, embedded[0][:, 0]), plain)
    assert not backbone.embeddings._forward_hooks


def backbone_of(kind: str) -> Any:
    import transformers as t

    torch.manual_seed(0)
    shape = {"vocab_size": 100, "max_position_embeddings": 20}
    bert = shape | {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "tiny":
        return t.BertModel(t.BertConfig(**bert), add_pooling_layer=False).eval()
    if kind == "roberta":
        return t.RobertaModel(t.RobertaConfig(**bert), add_pooling_layer=False).eval()
    if kind == "mpnet":
        return t.MPNetModel(t.MPNetConfig(**bert), add_pooling_layer=False).eval()
    return t.DistilBertModel(t.DistilBertConfig(**shape, dim=16, n_layers=2, n_heads=2, hidden_dim=32)).eval()


def test_detection_by_loops() -> None:
    logits, labels = torch.randn(4, 6, 2), torch.randint(0, 2, (4, 6))
    mask = (torch.arange(6) < torch.tensor([6, 3, 1, 4])[:, None]).long()
    labels *= mask
    for count_padding in (False, True):
        found = detection(logits, labels, mask, count_padding=count_padding)
        for n in range(4):
            want = dict.fromkeys(COUNTS, 0.0)
            for place in range(6):
                real, new = bool(mask[n, place]), bool(labels[n, place])
                says = bool(logits[n, place, 1] > logits[n, place, 0])
                if real or count_padding:
                    want["loss"] -= float(logits[n, place].log_softmax(0)[int(new)])
                    want["places"] += 1
                want["replaced"] += real and new
                want["found"] += real and new and says
                want["tokens"] += real
                want["kept"] += real and not new and not says
            torch.testing.assert_close(found[n], torch.tensor([float(want[name]) for name in COUNTS]))


# -- who replaces words ------------------------------------------------------------------------------------------------


def test_a_generator_of_a_run(corpus: Data, tmp_path: Path) -> None:
    run = pipeline.train(tiny("mlm", tmp_path / "mlm"), data=corpus)
    method = make(corpus, generator=str(run.path))
    trained = pipeline.load_run(run.path).method
    tokens = trained.encoder.tokenise(TEXTS[:5])
    with torch.no_grad():
        expected = trained.words(trained.encoder.states(tokens).hidden[-1])
        found = method.generator(tokens["input_ids"], tokens["attention_mask"])
    torch.testing.assert_close(found, expected)
    assert not method.generator.training
    assert not any(part.training for part in method.generator.modules())
    assert torch.equal(method.generator.fill(tokens["input_ids"], tokens["attention_mask"]), expected.argmax(-1))


def test_a_generator_of_transformers(corpus: Data, tmp_path: Path) -> None:
    import transformers as t

    tokenizer = build_encoder(SMALL, pipeline.texts_of(corpus.train)).tokenizer
    tokenizer.fast.no_padding()
    shape = t.DistilBertConfig(vocab_size=tokenizer.size, dim=16, n_layers=1, n_heads=2, hidden_dim=32,
                               max_position_embeddings=20)  # fmt: skip
    t.DistilBertForMaskedLM(shape).save_pretrained(tmp_path / "small")
    names = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep", "mask")}
    t.PreTrainedTokenizerFast(tokenizer_object=tokenizer.fast, **names).save_pretrained(tmp_path / "small")
    method = make(corpus, generator=str(tmp_path / "small"))
    batch = method.views(batch_of(corpus), Rng(0))
    assert math.isfinite(float(value(method, batch).total.detach()))
    with pytest.raises(ValueError, match="method.generator: expected a model that reads 30 tokens, received 20"):
        load_generator(str(tmp_path / "small"), tokenizer, 30)
    other = build_encoder(SMALL, ["a few other words, so few of them"]).tokenizer
    with pytest.raises(ValueError, match=r"method.generator: expected the encoder's vocabulary of \d+ words"):
        load_generator(str(tmp_path / "small"), other, 16)


def test_a_generator_that_learns_predicts_words() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(dataclasses.replace(SMALL, dropout=0.0), TEXTS)
    before = copy.deepcopy(encoder.state_dict())
    state = torch.get_rng_state()
    found, again = (learn_generator(encoder, TEXTS, 60) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state), "nobody else's random numbers are used"
    for one, other in zip(found.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert all(torch.equal(x, before[name]) for name, x in encoder.state_dict().items()), "the encoder stays as it is"
    tokens = encoder.tokenise(TEXTS[:20])
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    words = ~torch.isin(ids, torch.tensor(encoder.tokenizer.special))
    right = [(one.fill(ids, mask) == ids)[words].float().mean() for one in (found, learn_generator(encoder, TEXTS, 1))]
    assert float(right[0]) > float(right[1]) + 0.1


def test_drawn_words_follow_their_probabilities() -> None:
    generator = Copies(5)
    logits = torch.log(torch.tensor([0.1, 0.0, 0.4, 0.2, 0.3]))
    generator.forward = lambda ids, mask: logits.expand(*ids.shape, 5)  # type: ignore[method-assign]
    ids = torch.zeros(1, 4000, dtype=torch.int64)
    draws = Rng(0).uniform(torch.tensor([0]), "fill", 4000)
    counts = torch.bincount(generator.fill(ids, ids, draws)[0], minlength=5) / 4000
    torch.testing.assert_close(counts, logits.exp(), atol=0.03, rtol=0.0)
    assert counts[1] == 0
    edge = torch.tensor([[0.0, 0.0999, 0.1001, 0.4999, 0.5001, 1 - 2**-24]])
    assert generator.fill(edge.long(), edge.long(), edge).tolist() == [[0, 0, 2, 2, 3, 4]]


def test_few_logits_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from nearfar_sentences import generator as module

    encoder = build_encoder(dataclasses.replace(SMALL, dropout=0.0), TEXTS)
    found = learn_generator(encoder, TEXTS, 2)
    tokens = encoder.tokenise(TEXTS[:9])
    whole = found.fill(tokens["input_ids"], tokens["attention_mask"])
    sizes: list[int] = []
    found.register_forward_hook(lambda one, args, output: sizes.append(output.numel()))
    limit = 2 * tokens["input_ids"].shape[1] * found.num_words
    monkeypatch.setattr(module, "LOGITS", limit)
    assert torch.equal(found.fill(tokens["input_ids"], tokens["attention_mask"]), whole)
    assert len(sizes) == 5
    assert max(sizes) == limit


# -- the system --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{}, {"head": "tanh", "decode": "sample"}, {"condition": "feature", "keep_special": False},
                {"mlm_weight": 0.1, "count_padding": True}],
)  # fmt: skip
@pytest.mark.parametrize("columns", ["corpus", "triplets"])
def test_the_contract(columns: str, changes: dict, request: pytest.FixtureRequest) -> None:
    data = request.getfixturevalue(columns)
    if changes.get("condition") == "feature":
        changes = {**changes, "head": "tanh"}
    check_method(make(data, **changes), batch_of(data, 12))


def test_each_copy_is_edited_apart_and_by_its_sample(corpus: Data) -> None:
    method = make(corpus, decode="sample")
    batch = batch_of(corpus, 12)
    whole = method.views(batch, Rng(0))["edit"]
    assert not torch.equal(whole["input_ids"][:, 0], whole["input_ids"][:, 1])
    part = method.views(take(batch, torch.tensor([3, 7])), Rng(0))["edit"]
    length = part["input_ids"].shape[2]
    for name in ("input_ids", "draws"):
        assert torch.equal(part[name], whole[name][[3, 7], :, :length])
    masked = (whole["input_ids"] == method.encoder.tokenizer.mask).float().mean()
    assert 0.1 < float(masked) < 0.35
    assert "draws" not in make(corpus).views(batch, Rng(0))["edit"]


def test_special_tokens_stay_unless_asked(corpus: Data) -> None:
    batch = batch_of(corpus)
    for keep, same in ((True, True), (False, False)):
        method = make(corpus, keep_special=keep)
        method.generator.forward = (  # type: ignore[method-assign]
            lambda ids, mask, num=method.encoder.tokenizer.size: nn.functional.one_hot(
                torch.full_like(ids, 20), num
            ).float()
        )
        viewed = method.views(batch, Rng(0))
        tokens = {name: x.flatten(0, 1) for name, x in viewed["tokens"].items()}
        ids, labels = method.edited(tokens, {name: x.flatten(0, 1) for name, x in viewed["edit"].items()})
        last = tokens["input_ids"] == method.encoder.tokenizer.sep
        assert bool((ids[last] == tokens["input_ids"][last]).all()) == same
        assert bool((labels[last] == 0).all()) == same
        assert (ids[:, 0] == method.encoder.tokenizer.cls).all()
        assert (ids[tokens["attention_mask"] == 0] == method.encoder.tokenizer.pad).all()


def test_detection_is_learnt(corpus: Data) -> None:
    method = make(corpus, detection_weight=1.0, head="tanh", generator_steps=30)
    optimiser = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=3e-3)
    torch.manual_seed(0)
    found = []
    for step in range(60):
        batch = method.views(batch_of(corpus, 16), Rng(0, step))
        terms = method.loss(method.encode(batch), batch, {}, PROGRESS)
        optimiser.zero_grad()
        terms.total.backward()
        optimiser.step()
        found.append(float(terms.values["detection"].detach()))
        assert 0 < float(terms.logs["replaced"]) < 1
    assert sum(found[-10:]) < 0.8 * sum(found[:10])


def test_stopped_and_resumed_is_never_stopped(corpus: Data, tmp_path: Path) -> None:
    def run(output: Path, stop_at: int = 0, resume: bool = False) -> None:
        recipe = tiny("diffcse", output, generator_steps=2, detection_weight=0.5)
        recipe = dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, epochs=2))
        data, method = pipeline.build(recipe, corpus)

        def callback(trainer: Trainer, row: dict) -> None:
            if trainer.step == stop_at:
                trainer._leave(15)

        Trainer(method, data, recipe.trainer, optimiser=recipe.optimiser, recipe=recipe, callbacks=[callback]).fit(
            resume
        )

    run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", stop_at=3)
    run(tmp_path / "parts", resume=True)
    files = [Run(tmp_path / name).checkpoint("last") / "model.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_run_embeds_without_its_generator(corpus: Data, tmp_path: Path) -> None:
    import shutil

    words = pipeline.train(tiny("mlm", tmp_path / "mlm"), data=corpus)
    run = pipeline.train(tiny("diffcse", tmp_path / "run", generator=str(words.path)), data=corpus)
    shutil.rmtree(words.path)
    loaded = pipeline.load_run(run.path)
    assert loaded.method.generator is None
    found = loaded.embed(["the doctor buys a car", "a boat"])
    torch.testing.assert_close(found, loaded.encoder.embed(["the doctor buys a car", "a boat"]))
    assert copy.deepcopy(loaded.method).load_state_dict(loaded.method.state_dict()).unexpected_keys == []
    with pytest.raises(RuntimeError, match="generator: expected one, by read_corpus, before training"):
        loaded.method.encode(loaded.method.views(batch_of(corpus), Rng(0)))


def test_encoded_in_parts_it_trains_the_same(corpus: Data, tmp_path: Path) -> None:
    states = []
    for cache in (0, 3):
        recipe = tiny("diffcse", tmp_path / str(cache), generator_steps=20, head="tanh", detection_weight=0.5)
        recipe = dataclasses.replace(
            recipe, encoder=dataclasses.replace(SMALL, dropout=0.0),
            trainer=dataclasses.replace(recipe.trainer, cache=cache),
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "encoder: expected dropout")
            pipeline.train(recipe, data=corpus)
        states.append(pipeline.load_run(tmp_path / str(cache), "last").method.state_dict())
    for name, one in states[0].items():
        torch.testing.assert_close(states[1][name], one, rtol=1e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_bad_input(corpus: Data, tmp_path: Path) -> None:
    for changes, told in (
        ({"detection_weight": -1.0}, "method.detection_weight: expected 0 or more"),
        ({"generator_steps": 0}, "method.generator_steps: expected 1 or more"),
        ({"share": 1.0}, r"method.share: expected a share in \[0, 1\)"),
        ({"copies": 3}, "method.copies: expected 2"),
    ):
        with pytest.raises(ValueError, match=told):
            tiny("diffcse", **changes)
    run = pipeline.train(tiny("simcse", tmp_path / "simcse"), data=corpus)
    with pytest.raises(ValueError, match="method.generator: expected a run that predicts masked words"):
        make(corpus, generator=str(run.path))
    method = make(corpus)
    method.encoder.backbone.config.name_or_path = "some-model"
    with pytest.raises(ValueError, match="method.generator: expected a masked language model with the words of some"):
        method.read_corpus(TEXTS)
    tokens = {"input_ids": torch.zeros(2, 3, dtype=torch.int64), "attention_mask": torch.ones(2, 3, dtype=torch.int64)}
    with pytest.raises(ValueError, match="vector: expected a width of 16, as the embedding has, received 8"):
        inject(method.encoder.backbone, tokens, torch.zeros(2, 8))
    assert not method.encoder.backbone.embeddings._forward_hooks
    with pytest.raises(ValueError, match="encoder: expected a model with a module named embeddings, received Linear"):
        inject(nn.Linear(2, 2), tokens, torch.zeros(2, 8))
