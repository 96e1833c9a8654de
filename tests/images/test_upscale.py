"""`nearfar images upscale`: whole and in tiles, and what it says when something is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from nearfar.cli import main
from nearfar.method import Method
from nearfar.plugin import load_recipe
from nearfar_images.pipeline import load_run
from nearfar_images.upscale_command import upscale

FLAGS = [
    "--data.image-size", "24", "--trainer.batch-size", "4", "--trainer.max-steps", "3", "--trainer.no-progress",
    "--trainer.no-report", "--method.network.width", "4", "--method.network.blocks", "1", "--method.width", "4",
    "--method.num-crops", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several sizes, and a run that has learnt from them."""
    place = tmp_path_factory.mktemp("upscale")
    rng = np.random.default_rng(0)
    for k in range(6):
        pixels = rng.integers(0, 256, (30 + 3 * k, 45, 3)).astype(np.uint8)
        file = place / "data" / ("inner" if k > 3 else ".") / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    code = main([
        "images", "train", "pcl_sr_tiny", "--data.root", str(place / "data"), "--data.cache", str(place / "cache"),
        "--trainer.output", str(place / "run"), *FLAGS,
    ])  # fmt: skip
    assert code == 0
    return place


def test_every_picture_is_enlarged_as_the_network_says(folder: Path, tmp_path: Path) -> None:
    words = ["images", "upscale", str(folder / "run"), str(folder / "data")]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    assert main([*words, "--out", str(tmp_path / "tiles"), "--tile", "16", "--overlap", "10"]) == 0
    network = load_run(folder / "run").method.network
    for k in range(6):
        name = Path("inner" if k > 3 else ".") / f"{k}.png"
        low = torch.from_numpy(np.asarray(Image.open(folder / "data" / name)).transpose(2, 0, 1).copy())[None] / 255
        with torch.no_grad():
            made = network(low)[0].clamp(0, 1) * 255
        expected = made.round().byte().permute(1, 2, 0).numpy()
        for kind in ("whole", "tiles"):
            found = np.asarray(Image.open(tmp_path / kind / name))
            assert found.shape == (2 * (30 + 3 * k), 90, 3)
            assert np.abs(found.astype(int) - expected).max() <= 1


def test_the_run_is_scored_by_its_pictures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["images", "evaluate", "--run", str(folder / "run"), "--json"]) == 0
    scores = next(iter(json.loads(capsys.readouterr().out)["scores"].values()))
    after = json.loads((folder / "run" / "scores.json").read_text())["after"]
    assert scores["psnr_y"]["value"] == pytest.approx(after["psnr_y"]["value"])
    assert {"ssim", "high_band_error", "edge_error", "psnr_y_bicubic"} <= set(scores)
    assert main(["images", "evaluate", "--run", str(folder / "run"), "--robustness"]) != 0
    assert "robustness: expected off for images/pcl_sr_tiny" in capsys.readouterr().err


def test_unreadable_files_are_named_and_the_rest_is_done(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bad.png").write_bytes(b"no picture")
    Image.new("L", (10, 8)).save(tmp_path / "data" / "good.jpg")
    code = main(["images", "upscale", str(folder / "run"), str(tmp_path / "data"), "--out", str(tmp_path / "out")])
    assert code == 1
    assert "left out bad.png" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "good.png") as image:
        assert image.size == (20, 16)


def test_what_is_wrong_is_named(folder: Path, tmp_path: Path) -> None:
    run, data, out = str(folder / "run"), str(folder / "data"), str(tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="run: expected the folder of a run, received nowhere"):
        upscale(["nowhere", data, "--out", out])
    with pytest.raises(FileNotFoundError, match="data.root: expected a folder of images"):
        upscale([run, "nowhere", "--out", out])
    with pytest.raises(ValueError, match="out: expected another folder than that of the pictures"):
        upscale([run, data, "--out", data])
    with pytest.raises(ValueError, match="tile: expected 0 or more, received -1"):
        upscale([run, data, "--out", out, "--tile", "-1"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="root: expected pictures below .*empty, received none"):
        upscale([run, str(tmp_path / "empty"), "--out", out])
    for suffix in ("png", "bmp"):
        Image.new("RGB", (9, 9)).save(tmp_path / "empty" / f"same.{suffix}")
    with pytest.raises(ValueError, match="root: expected names that differ in more than their ending"):
        upscale([run, str(tmp_path / "empty"), "--out", out])
    (tmp_path / "empty" / "same.bmp").unlink()
    assert upscale([run, str(tmp_path / "empty"), "--out", out]) == 0
    with pytest.raises(ValueError, match="out: expected a folder without those names, or --overwrite"):
        upscale([run, str(tmp_path / "empty"), "--out", out])
    assert upscale([run, str(tmp_path / "empty"), "--out", out, "--overwrite"]) == 0


def test_a_run_of_another_system_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = SimpleNamespace(method=Method(), recipe=load_recipe("images/simclr_digits"))
    monkeypatch.setattr("nearfar_images.commands._load", lambda *_: other)
    with pytest.raises(TypeError, match="expected one that learnt to enlarge, .* received images/simclr_digits"):
        upscale([str(folder / "run"), str(folder / "data"), "--out", str(tmp_path / "out")])
