"""ORL: boxes, jitter, pairs and the loss against what is written out; regions kept in a file; the three stages.

Legend: N images, R and S boxes, B batch, D embedding.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nearfar.config import ContrastConfig, DataConfig, DataInfo, EncoderConfig, HeadConfig, ImageViewConfig
from nearfar.data import ArraySource, BadSample, Fault, Subset, without_test
from nearfar.data.wrapped import on_pass
from nearfar.method import Progress
from nearfar.plugin import load_recipe
from nearfar.rng import Rng
from nearfar.samplers import Shuffle
from nearfar.train import Run
from nearfar.views import ImageViews
from nearfar.views.boxes import iou
from nearfar_images import encoders, orl, pipeline, regions
from nearfar_images.correspondence import Correspondence, RegionSource, with_regions
from nearfar_images.discovery import discover
from nearfar_images.systems.orl import ORLConfig

NOW = Progress(step=3, fraction=0.3, steps=10)
HEADS: dict[str, Any] = {"head": HeadConfig(hidden=8, dim=4, last_bias=False), "predictor": HeadConfig(hidden=8, dim=4)}
SHAPE = (1, 16, 16)


def pixels(box: Any, side: int) -> np.ndarray:
    """Which pixels of a square image a box holds."""
    held = np.zeros((side, side), bool)
    held[box[1] : box[3], box[0] : box[2]] = True
    return held


def counted(first: Any, second: Any, side: int = 60) -> float:
    a, b = pixels(first, side), pixels(second, side)
    return (a & b).sum() / (a | b).sum()


def source(num: int = 6, side: int = 16) -> ArraySource:
    rng = np.random.default_rng(0)
    return ArraySource(rng.integers(0, 256, (num, side, side, 1), dtype=np.uint8), np.arange(num) % 2, name="toy")


def table(num: int = 6) -> Correspondence:
    """Two boxes an image, the next two images as neighbours, one pair with the first and two with the second."""
    boxes = np.tile([[0, 0, 8, 8], [4, 4, 16, 14]], (num, 1))
    near = np.stack([(np.arange(num) + 1) % num, (np.arange(num) + 2) % num], 1)
    pairs = np.tile([[0, 1], [1, 0], [1, 1]], (num, 1))
    starts = np.concatenate([[0], np.tile([1, 2], num).cumsum()])
    return Correspondence(np.arange(num), boxes, 2 * np.arange(num + 1), near, pairs, starts)


def method(**options: Any) -> Any:
    torch.manual_seed(0)
    views = ImageViews(ImageViewConfig(flip=0.0, jitter=0.0, grayscale=0.0), size=16, channels=1)
    encoder = encoders.build(EncoderConfig(name="convnet", width=4, dim=8), SHAPE)
    return ORLConfig(**HEADS | options).build(DataInfo(num_samples=6, shape=SHAPE), encoder, views)


def batch() -> dict[str, Any]:
    return RegionSource(source(), table(), 7)._batch(np.arange(6))


# -- oracles -----------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("orl", 1)
def test_boxes_that_are_kept_by_hand() -> None:
    listed = np.array([
        [0, 0, 40, 40],  # kept
        [5, 5, 12, 50],  # narrower than 10
        [0, 0, 60, 15],  # four times as long as high
        [2, 2, 42, 42],  # overlaps the first by 1444 / 1756
        [30, 10, 60, 60],  # kept: 300 / 2800
        [31, 12, 60, 60],  # overlaps that one
        [0, 40, 30, 60],  # kept
    ])  # fmt: skip
    kept = regions.keep_boxes(listed, (60, 60), least_side=10)
    assert kept.tolist() == listed[[0, 4, 6]].tolist()
    assert regions.keep_boxes(listed, (60, 60), least_side=10, most=2).tolist() == listed[[0, 4]].tolist()
    assert regions.keep_boxes(listed[1:3], (60, 60), least_side=10).tolist() == listed[1:2].tolist()
    rng = np.random.default_rng(1)
    corner = rng.integers(0, 40, (80, 2))
    many = np.concatenate([corner, corner + rng.integers(1, 20, (80, 2))], 1)
    expected: list[Any] = []
    for box in many.tolist():  # one by one, IoU by counting pixels
        w, h = box[2] - box[0], box[3] - box[1]
        if min(w, h) >= 4 and max(w, h) <= 3 * min(w, h) and all(counted(box, k) <= 0.5 for k in expected):
            expected.append(box)
    assert 5 < len(expected) < 60
    assert regions.keep_boxes(many, (60, 60), least_side=4).tolist() == expected


@pytest.mark.oracle("orl", 2)
def test_pairs_are_those_of_a_sort_by_brute_force() -> None:
    similarity = torch.tensor([[0.1, 0.9, 0.3, 0.2], [0.8, 0.0, 0.95, 0.4], [0.5, 0.6, 0.7, -0.2]])
    ranked = sorted(((float(similarity[i, j]), -i, -j) for i in range(3) for j in range(4)), reverse=True)
    expected = [[-i, -j] for _, i, j in ranked]
    assert expected[0] == [1, 2]
    assert regions.top_pairs(similarity).tolist() == expected[:1]  # a tenth of 3 is none, one is taken
    assert regions.top_pairs(similarity, 0.67).tolist() == expected[:2]
    assert regions.top_pairs(similarity, 1.0).tolist() == expected[:3]
    for count in (1, 9, 10, 19, 20, 70):
        found = regions.top_pairs(torch.rand(count, 4, generator=torch.Generator().manual_seed(count)))
        assert len(found) == max(1, count // 10)
    assert regions.top_pairs(torch.ones(20, 3)).tolist() == [[0, 0], [0, 1]]


@pytest.mark.oracle("orl", 3)
def test_jittered_boxes_stay_inside_and_near_or_as_they_are() -> None:
    rng = np.random.default_rng(2)
    corner = rng.integers(0, 40, (200, 2))
    box = torch.from_numpy(np.concatenate([corner, corner + rng.integers(1, 20, (200, 2))], 1))
    near = regions.jitter(box, torch.full((200, 2), 60), torch.rand(200, 40, 4))
    moved = 0
    for old, new in zip(box.tolist(), near.tolist(), strict=True):
        assert 0 <= new[0] < new[2] <= 60
        assert 0 <= new[1] < new[3] <= 60
        assert float(iou(torch.tensor([old]), torch.tensor([new]))) == pytest.approx(counted(old, new))
        assert new == old or counted(old, new) > 0.5
        moved += new != old
    assert moved > 150
    # one try, by hand: area times 1.25, ratio 1, moved by a tenth of the width and not of the height
    draws = torch.tensor([[[0.5, 0.5, 0.6, 0.5]]])
    side = round((20 * 20 * 1.25) ** 0.5)
    expected = [round(32 - 500**0.5 / 2), round(30 - 500**0.5 / 2)]
    found = regions.jitter(torch.tensor([[20, 20, 40, 40]]), torch.tensor([[60, 60]]), draws)[0].tolist()
    assert found == [*expected, expected[0] + side, expected[1] + side]
    # no try fits an image that the box fills but one of other sides or another place; the box stays
    whole = torch.tensor([[0, 0, 60, 60]])
    assert regions.jitter(whole, torch.tensor([[60, 60]]), torch.full((1, 3, 4), 0.99)).equal(whole)


@pytest.mark.oracle("orl", 4)
def test_the_loss_by_hand_and_byol_without_regions() -> None:
    model = method(global_weight=1.0, intra_weight=2.0, inter_weight=0.5)
    p = torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    scale = torch.tensor([3.0, 0.5])[:, None]
    key = (scale * p.flip(1)).detach().requires_grad_()
    terms = model.loss({"embedding": p, "intra": p, "inter": p}, {}, {"key": key, "intra": -key, "inter": key}, NOW)
    values = {name: float(value.detach()) for name, value in terms.values.items()}
    # each is the sum over two directions of a number that is 0 for parallel and 4 for opposite vectors
    assert values == {"global": pytest.approx(0, abs=1e-5), "intra": pytest.approx(8), "inter": values["global"]}
    assert float(terms.total.detach()) == pytest.approx(16, abs=1e-4)
    terms.total.backward()
    assert p.grad is not None
    assert key.grad is None

    alone = method(intra_weight=0.0, inter_weight=0.0)
    torch.manual_seed(0)
    views, encoder = alone.make_views, encoders.build(EncoderConfig(name="convnet", width=4, dim=8), SHAPE)
    byol: Any = ContrastConfig(loss="regression", key_encoder="ema", momentum=0.99, momentum_end=1.0, **HEADS).build(
        DataInfo(num_samples=6, shape=SHAPE), encoder, views
    )
    byol.load_state_dict(alone.state_dict())
    totals = []
    for one in (alone, byol):
        viewed = one.views({name: value for name, value in batch().items() if name != "patches"}, Rng(1))
        targets = one.targets(viewed, NOW)
        totals.append(float(one.loss(one.encode(viewed), viewed, targets, NOW).total.detach()))
    assert totals[0] == pytest.approx(2 * totals[1], rel=1e-6)  # that one is the mean of both directions


# -- the Method --------------------------------------------------------------------------------------------------------


def test_branches_share_the_encoder_and_have_predictors_of_their_own() -> None:
    model = method()
    viewed = model.views(batch(), Rng(1))
    assert [(view.role, view.data.shape[-1]) for view in viewed["views"]] == [
        ("global", 16), ("global", 16), ("intra", 7), ("intra", 7), ("inter", 7), ("inter", 7),
    ]  # fmt: skip
    assert "patches" not in viewed
    assert method(patch_size=9).views(batch(), Rng(1))["views"][2].data.shape[-1] == 9
    targets, z = model.targets(viewed, NOW), model.encode(viewed)
    for name in ("intra", "inter"):
        views = [view.data for view in viewed["views"] if view.role == name]
        projected = model.head(model.encoder(torch.cat(views)))
        torch.testing.assert_close(
            model.local_predictors[name](projected).unflatten(0, (2, 6)).transpose(0, 1), z[name]
        )
        torch.testing.assert_close(model.teacher(torch.cat(views)).unflatten(0, (2, 6)).transpose(0, 1), targets[name])
    model.loss(z, viewed, targets, NOW).total.backward()
    assert all(p.grad is not None for _, p in model.named_parameters() if p.requires_grad)
    assert not any(p.requires_grad for p in model.teacher.parameters())
    only = method(intra_weight=0.0)
    assert list(only.local_predictors) == ["inter"]
    assert set(only.encode(only.views(batch(), Rng(1)))) == {"embedding", "inter"}


def test_patches_are_changed_but_not_cropped() -> None:
    model = method()
    sample = batch()
    viewed = model.views(sample, Rng(1))
    for view, patch in zip(viewed["views"][2:], sample["patches"].transpose(0, 1), strict=True):
        torch.testing.assert_close(view.data, patch.float() / 255)
    torch.manual_seed(0)
    noisy = ImageViews(ImageViewConfig(flip=0.0, jitter=0.0, grayscale=0.0, noise=0.1), size=16, channels=1)
    encoder = encoders.build(EncoderConfig(name="convnet", width=4, dim=8), SHAPE)
    other: Any = ORLConfig(**HEADS).build(DataInfo(num_samples=6, shape=SHAPE), encoder, noisy)
    noise = [view.data - patch.float() / 255 for view, patch in zip(
        other.views(sample, Rng(1))["views"][2:], sample["patches"].transpose(0, 1), strict=True)]  # fmt: skip
    assert all(not torch.allclose(noise[a], noise[b], atol=0.01) for a in range(4) for b in range(a))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key_encoder": "shared"}, "method.key_encoder: expected 'ema'"),
        ({"predictor": HeadConfig(kind="none")}, "method.predictor.kind"),
        ({"predictor": HeadConfig(dim=5)}, "method.predictor.dim: expected 4"),
        ({"global_weight": 0.0}, "method.global_weight: expected above 0"),
        ({"inter_weight": -1.0}, "method.inter_weight: expected 0 or more"),
        ({"num_neighbours": 0}, "method.num_neighbours: expected 1 or more"),
        ({"pair_share": 0.0}, "method.pair_share"),
        ({"regions": "a", "prior": "b"}, "method.prior: expected empty"),
    ],
)
def test_configs_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ORLConfig(**{**HEADS, **options})


def test_images_without_patches_are_refused() -> None:
    sample = {name: value for name, value in batch().items() if name != "patches"}
    with pytest.raises(ValueError, match="expected patches of regions, received none; set method.regions"):
        method().views(sample, Rng())


# -- boxes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 96, 96), (1, 60, 100), (3, 5, 4)])
def test_the_grid_covers_the_image(shape: tuple[int, int, int]) -> None:
    image = np.zeros(shape, np.uint8)
    boxes = regions.check_boxes(regions.grid_boxes(image), (shape[2], shape[1]))
    seen = np.zeros(shape[1:], bool)
    for x1, y1, x2, y2 in boxes[: len(boxes) // 2].tolist():
        seen[y1:y2, x1:x2] = True
    assert seen.all()
    if shape == (3, 96, 96):
        assert sorted(set((boxes[:, 2] - boxes[:, 0]).tolist())) == [24, 32, 48, 64]


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (np.zeros((0, 4), int), "one box or more"),
        (np.array([[0, 0, 5, 5], [0, 0, 61, 5]]), r"inside of 60 x 50 pixels, received box 1, \[0, 0, 61, 5\]"),
        (np.array([[-1, 0, 5, 5]]), "inside of 60 x 50"),
        (np.array([[5, 5, 5, 9]]), "of some area"),
        (np.array([[0, 0, np.nan, 9]]), "finite numbers"),
        (np.array([0, 0, 5, 5]), r"shape \[N, 4\]"),
    ],
)
def test_proposals_that_are_refused(boxes: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        regions.keep_boxes(boxes, (60, 50), least_side=2)


def test_names_of_proposals() -> None:
    assert regions.proposals("grid") == ("grid", regions.grid_boxes)
    chosen = regions.proposals("auto")[0]
    assert chosen == ("selective" if regions.has_selective_search() else "grid")
    if chosen == "grid":
        with pytest.raises(ModuleNotFoundError, match="opencv-contrib-python-headless"):
            regions.selective_search(np.zeros((3, 20, 20), np.uint8))
    else:
        image = np.zeros((3, 80, 80), np.uint8)
        image[0, 20:50, 30:60] = 200
        found = regions.check_boxes(regions.selective_search(image), (80, 80))
        assert iou(torch.from_numpy(found), torch.tensor([[30, 20, 60, 50]])).max() > 0.8
    with pytest.raises(ValueError, match="proposals: expected one of"):
        regions.proposals("all")


# -- the file and the source -------------------------------------------------------------------------------------------


def test_regions_are_kept_in_a_file(tmp_path: Path) -> None:
    found, place = table(), tmp_path / "regions.npz"
    found.save(place)
    again = Correspondence.load(place)
    assert all(np.array_equal(value, again.arrays()[name]) for name, value in found.arrays().items())
    assert again.boxes_of(3).tolist() == [[0, 0, 8, 8], [4, 4, 16, 14]]
    assert again.pairs_of(2, 1).tolist() == [[1, 0], [1, 1]]
    with pytest.raises(FileNotFoundError, match="method.regions: expected a file of regions"):
        Correspondence.load(tmp_path / "none.npz")
    np.savez(place, index=np.arange(3))
    with pytest.raises(ValueError, match=r"expected arrays index, boxes, .* received \['index'\]"):
        Correspondence.load(place)
    place.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="expected an .npz file of numbers"):
        Correspondence.load(place)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": np.zeros(6, int)}, "index: expected numbers of 0 or more, each once"),
        ({"neighbours": np.tile([[0, 1]], (6, 1))}, "neighbours: expected rows of other images"),
        ({"neighbours": np.full((6, 2), 6)}, "neighbours: expected rows of other images"),
        ({"pairs": np.full((18, 2), 2)}, "pairs: expected numbers of boxes that the images have"),
        ({"boxes": np.zeros((12, 4), int)}, "boxes: expected .* of some area"),
        ({"box_starts": np.array([0, 0, 2, 4, 6, 8, 12])}, "box_starts: expected 7 rising numbers"),
        ({"pairs": np.zeros((18, 2))}, "pairs: expected integers"),
    ],
)
def test_tables_that_are_refused(changes: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        dataclasses.replace(table(), **changes)


def test_draws_are_uniform_over_boxes_neighbours_and_pairs() -> None:
    found, num = table(), 6000
    rows = np.arange(num) % 6
    drawn = found.draw(rows, torch.arange(num), Rng(5))
    assert set(zip(rows.tolist(), drawn["neighbour"].tolist(), strict=True)) == {
        (n, (n + d) % 6) for n in range(6) for d in (1, 2)
    }
    second = (drawn["neighbour"] - rows) % 6 == 2
    assert second.mean() == pytest.approx(0.5, abs=0.03)
    assert (drawn["box"][:, 0] == 0).mean() == pytest.approx(0.5, abs=0.03)
    # with the first neighbour always (0, 1), with the second (1, 0) or (1, 1)
    assert (drawn["query"][~second, 0] == 0).all()
    assert (drawn["key"][~second, 0] == 4).all()
    assert (drawn["query"][second, 0] == 4).all()
    assert (drawn["key"][second, 0] == 0).mean() == pytest.approx(0.5, abs=0.03)


def test_samples_carry_the_patches_of_their_regions() -> None:
    read = RegionSource(source(), table(), 7)
    assert read.fingerprint() != source().fingerprint()
    with on_pass(3, 1):
        one, whole = read[2], read._batch(np.arange(6))
        rng = Rng(3, 1)
    assert np.array_equal(one["patches"], whole["patches"][2])
    assert whole["patches"].shape == (6, 4, 1, 7, 7)
    assert whole["patches"].dtype == torch.uint8
    drawn = table().draw(np.arange(6), torch.arange(6), rng)
    images = source().images
    for b in range(6):
        for p, name, n in ((0, "box", b), (2, "query", b), (3, "key", int(drawn["neighbour"][b]))):
            expected = regions.cut(torch.from_numpy(images[n].copy()), drawn[name][b].tolist(), 7)
            assert torch.equal(whole["patches"][b, p], expected)
    with on_pass(3, 2):
        assert not torch.equal(read._batch(np.arange(6))["patches"], whole["patches"])


def test_regions_stand_under_subsets_and_replace_each_other() -> None:
    part = Subset(source(), np.array([1, 3, 4]))
    read = with_regions(with_regions(part, table(), 5), table(), 7)
    assert [read[i]["index"] for i in range(3)] == [1, 3, 4]
    assert read[0]["patches"].shape == (4, 1, 7, 7)
    few = dataclasses.replace(table(3), index=np.array([0, 1, 4]))
    with pytest.raises(BadSample, match="has no regions"):
        RegionSource(source(), few, 7)[2]
    with pytest.raises(ValueError, match="method.regions: expected numbers of the 6 images"):
        RegionSource(source(), dataclasses.replace(table(3), index=np.array([0, 1, 9])), 7)
    with pytest.raises(ValueError, match="inside of 9 x 9 pixels"):
        RegionSource(source(side=9), table(), 7)._batch(np.arange(6))


# -- discovery and stages ----------------------------------------------------------------------------------------------


class Corners(torch.nn.Module):
    """An encoder that says how bright each quarter is."""

    feature_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


def loaded() -> Any:
    config = ContrastConfig(head=HeadConfig(kind="none"))
    views: Any = ImageViews(ImageViewConfig(), size=16, channels=1)
    recipe = dataclasses.replace(load_recipe("images/simclr"), data=DataConfig(image_size=16, channels=1))
    info = DataInfo(num_samples=6, shape=SHAPE)
    return pipeline.LoadedRun(config.build(info, Corners(), views).eval(), recipe, info, Path())


def quarters(image: np.ndarray) -> np.ndarray:
    side = image.shape[1] // 2
    return np.array([[x, y, x + side, y + side] for y in (0, side) for x in (0, side)])


def test_what_is_found_is_what_brute_force_finds(tmp_path: Path) -> None:
    toy = source(8)
    part = Subset(toy, np.array([0, 1, 2, 4, 5, 6]))  # discovery reads a subset by the whole's numbers
    found = discover(loaded(), part, tmp_path, num_neighbours=2, proposals=quarters, share=0.5)
    assert not list(tmp_path.iterdir())
    assert found.index.tolist() == [0, 1, 2, 4, 5, 6]
    assert len(found.boxes) == 24
    image = torch.from_numpy(toy.images.copy()).float() / 255

    def unit(x: Tensor) -> Tensor:
        return x.flatten() / x.norm()

    whole = torch.stack([unit(torch.nn.functional.adaptive_avg_pool2d(image[i], 2)) for i in found.index.tolist()])
    for n in range(6):
        cosine = whole @ whole[n]
        cosine[n] = -2
        assert found.neighbours[n].tolist() == cosine.topk(2).indices.tolist()
        for k, other in enumerate(found.neighbours[n].tolist()):
            crops = [[regions.cut((image[int(found.index[i])] * 255).round().byte(), box, 16).float() for box in
                      quarters(image[0].numpy()).tolist()] for i in (n, other)]  # fmt: skip
            features = [torch.stack([unit(torch.nn.functional.adaptive_avg_pool2d(crop, 2)) for crop in one])
                        for one in crops]  # fmt: skip
            best = (features[0] @ features[1].T).flatten().topk(2)
            pairs = [divmod(int(value), 4) for value in best.indices]
            assert [tuple(pair) for pair in found.pairs_of(n, k).tolist()] == pairs


class Torn(ArraySource):
    """A source of which two samples cannot be read."""

    def __getitem__(self, i: int) -> dict[str, Any]:
        if i in (0, 3):
            raise BadSample(Fault(i, self.path(i), "torn"))
        return super().__getitem__(i)

    def batch(self, positions: np.ndarray) -> Any:
        raise BadSample(Fault(0, self.path(0), "torn"))


def test_images_that_cannot_be_read_have_no_regions(tmp_path: Path) -> None:
    torn = Torn(source(200).images, name="torn")
    found = discover(loaded(), torn, tmp_path, num_neighbours=2, proposals=lambda image: quarters(image)[:1])
    assert sorted(set(range(200)) - set(found.index.tolist())) == [0, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_neighbours": 6}, "num_neighbours: expected fewer than the 6 images, received 6"),
        ({"proposals": lambda image: np.zeros((0, 4), int)}, r"proposals of toy\[0\]: expected one box or more"),
        ({"proposals": lambda image: np.array([[0, 0, 17, 5]])}, r"proposals of toy\[0\]: expected .* inside of 16"),
        ({"proposals": "none"}, "proposals: expected one of"),
    ],
)
def test_discovery_refuses(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        discover(loaded(), source(), tmp_path, **{"num_neighbours": 2, **options})


def small(output: Path, **options: Any) -> Any:
    recipe = load_recipe("images/orl_digits")
    config: Any = dataclasses.replace(recipe.method, **HEADS, num_neighbours=3, most_boxes=4, **options)
    return dataclasses.replace(
        recipe,
        method=config,
        data=DataConfig(),
        encoder=EncoderConfig(width=4, dim=8),
        trainer=dataclasses.replace(
            recipe.trainer, epochs=1, batch_size=6, evaluate_every=0, evaluate_before=False, report=False,
            progress=False, device="cpu", output=str(output), log_every=1,
        ),
    )  # fmt: skip


def test_three_stages_go_on_where_they_were_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = without_test(source(12))
    whole = pipeline.train(small(tmp_path / "whole"), data=data)
    assert (whole.status["status"], whole.status["step"]) == ("finished", 2)
    assert whole.recipe["recipe"] == "images/orl_digits"
    assert whole.recipe["values"]["method"]["regions"] == ""
    stages = tmp_path / "whole" / orl.STAGES
    assert pipeline.read_recipe(stages / "image" / "run").name == "images/byol"
    found = Correspondence.load(stages / "regions/artefacts/regions/arrays.npz")
    assert (len(found), found.num_neighbours) == (12, 3)

    def fails(*_: Any, **__: Any) -> None:
        raise FloatingPointError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(orl, "discover", fails)
        with pytest.raises(FloatingPointError, match="on purpose"):
            pipeline.train(small(tmp_path / "parts"), data=data)
    assert Run(tmp_path / "parts").status["status"] == "failed"
    assert pipeline.read_recipe(tmp_path / "parts") == pipeline.resolve(small(tmp_path / "parts"), data.train)
    begun = (tmp_path / "parts" / orl.STAGES / "image" / "done.json").read_bytes()
    again = pipeline.train(pipeline.read_recipe(tmp_path / "parts"), data=data, resume=str(tmp_path / "parts"))
    assert (tmp_path / "parts" / orl.STAGES / "image" / "done.json").read_bytes() == begun  # not done a second time
    files = [run.checkpoint("last") / "model.safetensors" for run in (whole, again)]
    assert files[0].read_bytes() == files[1].read_bytes()
    # with the regions that were found, it is one run
    place = stages / "regions/artefacts/regions/arrays.npz"
    alone = pipeline.train(small(tmp_path / "alone", regions=str(place)), data=data)
    assert not (tmp_path / "alone" / orl.STAGES).exists()
    assert (alone.checkpoint("last") / "model.safetensors").read_bytes() == files[0].read_bytes()
    # another recipe leaves a finished run and its stages as they are
    with pytest.raises(ValueError, match="resume: expected the recipe and the data of the run's earlier stages"):
        pipeline.train(small(tmp_path / "whole", pair_share=0.5), data=data, resume=True)
    with pytest.raises(ValueError, match="trainer.output: expected an empty folder, or resume"):
        pipeline.train(small(tmp_path / "whole"), data=data)
    assert place.exists()


def test_a_run_of_another_recipe_may_look_for_regions(tmp_path: Path) -> None:
    data = without_test(source(12))
    first = small(tmp_path / "first")
    other = load_recipe("images/simclr")
    pipeline.train(dataclasses.replace(first, name=other.name, method=other.method), data=data)
    run = pipeline.train(small(tmp_path / "run", prior=str(tmp_path / "first")), data=data)
    assert run.status["status"] == "finished"
    assert sorted(place.name for place in (tmp_path / "run" / orl.STAGES).iterdir()) == ["regions"]
    with pytest.raises(ValueError, match="method.num_neighbours: expected fewer than the 3 images"):
        pipeline.train(small(tmp_path / "few"), data=without_test(source(3)))


def test_the_sampler_of_a_run_reads_regions_anew_every_epoch() -> None:
    from nearfar.data import Loader

    read = with_regions(source(), table(), 7)
    loader = Loader(read, Shuffle(6, 6, seed=0), seed=4)
    first, second = (next(iter(loader.epoch(epoch))) for epoch in (0, 1))
    order = first["index"].argsort(), second["index"].argsort()
    assert not torch.equal(first["patches"][order[0]], second["patches"][order[1]])
    with on_pass(4, 1):
        assert torch.equal(
            second["patches"][order[1]], RegionSource(source(), table(), 7)._batch(np.arange(6))["patches"]
        )


# -- the demonstration -------------------------------------------------------------------------------------------------


def test_scenes_hold_what_they_say_and_pairs_are_scored() -> None:
    from nearfar_images.demonstrations.orl import Scenes, make, pair_scores, shown

    scenes = make(5, 3, held_out=False)
    assert np.array_equal(scenes.images, make(5, 3, held_out=False).images)
    assert (scenes.labels.sum(1) >= 1).all()
    for n in range(5):
        regions.check_boxes(scenes.boxes[n], (96, 96))
        overlap = iou(torch.from_numpy(scenes.boxes[n]), torch.from_numpy(scenes.boxes[n]))
        assert overlap.equal(torch.eye(3, dtype=torch.float64))
        assert shown(scenes.boxes[n], scenes, n).tolist() == scenes.classes[n].tolist()
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]])
    made = Scenes(np.zeros((2, 96, 96, 1), np.uint8), np.stack([boxes, boxes]), np.array([[1, 2, 3], [2, 1, 3]]))
    held = np.array([[0, 0, 10, 10], [20, 0, 26, 10], [60, 60, 90, 90]])
    assert shown(held, made, 0).tolist() == [1, 2, -1]
    found = Correspondence(
        np.arange(2), np.concatenate([held, held]), np.array([0, 3, 6]), np.array([[1], [0]]),
        np.array([[0, 1], [0, 0], [2, 0], [1, 0]]), np.array([0, 3, 4]),
    )  # fmt: skip
    scores = pair_scores(found, made)
    # same: (1, 1), (1, 2) no, clutter, (1, 1)
    assert scores == {"pair_precision": pytest.approx(2 / 3), "pair_chance": 0.5, "pair_objects": 0.75}
