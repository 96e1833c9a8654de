"""`nearfar images translate`: a folder of pictures as the other domain of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, runtime_checkable

import tyro
from rich.markup import escape

from nearfar.checks import expect
from nearfar.flags import parse
from nearfar.terminal import console

if TYPE_CHECKING:
    from torch import Tensor

STEP = 4
"""what the sides of translated pictures are multiples of"""


@runtime_checkable
class Translator(Protocol):
    """A method that translates pictures."""

    def translate(self, image: Tensor) -> Tensor:
        """Pictures [B, C, H, W] in [0, 1] as other pictures of the same size, in [0, 1]."""
        ...


@dataclass(frozen=True, kw_only=True)
class TranslateOptions:
    """Options of `nearfar images translate`."""

    run: Annotated[str, tyro.conf.Positional]
    """folder of a run that learnt to translate"""
    root: Annotated[str, tyro.conf.Positional]
    """folder of pictures of domain a; those in its subfolders, too"""
    out: str
    """folder for the translated pictures, PNG files of the same names"""
    size: int = 0
    """shorter side of the results in pixels, whose sides become multiples of 4; 0: data.image_size of the run"""
    checkpoint: str = ""
    """best, last or a step; empty: the best, or the last where no score has chosen one"""
    overwrite: bool = False
    """replace files that are in `out` already"""
    trust_code: bool = False
    """allow a run whose recipe is code of your own to import it"""


TRANSLATE = """Translates every picture below a folder from domain a to domain b of a run.

Examples:
  nearfar images train cut --data.sources a=HORSES b=ZEBRAS --trainer.output RUN
  nearfar images translate RUN HORSES --out TRANSLATED
  nearfar images translate RUN HORSES --out LARGE --size 512
"""


def translate(argv: list[str]) -> int:
    """`nearfar images translate RUN FOLDER --out FOLDER`; 1 where a file could not be read."""
    options = parse(TranslateOptions, argv, "nearfar images translate", TRANSLATE)
    fits = options.size == 0 or (options.size >= 2 * STEP and options.size % STEP == 0)
    expect(fits, "size", f"0, or a multiple of {STEP} from {2 * STEP} on", options.size)
    files = plan(options.root, options.out, overwrite=options.overwrite)
    from nearfar_images.commands import _load

    loaded = _load(options.run, options.checkpoint, options.trust_code)
    method: Any = loaded.method
    fits = isinstance(method, Translator)
    expect(fits, f"run {options.run}", "one that learnt to translate, of images/cut and its variants",
           loaded.recipe.name, TypeError)  # fmt: skip
    import torch

    from nearfar_images.upscale_command import read, write

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    method = method.to(device or "cpu").eval()
    data, bad, print_ = loaded.recipe.data, 0, console().print
    for file, place in files:
        try:
            picture = read(file, data.channels)
        except Exception as error:  # Pillow's readers raise nearly anything on broken files
            bad += 1
            print_(f"[yellow]left out {escape(str(file))}: {escape(str(error))}[/]", soft_wrap=True)
            continue
        picture = fitted(picture, options.size or data.image_size)
        write(method.translate(picture.to(device or "cpu")).cpu(), place)
    print_(f"{escape(options.out)}: {len(files) - bad} pictures", soft_wrap=True)
    return int(bad > 0)


def plan(root: str | Path, out: str | Path, *, overwrite: bool = False) -> list[tuple[Path, Path]]:
    """Every picture below a folder and the PNG file that is made of it; pictures in `out` itself are left out.

    Raises:
        FileNotFoundError, NotADirectoryError: no such folder; `out` is a file.
        ValueError: no pictures, two that would share a name, or files that are there already.
    """
    from nearfar.data.folder import check_folder, scan

    folder, place = check_folder(root), Path(out).expanduser().resolve()
    expect(place != folder, "out", "another folder than that of the pictures", out)
    expect(not place.exists() or place.is_dir(), "out", "a folder", f"the file {place}", NotADirectoryError)
    files = [file for file in scan(folder)[0] if place not in (folder / file).resolve().parents]
    expect(bool(files), "root", f"pictures below {folder}", "none")
    places = [place / Path(file).with_suffix(".png") for file in files]
    twice = [str(name) for name, count in Counter(places).items() if count > 1]
    expect(not twice, "root", "names that differ in more than their ending", f"two pictures for {', '.join(twice[:3])}")
    there = [str(name) for name in places if name.exists()]
    expect(overwrite or not there, "out", "a folder without those names, or --overwrite",
           f"{len(there)} that are there, e.g. {', '.join(there[:1])}")  # fmt: skip
    return [(folder / file, name) for file, name in zip(files, places, strict=True)]


def fitted(picture: Tensor, shorter: int) -> Tensor:
    """A picture [1, C, H, W] whose shorter side is resized to `shorter` and the other to the nearest multiple of 4."""
    import torch.nn.functional as F

    height, width = picture.shape[2:]
    factor = shorter / min(height, width)
    sides = [max(round(side * factor / STEP) * STEP, shorter) for side in (height, width)]
    if sides == [height, width]:
        return picture
    return F.interpolate(picture, sides, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
