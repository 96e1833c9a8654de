from __future__ import annotations

import builtins
import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torchvision import models

from nearfar import __version__
from nearfar.config import EncoderConfig
from nearfar.plugin import load_recipe
from nearfar.recipe import fingerprint
from nearfar_images.encoders import Encoder, build
from nearfar_images.export import compare_onnx, export


def trained(name: str, shape=(3, 64, 64)) -> tuple[Encoder, EncoderConfig]:
    """An encoder whose batch statistics are no longer those of the start."""
    torch.manual_seed(0)
    config = EncoderConfig(name=name)
    encoder = build(config, shape)
    with torch.no_grad():
        encoder(torch.randn(4, *shape))
    return encoder, config


def test_timm_loads_it_strictly(tmp_path):
    encoder, config = trained("timm/resnet10t")
    export(encoder, config, (3, 64, 64), tmp_path, formats=("safetensors",))
    again = timm.create_model("resnet10t", num_classes=0).eval()
    again.load_state_dict(load_file(tmp_path / "encoder.safetensors"), strict=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x), encoder.eval()(x))


def test_torchvision_misses_only_the_classifier(tmp_path):
    encoder, config = trained("torchvision/resnet18")
    export(encoder, config, (3, 64, 64), tmp_path, formats=("safetensors",))
    again = models.resnet18(weights=None)
    missing, unexpected = again.load_state_dict(load_file(tmp_path / "encoder.safetensors"), strict=False)
    assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])


@pytest.mark.parametrize(
    ("name", "shape"),
    [("convnet", (1, 16, 16)), ("tiny-vit", (3, 32, 32)), ("timm/vit_tiny_patch16_224", (1, 32, 32))],
)
def test_own_files_load_as_weights(tmp_path, name, shape):
    encoder, config = trained(name, shape)
    export(encoder, config, shape, tmp_path, formats=("safetensors",))
    again = build(EncoderConfig(name=name, weights=str(tmp_path / "encoder.safetensors")), shape)
    x = torch.randn(2, *shape)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), encoder.eval()(x))


def test_reload_line_is_true(tmp_path):
    encoder, config = trained("timm/vit_tiny_patch16_224", (1, 32, 32))
    export(encoder, config, (1, 32, 32), tmp_path, formats=("safetensors",))
    line = json.loads((tmp_path / "encoder.json").read_text())["reload"]
    assert line == "timm.create_model('vit_tiny_patch16_224', num_classes=0, in_chans=1, img_size=(32, 32))"
    again = eval(line, {"timm": timm})
    again.load_state_dict(load_file(tmp_path / "encoder.safetensors"), strict=True)


def test_card(tmp_path):
    encoder, config = trained("timm/resnet10t")
    recipe = load_recipe("images/moco_imagenet")
    done = export(encoder, config, (3, 64, 64), tmp_path, formats=("safetensors",), recipe=recipe)
    card = json.loads((tmp_path / "encoder.json").read_text())
    assert card["encoder"] == "timm/resnet10t"
    assert card["shape"] == [3, 64, 64]
    assert (card["mean"], card["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert (card["feature_dim"], card["nearfar"]) == (512, __version__)
    assert (card["recipe"], card["fingerprint"]) == ("images/moco_imagenet", fingerprint(recipe))
    assert [f.name for f in done.files] == ["encoder.safetensors", "encoder.json"]
    assert done.onnx_difference is None


def test_training_mode_and_gradients_stay(tmp_path):
    encoder, config = trained("timm/resnet10t")
    encoder.train()
    export(encoder, config, (3, 64, 64), tmp_path, formats=("safetensors",))
    assert encoder.training
    assert all(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize(("name", "shape"), [("convnet", (1, 32, 32)), ("tiny-vit", (3, 32, 32))])
def test_onnx_agrees_for_any_batch(tmp_path, name, shape):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    encoder, config = trained(name, shape)
    done = export(encoder, config, shape, tmp_path, formats=("onnx",))
    assert done.onnx_difference is not None
    assert json.loads((tmp_path / "encoder.json").read_text())["onnx_difference"] == done.onnx_difference
    session = onnxruntime.InferenceSession(str(tmp_path / "encoder.onnx"), providers=["CPUExecutionProvider"])
    encoder.eval()
    for number in (1, 3, 7):
        x = torch.randn(number, *shape)
        received = session.run(["feature"], {"image": x.numpy()})[0]
        with torch.no_grad():
            expected = encoder(x)
        torch.testing.assert_close(
            torch.from_numpy(received), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
        )

    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1.5)
    with pytest.raises(ValueError, match=r"ONNX model .* expected a difference up to"):
        compare_onnx(encoder, shape, tmp_path / "encoder.onnx")


def test_missing_libraries_name_the_extra(tmp_path, monkeypatch):
    encoder, config = trained("convnet", (1, 16, 16))
    original = builtins.__import__

    def refuse(name, *rest, **options):
        if name == "onnxscript":
            raise ModuleNotFoundError(name)
        return original(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ModuleNotFoundError, match=r"onnxscript; install it with: pip install nearfar-images\[export\]"):
        export(encoder, config, (1, 16, 16), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_arguments(tmp_path):
    encoder, config = trained("convnet", (1, 16, 16))
    with pytest.raises(
        ValueError, match=r"formats: expected one of 'safetensors', 'onnx', received 'onx'; did you mean"
    ):
        export(encoder, config, (1, 16, 16), tmp_path, formats=("onx",))
    with pytest.raises(ValueError, match="formats: expected at least one"):
        export(encoder, config, (1, 16, 16), tmp_path, formats=())
    with pytest.raises(ValueError, match="mean, std"):
        export(encoder, config, (1, 16, 16), tmp_path, mean=(0.5,), std=())
    save_file({"a": torch.zeros(1)}, tmp_path / "encoder.safetensors")
    export(encoder, config, (1, 16, 16), tmp_path, formats=("safetensors",))
    assert "a" not in load_file(tmp_path / "encoder.safetensors")
