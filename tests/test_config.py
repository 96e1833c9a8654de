from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from nearfar import config
from nearfar.config import (
    BarlowConfig,
    ContrastConfig,
    DataConfig,
    DataInfo,
    EncoderConfig,
    EvaluateConfig,
    FrameConfig,
    HeadConfig,
    ImageViewConfig,
    MethodConfig,
    OptimiserConfig,
    SamplerConfig,
    TrainerConfig,
    VICRegConfig,
    WMSEConfig,
)

CONFIGS = [
    DataConfig, ImageViewConfig, EncoderConfig, MethodConfig, OptimiserConfig, TrainerConfig, EvaluateConfig,
    HeadConfig, FrameConfig, ContrastConfig, SamplerConfig,
    BarlowConfig, VICRegConfig, WMSEConfig,
]  # fmt: skip

# Every check of every config, each with the least wrong value on either side.
WRONG = [
    *[(DataConfig, {"validation": v}, "data.validation") for v in (-0.01, 1.0, 1.01)],
    *[(DataConfig, {"max_bad_share": v}, "data.max_bad_share") for v in (-0.01, 1.01)],
    *[(DataConfig, {"image_size": v}, "data.image_size") for v in (-1, 3)],
    *[(DataConfig, {"channels": v}, "data.channels") for v in (-1, 2, 4)],
    (DataConfig, {"workers": -1}, "data.workers"),
    (DataConfig, {"memory_gb": -0.1}, "data.memory_gb"),
    (ImageViewConfig, {"num_views": 0}, "views.num_views"),
    *[(ImageViewConfig, {"crop_scale": v}, "views.crop_scale") for v in ((0.0, 1.0), (0.5, 0.4), (0.5, 1.1))],
    *[(ImageViewConfig, {"crop_ratio": v}, "views.crop_ratio") for v in ((0.0, 1.0), (1.2, 1.1))],
    *[(ImageViewConfig, {"zoom": v}, "views.zoom") for v in ((0.0, 1.0), (1.2, 1.1))],
    *[(ImageViewConfig, {"gain": v}, "views.gain") for v in ((-0.1, 1.0), (1.2, 1.1))],
    *[(ImageViewConfig, {"blur_sigma": v}, "views.blur_sigma") for v in ((-0.1, 1.0), (1.2, 1.1))],
    *[
        (ImageViewConfig, {name: v}, f"views.{name}")
        for name in ("flip", "vertical_flip", "jitter", "grayscale", "blur", "solarize")
        for v in (-0.01, 1.01)
    ],
    *[
        (ImageViewConfig, {name: -0.01}, f"views.{name}")
        for name in ("rotate", "aspect", "shear", "shift", "brightness", "contrast", "saturation", "noise")
    ],
    *[(ImageViewConfig, {"hue": v}, "views.hue") for v in (-0.01, 0.51)],
    (ImageViewConfig, {"blur_kernel": 4}, "views.blur_kernel"),
    (ImageViewConfig, {"mean": (0.5,)}, "views.std"),
    (ImageViewConfig, {"mean": (0.5,), "std": (0.0,)}, "views.std"),
    *[(OptimiserConfig, {"lr": v}, "optimiser.lr") for v in (0.0, -1.0, float("nan"), float("inf"))],
    (OptimiserConfig, {"weight_decay": -1e-9}, "optimiser.weight_decay"),
    *[(OptimiserConfig, {"momentum": v}, "optimiser.momentum") for v in (-0.1, 1.0)],
    (OptimiserConfig, {"warmup_epochs": -1.0}, "optimiser.warmup_epochs"),
    *[(OptimiserConfig, {"layer_decay": v}, "optimiser.layer_decay") for v in (0.0, 1.01)],
    *[(OptimiserConfig, {"final_lr": v}, "optimiser.final_lr") for v in (-0.1, 1.01)],
    *[
        (TrainerConfig, {name: 0}, f"trainer.{name}")
        for name in ("epochs", "batch_size", "accumulate", "keep", "log_every")
    ],
    *[
        (TrainerConfig, {name: -1}, f"trainer.{name}")
        for name in ("max_steps", "clip_norm", "checkpoint_every", "evaluate_every", "patience", "max_bad_steps")
    ],
    (SamplerConfig, {"num_per_class": 0}, "sampler.num_per_class"),
    (SamplerConfig, {"nums": (2, 3)}, "sampler.nums"),
    (EvaluateConfig, {"num_neighbours": 0}, "evaluate.num_neighbours"),
    (EvaluateConfig, {"per_class": 0}, "evaluate.per_class"),
    (EvaluateConfig, {"clusterings": -1}, "evaluate.clusterings"),
    *[(EvaluateConfig, {"confidence": v}, "evaluate.confidence") for v in (0.0, 1.0)],
    (HeadConfig, {"layers": 0}, "head.layers"),
    (HeadConfig, {"dim": 0}, "head.dim"),
    (ContrastConfig, {"temperature": 0.0}, "method.temperature"),
    *[(ContrastConfig, {"momentum": v}, "method.momentum") for v in (-0.1, 1.1)],
    (ContrastConfig, {"queue": -1}, "method.queue"),
    (ContrastConfig, {"vmf_sigma": -0.1}, "method.vmf_sigma"),
    (ContrastConfig, {"queue": 8, "key_encoder": "shared"}, "method.queue"),
    (ContrastConfig, {"key_encoder": "ema", "loss": "nt_xent"}, "method.loss"),
    (ContrastConfig, {"pairs": "labels", "loss": "nt_xent"}, "method.loss"),
    (ContrastConfig, {"margin": -0.1}, "method.margin"),
    *[(BarlowConfig, {name: -0.1}, f"method.barlow.{name}") for name in ("off_diagonal", "scale")],
    *[(VICRegConfig, {name: -0.1}, f"method.vicreg.{name}") for name in ("invariance", "variance", "covariance")],
    *[(WMSEConfig, {"size": 8, name: -1}, f"method.wmse.{name}") for name in ("rounds", "eps")],
    *[(WMSEConfig, {name: v}, f"method.wmse.{name}") for name, v in (("size", -1), ("rounds", 2), ("eps", 1.0))],
]


@pytest.mark.parametrize("kind", CONFIGS)
def test_defaults_are_valid_and_frozen(kind: type):
    made = kind()
    assert made == kind()
    for field in dataclasses.fields(kind)[:1]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, field.name, None)


@pytest.mark.parametrize(
    ("kind", "values", "name"), WRONG, ids=[f"{name}={next(reversed(v.values()))}" for _, v, name in WRONG]
)
def test_wrong_values_are_refused_by_name(kind: type, values: dict, name: str):
    with pytest.raises(ValueError, match=rf"^{name}: expected .*, received "):
        kind(**values)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (DataConfig, {"validation": 0.0, "image_size": 4, "channels": 3}),
        (ImageViewConfig, {"flip": 1.0, "crop_scale": (1.0, 1.0), "hue": 0.5, "blur_kernel": 3}),
        (ImageViewConfig, {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}),
        (OptimiserConfig, {"momentum": 0.0, "layer_decay": 1.0, "final_lr": 1.0}),
        (ContrastConfig, {"key_encoder": "ema", "loss": "info_nce", "queue": 4096, "momentum": 1.0}),
        (ContrastConfig, {"pairs": "labels", "loss": "supcon"}),
        (ContrastConfig, {"loss": "triplet", "margin": 0.0, "mining": "hard"}),
        (WMSEConfig, {"size": 2, "rounds": 2, "eps": 0.0}),
    ],
)
def test_values_at_the_edge_are_accepted(kind: type, values: dict):
    made = kind(**values)
    assert {name: getattr(made, name) for name in values} == values


def test_fields_are_keywords_only_and_unknown_ones_are_refused():
    with pytest.raises(TypeError, match="positional"):
        TrainerConfig(5)  # type: ignore[misc]
    with pytest.raises(TypeError, match="epoch"):
        TrainerConfig(epoch=5)  # type: ignore[call-arg]


def test_method_config_that_builds_nothing_says_so():
    class Empty(MethodConfig):
        pass

    with pytest.raises(TypeError, match="Empty does not define build"):
        Empty().build(DataInfo(num_samples=1), None, None)  # type: ignore[arg-type]


def test_every_config_of_the_module_is_tested():
    assert {v for v in vars(config).values() if dataclasses.is_dataclass(v)} == {*CONFIGS, DataInfo}
    assert set(config.__all__) == {kind.__name__ for kind in (*CONFIGS, DataInfo)}


def test_import_loads_no_torch():
    code = "import sys, nearfar.config, nearfar.recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
