"""Known datasets by name, read from files that are already there; nothing is downloaded."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision import datasets as tv

from nearfar.checks import expect
from nearfar.config import DataConfig
from nearfar.data import ArraySource, Data, ImageFiles, Source, open_data, open_folder
from nearfar.data.open import shorter_side
from nearfar_images.styles import digit_styles

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
KANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
DEBIAN = Path("/usr/share/datasets")
"""where Debian's dataset packages put their files, e.g. dataset-fashion-mnist"""


def open_images(config: DataConfig) -> Data:
    """The images that a config describes: a folder, an array file, the digits, or a dataset by name (DATASETS)."""
    return open_data(config, datasets=DATASETS)


def read_idx(path: Path) -> np.ndarray:
    """A uint8 array of a file in the IDX format of MNIST, gzipped or not.

    Raises:
        ValueError: another format, another type of number, or more or fewer bytes than the header announces.
    """
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
        try:
            zero, kind, num_dims = struct.unpack(">HBB", file.read(4))
            expect((zero, kind) == (0, 8), str(path), "an IDX file of uint8", f"magic number {zero:04x}{kind:02x}")
            shape = struct.unpack(f">{num_dims}I", file.read(4 * num_dims))
            size = math.prod(shape)
            body = file.read(size + 1)
        except (struct.error, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: expected a whole IDX file, received {error}") from error
    expect(len(body) == size, str(path), f"{size} bytes for shape {shape}", "more" if len(body) > size else len(body))
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


def _idx(config: DataConfig, *, name: str, torchvision: str, class_names: tuple[str, ...]) -> Data:
    """MNIST and its likes: four IDX files in the root, its folder of that name, torchvision's, or Debian's."""
    folders = [DEBIAN / name]
    if config.root:
        root = Path(config.root).expanduser()
        folders = [root, root / name, root / torchvision / "raw", *folders]
    stems = [f"{split}-{what}" for split in ("train", "t10k") for what in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    for folder in folders:
        files = [next((f for f in (folder / stem, folder / f"{stem}.gz") if f.is_file()), None) for stem in stems]
        if all(files):
            arrays = [read_idx(file) for file in files if file]
            train, test = (
                ArraySource(images, labels, name=f"{name} {split}", class_names=class_names, channels=config.channels)
                for split, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:]))
            )
            return Data(train, test)
    debian = f"apt-get install dataset-{name}, or " if name == "fashion-mnist" else ""
    raise FileNotFoundError(
        f"data.root: expected {stems[0]}[.gz] and its three companions in one of {', '.join(map(str, folders))}; "
        f"to get them: {debian}{_advice(torchvision, config)}"
    )


def _arrays(config: DataConfig, *, name: str, torchvision: str, splits: tuple[Any, Any]) -> Data:
    """Datasets that torchvision holds in memory; it checks their files against known sums before it reads them."""
    sources = []
    for split, part in zip(("train", "test"), splits, strict=True):
        known = _open(config, torchvision, part)
        labels = getattr(known, "targets", getattr(known, "labels", None))
        columns = {"superclass": superclasses(labels, known.classes)} if name == "cifar100" else None
        sources.append(ArraySource(
            known.data, labels, name=f"{name} {split}", class_names=known.classes, channels=config.channels,
            columns=columns,
        ))  # fmt: skip
    return Data(sources[0], sources[1])


def superclasses(labels: Any, class_names: Sequence[str]) -> np.ndarray:
    """The superclass of every label of CIFAR-100, by name."""
    of = {member: name for name, members in SUPERCLASSES.items() for member in members.split()}
    return np.array([of[name] for name in class_names])[np.asarray(labels)]


def _files(config: DataConfig, *, name: str, torchvision: str, splits: tuple[Any, Any]) -> Data:
    """Datasets of image files whose lists torchvision reads."""
    sources = []
    for split, part in zip(("train", "test"), splits, strict=True):
        known = _open(config, torchvision, part)
        root = Path(known.root)
        files = [str(Path(file).relative_to(root)) for file in known._image_files]
        sources.append(ImageFiles(
            root, files, known._labels, known.classes,
            name=f"{name} {split}", channels=config.channels or 3, shorter=shorter_side(config),
        ))  # fmt: skip
    return Data(sources[0], sources[1])


def _pictures(config: DataConfig) -> Data | Source:
    """A folder's pictures in their full size, for systems that cut pieces of `data.image_size` out of them.

    Raises:
        ValueError: pictures smaller than that, which are counted; one is named.
    """
    found = open_folder(config.root, channels=config.channels or 3)
    small = []
    for source in [found.train, found.test] if isinstance(found, Data) else [found]:
        for i in range(len(source)):
            side = shorter_side_of(source.path(i))
            if side is not None and side < config.image_size:
                small.append(f"{source.path(i)} ({side})")
    expect(
        not small, "data.image_size", f"at most the shorter side of every picture in {config.root}",
        f"{config.image_size}, and {len(small)} smaller pictures, e.g. {', '.join(small[:2])}",
    )  # fmt: skip
    return found


def shorter_side_of(path: str) -> int | None:
    """Pixels of an image file's shorter side, from its head alone; None where it cannot be read."""
    try:
        with Image.open(path) as image:
            return min(image.size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # reading it will say why


def _open(config: DataConfig, torchvision: str, part: Any) -> Any:
    expect(bool(config.root), "data.root", f"the folder that holds {torchvision}", "nothing; give --data.root FOLDER")
    try:
        return getattr(tv, torchvision)(str(Path(config.root).expanduser()), part, download=False)
    except RuntimeError as error:  # how torchvision says that files are missing or damaged
        where = f"data.root: expected {torchvision} as torchvision stores it in {config.root}"
        raise FileNotFoundError(f"{where}, received: {error}; to get it: {_advice(torchvision, config)}") from error


def _advice(torchvision: str, config: DataConfig) -> str:
    root = config.root or "FOLDER"
    return f"""python -c "from torchvision.datasets import {torchvision} as d; d({root!r}, download=True)" """.rstrip()


SUPERCLASSES = {
    "aquatic mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food containers": "bottle bowl can cup plate",
    "fruit and vegetables": "apple mushroom orange pear sweet_pepper",
    "household electrical devices": "clock keyboard lamp telephone television",
    "household furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large carnivores": "bear leopard lion tiger wolf",
    "large man-made outdoor things": "bridge castle house road skyscraper",
    "large natural outdoor scenes": "cloud forest mountain plain sea",
    "large omnivores and herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium-sized mammals": "fox porcupine possum raccoon skunk",
    "non-insect invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles 1": "bicycle bus motorcycle pickup_truck train",
    "vehicles 2": "lawn_mower rocket streetcar tank tractor",
}
"""of CIFAR-100"""
DIGITS = tuple(map(str, range(10)))
DATASETS: dict[str, Callable[[DataConfig], Data | Source]] = {
    "pictures": _pictures,
    "digit-styles": digit_styles,
    "fashion-mnist": partial(_idx, name="fashion-mnist", torchvision="FashionMNIST", class_names=FASHION),
    "mnist": partial(_idx, name="mnist", torchvision="MNIST", class_names=DIGITS),
    "kmnist": partial(_idx, name="kmnist", torchvision="KMNIST", class_names=KANA),
    "cifar10": partial(_arrays, name="cifar10", torchvision="CIFAR10", splits=(True, False)),
    "cifar100": partial(_arrays, name="cifar100", torchvision="CIFAR100", splits=(True, False)),
    "stl10": partial(_arrays, name="stl10", torchvision="STL10", splits=("train", "test")),
    "food101": partial(_files, name="food101", torchvision="Food101", splits=("train", "test")),
}
"""what `--data.source` knows by name besides those of `nearfar.data.open_data`; "pictures" is a folder in full size"""
