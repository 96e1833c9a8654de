"""Image encoders by name: the small ones of nearfar, timm's and torchvision's, with the classifier taken off.

Nothing is downloaded: weights come from a local file or are drawn at random. The original model stays as `.model`, so
that what is saved carries its own library's key names.

Legend: B batch, C channels, H height, W width, D feature.
"""

from __future__ import annotations

import difflib
import functools
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nearfar.checks import expect
from nearfar.config import EncoderConfig
from nearfar_images.weights import load_weights

SMALL_STEM = "+small-stem"
OWN = ("convnet", "tiny-vit")


class Encoder(nn.Module):
    """A model without classifier, from images [B, C, H, W] to features [B, feature_dim].

    Args:
        model: the original module; its forward returns the features.
        name: what `build` was asked for, "auto" resolved.
        feature_dim: width of the features.
        classifier: key prefixes of the classifier that was taken off, so that weights which hold one still load.
        arguments: what the library's constructor was given besides the name.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        feature_dim: int,
        classifier: tuple[str, ...] = (),
        arguments: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.name = name
        self.feature_dim = feature_dim
        self.classifier = classifier
        self.arguments = arguments or {}

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, feature_dim] of float images [B, C, H, W]."""
        return self.model(x)

    def dense(self, x: Tensor) -> Tensor:
        """The last feature map [B, D, h, w] before pooling.

        Raises:
            TypeError: the model has no map of its own.
        """
        model: Any = self.model
        if hasattr(model, "forward_intermediates"):
            return model.forward_intermediates(x, indices=1, intermediates_only=True, output_fmt="NCHW", norm=True)[-1]
        if hasattr(model, "dense"):
            return model.dense(x)
        steps = _torchvision_map(model)
        if steps is None:
            raise TypeError(f"encoder {self.name!r} has no dense feature map; choose a timm encoder or a residual net")
        for step in steps:
            x = step(x)
        return x


def build(config: EncoderConfig, shape: tuple[int, ...]) -> Encoder:
    """The encoder that a config names, for images of one shape.

    Args:
        config: its `name` is "auto", "convnet", "tiny-vit", "timm/NAME" or "torchvision/NAME"; a residual net's name
            may end in "+small-stem" for a 3 x 3 first convolution of stride 1 without max-pooling, for small images.
            "auto" is the convnet up to 48 pixels, timm/resnet18 above, with the small stem up to 64.
        shape: (C, H, W) of the images.

    Raises:
        ValueError: an unknown name (the nearest are given), a shape that the model refuses, or weights that do not fit.
        FileNotFoundError: the file of weights does not exist.
    """
    expect(len(shape) == 3 and min(shape) >= 1, "shape", "(channels, height, width)", shape)
    name = resolve(config.name, shape)
    library, _, rest = name.partition("/")
    if library == "timm":
        encoder = _timm(name, rest, shape)
    elif library == "torchvision":
        encoder = _torchvision(name, rest, shape)
    else:
        encoder = _own(name, config, shape)
    if config.weights:
        load_weights(encoder.model, config.weights, encoder.classifier)
    return encoder


def resolve(name: str, shape: tuple[int, ...]) -> str:
    """The encoder's full name, with "auto" decided by the image's side.

    Raises:
        ValueError: no such encoder; the nearest names are given.
    """
    if name == "auto":
        side = max(shape[1:])
        return "convnet" if side <= 48 else f"timm/resnet18{SMALL_STEM if side <= 64 else ''}"
    if name in OWN:
        return name
    library, _, rest = name.removesuffix(SMALL_STEM).partition("/")
    if rest in _names(library):
        return name
    everywhere = [*OWN, *(f"{lib}/{n}" for lib in ("timm", "torchvision") for n in _names(lib))]
    near = [n for n in everywhere if n.partition("/")[2] == name]  # the library was left out
    near = near or difflib.get_close_matches(name.removesuffix(SMALL_STEM), everywhere, n=3, cutoff=0.6)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    expected = "one of 'auto', 'convnet', 'tiny-vit', 'timm/NAME' and 'torchvision/NAME'"
    raise ValueError(f"encoder.name: expected {expected}, received {name!r}{hint}")


@dataclass(frozen=True)
class Description:
    """What one may want to know of an encoder before choosing it."""

    name: str
    parameters: int
    feature_dim: int
    shape: tuple[int, ...]
    has_dense: bool


def describe(name: str, shape: tuple[int, ...] = (3, 224, 224)) -> Description:
    """Parameters, feature width and whether a dense map exists, for images of one shape.

    Raises:
        ValueError: no such encoder.
    """
    encoder = build(EncoderConfig(name=name), shape)
    model = encoder.model
    dense = hasattr(model, "forward_intermediates") or hasattr(model, "dense") or _torchvision_map(model) is not None
    return Description(encoder.name, sum(p.numel() for p in model.parameters()), encoder.feature_dim, shape, dense)


@functools.cache
def _names(library: str) -> tuple[str, ...]:
    if library == "timm":
        import timm

        return tuple(timm.list_models())
    if library == "torchvision":
        from torchvision import models

        return tuple(models.list_models(module=models))
    return ()


def _own(name: str, config: EncoderConfig, shape: tuple[int, ...]) -> Encoder:
    from nearfar.models import ConvNet, TinyViT

    if name == "convnet":
        model: nn.Module = ConvNet(shape[0], width=config.width, dim=config.dim, norm=config.norm)
    else:
        expect(shape[1] == shape[2], "encoder 'tiny-vit'", "square images", shape)
        model = TinyViT(shape[0], shape[1], dim=config.dim)
    return Encoder(model, name, int(model.feature_dim))  # type: ignore[arg-type]


def _timm(name: str, rest: str, shape: tuple[int, ...]) -> Encoder:
    import timm

    base = rest.removesuffix(SMALL_STEM)
    card = timm.get_pretrained_cfg(base)
    arguments: dict[str, Any] = {"num_classes": 0, "in_chans": shape[0]}
    if card is not None and card.fixed_input_size:
        arguments["img_size"] = tuple(shape[1:])
    try:
        model: Any = timm.create_model(base, pretrained=False, **arguments)
    except (AssertionError, ValueError) as error:
        raise ValueError(f"encoder {name!r} refuses images of shape {shape}: {error}") from error
    if rest.endswith(SMALL_STEM):
        _small_stem(model, name)
    classifier = card.classifier if card is not None else ()
    keys = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    return Encoder(model, name, int(model.head_hidden_size or model.num_features), keys, arguments)


def _torchvision(name: str, rest: str, shape: tuple[int, ...]) -> Encoder:
    from torchvision import models

    base = rest.removesuffix(SMALL_STEM)
    arguments: dict[str, Any] = {}
    if base in ("googlenet", "inception_v3"):
        arguments = {"aux_logits": False, "init_weights": True}
    elif base.startswith("vit_"):
        expect(shape[1] == shape[2], f"encoder {name!r}", "square images", shape)
        arguments = {"image_size": shape[1]}
    elif base.startswith("maxvit"):
        arguments = {"input_size": tuple(shape[1:])}
    try:
        model = models.get_model(base, weights=None, **arguments)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ValueError(f"encoder {name!r} refuses images of shape {shape}: {error}") from error
    if shape[0] != 3:
        _replace_first_convolution(model, shape[0])
    if rest.endswith(SMALL_STEM):
        _small_stem(model, name)
    classifier, feature_dim = _remove_classifier(model)
    return Encoder(model, name, feature_dim, (classifier,), arguments)


def _remove_classifier(model: nn.Module) -> tuple[str, int]:
    """Puts the identity in place of the last layer that maps to classes, whatever it is called, and of its dropout.

    Norms and hidden layers before it stay, since the published features are what the classifier saw.
    """
    layers = [(key, m) for key, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    key, layer = layers[-1]
    parent, _, child = key.rpartition(".")
    owner = model.get_submodule(parent)
    setattr(owner, child, nn.Identity())
    if (
        isinstance(owner, nn.Sequential)
        and child.isdigit()
        and int(child)
        and isinstance(owner[int(child) - 1], nn.Dropout)
    ):
        owner[int(child) - 1] = nn.Identity()
    return key, layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def _replace_first_convolution(model: nn.Module, channels: int) -> None:
    """A first convolution for another number of channels, drawn anew."""
    key, old = next((k, m) for k, m in model.named_modules() if isinstance(m, nn.Conv2d))
    parent, _, child = key.rpartition(".")
    setattr(model.get_submodule(parent), child, _convolution_like(old, in_channels=channels))


def _convolution_like(old: nn.Conv2d, **changes: object) -> nn.Conv2d:
    kept = {
        "in_channels": old.in_channels, "out_channels": old.out_channels, "kernel_size": old.kernel_size,
        "stride": old.stride, "padding": old.padding, "dilation": old.dilation, "groups": old.groups,
        "bias": old.bias is not None,
    }  # fmt: skip
    new = nn.Conv2d(**{**kept, **changes})  # type: ignore[arg-type]
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    return new


def _small_stem(model: nn.Module, name: str) -> None:
    """A 3 x 3 first convolution of stride 1 and no max-pooling, as residual nets for 32-pixel images have."""
    first, pool = getattr(model, "conv1", None), getattr(model, "maxpool", None)
    fits = isinstance(first, nn.Conv2d) and isinstance(pool, nn.Module)
    expect(fits, "encoder.name", f"a residual net with conv1 and maxpool for {SMALL_STEM!r}", repr(name))
    model.conv1 = _convolution_like(first, kernel_size=3, stride=1, padding=1, bias=False)  # type: ignore[arg-type]
    model.maxpool = nn.Identity()


def _torchvision_map(model: nn.Module) -> list[nn.Module] | None:
    """The modules whose chain ends in the last feature map of a torchvision model; None where there is none."""
    parts = dict(model.named_children())
    if "layer4" in parts:
        return [parts[k] for k in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")]
    if "permute" in parts:  # swin keeps channels last until here
        return [parts[k] for k in ("features", "norm", "permute")]
    if "features" in parts:
        return [parts["features"]]
    if "trunk_output" in parts:  # regnet
        return [parts["stem"], parts["trunk_output"]]
    return None
