from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nearfar.batch import Ragged
from nearfar.cli import main
from nearfar.config import DataConfig, EncoderConfig
from nearfar.data import ArraySource, Data
from nearfar.plugin import load_recipe
from nearfar_images import pipeline
from nearfar_images.corruptions import CORRUPTIONS, DEGREES, corrupt
from nearfar_images.robustness import Corrupted, fine_tune, robustness


def pictures(num: int = 6, side: int = 16) -> torch.Tensor:
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(40, 216, (num, 3, side // 4, side // 4)), np.ones((4, 4)))
    return torch.from_numpy((smooth + rng.integers(-30, 31, smooth.shape)).astype(np.uint8))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_grows_with_its_degree_and_is_of_its_arguments(name):
    image, index = pictures(), torch.arange(6)
    errors = []
    for degree in range(1, 6):
        worse = corrupt(image, index, name, degree)
        assert worse.dtype == torch.uint8
        assert worse.shape == image.shape
        assert torch.equal(worse, corrupt(image, index, name, degree))
        assert torch.equal(worse[2:4], corrupt(image[2:4], index[2:4], name, degree)), "a picture is its own"
        errors.append(float((worse.float() - image.float()).square().mean()))
    assert errors[0] > 0
    assert errors == sorted(errors) or name in ("pixelate", "jpeg")
    assert errors[-1] > errors[0] or name == "pixelate"


def test_noise_has_the_stated_spread():
    image = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8)
    for name, spread in {
        "gaussian_noise": 0.10,
        "shot_noise": (0.502 / 50) ** 0.5,
    }.items():
        x = corrupt(image, torch.arange(4), name, 5).float() / 255
        assert float(x.std()) == pytest.approx(spread, rel=0.03)
        assert float(x.mean()) == pytest.approx(128 / 255, abs=2e-3)
    x = corrupt(image, torch.arange(4), "impulse_noise", 5)
    assert float((x != 128).float().mean()) == pytest.approx(0.07, rel=0.1)
    assert not torch.equal(corrupt(image, torch.arange(4), "shot_noise", 5, seed=1),
                           corrupt(image, torch.arange(4), "shot_noise", 5, seed=2))  # fmt: skip


def test_brightness_contrast_and_sizes_by_hand():
    image, index = pictures(), torch.arange(6)
    x = image.float() / 255
    bright = ((x + 0.3).clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(corrupt(image, index, "brightness", 5), bright)
    mean = x.mean((2, 3), keepdim=True)
    flat = (((x - mean) * 0.15 + mean).clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(corrupt(image, index, "contrast", 5), flat)
    large = pictures(1, 96)
    assert not torch.equal(corrupt(large, index[:1], "contrast", 1), corrupt(large, index[:1], "contrast", 2))
    assert DEGREES["contrast"][1][0] == 0.4
    tall = torch.randint(0, 256, (2, 1, 12, 20), dtype=torch.uint8)
    for name in CORRUPTIONS:
        assert corrupt(tall, index[:2], name, 3).shape == tall.shape


def test_bad_corruptions():
    with pytest.raises(ValueError, match="corruption: expected one of"):
        corrupt(pictures(), torch.arange(6), "fog", 1)
    with pytest.raises(ValueError, match="degree: expected a number from 1 to 5"):
        corrupt(pictures(), torch.arange(6), "jpeg", 6)


@pytest.fixture(scope="module")
def data() -> Data:
    """Two kinds of pictures that brightness tells apart."""
    rng = np.random.default_rng(0)

    def source(num: int) -> ArraySource:
        labels = np.arange(num) % 2
        pixels = rng.normal(80 + 90 * labels[:, None, None, None], 25, (num, 16, 16, 3)).clip(0, 255)
        return ArraySource(pixels.astype(np.uint8), labels, name="toy")

    return Data(train=source(32), test=source(16))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    recipe = load_recipe("images/simclr")
    recipe = dataclasses.replace(
        recipe,
        data=DataConfig(image_size=16, channels=3),
        encoder=EncoderConfig(name="convnet", width=4, dim=16),
        trainer=dataclasses.replace(
            recipe.trainer, epochs=1, batch_size=8, progress=False, evaluate_before=False,
            output=str(tmp_path_factory.mktemp("runs") / "run"),
        ),
    )  # fmt: skip
    return pipeline.train(recipe, data=data).path


def test_robustness_equals_scores_of_corrupted_pictures(run, data):
    loaded = pipeline.load_run(run)
    found = robustness(loaded.method, data, corruptions=("contrast", "brightness"), degrees=(1, 5))
    assert list(found) == ["clean", "contrast", "brightness", "corrupted"]
    assert found["clean"].value == pipeline.evaluate(loaded.method, data)["knn"].value
    values = []
    for name in ("contrast", "brightness"):
        by_degree = []
        for degree in (1, 5):
            index = torch.arange(16)
            image = torch.from_numpy(np.stack([data.test[i]["image"] for i in range(16)]))
            worse = corrupt(image, index, name, degree).permute(0, 2, 3, 1).numpy()
            other = Data(data.train, ArraySource(worse, data.test.labels, name="worse"))
            by_degree.append(pipeline.evaluate(loaded.method, other)["knn"].value)
        assert found[name].value == pytest.approx(np.mean(by_degree))
        assert found[name].low <= found[name].value <= found[name].high
        values.append(np.mean(by_degree))
    assert found["corrupted"].value == pytest.approx(np.mean(values))


def test_pictures_of_several_sizes(run):
    loaded = pipeline.load_run(run)
    images = [pictures(1, 16)[0], pictures(1, 32)[0]]
    method = Corrupted(loaded.method, "gaussian_blur", 3)
    with torch.no_grad():
        found = method.features({"image": Ragged.of(images), "index": torch.arange(2)})
    assert found.shape == (2, 16)


def test_fine_tuning_learns_the_labels_and_leaves_the_run_alone(run, data):
    loaded = pipeline.load_run(run)
    before = {name: value.clone() for name, value in loaded.method.state_dict().items()}
    method, score = fine_tune(loaded, data, epochs=6, rate=3e-3, batch_size=8)
    assert score.value >= 0.9
    assert score.n == 16
    for name, value in loaded.method.state_dict().items():
        assert torch.equal(value, before[name])
    tuned = method.encoder.state_dict()
    assert any(not torch.equal(value, tuned[name]) for name, value in loaded.method.encoder.state_dict().items())


def test_the_command(run, tmp_path, capsys):
    rng = np.random.default_rng(1)
    for root in ("own", "other"):
        for part, num in (("train", 8), ("test", 4)):
            for name, value in (("a", 60), ("b", 190)):
                folder = tmp_path / root / part / name
                folder.mkdir(parents=True)
                for k in range(num):
                    pixels = rng.normal(value, 20, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                    Image.fromarray(pixels).save(folder / f"{k}.png")
    words = [
        "images", "evaluate", "--run", str(run), "--data.root", str(tmp_path / "own"), "--robustness", "--fine-tune",
        "1", "--transfer", str(tmp_path / "other"), "--data.cache", str(tmp_path / "cache"),
    ]  # fmt: skip
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    (scores,) = result["scores"].values()
    assert {"knn", "nmi", "ari", "knn jpeg", "knn corrupted", "fine_tune"} <= scores.keys()
    (other,) = result["transfer"]
    assert "knn" in next(iter(other["scores"].values()))
    assert other["num_test"] == 8
    missing = str(tmp_path / "none")
    assert main([*words[:6], "--transfer", missing]) == 2
    assert missing in " ".join(capsys.readouterr().err.split())
    assert main(["images", "evaluate", "--encoder.name", "convnet", "--fine-tune", "1"]) == 2
    assert "fine_tune: expected 0 without --run" in capsys.readouterr().err
