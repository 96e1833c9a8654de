"""Input-label contrast: texts against their own words, against names of their classes, or both.

Legend: B batch, P words drawn of a text, W words of a text, L tokens, E embedding, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.method import Progress, Terms
from nearfar.rng import Rng
from nearfar_sentences.augment import generators
from nearfar_sentences.bags import words_in
from nearfar_sentences.encoder import TextEncoder
from nearfar_sentences.labels import LabelScorer, label_contrast
from nearfar_sentences.methods.sentences import Sentences, text_ids

if TYPE_CHECKING:
    from nearfar.config import DataInfo
    from nearfar_sentences.systems.nlp_primer import InputLabelConfig

LONGEST = 8
"""tokens of a label"""


class InputLabel(Sentences):
    """One scorer for words as pseudo-labels and for names of classes, so that unseen labels can be scored too.

    Args:
        config: see `InputLabelConfig`.
        encoder: of sentences.
        info: names of classes, where texts are contrasted with those.
    """

    config: InputLabelConfig
    class_ids: Tensor

    def __init__(self, config: InputLabelConfig, encoder: TextEncoder, info: DataInfo) -> None:
        super().__init__(config, encoder)
        dim = encoder.feature_dim
        self.label_head = nn.Linear(dim, dim)
        self.scorer = LabelScorer(config.score, dim, config.temperature)
        if config.labels != "words":
            expect(len(info.class_names) > 1, "data.label", "names of two classes or more", info.class_names)
            self.register_buffer("class_ids", self._label_ids(info.class_names))

    # -- the step ------------------------------------------------------------------------------------------------------

    def columns(self, batch: Batch) -> list[list[str]]:
        """The text alone."""
        return [batch["text"]]

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """Tokens of texts; with words also P words of each: their tokens, their keys, and the keys of all its words."""
        if self.config.labels == "classes":
            return super().views(batch, rng)
        device, num = batch["index"].device, self.config.num_positives
        words = [sorted(set(words_in(text))) for text in batch["text"]]
        drawn, shown = [], []
        for text, own, draw in zip(batch["text"], words, generators(rng, batch["index"], "labels"), strict=True):
            chosen = [own[i] for i in draw.permutation(len(own))[:num].tolist()]
            hidden = {word for word in chosen if draw.random() < self.config.hidden}
            drawn.append(chosen + [""] * (num - len(chosen)))
            shown.append(_without(text, hidden))
        made = super().views({**batch, "text": shown}, rng)
        flat = [word for row in drawn for word in row]
        made["label_ids"] = self._label_ids(flat).view(len(drawn), num, LONGEST).to(device)
        made["label_key"] = _keys(drawn, num, device)
        made["text_key"] = _keys(words, max(map(len, words)), device)
        made["label_draw"] = rng.uniform(batch["index"], "negatives", num)
        return made

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """As the base, V = 1; with words also "label", embeddings [B, P, E] of the words drawn."""
        z = super().encode(batch)
        if "label_ids" in batch:
            ids = batch["label_ids"]
            z["label"] = self.label_embedding(ids.flatten(0, 1)).unflatten(0, ids.shape[:2])
        return z

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        h_BE, terms = z["embedding"][:, 0], Terms()
        if self.config.labels != "classes":
            e_CE, positive_BC, drawn_K = self._words(z, batch)
            self._add(terms, "words", self.scorer(h_BE, e_CE), positive_BC, drawn_K)
        if self.config.labels != "words":
            scores = self.scorer(h_BE, self.label_embedding(self.class_ids))
            positive = nn.functional.one_hot(batch["label"], len(self.class_ids)).bool()
            self._add(terms, "classes", scores, positive, None)
            terms.log(accuracy=(scores.argmax(1) == batch["label"]).float().mean())
        return terms

    def _add(self, terms: Terms, name: str, scores: Tensor, positive: Tensor, drawn: Tensor | None) -> None:
        if not positive.any():  # texts without a word
            terms.add(name, scores.sum() * 0.0, count=0)
            return
        loss, stats = label_contrast(scores, positive, drawn, loss=self.config.loss, with_stats=True)
        terms.add(name, loss, count=stats.num_anchors)

    def _words(self, z: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of all drawn words [C, E], whether each is a word of each text [B, C], and the negatives [K]."""
        e, keys, draw = z["label"].flatten(0, 1), batch["label_key"].flatten(), batch["label_draw"].flatten()
        if distributed.world() > 1:
            e = distributed.gather(e)
            keys, draw = distributed.gather(keys, grad=False), distributed.gather(draw, grad=False)
        order = draw.argsort(stable=True)
        order = order[keys[order] != 0]
        # a word that several texts have is one label: the first in the order of the draw
        seen: set[int] = set()
        first = [place for place in order.tolist() if not (int(keys[place]) in seen or seen.add(int(keys[place])))]
        kept = torch.tensor(first, dtype=torch.int64, device=keys.device)
        positive_BC = (batch["text_key"].unsqueeze(2) == keys[kept]).any(1)
        return e[kept], positive_BC, torch.arange(min(len(kept), self.config.num_negatives), device=keys.device)

    # -- labels --------------------------------------------------------------------------------------------------------

    def label_embedding(self, ids_CL: Tensor) -> Tensor:
        """Embeddings [C, E] of labels given as ids of tokens, padded; the zero row's label is empty."""
        tokenizer = self.encoder.tokenizer
        if self.config.label_encoder == "text":
            mask = (ids_CL != tokenizer.pad).long()
            mask[:, 0] = 1
            tokens = {"input_ids": ids_CL, "attention_mask": mask}
            tokens |= {"token_type_ids": torch.zeros_like(ids_CL)} if tokenizer.types else {}
            return self.label_head(self.encoder(tokens))
        table = self.encoder.backbone.get_input_embeddings()  # type: ignore[operator]
        own = torch.ones_like(ids_CL, dtype=torch.bool)
        for number in (tokenizer.pad, tokenizer.cls, tokenizer.sep):
            own &= ids_CL != number
        vectors = table(ids_CL) * own.unsqueeze(2)
        return self.label_head(vectors.sum(1) / own.sum(1, keepdim=True).clamp_min(1))

    @torch.no_grad()
    def zero_shot(self, texts: Sequence[str], labels: Sequence[str]) -> Tensor:
        """Scores [N, C] of texts with any labels, also such as training never saw; in evaluation mode.

        Raises:
            ValueError: an empty text or label, or none.
        """
        expect(len(texts) > 0 and len(labels) > 0, "texts, labels", "one or more", (len(texts), len(labels)))
        for label in labels:
            expect(bool(label.strip()), "labels", "texts", repr(label))
        device = next(self.parameters()).device
        tokens = {name: x.to(device) for name, x in self.encoder.tokenise(texts).items()}
        e = self.label_embedding(self._label_ids(labels).to(device))
        return self.scorer(self.head(self.encoder(tokens)), e).float().cpu()

    def _label_ids(self, labels: Sequence[str]) -> Tensor:
        """Ids of the tokens of labels [C, LONGEST]; an empty one is padding alone."""
        tokenizer = self.encoder.tokenizer
        ids = torch.full((len(labels), LONGEST), tokenizer.pad)
        given = [i for i, label in enumerate(labels) if label]
        if given:
            found = tokenizer([labels[i] for i in given], LONGEST)["input_ids"]
            ids[torch.tensor(given), : found.shape[1]] = found
        return ids


def _without(text: str, hidden: set[str]) -> str:
    """A text without some of its words; the whole text where nothing would be left."""
    return " ".join(word for word in text.split() if not hidden.intersection(words_in(word))) or text


def _keys(rows: Sequence[Sequence[str]], width: int, device: torch.device) -> Tensor:
    """Numbers [B, width] that are equal exactly where words are; 0 where there is none."""
    keys = torch.zeros(len(rows), max(width, 1), dtype=torch.int64)
    for i, row in enumerate(rows):
        given = [word for word in row if word]
        if given:
            keys[i, : len(given)] = text_ids(given, torch.device("cpu"))
    return keys.to(device)
