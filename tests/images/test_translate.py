"""CUT from the command line: two folders, stop and resume, a folder translated, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nearfar.cli import main
from nearfar.train import Run, Trainer
from nearfar_images import pipeline
from nearfar_images.translate_command import fitted, plan

FLAGS = [
    *("--method.width", "4", "--method.num-blocks", "2", "--method.layers", "0", "4", "12", "--method.dim", "8"),
    *("--method.num-patches", "6", "--method.discriminator-layers", "2", "--method.discriminator-width", "4"),
    *("--data.image-size", "16", "--trainer.epochs", "2", "--trainer.device", "cpu", "--trainer.no-progress"),
    *("--trainer.log-every", "1"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four dark pictures in A, one of them in a subfolder, and three light ones in B."""
    root = tmp_path_factory.mktemp("domains")
    rng = np.random.default_rng(0)
    for name, num, level in (("A", 4, 60), ("B", 3, 190)):
        for k in range(num):
            file = root / name / ("deep" if k == 3 else "") / f"{k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.clip(rng.normal(level, 30, (18, 27, 3)), 0, 255).astype(np.uint8)).save(file)
    return root


def words(folders: Path, output: Path, *more: str) -> list[str]:
    named = ("--data.sources", f"a={folders / 'A'}", f"b={folders / 'B'}", "--data.cache", str(folders / "cache"))
    return ["images", "train", "cut", *named, *FLAGS, "--trainer.output", str(output), *more]


@pytest.fixture(scope="module")
def run(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "whole"
    assert main(words(folders, place)) == 0
    return place


def test_two_folders_stopped_and_resumed(
    folders: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Run(run).status["step"] == 8  # two passes over the four pictures of A
    part, log = tmp_path / "part", Trainer._log

    def stop(self: Any, *args: Any, **options: Any) -> None:
        log(self, *args, **options)
        if self.step == 3:
            self._leave(15)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_log", stop)
        assert main(words(folders, part)) == 128 + 15
    assert (Run(part).status["status"], Run(part).status["step"]) == ("interrupted", 3)
    assert main(["images", "train", "--resume", str(part)]) == 0
    for file in ("metrics.jsonl", "checkpoints/step-000000008/model.safetensors"):
        assert (run / file).read_bytes() == (part / file).read_bytes()
    rows = [row for row in Run(run).metrics if "loss" in row]
    assert all(math.isfinite(row[name]) for row in rows for name in ("gan", "contrast", "identity", "discriminator"))


def test_a_folder_is_translated(folders: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["images", "translate", str(run), str(folders / "A"), "--out", str(out)]) == 0
    assert "4 pictures" in capsys.readouterr().out
    made = sorted(str(file.relative_to(out)) for file in out.rglob("*.png"))
    assert made == ["0.png", "1.png", "2.png", "deep/3.png"]
    method = pipeline.load_run(run).method
    pixels = np.asarray(Image.open(folders / "A" / "1.png"))
    x = fitted(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255, 16)
    assert x.shape == (1, 3, 16, 24)
    expected = method.translate(x)  # type: ignore[operator]
    found = torch.from_numpy(np.asarray(Image.open(out / "1.png")).copy()).permute(2, 0, 1)[None].float() / 255
    torch.testing.assert_close(found, expected, rtol=0, atol=0.51 / 255)
    large = tmp_path / "large"
    assert main(["images", "translate", str(run), str(folders / "A"), "--out", str(large), "--size", "32"]) == 0
    with Image.open(large / "0.png") as picture:
        assert picture.size == (48, 32)


def test_what_cannot_be_read_is_left_out(folders: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    Image.new("L", (20, 20), 90).save(tmp_path / "in" / "good.bmp")
    out = tmp_path / "in" / "made"  # a folder below is no input the next time
    command = ["images", "translate", str(run), str(tmp_path / "in"), "--out", str(out)]
    assert main(command) == 1
    assert [file.name for file in out.iterdir()] == ["good.png"]
    assert main([*command, "--overwrite"]) == 1


@pytest.mark.parametrize(
    ("command", "match"),
    [
        (["{run}", "{a}", "--out", "{tmp}/t", "--size", "30"], "size: expected 0, or a multiple of 4"),
        (["{run}", "{tmp}/nowhere", "--out", "{tmp}/t"], "expected a folder of images, received"),
        (["{run}", "{tmp}", "--out", "{tmp}/t"], "root: expected pictures below"),
        (["{run}", "{a}", "--out", "{a}"], "out: expected another folder than that of the pictures"),
        (["{tmp}/nowhere", "{a}", "--out", "{tmp}/t"], "run: expected the folder of a run"),
    ],
)
def test_mistakes_of_translate(
    command: list[str], match: str, folders: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [word.format(run=run, a=folders / "A", tmp=tmp_path) for word in command]
    assert main(["images", "translate", *filled]) == 2
    assert match in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_another_kind_of_run_is_refused(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data.image-size", "16", "--encoder.width", "4", "--trainer.max-steps", "1", "--trainer.no-progress"]
    other = str(tmp_path / "other")
    assert main(["images", "train", "simclr_digits", *flags, "--trainer.output", other, "--trainer.no-report"]) == 0
    assert main(["images", "translate", other, str(folders / "A"), "--out", str(tmp_path / "out")]) == 2
    assert "expected one that learnt to translate" in " ".join(capsys.readouterr().err.split())


def test_two_names_that_become_one(tmp_path: Path) -> None:
    for name in ("x.png", "x.bmp"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    with pytest.raises(ValueError, match=r"root: expected names that differ in more than their ending.*x\.png"):
        plan(tmp_path, tmp_path / "out")


def test_one_folder_is_refused(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--data.root", str(folders / "A"), "--data.cache", str(folders / "cache")]
    assert main(["images", "train", "cut", *root, *FLAGS, "--trainer.output", str(tmp_path / "run")]) == 2
    assert "data.sources (NAME=FOLDER of each): expected what gives samples a group" in " ".join(
        capsys.readouterr().err.split()
    )


def test_accumulated_parts_are_refused(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(folders, tmp_path / "run", "--trainer.accumulate", "2")) == 2
    assert "trainer.accumulate: expected 1, since Cut makes its own updates" in capsys.readouterr().err
