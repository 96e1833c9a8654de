"""What passes through a vision transformer's blocks, and `nearfar images vit`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nearfar.cli import main as nearfar
from nearfar.models import TinyViT
from nearfar_images.vit import tapped


def models() -> list[tuple[torch.nn.Module, int, int]]:
    """(model, prefix tokens, heads), two blocks each."""
    import timm
    from torchvision.models import VisionTransformer

    register = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, depth=2, num_classes=0, reg_tokens=3, qk_norm=True
    )
    return [
        (TinyViT(3, 16, dim=16, depth=2), 1, 4),
        (TinyViT(3, 16, dim=16, depth=2, pooling="mean"), 0, 4),
        (register, 4, 3),
        (VisionTransformer(16, 8, 2, 3, 48, 96), 1, 3),
    ]


def test_taps_see_what_the_forward_does() -> None:
    x = torch.randn(2, 3, 16, 16)
    for model, num_prefix, heads in models():
        model.eval()
        with torch.no_grad():
            plain = model(x)
            with tapped(model) as taps:
                assert torch.equal(model(x), plain)
            assert len(taps.tokens) == 2
            model(x)  # nothing listens any more
            assert len(taps.tokens) == 2
        assert taps.num_prefix == num_prefix
        num = taps.tokens[0].shape[1]
        assert taps.stacked().shape == (2, 2, heads, num, num)
        torch.testing.assert_close(taps.stacked().sum(-1), torch.ones(2, 2, heads, num))
        for k, (skip, attention, between, mlp) in enumerate(taps.branches):
            torch.testing.assert_close(skip + attention, between, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(between + mlp, taps.tokens[k])
        torch.testing.assert_close(taps.branches[1][0], taps.tokens[0])


def test_tapped_attention_makes_the_branch() -> None:
    model = TinyViT(3, 16, dim=16, depth=1).eval()
    with torch.no_grad(), tapped(model) as taps:
        model(torch.randn(2, 3, 16, 16))
        block = model.blocks[0]
        value = block.qkv(block.norm_attention(taps.branches[0][0]))[..., 32:].unflatten(2, (4, 4)).transpose(1, 2)
        out = block.project((taps.attention[0] @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(out, taps.branches[0][1], rtol=1e-4, atol=1e-6)


def test_other_models_are_refused() -> None:
    with (
        pytest.raises(TypeError, match="model: expected TinyViT, or a VisionTransformer"),
        tapped(torch.nn.Linear(2, 2)),
    ):
        pass


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for k in range(20):
        file = tmp_path / "data" / ("a", "b")[k % 2] / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(file)
    words = [
        "--encoder.name",
        "tiny-vit",
        "--encoder.dim",
        "16",
        "--image-size",
        "16",
        "--root",
        str(tmp_path / "data"),
    ]
    out = tmp_path / "out"
    assert nearfar(["images", "vit", *words, "--batch", "8", "--json", "--out", str(out)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["num_images"], report["grid"], report["num_prefix"]) == (20, [4, 4], 1)
    assert len(report["blocks"]) == 4
    assert {"distance", "offset_heads", "knn", "nmi", "ari", "purity", "map"} <= report["blocks"][0].keys()
    assert set(report["blocks"][0]["residual"]) == {
        f"{a}_{b}" for a in ("attention", "mlp") for b in ("cls", "spatial")
    }
    arrays = np.load(out / "arrays.npz")
    assert arrays["aligned"].shape == (4, 4, 7, 7)
    assert np.allclose(np.diag(arrays["cka"]), 1)
    assert np.allclose(arrays["cka"], report["cka"])
    assert "<svg" in (out / "plot.svg").read_text()
    assert nearfar(["images", "vit", *words, "--images", "8", "--tokens", "cls"]) == 0
    assert "8 images, 4 x 4 patches" in capsys.readouterr().out
    wrong = {
        "vit: expected either --run RUN or --encoder.name": ["--root", str(tmp_path / "data")],
        "images: expected 4 or more": [*words, "--images", "3"],
        "batch: expected 8 or more": [*words, "--batch", "4"],
        "received ConvNet": [*words, "--encoder.name", "convnet"],
    }
    for text, given in wrong.items():
        assert nearfar(["images", "vit", *given]) == 2
        assert text in capsys.readouterr().err.replace("\n", " ")
