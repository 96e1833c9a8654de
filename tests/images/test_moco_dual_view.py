"""Dual-view MoCo as a system: what it keeps of the queue and when, what it logs, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from images.vectors import batch, forward, make
from nearfar.config import HeadConfig
from nearfar.method import Progress
from nearfar.objectives import dual_view, info_nce
from nearfar.plugin import load_recipe
from nearfar_images.demonstrations.moco_dual_view import ARMS
from nearfar_images.systems.moco_dual_view import DualViewConfig

HEAD = HeadConfig(layers=2, hidden=6, dim=5, norm="none")


def built(*, num_classes: int = 3, fill: int = 20, queue: int = 20, **options: Any) -> Any:
    method = make(DualViewConfig(head=HEAD, queue=queue, **options), num_classes=num_classes)
    if fill:
        key = normalize(torch.randn(fill, 5, generator=torch.Generator().manual_seed(1)), dim=1)
        method.queue.push(key=key, **({"label": torch.arange(fill) % 3} if num_classes else {}))
    return method


def late(epoch: int = 1) -> Progress:
    return Progress(epoch=epoch, steps=10)


def test_shares_of_the_queue_are_kept_and_dropped() -> None:
    method = built(keep=0.3, drop=0.1, query_weight=0.6, key_weight=0.3, temperature=0.4)
    z, targets, terms = forward(method, batch(7), late())
    expected, stats = dual_view(z[0], targets["key"][:, 0], method.queue.view("key"), num_hard=6, drop_top=2,
                                query_weight=0.6, key_weight=0.3, temperature=0.4, with_stats=True)  # fmt: skip
    torch.testing.assert_close(terms.total, expected)
    assert terms.counts == {"dual_view": 7.0}
    same = method.queue.view("label")[stats.kept] == batch(7)["label"][:, None]
    torch.testing.assert_close(terms.logs["false_negatives"], same.float().mean())
    for name in ("query_loss", "key_loss", "kept_cosine"):
        torch.testing.assert_close(terms.logs[name], getattr(stats, name))


@pytest.mark.oracle("moco_dual_view", 1)
def test_the_whole_queue_and_the_query_alone_are_moco() -> None:
    method = built(**ARMS["moco"])
    z, targets, terms = forward(method, batch(7), late())
    torch.testing.assert_close(terms.total, info_nce(z[0], targets["key"][:, 0], method.queue.view("key")))


def test_nothing_is_filtered_in_the_warm_up() -> None:
    method = built(keep=0.1, warmup=2, cosine_range=(-1.0, 0.1))
    losses = [forward(method, batch(7), late(epoch))[2].total for epoch in (0, 1, 2)]
    z, targets, _ = forward(method, batch(7))
    key, queue = targets["key"][:, 0], method.queue.view("key")
    torch.testing.assert_close(losses[0], dual_view(z[0], key, queue))
    assert losses[0] == losses[1]
    expected = dual_view(z[0], key, queue, num_hard=2, cosine_range=(-1.0, 0.1))
    torch.testing.assert_close(losses[2], expected)


def test_a_short_queue_keeps_its_share_and_an_empty_one_the_batch() -> None:
    short = built(fill=3, keep=0.25)
    z, targets, terms = forward(short, batch(7), late())
    torch.testing.assert_close(terms.total, dual_view(z[0], targets["key"][:, 0], short.queue.view("key"), num_hard=1))
    empty = built(fill=0)
    z, targets, terms = forward(empty, batch(7))
    key = targets["key"][:, 0]
    query_side = info_nce(z[0], key, in_batch=True)
    key_side = []
    for i in range(7):
        s = torch.nn.functional.cosine_similarity(key[i][None], torch.cat([z[0][i][None], key]), dim=1) / 0.2
        s = s[[j for j in range(8) if j != i + 1]]
        key_side.append(torch.logsumexp(s, 0) - s[0])
    torch.testing.assert_close(terms.total, (query_side + torch.stack(key_side).mean()) / 2)


def test_keys_join_the_queue_with_their_labels() -> None:
    method = built(fill=0)
    z, targets, _ = forward(method, batch(7))
    method.after_update({"embedding": z.transpose(0, 1)}, targets, Progress())
    torch.testing.assert_close(method.queue.view("key"), normalize(targets["key"][:, 0], dim=1))
    assert method.queue.view("label").tolist() == batch(7)["label"].tolist()
    plain = built(num_classes=0)
    raw = {name: value for name, value in batch(7).items() if name != "label"}
    _, _, terms = forward(plain, raw, late())
    assert "false_negatives" not in terms.logs


def test_both_directions() -> None:
    method = built(symmetric=True, keep=0.5)
    z, targets, terms = forward(method, batch(7), late())
    key, queue = targets["key"].transpose(0, 1), method.queue.view("key")
    each = [dual_view(z[a], key[b], queue, num_hard=10) for a, b in ((0, 1), (1, 0))]
    torch.testing.assert_close(terms.total, (each[0] + each[1]) / 2)


def test_arms_differ_in_what_they_say() -> None:
    method = load_recipe("images/moco_dual_view_digits").method
    assert (method.keep, method.drop, method.query_weight, method.key_weight) == (0.25, 0.0, 0.5, 0.5)
    assert len({str(sorted(options.items())) for options in ARMS.values()}) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "method.temperature: expected a finite number > 0"),
        ({"keep": 0.0}, r"method.keep: expected a share in \(0, 1\]"),
        ({"keep": 0.9, "drop": 0.2}, "method.drop: expected a share that leaves method.keep of the queue"),
        ({"cosine_range": (0.5, 0.5)}, "method.cosine_range: expected two numbers"),
        ({"query_weight": -1.0}, "method.query_weight: expected 0 or more"),
        ({"query_weight": 0.0, "key_weight": 0.0}, "method.query_weight: expected above 0"),
        ({"warmup": -1}, "method.warmup: expected 0 or more"),
        ({"queue": 0}, "method.queue: expected 1 or more"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DualViewConfig(**options)


def test_one_view_is_refused() -> None:
    method = make(DualViewConfig(head=HEAD, queue=20), num_views=1)
    with pytest.raises(ValueError, match="views.num_views: expected 2 or more, for a query and a key"):
        forward(method, batch(7))
