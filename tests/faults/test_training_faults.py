"""A run over a folder with an image that cannot be read: counted, named, replaced by one that keeps its own label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nearfar.cli import main
from nearfar.data import Subset, labels_of, open_folder
from nearfar.data.source import Data
from nearfar.method import Method
from nearfar.train import Run
from nearfar.train.features import extract


def folder(root: Path) -> Path:
    """Twelve images a class in train and test; the last of the first class is broken in both."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label, kind in enumerate(("dark", "light")):
            (root / split / kind).mkdir(parents=True)
            for i in range(12):
                pixels = rng.integers(0, 60, (16, 16, 3), dtype=np.uint8) + 150 * label
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / kind / f"{i:02}.png")
        (root / split / "dark" / "11.png").write_bytes(b"no image")
    return root


class Brightness(Method):
    def features(self, batch: dict, output: str = "default") -> torch.Tensor:
        return batch["image"].float().mean(dim=(2, 3))


def test_a_stand_in_keeps_its_own_label(tmp_path: Path) -> None:
    data = open_folder(folder(tmp_path))
    assert isinstance(data, Data)
    for source in (data.test, Subset(data.test, np.arange(23, 5, -1))):
        features, index = extract(Brightness(), source, batch_size=5)
        labels = labels_of(source, index)
        assert labels is not None
        assert torch.equal(labels, (features.mean(1) > 100).long())
        assert len(features) == len(source)
        assert 11 not in index


@pytest.mark.parametrize("memory", ["0", "1"])
def test_a_run_with_a_broken_image_ends_well_and_says_so(
    tmp_path: Path, memory: str, capsys: pytest.CaptureFixture
) -> None:
    root = folder(tmp_path / "data")
    output = tmp_path / "run"
    words = ["images", "train", "simclr", "--data.root", str(root), "--data.memory-gb", memory]
    words += ["--data.cache", str(tmp_path / "cache"), "--data.max-bad-share", "0.05", "--data.image-size", "16"]
    words += ["--encoder.name", "convnet", "--encoder.width", "4", "--trainer.epochs", "2", "--trainer.batch-size", "8"]
    words += ["--trainer.log-every", "1", "--trainer.output", str(output), "--trainer.no-progress"]
    assert main(words) == 0
    run = Run(output)
    assert run.status["status"] == "finished"
    assert any("11.png" in str(fault) for fault in run.faults)
    assert run.report.is_file()
    assert "after" in run.scores
