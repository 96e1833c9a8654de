from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from nearfar import catalog, plugin
from nearfar.config import ContrastConfig
from nearfar.recipe import fingerprint, read, save, update

IMAGES = plugin.load("images")
RECIPES = sorted(IMAGES.recipes())
OURS = {"simclr": 6, "supcon": 6, "dcl": 5, "moco": 4, "gradcache": 5}


def test_cards_and_recipes_load_no_torch():
    code = (
        "import sys\n"
        "from nearfar import plugin\n"
        "images = plugin.load('images')\n"
        "cards, recipes = images.cards(), [images.recipe(name) for name in images.recipes()]\n"
        "print(len(cards), len(recipes), 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    num_cards, num_recipes, torch, numpy = done.stdout.split()
    assert int(num_cards) >= 4
    assert int(num_recipes) >= 14
    assert (torch, numpy) == ("False", "False")


@pytest.mark.parametrize(("slug", "num_oracles"), OURS.items())
def test_cards(slug, num_oracles):
    card = catalog.system(slug)
    assert card.plugin == "images"
    assert card.recipe == f"images/{slug}"
    assert len(card.oracles) == num_oracles
    assert card.export == ("safetensors", "onnx")
    assert card.taxonomy is not None
    assert card.claim is not None
    assert card.kind == ("baseline" if slug == "moco" else "train")


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_come_back_from_their_file(name, tmp_path):
    recipe = IMAGES.recipe(name)
    assert recipe.name == f"images/{name}"
    save(recipe, tmp_path / "recipe.json")
    registered, values = read(tmp_path / "recipe.json")
    assert update(plugin.load_recipe(registered), values) == recipe


def test_recipes_differ():
    prints = {fingerprint(IMAGES.recipe(name)) for name in RECIPES}
    assert len(prints) == len(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_what_it_is(name):
    text = IMAGES.module(IMAGES.recipes()[name]).RECIPES[name].__doc__
    assert text.strip().split("\n")[0].endswith(".")


def test_simclr_imagenet_is_the_papers():
    recipe = IMAGES.recipe("simclr_imagenet")
    assert recipe.optimiser.lr * recipe.trainer.batch_size / 256 == pytest.approx(4.8)
    views = recipe.views
    assert (views.brightness, views.contrast, views.saturation, views.hue) == (0.8, 0.8, 0.8, 0.2)
    assert (views.jitter, views.grayscale, views.blur, views.crop_scale) == (0.8, 0.2, 0.5, (0.08, 1.0))
    assert views.exact_colour  # the order of the steps is random in the paper
    assert recipe.method.temperature == 0.1
    assert (recipe.method.head.layers, recipe.method.head.dim, recipe.method.head.last_norm) == (2, 128, True)


def test_simclr_cifar_has_half_the_strength_and_no_blur():
    recipe = IMAGES.recipe("simclr_cifar")
    assert (recipe.views.brightness, recipe.views.hue, recipe.views.blur) == (0.4, 0.1, 0.0)
    assert (recipe.trainer.batch_size, recipe.trainer.epochs, recipe.method.temperature) == (512, 1000, 0.5)
    assert recipe.encoder.name == "torchvision/resnet18+small-stem"


def test_moco_imagenet_is_the_papers():
    recipe = IMAGES.recipe("moco_imagenet")
    method = recipe.method
    assert isinstance(method, ContrastConfig)
    assert (method.queue, method.momentum, method.temperature, method.symmetric) == (65536, 0.999, 0.2, False)
    assert (recipe.optimiser.name, recipe.optimiser.lr, recipe.optimiser.lr_scaling) == ("sgd", 0.03, "none")
    assert method.queue % recipe.trainer.batch_size == 0


@pytest.mark.parametrize(
    "name", ["simclr_digits", "supcon_digits", "dcl_digits", "dclw_digits", "moco_digits", "gradcache_digits"]
)
def test_demonstrations_never_mirror_a_digit(name):
    views = IMAGES.recipe(name).views
    assert views.flip == views.vertical_flip == 0
    assert views.rotate < math.pi / 4  # 6 stays 6


def test_gradcache_has_no_batch_normalisation_and_several_chunks(tmp_path):
    from nearfar.data import ArraySource, Data
    from nearfar_images import pipeline

    source = ArraySource(np.zeros((300, 8, 8, 1), dtype=np.uint8), np.arange(300) % 10, name="toy")
    for name in ("gradcache", "gradcache_digits"):
        recipe = IMAGES.recipe(name)
        assert 0 < 4 * recipe.trainer.cache <= recipe.trainer.batch_size
    _, method = pipeline.build(recipe, Data(train=source, test=source))
    assert method.cache == "exact"
