"""The commands from words to files, on a run of a few steps."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, safe_open
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file

from nearfar.cli import main
from nearfar.config import ContrastConfig
from nearfar.data import digits
from nearfar.recipe import read
from nearfar.train import Run
from nearfar_images import commands, gallery, pipeline

SMALL = [
    *("--data.image-size", "16", "--encoder.width", "8", "--encoder.dim", "32", "--trainer.epochs", "2"),
    *("--trainer.evaluate-every", "1", "--trainer.device", "cpu", "--trainer.no-progress"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert main(["images", "train", "simclr_digits", *SMALL, "--trainer.output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of five digits as PNG files, and one file that is no image."""
    root = tmp_path_factory.mktemp("digits")
    source, count = digits(), {0: 0, 1: 0, 2: 0}
    for i in range(len(source)):
        label = int(source.labels[i])
        if count.get(label, 5) < 5:
            (root / str(label)).mkdir(exist_ok=True)
            picture = Image.fromarray(np.asarray(source[i]["image"])[0])
            picture.resize((32, 32)).save(root / str(label) / f"{count[label]}.png")
            count[label] += 1
    return root


def words(*parts: object) -> list[str]:
    return ["images", *map(str, parts)]


def test_a_sampler_is_chosen_by_flags(tmp_path, capsys):
    flags = [*SMALL, "--trainer.max-steps", 2, "--trainer.batch-size", 40, "--trainer.output", tmp_path / "r"]
    assert main(words("train", "supcon_digits", *flags, "--sampler.kind", "per-class")) == 0
    assert read(tmp_path / "r" / "recipe.json")[1]["sampler"]["kind"] == "per-class"
    loaded = pipeline.load_run(tmp_path / "r")
    sampler = pipeline.make_sampler(loaded.recipe.sampler, digits(), 40)
    for batch in sampler.batches(0):
        labels = digits().labels[batch]
        assert np.bincount(labels, minlength=10).tolist() == [4] * 10
    assert main(words("train", "supcon_digits", *flags, "--sampler.kind", "single-group")) != 0
    assert "sampler.column: expected a column of" in capsys.readouterr().err.replace("\n", " ")


# -- train -------------------------------------------------------------------------------------------------------------


def test_train_leaves_a_resolved_recipe_and_says_where(run, tmp_path, capsys):
    name, values = read(run / "recipe.json")
    assert name == "images/simclr_digits"
    assert (values["data"]["image_size"], values["data"]["channels"]) == (16, 1)
    assert Run(run).status["status"] == "finished"
    assert (
        main(words("train", "simclr_digits", *SMALL, "--trainer.max-steps", 1, "--trainer.output", tmp_path / "r")) == 0
    )
    out = capsys.readouterr().out
    assert str(tmp_path / "r" / "report.html") in out.replace("\n", "")
    assert "before" in out
    assert "after" in out
    assert "few_label" in out


def test_demo_trains_on_digits_and_says_what_next(tmp_path, capsys):
    flags = [*SMALL, "--trainer.max-steps", "1", "--trainer.output", str(tmp_path / "demo")]
    assert commands.demo(flags) == 0
    out = capsys.readouterr().out.replace("\n", "")
    assert f"nearfar images evaluate --run {tmp_path / 'demo'} --references" in out
    assert read(tmp_path / "demo" / "recipe.json")[0] == "images/simclr_digits"


def test_train_is_repeatable(run, tmp_path):
    again = tmp_path / "again"
    assert main(words("train", "simclr_digits", *SMALL, "--trainer.output", again)) == 0
    first, second = (load_torch(Run(r).checkpoint() / "model.safetensors") for r in (run, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_resume_of_a_finished_run_changes_nothing(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    before, weights = Run(copy).scores, (Run(copy).checkpoint() / "model.safetensors").read_bytes()
    assert main(words("train", "--resume", copy)) == 0
    assert main(words("train", "simclr_digits", *SMALL, "--trainer.output", copy, "--resume")) == 0
    assert Run(copy).scores == before
    assert (Run(copy).checkpoint() / "model.safetensors").read_bytes() == weights


def test_resume_wants_the_same_recipe(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    assert main(words("train", "simclr_digits", *SMALL, "--method.temperature", 0.5, "--resume", copy)) == 2
    assert "belongs to another run (method.temperature" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "match"),
    [
        (["train", "simclr_digits", "--resume"], "--resume: expected the run folder after it"),
        (["train", "--resume", "nowhere"], "nowhere"),
        (["train", "simclrr"], "did you mean 'simclr'"),
        (["evaluate"], "either --run RUN or --encoder.name NAME, received none"),
        (["evaluate", "--run", "nowhere"], "run: expected the folder of a run, received nowhere"),
        (["embed", "--run", "nowhere", "--root", "."], "run: expected the folder of a run"),
        (["embed", "--run", "nowhere", "--root", ".", "--out", "x.csv"], "out: suffix: expected one of '.npz'"),
        (["export", "--run", "nowhere", "--out", "x"], "run: expected the folder of a run"),
        (["neighbours", "--run", "nowhere", "--root", ".", "--query", "q"], "run: expected the folder of a run"),
    ],
)
def test_mistakes(command, match, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(words(*command)) == 2
    assert match in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_labels_are_asked_for_before_training(images, tmp_path, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, file in enumerate(sorted(images.rglob("*.png"))):
        shutil.copy(file, flat / f"{i}.png")
    common = ["--data.root", flat, "--data.cache", tmp_path / "cache", "--trainer.output", tmp_path / "run"]
    assert main(words("train", "supcon", "--trainer.batch-size", 4, *common)) == 2
    assert "labels: one subfolder a class" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["evaluate", "embed", "neighbours", "export"])
def test_help_is_quick_and_shows_examples(command):
    code = (
        f"import sys\nfrom nearfar.cli import main\nmain(['images', {command!r}, '--help'])\n"
        "sys.exit(3 if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"nearfar images {command} --run RUN" in done.stdout


# -- evaluate ----------------------------------------------------------------------------------------------------------


def test_evaluate_agrees_with_training(run, capsys):
    assert main(words("evaluate", "--run", run, "--checkpoint", "last", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    (arm,) = found["scores"]
    after = Run(run).scores["after"]
    for name in ("knn", "linear", "few_label", "map"):
        assert found["scores"][arm][name] == pytest.approx(after[name])
    assert found["num_test"] == 450


def test_untrained_reference_is_the_start_of_training(run, capsys):
    assert main(words("evaluate", "--run", run, "--references", "--json")) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert list(scores)[1:] == ["untrained", "pixels"]
    assert scores["untrained"]["knn"] == pytest.approx(Run(run).scores["before"]["knn"])


def test_evaluate_on_other_data(run, images, tmp_path, capsys):
    data = ["--data.source", "folder", "--data.root", images, "--data.validation", 0.4, "--data.cache", tmp_path]
    assert main(words("evaluate", "--run", run, *data, "--evaluate.num-neighbours", 1)) == 0
    out = capsys.readouterr().out
    assert "knn" in out
    assert "6 test images" in out


def test_evaluate_an_encoder_without_a_run(run, tmp_path, capsys):
    weights = load_torch(Run(run).checkpoint() / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k.startswith("encoder.")}, tmp_path / "w.safetensors")
    encoder = ["--encoder.name", "convnet", "--encoder.width", 8, "--encoder.dim", 32]
    data = ["--data.source", "digits", "--data.validation", 0.25, "--data.image-size", 16, "--json"]
    assert main(words("evaluate", *encoder, "--encoder.weights", tmp_path / "w.safetensors", *data)) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]["convnet"]
    assert scores["knn"] == pytest.approx(Run(run).scores["after"]["knn"])
    assert main(words("evaluate", *encoder, "--run", run)) == 2
    assert "received both" in capsys.readouterr().err


def test_checkpoints_by_name(run, tmp_path, capsys):
    assert main(words("evaluate", "--run", run, "--checkpoint", 77)) == 2
    assert "steps there: " in capsys.readouterr().err
    assert main(words("evaluate", "--run", run, "--checkpoint", "newest")) == 2
    assert "'last', 'best' or a step" in capsys.readouterr().err


def test_a_checkpoint_of_another_recipe_is_refused(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    data = json.loads((copy / "recipe.json").read_text())
    data["values"]["encoder"]["width"] = 16
    (copy / "recipe.json").write_text(json.dumps(data))
    assert main(words("evaluate", "--run", copy)) == 2
    assert "belongs to another recipe" in capsys.readouterr().err


# -- embed, neighbours, export -----------------------------------------------------------------------------------------


def test_embed_writes_three_forms(run, images, tmp_path):
    for suffix in (".npz", ".safetensors", ".npy"):
        assert main(words("embed", "--run", run, "--root", images, "--out", tmp_path / f"f{suffix}")) == 0
    with np.load(tmp_path / "f.npz", allow_pickle=False) as table:
        found = {name: table[name] for name in table.files}
    assert set(found) == {"features", "index", "label", "class_name", "path"}
    assert (found["features"].shape, found["features"].dtype) == ((15, 32), np.float32)
    assert found["class_name"][found["label"]].tolist() == [Path(p).parent.name for p in found["path"]]
    assert all(Path(path).is_file() for path in found["path"])
    tensors = load_file(tmp_path / "f.safetensors")
    assert np.array_equal(tensors["features"], found["features"])
    with safe_open(tmp_path / "f.safetensors", "numpy") as file:
        assert json.loads(file.metadata()["path"]) == found["path"].tolist()
    assert np.array_equal(np.load(tmp_path / "f.npy"), found["features"])


def test_embed_takes_other_outputs(run, images, tmp_path, capsys):
    out = tmp_path / "z.npy"
    assert main(words("embed", "--run", run, "--root", images, "--out", out, "--output-name", "embedding")) == 0
    assert np.load(out).shape == (15, 64)
    assert main(words("embed", "--run", run, "--root", images, "--out", out, "--output-name", "z")) == 2
    assert "output: expected one of default, embedding" in capsys.readouterr().err


def test_embed_leaves_unreadable_images_out(run, images, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(images, copy)
    (copy / "1" / "2.png").write_bytes(b"broken")
    assert main(words("embed", "--run", run, "--root", copy, "--out", tmp_path / "f.npz")) == 0
    assert "14 images, 32 numbers each, 1 unreadable" in capsys.readouterr().out
    with np.load(tmp_path / "f.npz") as table:
        assert str(copy / "1" / "2.png") not in table["path"].tolist()
        assert len(set(table["path"].tolist())) == 14


def test_embed_a_single_image(run, images, tmp_path):
    (tmp_path / "one").mkdir()
    shutil.copy(images / "0" / "0.png", tmp_path / "one" / "a.png")
    loaded = pipeline.load_run(run)
    made = gallery.embed(loaded.method, tmp_path / "one", loaded.recipe.data)
    assert made.features.shape == (1, 32)
    assert made.labels is None
    whole = gallery.embed(loaded.method, images, loaded.recipe.data)
    np.testing.assert_allclose(made.features[0], whole.features[0], atol=1e-5)


def test_neighbours_against_a_sort(run, images, tmp_path, capsys):
    query = images / "1" / "0.png"
    flags = ["--query", query, "--root", images, "-k", 3, "--html", tmp_path / "sheet.html", "--json"]
    assert main(words("neighbours", "--run", run, *flags)) == 0
    found = json.loads(capsys.readouterr().out)
    loaded = pipeline.load_run(run)
    made = gallery.embed(loaded.method, images, loaded.recipe.data)
    unit = made.features / np.linalg.norm(made.features, axis=1, keepdims=True)
    own = made.paths.index(str(query))
    cosine = unit @ unit[own]
    expected = [i for i in np.argsort(-cosine) if i != own][:3]
    assert [item["path"] for item in found] == [made.paths[i] for i in expected]
    assert [item["similarity"] for item in found] == pytest.approx(cosine[expected].tolist(), abs=1e-5)
    page = (tmp_path / "sheet.html").read_text()
    assert page.count("data:image/png;base64") == 4
    assert main(words("neighbours", "--run", run, "--query", query, "--root", images, "--k", 15)) == 2
    assert "k: expected a number from 1 to 14" in capsys.readouterr().err


def test_export_round_trip(run, images, tmp_path, capsys):
    assert main(words("export", "--run", run, "--out", tmp_path / "out")) == 0
    assert "encoder.safetensors" in capsys.readouterr().out
    loaded = pipeline.load_run(run)
    weights = load_torch(tmp_path / "out" / "encoder.safetensors")
    own = loaded.method.encoder.model.state_dict()
    assert weights.keys() == own.keys()
    assert all(torch.equal(weights[key], own[key]) for key in own)
    card = json.loads((tmp_path / "out" / "encoder.json").read_text())
    assert (card["recipe"], card["shape"]) == ("images/simclr_digits", [1, 16, 16])
    assert main(words("export", "--run", run, "--out", tmp_path / "out", "--formats", "torchscript")) == 2
    assert "formats: expected one of 'safetensors', 'onnx'" in capsys.readouterr().err


# -- python ------------------------------------------------------------------------------------------------------------


def test_a_run_is_read_without_its_data(run, monkeypatch):
    monkeypatch.setattr(pipeline, "open_images", None)
    state = torch.get_rng_state()
    loaded = pipeline.load_run(run, "last")
    assert torch.equal(torch.get_rng_state(), state)
    assert not loaded.method.training
    assert isinstance(loaded.recipe.method, ContrastConfig)
    assert (loaded.info.num_samples, loaded.info.num_classes) == (1347, 10)


def test_a_run_that_names_code_is_not_imported(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    data = json.loads((copy / "recipe.json").read_text())
    data["recipe"] = "my_code:recipe"
    (copy / "recipe.json").write_text(json.dumps(data))
    assert main(words("evaluate", "--run", copy)) == 2
    assert "--trust-code" in capsys.readouterr().err
    with pytest.raises(ValueError, match="a registered one"):
        pipeline.read_recipe(copy)


def test_the_page_of_a_run_has_all_its_parts(run: Path) -> None:
    page = (run / "report.html").read_text()
    for heading in ("Map", "Nearest neighbours", "Views"):
        assert f"<h2>{heading}</h2>" in page
    assert page.count("data:image/png;base64,") > 8 * 3
