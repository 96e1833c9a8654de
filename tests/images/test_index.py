from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nearfar.cli import main
from nearfar_images import gallery, pipeline
from nearfar_images.index import Index


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    small = [
        "--data.image-size", "16", "--encoder.width", "4", "--encoder.dim", "16", "--trainer.max-steps", "1",
        "--trainer.device", "cpu", "--trainer.no-progress", "--trainer.no-evaluate-before",
    ]  # fmt: skip
    assert main(["images", "train", "simclr_digits", *small, "--trainer.output", str(folder)]) == 0
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve pictures of noise, the first of them three times, a little changed."""
    root, rng = tmp_path / "pictures", np.random.default_rng(0)
    root.mkdir()
    for k in range(12):
        pixels = rng.integers(0, 256, (16, 16), dtype=np.uint8)
        if k in (0, 1, 2):
            first = pixels if k == 0 else np.clip(first + rng.integers(-1, 2, (16, 16)), 0, 255).astype(np.uint8)
            pixels = first
        Image.fromarray(pixels).resize((32, 32)).save(root / f"{k:02d}.png")
    return root


def words(*parts: object) -> list[str]:
    return ["images", *map(str, parts)]


def build(run: Path, root: Path, out: Path, **options) -> tuple[Index, list]:
    said: list = []
    return Index.build(out, pipeline.load_run(run), root, run=run, say=said.append, **options), said


@pytest.mark.parametrize("backend", ["exact", pytest.param("hnsw", marks=pytest.mark.parity)])
def test_search_equals_a_sort(run, pictures, tmp_path, backend):
    if backend == "hnsw":
        pytest.importorskip("faiss")
    index, _ = build(run, pictures, tmp_path / "index", backend=backend)
    index = Index.load(tmp_path / "index")
    loaded = pipeline.load_run(run)
    made = gallery.embed(loaded.method, pictures, loaded.recipe.data)
    unit = made.features / np.linalg.norm(made.features, axis=1, keepdims=True)
    query = gallery.embed_image(loaded.method, pictures / "05.png", loaded.recipe.data)
    own = [Path(path).name for path in made.paths].index("05.png")
    order = [i for i in np.argsort(-(unit @ unit[own]), kind="stable") if i != own][:4]
    found = index.search(query, k=4, leave_out=[str(pictures / "05.png")])[0]
    assert [Path(item.path).name for item in found] == [Path(made.paths[i]).name for i in order]
    assert [item.similarity for item in found] == pytest.approx((unit @ unit[own])[order].tolist(), abs=1e-5)
    assert Path(index.search(query, k=1)[0][0].path).name == "05.png", "an image is nearest to itself"


def test_only_what_changed_is_embedded_again(run, pictures, tmp_path, monkeypatch):
    out = tmp_path / "index"
    first, said = build(run, pictures, out)
    assert (said[0].added, said[0].kept, said[0].removed) == (12, 0, 0)
    again, said = build(run, pictures, out)
    assert (said[0].added, said[0].kept, said[0].removed) == (0, 12, 0)
    assert np.array_equal(first.features, again.features)
    (pictures / "03.png").unlink()
    Image.fromarray(np.full((16, 16), 7, dtype=np.uint8)).save(pictures / "04.png")
    shutil.copy(pictures / "05.png", pictures / "new.png")
    (pictures / "broken.png").write_bytes(b"no image")
    last, said = build(run, pictures, out)
    assert (said[0].added, said[0].kept, said[0].removed) == (2, 10, 2)
    assert [Path(path).name for path in said[0].skipped] == ["broken.png"]
    whole, _ = build(run, pictures, tmp_path / "fresh")
    rows = {path: row for path, row in zip(whole.paths, whole.features, strict=True)}
    assert rows.keys() == set(last.paths)
    for path, row in zip(last.paths, last.features, strict=True):
        np.testing.assert_allclose(row, rows[path], atol=1e-5)


def test_groups_of_near_duplicates(run, pictures, tmp_path):
    index, _ = build(run, pictures, tmp_path / "index")
    cosine = index.features @ index.features.T
    names = [Path(path).name for path in index.paths]
    copies = [names.index(f"{k:02d}.png") for k in range(3)]
    threshold = float(cosine[np.ix_(copies, copies)].min()) - 1e-6
    others = [cosine[i, j] for i in range(12) for j in range(i) if not {i, j} <= set(copies)]
    if max(others) < threshold:
        assert [[Path(p).name for p in group] for group in index.duplicates(threshold)] == [
            ["00.png", "01.png", "02.png"]
        ]
    assert index.duplicates(1.0) == [] or len(index.duplicates(1.0)) < 2
    (whole,) = index.duplicates(-1.0)
    assert len(whole) == 12


def test_groups_by_hand(tmp_path):
    angles = np.deg2rad([0, 5, 10, 90, 92, 200])
    rows = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    from nearfar_images.index import Indexed

    index = Index(tmp_path, {"root": "/r"}, [Indexed(f"{k}.png", 0, 0) for k in range(6)], rows)
    assert index.duplicates(float(np.cos(np.deg2rad(6)))) == [
        ["/r/0.png", "/r/1.png", "/r/2.png"], ["/r/3.png", "/r/4.png"]
    ]  # fmt: skip


def test_the_commands(run, pictures, tmp_path, capsys):
    out = tmp_path / "index"
    assert main(words("index", "--run", run, "--root", pictures, "--out", out)) == 0
    assert "12 images, 16 numbers each" in capsys.readouterr().out
    queries = [pictures / "00.png", pictures / "07.png"]
    sheet = tmp_path / "sheet.html"
    assert main(words("search", "--index", out, "--query", *queries, "--k", 3, "--html", sheet)) == 0
    text = capsys.readouterr().out
    assert text.count(".png") == 2 + 6
    assert "data:image/png" in sheet.read_text()
    assert main(words("search", "--index", out, "--query", queries[0], "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found[str(queries[0])]) == 10
    assert main(words("duplicates", "--index", out, "--threshold", "-1", "--json")) == 0
    assert len(json.loads(capsys.readouterr().out)[0]) == 12
    assert main(words("duplicates", "--index", out, "--threshold", "-1")) == 0
    assert "1 groups, 12 images" in capsys.readouterr().out


def test_complaints(run, pictures, tmp_path, capsys):
    assert main(words("search", "--index", tmp_path, "--query", "a.png")) == 2
    assert "a folder that `nearfar images index` made" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    assert main(words("index", "--run", run, "--root", pictures, "--out", tmp_path / "other")) == 2
    assert "index: expected an index, or an empty folder" in capsys.readouterr().err
    out = tmp_path / "index"
    build(run, pictures, out)
    assert main(words("search", "--index", out, "--query", pictures / "none.png")) == 2
    assert "query: expected an image file" in capsys.readouterr().err
    assert main(words("search", "--index", out, "--query", pictures / "00.png", "--k", 12)) == 2
    assert "k: expected a number from 1 to 11" in capsys.readouterr().err
    about = json.loads((out / "index.json").read_text())
    (out / "index.json").write_text(json.dumps(about | {"weights": "0" * 64}))
    assert main(words("search", "--index", out, "--query", pictures / "00.png")) == 2
    assert "whose weights differ; make the index again" in " ".join(capsys.readouterr().err.split())
    np.save(out / "features.npy", np.zeros((3, 16), dtype=np.float32))
    assert main(words("duplicates", "--index", out)) == 2
    assert "features.npy: expected float32 [12, D]" in " ".join(capsys.readouterr().err.split())
    os.remove(out / "index.json")
    with pytest.raises(FileNotFoundError):
        Index.load(out)
