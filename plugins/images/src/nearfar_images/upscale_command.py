"""`nearfar images upscale`: a folder of pictures, enlarged by the network of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.markup import escape

from nearfar.checks import expect
from nearfar.flags import parse
from nearfar.terminal import console

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nearfar_images.pipeline import LoadedRun


@dataclass(frozen=True, kw_only=True)
class UpscaleOptions:
    """Options of `nearfar images upscale`."""

    run: Annotated[str, tyro.conf.Positional]
    """folder of a run that learnt to enlarge"""
    root: Annotated[str, tyro.conf.Positional]
    """folder of pictures; those in its subfolders, too"""
    out: str
    """folder for the enlarged pictures, PNG files of the same names"""
    tile: int = 0
    """side in pixels of the pieces a picture is enlarged in, where memory does not suffice; 0: whole"""
    overlap: int = 16
    """pixels around a piece that are enlarged with it and cut off, so that no seams show"""
    checkpoint: str = ""
    """best, last or a step; empty: the best, or the last where no score has chosen one"""
    overwrite: bool = False
    """replace files that are in `out` already"""
    trust_code: bool = False
    """allow a run whose recipe is code of your own to import it"""


UPSCALE = """Enlarges every picture below a folder by the network of a run.

Examples:
  nearfar images train pcl_sr --data.root PHOTOGRAPHS --trainer.output RUN
  nearfar images upscale RUN SMALL_PICTURES --out LARGE
  nearfar images upscale RUN SMALL_PICTURES --out LARGE --tile 256
"""


def upscale(argv: list[str]) -> int:
    """`nearfar images upscale RUN FOLDER --out FOLDER`; 1 where a file could not be read."""
    options = parse(UpscaleOptions, argv, "nearfar images upscale", UPSCALE)
    expect(options.tile >= 0, "tile", "0 or more", options.tile)
    expect(options.overlap >= 0, "overlap", "0 or more", options.overlap)
    from nearfar.data.folder import check_folder, scan

    root, out = check_folder(options.root), Path(options.out).expanduser().resolve()
    expect(out != root, "out", "another folder than that of the pictures", options.out)
    expect(not out.exists() or out.is_dir(), "out", "a folder", f"the file {out}", NotADirectoryError)
    files = [file for file in scan(root)[0] if out not in (root / file).resolve().parents]
    expect(bool(files), "root", f"pictures below {root}", "none")
    places = [out / Path(file).with_suffix(".png") for file in files]
    twice = [str(place) for place, count in Counter(places).items() if count > 1]
    expect(not twice, "root", "names that differ in more than their ending", f"two pictures for {', '.join(twice[:3])}")
    there = [str(place) for place in places if place.exists()]
    expect(options.overwrite or not there, "out", "a folder without those names, or --overwrite",
           f"{len(there)} that are there, e.g. {there[:1]}")  # fmt: skip
    loaded, network, scale = _network(options)
    import torch

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    network = network.to(device or "cpu").eval()
    print_ = console().print
    bad = 0
    for file, place in zip(files, places, strict=True):
        try:
            low = read(root / file, loaded.recipe.data.channels)
        except Exception as error:  # Pillow's readers raise nearly anything on broken files
            bad += 1
            print_(f"[yellow]left out {escape(file)}: {escape(str(error))}[/]", soft_wrap=True)
            continue
        write(enlarged(network, low, scale, tile=options.tile, overlap=options.overlap), place)
    print_(f"{escape(str(out))}: {len(files) - bad} pictures, {scale} times as large", soft_wrap=True)
    return int(bad > 0)


def _network(options: UpscaleOptions) -> tuple[LoadedRun, nn.Module, int]:
    from nearfar_images.commands import _load
    from nearfar_images.methods.pcl_sr import PCLSR

    loaded = _load(options.run, options.checkpoint, options.trust_code)
    method: Any = loaded.method
    fits = isinstance(method, PCLSR)
    expect(fits, f"run {options.run}", "one that learnt to enlarge, of images/pcl_sr and its variants",
           loaded.recipe.name, TypeError)  # fmt: skip
    return loaded, method.network, method.config.scale


def read(path: str | Path, channels: int = 3) -> Tensor:
    """An image file as [1, C, h, w] in [0, 1], turned as its camera says, transparent pixels on white."""
    import torch

    from nearfar.data.decode import decode

    return torch.from_numpy(decode(path, channels=channels))[None].float() / 255


def enlarged(network: nn.Module, low: Tensor, scale: int, *, tile: int = 0, overlap: int = 16) -> Tensor:
    """The picture [1, C, s h, s w] in 8 bits, in [0, 1], on the CPU; computed where the network is."""
    from nearfar_images.restoration import quantise
    from nearfar_images.upscalers import tiled

    device = next(iter(network.parameters())).device
    return quantise(tiled(network, low.to(device), scale, tile=tile, overlap=overlap)).cpu()


def write(image: Tensor, path: Path) -> None:
    """A PNG file of a picture [1, C, H, W] in [0, 1]."""
    from PIL import Image

    pixels = (image[0] * 255).round().byte().permute(1, 2, 0).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path)
