"""Topic-MOO: a neural topic model whose encoder follows the min-norm step of likelihood and contrast of sets.

Legend: B documents, V words, T topics, S shuffles.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.data import Source
from nearfar.evaluate import Score
from nearfar.evaluate.score import exact, mean_interval
from nearfar.method import Engine, Method, Progress, Terms
from nearfar.rng import Rng
from nearfar.train.minnorm import min_norm_backward
from nearfar_sentences.bags import BagOfWords
from nearfar_sentences.topic_scores import diversity, npmi, perplexity
from nearfar_sentences.topics import (
    TopicModel,
    dirichlet_prior,
    draw_sets,
    gaussian_kl,
    replace_words,
    set_contrast,
)

if TYPE_CHECKING:
    from nearfar_sentences.systems.topic_moo import TopicMOOConfig


class TopicMOO(Method):
    """A variational topic model with contrast of sets of documents.

    `views` turns texts into counts [B, V] and draws noise and the order of documents. With columns positive and
    negative these are the changed documents; else some words' shares are replaced by the model's.

    Args:
        config: see `TopicMOOConfig`.
        encoder: the bag of words.
    """

    cache = "no: the gradients of two losses are combined by the method itself"
    outputs = ("default", "latent")

    def __init__(self, config: TopicMOOConfig, encoder: BagOfWords) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder
        self.model = TopicModel(
            encoder.feature_dim, config.num_topics, hidden=config.hidden, dropout=config.dropout, norm=config.batch_norm
        )
        normal = config.prior == "normal"
        self.variance = 1.0 if normal else dirichlet_prior(config.num_topics, config.concentration)

    # -- the step ------------------------------------------------------------------------------------------------------

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """Counts in place of texts, noise [B, 3, T] and the draws [B, S] that put documents into sets."""
        index, num = batch["index"], self.config.num_topics
        made = {name: value for name, value in batch.items() if name not in ("text", "positive", "negative")}
        made["counts"] = self.encoder(batch["text"]).to(index.device)
        given = [name for name in ("positive", "negative") if name in batch]
        expect(len(given) != 1, "data", "both columns of changed documents, positive and negative, or none", given)
        if given:
            made["changed"] = torch.stack([self.encoder(batch[name]).to(index.device) for name in given], 1)
        made["noise"] = rng.normal(index, "noise", 3 * num).unflatten(1, (3, num))
        made["order"] = rng.uniform(index, "sets", self.config.num_shuffles)
        return made

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Shares of topics [B, T] of documents ("embedding") and of their changed forms ("positive", "negative"), what
        each document's words cost and its KL divergence [B], and how many of its words are known [B]."""
        counts_BV, noise = batch["counts"], batch["noise"]
        mean, log_variance = self.model.posterior(_shares(counts_BV))
        latent_BT = _draw(mean, log_variance, noise[:, 0])
        theta_BT = latent_BT.softmax(1)
        log_words_BV = self.model.log_words(theta_BT)
        found = {
            "embedding": self._feature(latent_BT),
            "cost": -(counts_BV * log_words_BV).sum(1),
            "kl": gaussian_kl(mean, log_variance, self.variance),
            "known": counts_BV.sum(1),
        }
        if self.config.contrast_weight == 0:
            return found
        with still_norms(self.model):
            for place, name in enumerate(("positive", "negative")):
                if "changed" in batch:
                    changed_BV = _shares(batch["changed"][:, place])
                else:
                    changed_BV = replace_words(
                        counts_BV, log_words_BV.detach().exp(), self.encoder.inverse_frequency,  # type: ignore[arg-type]
                        self.config.replaced, largest=name == "negative",
                    )  # fmt: skip
                found[name] = self._feature(_draw(*self.model.posterior(changed_BV), noise[:, 1 + place]))
        return found

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        valid = z["known"] > 0
        num = int(valid.sum())
        weight = 1.0 if self.config.kl_warmup == 0 else min(1.0, progress.fraction / self.config.kl_warmup)
        each = torch.where(valid, z["cost"] + weight * z["kl"], 0.0)
        terms = Terms().add("elbo", each.sum() / max(num, 1), count=num)
        if self.config.contrast_weight:
            terms.add("sets", self._contrast(z, batch["order"]), weight=self.config.contrast_weight)
        kl = torch.where(valid, z["kl"], 0.0).sum() / max(num, 1)
        return terms.log(kl=kl, without_known_words=len(valid) - num)

    def update(self, batch: Batch, engine: Engine) -> Terms:
        """Contrast and likelihood pull at the encoder along the shortest mixture of their gradients; likelihood alone
        moves the topics' words."""
        if self.config.combine == "sum" or self.config.contrast_weight == 0:
            return engine.minimize(self, batch)
        _, terms = self.terms(batch, {}, engine.progress)
        if engine.account(terms):
            weights = min_norm_backward(
                terms, self.model.encoder_parameters(), [self.model.topics], normalize=self.config.normalize_gradients
            )
            terms.log(alpha=weights["sets"])
        engine.step()
        return terms

    def _feature(self, latent_BT: Tensor) -> Tensor:
        return latent_BT.softmax(1) if self.config.feature == "theta" else latent_BT

    def _contrast(self, z: Mapping[str, Tensor], order_BS: Tensor) -> Tensor:
        """The contrast over all processes' documents, averaged over shuffles."""
        parts, valid = [z[name] for name in ("embedding", "positive", "negative")], z["known"] > 0
        if distributed.world() > 1:
            parts = [distributed.gather(part) for part in parts]
            valid, order_BS = (distributed.gather(x, grad=False) for x in (valid, order_BS))
        config = self.config
        losses = [
            set_contrast(
                parts[0], parts[1], parts[2], draw_sets(draw, config.set_size, valid), temperature=config.temperature,
                beta=config.beta, cross_set=config.cross_set_negatives,
            )
            for draw in order_BS.t()
        ]  # fmt: skip
        return torch.stack(losses).mean()

    # -- what users keep -----------------------------------------------------------------------------------------------

    def features(self, batch: Batch, output: str = "default") -> Tensor:
        """Shares of topics [B, T] of documents, or the vectors before the softmax; without noise."""
        counts = self.encoder(batch["text"]).to(self.model.topics.device)
        mean = self.model.posterior(_shares(counts))[0]
        return mean if output == "latent" else mean.softmax(1)

    @torch.no_grad()
    def topic_words(self) -> Tensor:
        """Shares of words [T, V] of every topic alone; in evaluation mode."""
        num = self.config.num_topics
        return self.model.log_words(torch.eye(num, device=self.model.topics.device)).exp()

    def top_words(self, num: int = 10) -> list[list[str]]:
        """The likeliest words of every topic; in evaluation mode."""
        return [[self.encoder.words[i] for i in row] for row in self._top(num)]

    @torch.no_grad()
    def topic_scores(self, texts: list[str], num: int = 10) -> dict[str, Score]:
        """Coherence (npmi) of the topics' likeliest words in documents, their diversity, and perplexity.

        Args:
            texts: held-out documents.
            num: words of a topic that coherence looks at; diversity looks at 25.
        """
        counts = self.encoder(texts).to(self.model.topics.device)
        mean, log_variance = self.model.posterior(_shares(counts))
        log_words, kl = self.model.log_words(mean.softmax(1)), gaussian_kl(mean, log_variance, self.variance)
        own = npmi(self._top(num), counts.cpu())
        return {
            "npmi": mean_interval(own, bounds=(-1.0, 1.0)),
            "diversity": exact(diversity(self._top(25)), len(own)),
            "perplexity": exact(perplexity(log_words, counts, kl * (counts.sum(1) > 0)), int(counts.sum())),
        }

    def scores(self, source: Source, device: torch.device | str = "cpu") -> dict[str, Score]:
        """Coherence, diversity and perplexity on held-out documents; see `topic_scores`."""
        return self.topic_scores([source[i]["text"] for i in range(len(source))])

    def _top(self, num: int) -> list[list[int]]:
        return self.topic_words().topk(min(num, self.encoder.feature_dim), dim=1).indices.tolist()


def _shares(counts_BV: Tensor) -> Tensor:
    return counts_BV / counts_BV.sum(1, keepdim=True).clamp_min(1)


def _draw(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    return mean + (log_variance / 2).exp() * noise


@contextlib.contextmanager
def still_norms(model: nn.Module) -> Iterator[None]:
    """Running batch statistics stay those of the documents as they are."""
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    before = [part.momentum for part in norms]
    for part in norms:
        part.momentum = 0.0
    yield
    for part, momentum in zip(norms, before, strict=True):
        part.momentum = momentum
