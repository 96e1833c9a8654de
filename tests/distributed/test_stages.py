"""Stages over several processes: all work, one writes, and what they leave is what one process leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distributed.launch import launch


def stages(folder: str) -> list[Any]:
    """Losses of ORL's last run, and the regions that its second stage found."""
    import dataclasses

    import numpy as np

    from nearfar.config import EncoderConfig, HeadConfig
    from nearfar.data import ArraySource, without_test
    from nearfar.plugin import load_recipe
    from nearfar_images import pipeline
    from nearfar_images.correspondence import Correspondence

    head = HeadConfig(hidden=8, dim=4, last_bias=False)
    images = np.random.default_rng(0).integers(0, 256, (13, 16, 16, 1), dtype=np.uint8)
    recipe: Any = load_recipe("images/orl_digits")
    recipe = dataclasses.replace(
        recipe,
        method=dataclasses.replace(recipe.method, head=head, predictor=head, num_neighbours=2, most_boxes=4),
        data=dataclasses.replace(recipe.data, image_size=16),
        encoder=EncoderConfig(name="convnet", width=4, dim=8),
        trainer=dataclasses.replace(
            recipe.trainer, epochs=1, batch_size=6, evaluate_every=0, evaluate_before=False, report=False,
            progress=False, device="cpu", output=folder, log_every=1,
        ),
    )  # fmt: skip
    data = without_test(ArraySource(images, None, name="toy"))
    run = pipeline.train(recipe, data=data)
    again = pipeline.train(recipe, data=data, resume=True)
    assert again.status["status"] == "finished"
    found = Correspondence.load(f"{folder}/stages/regions/artefacts/regions/arrays.npz")
    losses = [row["loss"] for row in run.metrics if "loss" in row]
    return [losses, {name: value.tolist() for name, value in found.arrays().items()}]


def test_three_stages_in_two_processes_equal_one(tmp_path: Path) -> None:
    losses, regions = stages(str(tmp_path / "one"))
    for found in launch(stages, 2, str(tmp_path / "two"), timeout=120):
        assert found[0] == pytest.approx(losses, rel=1e-4)
        assert found[1] == regions
