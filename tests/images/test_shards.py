"""`nearfar images` on shards, from words to files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.shardfiles import encoded, tar
from nearfar.cli import main
from nearfar.data import digits
from nearfar.recipe import read
from nearfar.train import Run

SMALL = [
    *("--data.image-size", "16", "--encoder.name", "convnet", "--encoder.width", "8", "--encoder.dim", "16"),
    *("--trainer.max-steps", "4", "--trainer.batch-size", "16", "--trainer.device", "cpu", "--trainer.no-progress"),
]


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty digits of three classes in three shards."""
    root = tmp_path_factory.mktemp("digits")
    source = digits()
    assert source.labels is not None
    chosen = np.flatnonzero(source.labels < 3)[:60].tolist()
    for shard in range(3):
        members = []
        for i in chosen[20 * shard : 20 * shard + 20]:
            picture = Image.fromarray(np.asarray(source[i]["image"])[0]).resize((20, 20))
            members += [(f"{i:05}.png", encoded(picture)), (f"{i:05}.cls", str(source.labels[i]).encode())]
        tar(root / f"shards-{shard:04}.tar", members)
    return root / "shards-{0000..0002}.tar"


def words(*parts: object) -> list[str]:
    return ["images", *map(str, parts)]


@pytest.mark.parametrize("sampler", ["shuffle", "shards"])
def test_train_and_evaluate(pattern: Path, tmp_path: Path, capsys: pytest.CaptureFixture, sampler: str) -> None:
    run = tmp_path / "run"
    data = ["--data.source", "webdataset", "--data.root", pattern, "--data.cache", tmp_path / "cache"]
    flags = [*SMALL, *data, "--data.memory-gb", "0", "--sampler.kind", sampler, "--trainer.output", run]
    assert main(words("train", "simclr", *flags)) == 0
    assert Run(run).status["status"] == "finished"
    assert Run(run).metrics[-1]["step"] == 4
    assert read(run / "recipe.json")[1]["data"]["source"] == "webdataset"
    assert "few_label" in capsys.readouterr().out
    assert main(words("evaluate", "--run", run, "--json")) == 0
    assert '"num_test": 6' in capsys.readouterr().out
    assert main(words("train", "simclr", *flags, "--resume")) == 0


def test_mistakes(pattern: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def says(*flags: object) -> str:
        assert main(words("train", "simclr", *SMALL, *flags, "--trainer.output", tmp_path / "run")) == 2
        return capsys.readouterr().err.replace("\n", " ")

    web = ["--data.source", "webdataset", "--data.cache", tmp_path / "cache"]
    assert "files, or addresses by http" in says(*web, "--data.root", "ftp://x.org/{0..9}.tar")
    assert "that do not exist, e.g." in says(*web, "--data.root", str(pattern).replace("0002", "0003"))
    assert "data.label_column: expected one of png, cls" in says(
        *web, "--data.root", pattern, "--data.label-column", "json.label"
    )
    assert not (tmp_path / "run").exists()
