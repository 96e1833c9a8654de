"""CUT: the contrast patch by patch, the two steps, and what is refused.

Legend: B images, V views, P places, D width of compared vectors.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nearfar.config import DataConfig, DataInfo, EvaluateConfig, ImageViewConfig, OptimiserConfig, TrainerConfig
from nearfar.data import ArraySource, Concat, without_test
from nearfar.method import Progress
from nearfar.objectives import patch_nce
from nearfar.plugin import load_recipe
from nearfar.rng import Rng
from nearfar.samplers import Zipped
from nearfar.train import Trainer
from nearfar.views import ImageViews
from nearfar_images.styles import digit_styles
from nearfar_images.systems.cut import CutConfig

SIDE = 16
TINY: dict[str, Any] = {
    "width": 4, "num_blocks": 2, "layers": (0, 4, 12), "num_patches": 6, "dim": 8, "discriminator_layers": 2,
    "discriminator_width": 4,
}  # fmt: skip
NOW = Progress(steps=10)


def make(channels: int = 3, views: dict[str, Any] | None = None, side: int = SIDE, **options: Any) -> Any:
    torch.manual_seed(0)
    settings = {"num_views": 1, "flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "crop_scale": (1.0, 1.0)}
    config = ImageViewConfig(**settings | {"crop_ratio": (1.0, 1.0)} | (views or {}))
    shape = (channels, side, side)
    method = CutConfig(**TINY | options).build(
        DataInfo(num_samples=20, shape=shape), nn.Identity(), ImageViews(config, size=side, channels=channels)
    )
    for part in (method.generator, method.discriminator):  # so that outputs differ before any training
        for p in part.parameters():
            nn.init.normal_(p, std=0.2)
    return method


def batch(a: int = 3, b: int = 2, channels: int = 3) -> dict[str, Any]:
    pixels = torch.randint(0, 256, (a + b, channels, SIDE, SIDE), generator=torch.Generator().manual_seed(1))
    group = torch.tensor([0] * a + [1] * b)
    return {"index": torch.arange(a + b), "image": pixels.byte(), "group": group, "sources": ("a", "b")}


def by_hand(method: Any, made: Tensor, real: Tensor, places: list[Tensor], negatives: str = "image") -> Tensor:
    """The contrast written out for images [N, C, S, S] and places [N, P]."""
    maps = [net.taps(x, method.config.layers) for net, x in ((method.generator, made), (method.generator, real))]
    layers = []
    for number, place in enumerate(places):
        vectors = []
        for x in (maps[0][number], maps[1][number]):
            picked = torch.stack([x[n].flatten(1)[:, place[n]].T for n in range(len(x))])
            vectors.append(F.normalize(method.heads.heads[number](picked), dim=2))
        q, k = vectors[0], vectors[1].detach()
        losses = []
        for n in range(len(q)):
            for p in range(q.shape[1]):
                own = torch.exp(q[n, p] @ k[n, p] / 0.07)
                others = [
                    (m, j) for m in range(len(q)) for j in range(q.shape[1])
                    if (m, j) != (n, p) and {"image": m == n, "batch": True, "others": m != n}[negatives]
                ]  # fmt: skip
                losses.append(-torch.log(own / (own + sum(torch.exp(q[n, p] @ k[m, j] / 0.07) for m, j in others))))
        layers.append(torch.stack(losses).mean())
    return torch.stack(layers).mean()


# -- oracles -----------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("cut", 1)
@pytest.mark.parametrize("negatives", ["image", "batch", "others"])
def test_the_contrast_equals_loops(negatives: str) -> None:
    method = make(negatives=negatives)
    viewed = method.views(batch(), Rng(1))
    z, rows = method.encode(viewed), viewed["group"] == 0
    found = method.contrast(z["made"], viewed, rows)
    real = viewed["views"][0].data * 2 - 1
    places = [place[rows][:, 0] for place in viewed["places"]]
    expected = by_hand(method, z["made"][rows][:, 0], real[rows], places, negatives)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    params = [*method.generator.parameters(), *method.heads.parameters()]
    slopes = [torch.autograd.grad(x, params, allow_unused=True, retain_graph=True) for x in (found, expected)]
    for got, want in zip(*slopes, strict=True):
        if want is None:
            assert got is None
        else:
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)


@pytest.mark.oracle("cut", 2)
def test_an_output_of_one_colour_costs_log_p() -> None:
    method = make(layers=(0,))
    flat = torch.zeros(1, 3, SIDE, SIDE)
    viewed = method.views(batch(1, 1), Rng(1))
    viewed["views"][0].data[0] = 0.5
    found = method.contrast(torch.stack([flat, flat]), viewed, viewed["group"] == 0)
    assert float(found.detach()) == pytest.approx(math.log(6), abs=1e-5)
    eye = torch.eye(6).expand(2, 6, 6)
    assert float(patch_nce(eye, eye)) == pytest.approx(math.log(1 + 5 * math.exp(-1 / 0.07)), abs=1e-6)


@pytest.mark.oracle("cut", 3)
@pytest.mark.parametrize("negatives", ["image", "batch"])
def test_other_images_and_keys(negatives: str) -> None:
    method = make(negatives=negatives)
    viewed = method.views(batch(3, 1), Rng(1))
    made = method.encode(viewed)["made"].detach().requires_grad_()
    pixels = viewed["views"][0].data.requires_grad_()
    rows = viewed["group"] == 0
    (slope,) = torch.autograd.grad(method.contrast(made, viewed, rows), made)
    with torch.no_grad():
        pixels[1] = 1 - pixels[1]  # the key of another image
    (changed,) = torch.autograd.grad(method.contrast(made, viewed, rows), made)
    same = [torch.allclose(slope[i], changed[i], atol=1e-7) for i in range(3)]
    assert same == ([True, False, True] if negatives == "image" else [False] * 3)
    assert torch.autograd.grad(method.contrast(made, viewed, rows), pixels, allow_unused=True) == (None,)


class Symmetric(nn.Module):
    """A generator that commutes with mirroring: kernels that equal their mirror images, and no halving."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, 3, 2) * 0.3)

    def taps(self, x: Tensor, layers: tuple[int, ...]) -> list[Tensor]:
        kernel = torch.cat([self.weight, self.weight[..., :1]], 3)
        first = F.conv2d(x, kernel, padding=1)
        return [x, first, first.tanh()][: len(layers)]

    def forward(self, x: Tensor) -> Tensor:
        return self.taps(x, (0, 1, 2))[-1]


@pytest.mark.oracle("cut", 4)
def test_mirrored_inputs_cost_the_same() -> None:
    method = make(layers=(0, 4, 12))
    method.generator = Symmetric()
    method.num_cells = [SIDE * SIDE] * 3
    method.heads.heads[1], method.heads.heads[2] = (nn.Linear(3, 8) for _ in range(2))
    viewed = method.views(batch(), Rng(1))
    costs, outputs = [], []
    for mirror in (False, True):
        viewed["mirror"] = torch.full_like(viewed["mirror"], mirror)
        z = method.encode(viewed)
        outputs.append(z["made"])
        costs.append(method.contrast(z["made"], viewed, viewed["group"] == 0))
        if mirror:
            torch.testing.assert_close(z["made"], outputs[0].flip(-1))
            # mirrored output with a plain key at unmirrored places would cost something else
            viewed["mirror"] = torch.zeros_like(viewed["mirror"])
            assert not torch.isclose(method.contrast(z["made"], viewed, viewed["group"] == 0), costs[0])
    torch.testing.assert_close(costs[1], costs[0])


@pytest.mark.oracle("cut", 4)
def test_images_are_mirrored_as_often_as_asked() -> None:
    method = make(mirror=0.5)
    drawn = torch.stack([method.views(batch(30, 30), Rng(1, epoch))["mirror"] for epoch in range(5)])
    assert 0.4 < float(drawn.float().mean()) < 0.6
    assert not make().views(batch(), Rng(1))["mirror"].any()


@pytest.mark.oracle("cut", 5)
def test_without_contrast_the_loss_is_the_gans() -> None:
    method = make(weight=0.0)
    viewed = method.views(batch(), Rng(1))
    z = method.encode(viewed)
    terms = method.translate_terms(z, viewed)
    rows = viewed["group"] == 0
    fake = method.generator(viewed["views"][0].data[rows] * 2 - 1)
    assert torch.equal(terms.total, (method.discriminator(fake) - 1).square().mean())
    assert method.heads is None
    assert torch.equal(z["made"][~rows][:, 0], viewed["views"][0].data[~rows] * 2 - 1)  # nothing is made of b


@pytest.mark.oracle("cut", 5)
def test_layers_are_averaged() -> None:
    whole = make()
    costs = []
    viewed = whole.views(batch(), Rng(1))
    z, rows = whole.encode(viewed), viewed["group"] == 0
    for number, layer in enumerate(whole.config.layers):
        one = make(layers=(layer,))
        one.generator, one.heads.heads = whole.generator, nn.ModuleList([whole.heads.heads[number]])
        alone = one.views(batch(), Rng(1))
        assert torch.equal(alone["places"][0], viewed["places"][number])
        costs.append(one.contrast(z["made"], alone, rows))
    torch.testing.assert_close(whole.contrast(z["made"], viewed, rows), torch.stack(costs).mean())


# -- the two steps -----------------------------------------------------------------------------------------------------


def test_terms_and_their_weights() -> None:
    method = make(weight=3.0, l1=0.5, r1=2.0, discriminator_norm=False)
    viewed = method.views(batch(), Rng(1))
    z, rows = method.encode(viewed), viewed["group"] == 0
    real = viewed["views"][0].data * 2 - 1
    torch.testing.assert_close(z["made"][:, 0], method.generator(real))
    a, b = (method.contrast(z["made"], viewed, r) for r in (rows, ~rows))
    d = method.discriminator
    fake = z["made"][rows][:, 0]
    gan = (d(fake) - 1).square().mean()
    l1 = (z["made"][~rows][:, 0] - real[~rows]).abs().mean()
    terms = method.translate_terms(z, viewed)
    torch.testing.assert_close(terms.total, gan + 3 * (a + b) / 2 + 0.5 * l1)
    assert terms.counts == {"gan": 3, "contrast": 3, "identity": 2, "l1": 2}
    x = real[~rows].clone().requires_grad_()
    (slope,) = torch.autograd.grad(d(x).sum(), x)
    penalty = slope.square().sum((1, 2, 3)).mean() / 2
    judged = 0.5 * (d(fake).square().mean() + (d(real[~rows]) - 1).square().mean()) + 2 * penalty
    found = method.judge_terms(z, viewed)
    torch.testing.assert_close(found.total, judged)
    torch.testing.assert_close(method.loss(z, viewed, {}, NOW).total, terms.total + judged)
    fast = make(identity=False)
    assert set(fast.translate_terms(fast.encode(viewed), viewed).values) == {"gan", "contrast"}


def test_neither_player_moves_the_other() -> None:
    method = make()
    viewed = method.views(batch(), Rng(1))
    z = method.encode(viewed)
    method.judge_terms(z, viewed).total.backward()
    makers = [*method.generator.parameters(), *method.heads.parameters()]
    assert all(p.grad is None for p in makers)
    assert all(p.grad is not None for p in method.discriminator.parameters())
    method.zero_grad()
    method.translate_terms(z, viewed).total.backward()
    assert all(p.grad is None for p in method.discriminator.parameters())
    assert all(p.grad is not None for p in method.heads.parameters())


def test_the_trainer_does_what_two_optimisers_do(tmp_path: Path) -> None:
    """One step of each player by hand: the discriminator first, then the makers against the new one."""
    method, data = make(), batch(4, 4)
    source = ArraySource(data["image"].numpy(), name="toy", layout="nchw")
    both = Concat({"a": ArraySource(source.images[:4], layout="nchw", name="a"),
                   "b": ArraySource(source.images[4:], layout="nchw", name="b")})  # fmt: skip
    sampler = Zipped(both.column("group"), [4, 4])
    twin = copy.deepcopy(method)
    config = TrainerConfig(
        epochs=2, batch_size=8, evaluate_every=0, evaluate_before=False, progress=False, report=False, device="cpu",
        output=str(tmp_path / "run"), log_every=1,
    )  # fmt: skip
    optimiser = OptimiserConfig(lr=0.01, weight_decay=0.0, betas=(0.5, 0.999), schedule="constant")
    run = Trainer(method, without_test(both), config, optimiser=optimiser, evaluate=EvaluateConfig(), sampler=sampler)
    rows = [row for row in run.fit().metrics if "loss" in row]
    adam = {name: torch.optim.Adam(params, lr=0.01, betas=(0.5, 0.999)) for name, params in twin.optimisers().items()}
    for epoch in range(2):
        order = next(iter(sampler.batches(epoch)))
        viewed = twin.views({**data, **{k: data[k][order] for k in ("index", "image", "group")}}, Rng(0, epoch))
        z = twin.encode(viewed)
        judged = twin.judge_terms(z, viewed).total
        adam["discriminator"].zero_grad()
        judged.backward()
        adam["discriminator"].step()
        terms = twin.translate_terms(z, viewed)
        adam["main"].zero_grad()
        terms.total.backward()
        adam["main"].step()
        assert rows[epoch]["loss"] == pytest.approx(float(terms.total.detach()), rel=1e-4)
        assert rows[epoch]["discriminator"] == pytest.approx(float(judged.detach()), rel=1e-4)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(method.state_dict()[name], value, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: n + m)


def test_places_differ_within_an_image_and_cover_small_layers() -> None:
    method = make(num_patches=20)
    viewed = method.views(batch(), Rng(1))
    assert [tuple(p.shape) for p in viewed["places"]] == [(5, 1, 20), (5, 1, 20), (5, 1, 16)]
    for place, cells in zip(viewed["places"], (256, 256, 16), strict=True):
        for row in place[:, 0].tolist():
            assert len(set(row)) == len(row)
            assert max(row) < cells


def test_crops_of_a_single_picture() -> None:
    views = {"num_views": 5, "global_size": 12, "crop_scale": (0.1, 0.3)}
    method = make(views=views, num_patches=1, negatives="batch", r1=1.0, l1=1.0, discriminator_norm=False)
    viewed = method.views(batch(1, 1), Rng(1))
    z = method.encode(viewed)
    assert z["made"].shape == (2, 5, 3, 12, 12)
    terms = method.translate_terms(z, viewed)
    assert terms.counts["contrast"] == 5
    rows = viewed["group"] == 0
    real = torch.stack([v.data for v in viewed["views"]], 1) * 2 - 1
    places = [place[rows].flatten(0, 1) for place in viewed["places"]]
    expected = by_hand(method, z["made"][rows].flatten(0, 1), real[rows].flatten(0, 1), places, "batch")
    torch.testing.assert_close(terms.values["contrast"], expected, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(method.judge_terms(z, viewed).total)


def test_grey_pictures_with_a_generator_for_them() -> None:
    method = make(channels=1)
    viewed = method.views(batch(channels=1), Rng(1))
    assert torch.isfinite(method.loss(method.encode(viewed), viewed, {}, NOW).total)
    x = torch.rand(2, 1, 20, 32)
    assert torch.equal(method.translate(x), (method.generator(x * 2 - 1) + 1) / 2)
    with pytest.raises(ValueError, match=r"picture: expected shape \[B, 1, H, W\]"):
        method.translate(torch.rand(1, 3, 16, 16))


def test_features_are_the_last_block_averaged() -> None:
    method = make().eval()
    x = method.make_views.plain(batch()["image"]) * 2 - 1
    for layer in list(method.generator.layers)[:14]:
        x = layer(x)
    torch.testing.assert_close(method.features(batch()), x.mean((2, 3)))


def test_recipes() -> None:
    cut, fast, single = (load_recipe(f"images/{name}") for name in ("cut", "fastcut", "sincut"))
    assert (cut.method.weight, cut.method.identity, cut.method.temperature, cut.method.num_patches) == (
        1,
        True,
        0.07,
        256,
    )
    assert (fast.method.weight, fast.method.identity, fast.method.mirror) == (10, False, 0.5)
    assert (single.method.weight, single.method.negatives, single.method.num_patches) == (4, "batch", 1)
    for recipe, epochs, held in ((cut, 400, 200), (fast, 200, 150)):
        assert (recipe.trainer.epochs, recipe.trainer.epochs * recipe.optimiser.hold) == (epochs, held)
        assert (recipe.optimiser.lr, recipe.optimiser.betas) == (2e-4, (0.5, 0.999))


def test_digits_in_two_styles() -> None:
    data = digit_styles(DataConfig(source="digit-styles", validation=0.25))
    assert (len(data.train), len(data.test)) == (1347, 450)
    a, b = (source[0] for source in data.train.sources)  # type: ignore[attr-defined]
    assert (a["image"].shape, b["image"].shape) == ((3, 32, 32), (3, 32, 32))
    assert (a["image"][0] == a["image"][2]).all()
    assert a["image"][:, 0, 0].tolist() == [0, 0, 0]
    assert b["image"][:, 0, 0].tolist() == [45, 20, 110]  # the ground
    assert (b["image"][0] > 200).sum() > 1.5 * (a["image"][0] > 200).sum()  # wider strokes
    assert {a["label"], b["label"]} <= set(range(10))


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_bad_input_is_refused() -> None:
    for options, match in (
        ({"num_patches": 1}, "method.num_patches: expected 2 or more with negatives 'image', received 1"),
        ({"layers": (0, 14)}, r"method.layers: expected numbers from 0 to 13, ascending, received \(0, 14\)"),
        ({"layers": (4, 0)}, "method.layers: expected numbers from 0 to 13, ascending"),
        ({"layers": ()}, "method.layers: expected numbers"),
        ({"temperature": 0.0}, "method.temperature: expected a finite number > 0"),
        ({"weight": -1.0}, "method.weight: expected 0 or more"),
        ({"mirror": 1.5}, r"method.mirror: expected a number in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=match):
            CutConfig(**TINY | options)
    with pytest.raises(ValueError, match="data.image_size: expected a multiple of 4, received 18"):
        make(side=18)
    with pytest.raises(ValueError, match="views.global_size: expected a multiple of 4, received 10"):
        make(views={"global_size": 10})
    with pytest.raises(ValueError, match="method.discriminator_layers: expected fewer, or images of 24 pixels a side"):
        make(discriminator_layers=3)
    with pytest.raises(ValueError, match="views.mean: expected none"):
        make(views={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)})


def test_batches_without_both_domains_are_refused() -> None:
    method = make()
    viewed = method.views(batch(3, 0), Rng(1))
    with pytest.raises(ValueError, match="sampler.shares: expected images of both domains .* 3 of a and 0 of b"):
        method.encode(viewed)
    named = method.views({**batch(), "sources": ("x", "b")}, Rng(1))
    with pytest.raises(ValueError, match="data.sources: expected two, named a and b: .* received x, b"):
        method.encode(named)
    alone = make(negatives="others")
    viewed = alone.views(batch(1, 2), Rng(1))
    with pytest.raises(ValueError, match="query: expected a negative for every patch"):
        alone.loss(alone.encode(viewed), viewed, {}, NOW)
