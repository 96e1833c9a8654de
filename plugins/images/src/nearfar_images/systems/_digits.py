"""The demonstration that several systems share: handwritten digits, on a laptop in a minute or two."""

from __future__ import annotations

from nearfar.config import (
    DataConfig,
    EncoderConfig,
    HeadConfig,
    MethodConfig,
    OptimiserConfig,
    TrainerConfig,
)
from nearfar.recipe import Recipe
from nearfar_images.systems._views import digits

HEAD = HeadConfig(layers=2, hidden=128, dim=64)


def demonstration(name: str, method: MethodConfig) -> Recipe:
    """A recipe on scikit-learn's digits (1797 images of 8 x 8 pixels, enlarged to 32), a quarter held out."""
    return Recipe(
        name=f"images/{name}",
        method=method,
        data=DataConfig(source="digits", validation=0.25, image_size=32, channels=1),
        views=digits(),
        encoder=EncoderConfig(name="convnet", width=32, dim=128),
        optimiser=OptimiserConfig(name="adamw", lr=2e-3, schedule="cosine"),
        trainer=TrainerConfig(epochs=60, batch_size=256, evaluate_every=10),
    )
