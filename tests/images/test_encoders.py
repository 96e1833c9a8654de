from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from nearfar.config import EncoderConfig
from nearfar_images.encoders import SMALL_STEM, build, describe, resolve


def make(name: str, shape: tuple[int, ...] = (3, 64, 64), **options) -> nn.Module:
    torch.manual_seed(0)
    return build(EncoderConfig(name=name, **options), shape).eval()


@pytest.mark.parametrize(
    ("name", "shape", "dim", "map_shape"),
    [
        ("convnet", (1, 32, 32), 128, None),
        ("tiny-vit", (3, 32, 32), 128, None),
        ("timm/resnet10t", (3, 64, 64), 512, (512, 2, 2)),
        ("timm/resnet18" + SMALL_STEM, (1, 32, 32), 512, (512, 4, 4)),
        ("timm/vit_tiny_patch16_224", (1, 48, 48), 192, (192, 3, 3)),
        ("timm/mobilenetv3_small_050", (3, 64, 64), 1024, (288, 2, 2)),
        ("timm/swin_tiny_patch4_window7_224", (3, 56, 56), 768, (768, 2, 2)),
        ("torchvision/resnet18", (1, 64, 64), 512, (512, 2, 2)),
        ("torchvision/resnet18" + SMALL_STEM, (3, 32, 32), 512, (512, 4, 4)),
        ("torchvision/mobilenet_v3_small", (1, 64, 64), 1024, (576, 2, 2)),
        ("torchvision/efficientnet_b0", (3, 64, 64), 1280, (1280, 2, 2)),
        ("torchvision/shufflenet_v2_x0_5", (3, 64, 64), 1024, None),
        ("torchvision/squeezenet1_1", (3, 64, 64), 512, (512, 3, 3)),
        ("torchvision/regnet_y_400mf", (3, 64, 64), 440, (440, 2, 2)),
        ("torchvision/swin_t", (3, 64, 64), 768, (768, 2, 2)),
        ("torchvision/convnext_tiny", (1, 64, 64), 768, (768, 2, 2)),
    ],
)
def test_features_and_map(name, shape, dim, map_shape):
    encoder = make(name, shape)
    x = torch.randn(2, *shape)
    with torch.no_grad():
        feature = encoder(x)
        assert feature.shape == (2, dim)
        assert encoder.feature_dim == dim
        if map_shape is not None:
            assert encoder.dense(x).shape == (2, *map_shape)


def test_features_are_what_the_classifier_saw():
    torch.manual_seed(0)
    whole = models.convnext_tiny(weights=None).eval()
    seen = []
    whole.classifier[2].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    encoder = make("torchvision/convnext_tiny")
    encoder.model.load_state_dict(whole.state_dict(), strict=False)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        whole(x)
        torch.testing.assert_close(encoder(x), seen[0])


def test_pooled_map_is_the_feature():
    encoder = make("torchvision/resnet18")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder.dense(x).mean(dim=(2, 3)), encoder(x))


def test_dropout_before_the_classifier_is_gone():
    encoder = make("torchvision/efficientnet_b0")
    assert not [m for m in encoder.model.classifier.modules() if isinstance(m, nn.Dropout)]


def test_no_dense_map():
    with pytest.raises(TypeError, match=r"shufflenet_v2_x0_5.*has no dense feature map"):
        make("torchvision/shufflenet_v2_x0_5").dense(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("side", "name"), [(28, "convnet"), (48, "convnet"), (64, "timm/resnet18" + SMALL_STEM), (96, "timm/resnet18")]
)
def test_auto_follows_the_size(side, name):
    assert resolve("auto", (3, side, side)) == name


def test_small_stem_keeps_the_resolution():
    plain, small = make("timm/resnet18", (3, 32, 32)), make("timm/resnet18" + SMALL_STEM, (3, 32, 32))
    x = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        assert plain.dense(x).shape[-1] == 1
        assert small.dense(x).shape[-1] == 4
    assert small.model.conv1.kernel_size == (3, 3)
    assert small.model.conv1.stride == (1, 1)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("timm/resnet19", "nearest: .*timm/resnet1"),
        ("resnet18", "nearest: timm/resnet18, torchvision/resnet18"),
        ("torchvision/resnet19", "nearest: .*torchvision/resnet1"),
        ("convnett", "nearest: convnet"),
        ("convnet" + SMALL_STEM, "nearest: convnet"),
        ("hub/resnet18", "nearest: .*timm/resnet18"),
    ],
)
def test_unknown_names(name, match):
    with pytest.raises(ValueError, match=f"encoder.name: expected one of.*{match}"):
        build(EncoderConfig(name=name), (3, 64, 64))


@pytest.mark.parametrize(
    ("name", "shape", "match"),
    [
        ("timm/resnet18d" + SMALL_STEM, (3, 64, 64), "residual net with conv1"),
        ("torchvision/vit_b_32", (3, 65, 65), "refuses images of shape"),
        ("torchvision/vit_b_32", (3, 64, 32), "square images"),
        ("auto", (3, 64), "shape: expected"),
    ],
)
def test_bad_shapes(name, shape, match):
    with pytest.raises(ValueError, match=match):
        build(EncoderConfig(name=name), shape)


def test_describe():
    card = describe("timm/resnet18", (3, 64, 64))
    assert (card.feature_dim, card.has_dense) == (512, True)
    expected = timm.create_model("resnet18", num_classes=0)
    assert card.parameters == sum(p.numel() for p in expected.parameters())


# -- weights -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole() -> dict[str, torch.Tensor]:
    """A classifier's weights as torchvision would save them."""
    torch.manual_seed(1)
    return models.resnet18(weights=None).state_dict()


def same(encoder, state) -> bool:
    own = encoder.model.state_dict()
    return all(torch.equal(value, state[key]) for key, value in own.items())


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize("prefix", ["", "backbone.", "encoder.", "module.encoder_q.", "model.encoder.model."])
def test_weights_under_any_prefix(tmp_path, whole, library, prefix):
    path = tmp_path / "w.safetensors"
    save_file({prefix + key: value for key, value in whole.items()}, path)
    assert same(make(f"{library}/resnet18", weights=str(path)), whole)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_weights_from_torch_files(tmp_path, whole, wrapper):
    path = tmp_path / "w.pth"
    torch.save({wrapper: dict(whole), "epoch": 3} if wrapper else dict(whole), path)
    assert same(make("torchvision/resnet18", weights=str(path)), whole)


def test_the_trained_copy_is_taken(tmp_path, whole):
    follower = {f"encoder_k.{key}": torch.zeros_like(value) for key, value in whole.items()}
    student = {f"encoder_q_net.{key}": value for key, value in whole.items()}
    head = {"head.0.weight": torch.zeros(3, 3)}
    path = tmp_path / "w.safetensors"
    save_file(follower | student | head, path)
    assert same(make("torchvision/resnet18", weights=str(path)), whole)


def test_missing_batch_counters_are_no_fault(tmp_path, whole):
    path = tmp_path / "w.safetensors"
    save_file({k: v for k, v in whole.items() if not k.endswith("num_batches_tracked")}, path)
    assert same(make("torchvision/resnet18", weights=str(path)), whole)


def test_misfits_are_counted_and_named(tmp_path, whole):
    wrong = dict(whole)
    wrong["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    del wrong["bn1.bias"]
    wrong["layer9.weight"] = torch.zeros(2)
    path = tmp_path / "w.safetensors"
    save_file(wrong, path)
    with pytest.raises(ValueError, match="3 keys do not fit") as caught:
        make("torchvision/resnet18", weights=str(path))
    message = str(caught.value)
    assert "bn1.bias is missing" in message
    assert "conv1.weight has shape (64, 1, 7, 7), expected (64, 3, 7, 7)" in message
    assert "layer9.weight is not in the encoder" in message


def test_weights_of_something_else(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"q": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"expected keys such as conv1.weight.*received keys such as q"):
        make("torchvision/resnet18", weights=str(path))


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"encoder.weights: expected an existing file"):
        make("torchvision/resnet18", weights=str(tmp_path / "none.pt"))
    with pytest.raises(ValueError, match="suffix"):
        make("torchvision/resnet18", weights="resnet18.bin")
    broken = tmp_path / "w.safetensors"
    broken.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="does not read"):
        make("torchvision/resnet18", weights=str(broken))
    pickled = tmp_path / "w.pt"
    torch.save({"model": nn.Linear(1, 1)}, pickled)
    with pytest.raises(ValueError, match="weights_only=True"):
        make("torchvision/resnet18", weights=str(pickled))
