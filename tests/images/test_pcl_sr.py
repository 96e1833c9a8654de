"""PCL-SR: where gradients go, the generators of references, both steps of an update, and networks.

Legend: B batch, V crops, C channels.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from nearfar.config import DataConfig, DataInfo, OptimiserConfig, TrainerConfig
from nearfar.data import ArraySource, Data
from nearfar.method import Progress
from nearfar.objectives import discriminator, map_contrast
from nearfar.plugin import load_recipe
from nearfar.rng import Rng
from nearfar.train import Trainer
from nearfar.wavelet import haar_edges
from nearfar_images import pipeline, restoration, upscalers
from nearfar_images.data import open_images
from nearfar_images.methods._fine_detail import FineDetail
from nearfar_images.methods.pcl_sr import PCLSR
from nearfar_images.systems.pcl_sr import NetworkConfig, PCLSRConfig

B, V, SIDE = 3, 2, 16
TINY = NetworkConfig(width=4, blocks=1)
NOW = Progress(steps=10)


def pictures(num: int = 4, channels: int = 3) -> Tensor:
    """Noise that is somewhat smooth, away from black and white so that nothing is clamped."""
    noise = torch.rand(num, channels, 24, 24, generator=torch.Generator().manual_seed(0))
    return functional.avg_pool2d(noise, 3, 1, 1) * 0.4 + 0.3


def make(own: nn.Module | None = None, embedder: nn.Module | None = None, side: int = SIDE, **options: Any) -> Any:
    torch.manual_seed(0)
    config = PCLSRConfig(**{"network": TINY, "width": 4, "num_crops": V} | options)
    return PCLSR(config, DataInfo(num_samples=9, shape=(3, side, side)), network=own, embedder=embedder)


def photos(num: int = B, side: int = 20) -> dict[str, Tensor]:
    pixels = np.random.default_rng(0).integers(0, 256, (num, 3, side, side))
    return {"index": torch.arange(num), "image": torch.from_numpy(pixels.astype(np.uint8))}


def trained(tmp_path: Path, method: Any, num: int = 9, **options: Any) -> list[dict[str, Any]]:
    data = ArraySource(photos(num)["image"].numpy(), None, name="toy", layout="nchw")
    config = TrainerConfig(
        epochs=1, batch_size=3, log_every=1, evaluate_every=0, progress=False, report=False, device="cpu",
        output=str(tmp_path), **options,
    )  # fmt: skip
    run = Trainer(method, Data(data, data), config, optimiser=OptimiserConfig(lr=1e-3)).fit()
    return [row for row in run.metrics if "loss" in row]


# -- oracles -----------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("pcl_sr", 1)
@pytest.mark.parametrize("form", ["info_nce", "cosine"])
def test_the_gradient_reaches_the_enlarged_picture_alone(form: str) -> None:
    method = make(contrast=form).train()
    batch = method.views(photos(), Rng(1))
    for name in ("positive", "negative"):
        batch[name].requires_grad_()
    high = batch["views"][0].data.requires_grad_()
    made = torch.stack([view.data for view in batch["views"]], 1).flatten(0, 1).detach() * 0.9
    statistics = {name: value.clone() for name, value in method.state_dict().items()}
    method.contrast(made.requires_grad_(), batch).backward()
    assert made.grad is not None
    assert float(made.grad.abs().max()) > 0
    assert [x.grad for x in (high, batch["positive"], batch["negative"])] == [None] * 3
    assert all(p.grad is None for p in method.embedder.parameters())
    assert all(torch.equal(value, statistics[name]) for name, value in method.state_dict().items())
    # and goes on to the network, whose last layer is the first to learn
    method.zero_grad()
    method.restore(method.encode(batch), batch).values["contrast"].backward()
    assert float(method.network.tail[-1].weight.grad.abs().max()) > 0
    assert all(p.grad is None for p in method.embedder.parameters())


@pytest.mark.oracle("pcl_sr", 2)
def test_a_perfect_picture_pays_for_its_negatives_alone() -> None:
    """The true crop as enlarged picture and as the only positive."""
    method = make(contrast="cosine")
    batch = method.views(photos(), Rng(1))
    batch["positive"] = batch["positive"][:, :, :1]
    high = torch.stack([view.data for view in batch["views"]], 1).flatten(0, 1)
    maps = method.embedder.maps(high, (4,))[0]
    similar = []
    for k in range(4):
        other = method.embedder.maps(batch["negative"][:, :, k].flatten(0, 1), (4,))[0]
        similar.append(functional.cosine_similarity(maps, other, dim=1).mean())
    torch.testing.assert_close(method.contrast(high, batch), torch.stack(similar).mean() - 1)


# -- references --------------------------------------------------------------------------------------------------------


def test_views_are_crops_small_ones_and_references() -> None:
    raw = photos()
    batch = make().views(raw, Rng(1))
    high = torch.stack([view.data for view in batch["views"]], 1)
    assert batch["low"].shape == (B, V, 3, 8, 8)
    assert batch["positive"].shape == batch["negative"].shape == (B, V, 4, 3, SIDE, SIDE)
    assert torch.equal(batch["positive"][:, :, 0], high)
    for i in range(B):  # a crop is a piece of the picture as it is, but for turning and mirroring
        whole = raw["image"][i].float() / 255
        pieces = [p for x in (whole, whole.transpose(1, 2)) for p in (x, x.flip(1), x.flip(2), x.flip(1, 2))]
        windows = torch.stack([p.unfold(1, SIDE, 1).unfold(2, SIDE, 1) for p in pieces])
        for v in range(V):
            same = windows.permute(0, 2, 3, 1, 4, 5) == high[i, v]
            assert same.flatten(3).all(3).any()
            small = Image.fromarray((high[i, v] * 255).round().byte().permute(1, 2, 0).numpy())
            theirs = np.asarray(small.resize((8, 8), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
            apart = np.abs(batch["low"][i, v].numpy() * 255 - theirs)  # Pillow rounds between the axes
            assert apart.max() < 3
            assert apart.mean() < 0.3
    bicubic = upscalers.enlarge(batch["low"].flatten(0, 1), 2).clamp(0, 1)
    torch.testing.assert_close(batch["negative"][:, :, 0].flatten(0, 1), bicubic, atol=0.51 / 255, rtol=0)
    assert "positive" not in make(contrast="none").views(raw, Rng(1))


# -- the step ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"judge": "lsgan", "judge_samples": False}, {"layers": (2, 5)}])
def test_the_loss_is_its_parts(options: dict[str, Any]) -> None:
    method = make(**options).train()
    batch = method.views(photos(), Rng(1))
    z = method.encode(batch)
    config, made = method.config, z["restored"].flatten(0, 1)
    high = torch.stack([view.data for view in batch["views"]], 1).flatten(0, 1)
    parts = []
    for layer in config.layers:
        sides = [
            torch.stack([method.embedder.maps(batch[n][:, :, k].flatten(0, 1), (layer,))[0] for k in range(4)], 1)
            for n in ("positive", "negative")
        ]
        parts.append(map_contrast(method.embedder.maps(made, (layer,))[0], *sides))
    terms = method.loss(z, batch, {}, NOW)
    torch.testing.assert_close(terms.values["l1"], functional.l1_loss(made, high))
    torch.testing.assert_close(terms.values["contrast"], sum(parts) / len(parts))
    real, fake = [high], [made]
    if config.judge_samples:
        real.append(batch["positive"][:, :, 1:].flatten(0, 2))
        fake.append(batch["negative"][:, :, 1:].flatten(0, 2))
    logits = method.embedder(torch.cat(real + fake))
    count = len(torch.cat(real))
    expected = discriminator(logits[:count].flatten(), logits[count:].flatten(), form=config.judge)
    torch.testing.assert_close(terms.values["embedder"], expected)
    torch.testing.assert_close(terms.total, terms.values["l1"] + 5 * terms.values["contrast"] + expected)
    terms.values["embedder"].backward()
    assert all(p.grad is None for p in method.network.parameters())
    assert all(p.grad is not None for p in method.embedder.parameters())


def test_an_update_moves_the_discriminator_first_and_then_the_network(tmp_path: Path) -> None:
    class Told:
        """An engine that steps by plain descent and notes who had moved when a step began."""

        progress = NOW

        def __init__(self, method: Any) -> None:
            self.method, self.steps = method, []

        def call(self, name: str, *args: Any) -> Any:
            return getattr(self.method, name)(*args)

        def backward(self, terms: Any, *, name: str = "main") -> None:
            terms.total.backward()

        def step(self, name: str = "main") -> bool:
            for group, params in self.method.optimisers().items():
                largest = max(float(p.grad.abs().max()) if p.grad is not None else 0.0 for p in params)
                self.steps.append((name, group, largest > 0))
                if group == name:
                    for p in params:
                        p.data -= 1e-2 * p.grad
                        p.grad = None
            return True

    method = make().train()
    terms = method.update(method.views(photos(), Rng(1)), Told(method))
    assert {"l1", "contrast"} == set(terms.values)
    assert "embedder" in terms.logs
    told = Told(method)
    method.update(method.views(photos(), Rng(1)), told)
    # zero gradients of the other group, so that several processes exchange the same
    assert told.steps == [
        ("embedder", "main", False), ("embedder", "embedder", True),
        ("main", "main", True), ("main", "embedder", False),
    ]  # fmt: skip
    rows = trained(tmp_path, make())
    assert len(rows) == 3
    assert all({"l1", "contrast", "embedder", "loss"} <= set(row) for row in rows)


@pytest.mark.parametrize(("options", "moves"), [({}, True), ({"embedding": "frozen"}, False)])
def test_what_training_moves(tmp_path: Path, options: dict[str, Any], moves: bool) -> None:
    method = make(**options)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    trained(tmp_path, method)
    after = method.state_dict()
    changed = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == ({"network", "embedder"} if moves else {"network"})


def test_without_contrast_there_is_no_embedding(tmp_path: Path) -> None:
    method = make(contrast="none")
    assert set(method.optimisers()) == {"main"}
    assert all(not name.startswith("embedder") for name in method.state_dict())
    assert "contrast" not in trained(tmp_path, method)[0]


def test_parts_of_a_batch_are_refused_with_two_updates(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="trainer.accumulate: expected 1, since PCLSR makes its own updates"):
        trained(tmp_path, make(), accumulate=2)


# -- networks and embeddings -------------------------------------------------------------------------------------------


def test_layers_of_the_embedding() -> None:
    torch.manual_seed(0)
    embedder = FineDetail(3, 4).train()
    with torch.no_grad():
        embedder(pictures())  # statistics
    x = haar_edges(pictures())
    for k in range(8):
        layer = embedder.layers[k]
        assert layer.conv.stride == (1 + k % 2, 1 + k % 2)
        assert layer.conv.out_channels == 4 * 2 ** (k // 2)
        x = layer.norm.eval()(layer.conv(x))
        torch.testing.assert_close(embedder.maps(pictures(), (k,))[0], x)
        x = functional.leaky_relu(x, 0.2)
    embedder.eval()
    with torch.no_grad():
        assert embedder(pictures()).shape == (4, 16)


def test_networks_and_embeddings_of_your_own(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))

        def maps(self, image: Tensor, layers: Any) -> list[Tensor]:
            return [self.conv(image) for _ in layers]

    embedder = Plain()
    method = make(network, embedder, embedding="frozen")
    assert method.train().embedder.conv[1].training is False
    before = network[0].weight.clone()
    trained(tmp_path, method)
    assert not torch.equal(network[0].weight, before)
    assert all(p.grad is None for p in embedder.parameters())
    with pytest.raises(ValueError, match="embedder: expected none but with embedding 'frozen'"):
        make(network, embedder)
    with pytest.raises(TypeError, match=r"embedder: expected a method maps\(image, layers\), received Conv2d"):
        make(network, nn.Conv2d(3, 3, 3), embedding="frozen")
    batch = method.views(photos(), Rng(0))
    with pytest.raises(ValueError, match="network: expected pictures .* at scale 2, received"):
        make(nn.Identity()).encode(batch)


# -- data, scores, bad input -------------------------------------------------------------------------------------------


def test_scores_are_those_of_whole_pictures_and_choose_a_checkpoint(tmp_path: Path) -> None:
    method, source = make(scale=2), ArraySource(photos(2, 35)["image"].numpy(), None, layout="nchw")
    found = method.eval().scores(source)
    rows = []
    for image in source.images:
        true = torch.from_numpy(image)[None, :, :34, :34].float() / 255
        low = restoration.quantise(upscalers.reduce(true, 2))
        rows.append(restoration.compare(method.network(low).detach(), true, border=2))
    for name in ("psnr_y", "ssim_y", "psnr", "ssim", "high_band_error", "edge_error"):
        assert found[name].value == pytest.approx(np.mean([row[name] for row in rows]))
        assert found[name].low <= found[name].value <= found[name].high
    assert found["psnr_y_bicubic"].value == pytest.approx(found["psnr_y"].value, abs=0.05)  # it has not learnt yet
    assert restoration.compare(true, true)["psnr"] == 100
    recipe = load_recipe("images/pcl_sr_tiny")
    trainer = dataclasses.replace(
        recipe.trainer, epochs=2, batch_size=2, evaluate_every=1, progress=False, report=False, device="cpu",
        output=str(tmp_path / "run"),
    )  # fmt: skip
    recipe = dataclasses.replace(
        recipe, trainer=trainer, data=DataConfig(image_size=16, channels=3),
        method=dataclasses.replace(recipe.method, network=TINY, width=4),
    )  # fmt: skip
    run = pipeline.train(recipe, data=Data(source, source))
    assert run.best["monitor"] == "psnr_y"
    started = dataclasses.replace(recipe.method, network=dataclasses.replace(TINY, weights=str(run.path)))
    start = dataclasses.replace(
        recipe, method=started, trainer=dataclasses.replace(trainer, output=str(tmp_path / "2"))
    )
    again = pipeline.train(start, data=Data(source, source))
    best = next(r for r in run.metrics if "scores" in r and r["step"] == run.best["step"])
    assert again.scores["before"]["psnr_y"]["value"] == pytest.approx(best["scores"]["psnr_y"])
    after = run.scores["after"]
    run.path.rename(tmp_path / "moved")
    pipeline.load_run(tmp_path / "2")  # needs no file that it started from
    loaded = pipeline.load_run(tmp_path / "moved", "last")
    scores = pipeline.evaluate(loaded.method, Data(source, source))
    assert scores["psnr_y"].value == pytest.approx(after["psnr_y"]["value"], abs=1e-3)


def test_pictures_are_read_in_full_size(tmp_path: Path) -> None:
    for k, (width, height) in enumerate(((60, 40), (50, 70), (30, 90), (41, 40))):
        Image.new("RGB", (width, height), (k, 0, 0)).save(tmp_path / f"{k}.png")
    config = DataConfig(source="pictures", root=str(tmp_path), image_size=24, cache=str(tmp_path / "cache"))
    data = open_images(config)
    shapes = {data.train[i]["image"].shape for i in range(len(data.train))}
    assert shapes <= {(3, 40, 60), (3, 70, 50), (3, 90, 30), (3, 40, 41)}
    with pytest.raises(ValueError, match=r"data.image_size: expected at most .* received 48, and 3 smaller pictures"):
        open_images(dataclasses.replace(config, image_size=48))


def test_weights_to_start_from(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    first = make()
    nn.init.normal_(first.network.tail[-1].weight)
    save_file(first.network.state_dict(), tmp_path / "network.safetensors")
    save_file({k: v.clone() for k, v in first.state_dict().items()}, tmp_path / "run.safetensors")
    for name in ("network", "run"):
        again = make(network=dataclasses.replace(TINY, weights=str(tmp_path / f"{name}.safetensors")))
        assert torch.equal(again.network.tail[-1].weight, first.network.tail[-1].weight)
    wrong = NetworkConfig(width=8, blocks=1, weights=str(tmp_path / "network.safetensors"))
    with pytest.raises(ValueError, match="method.network.weights: .* is of another network"):
        make(network=wrong)
    with pytest.raises(FileNotFoundError, match="method.network.weights: expected a run or a .safetensors file"):
        make(network=dataclasses.replace(TINY, weights="nowhere"))


def test_bad_input_is_refused() -> None:
    method = make()
    batch = method.views(photos(), Rng(0))
    with pytest.raises(ValueError, match=r"restored: expected the size of the true crops, \(6, 3, 16, 16\)"):
        method.loss({"restored": torch.zeros(B, V, 3, 14, 14)}, batch, {}, NOW)
    with pytest.raises(ValueError, match="data.image_size: expected a multiple of 6 from 12 on, for scale 3 .* 16"):
        make(scale=3)
    with pytest.raises(ValueError, match="data.image_size: expected a multiple of 2 from 12 on, .* received 15"):
        make(side=15)
    with pytest.raises(ValueError, match="image: expected even sides for the Haar transform"):
        method.embedder.maps(torch.zeros(1, 3, 15, 16), (0,))
    with pytest.raises(ValueError, match="layers: expected numbers from 0 to 7"):
        method.embedder.maps(torch.zeros(1, 3, 16, 16), (8,))
    with pytest.raises(TypeError, match="PCLSR: expected views, for features"):
        method.features(photos())
    for name, value, expected in (
        ("sharpen", (3.0, 1.0), "two finite numbers"), ("sharpen", (-1.0, 1.0), "two finite numbers"),
        ("blur", (0.1, float("inf")), "two finite numbers"), ("layers", (8,), "numbers from 0 to 7"),
        ("layers", (), "numbers from 0 to 7"), ("num_crops", 0, "1 or more"), ("weight", 0.0, "a finite number > 0"),
        ("temperature", -1.0, "a finite number > 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"method\.{name}: expected {expected}.* received"):
            PCLSRConfig(**{name: value})
