"""`nearfar images vit`: words to options, options to the analysis of a vision transformer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nearfar.checks import expect
from nearfar.config import DataConfig, EncoderConfig
from nearfar.flags import parse
from nearfar.terminal import console, print_json, table

if TYPE_CHECKING:
    from nearfar.method import Method

SCORES = ("knn", "nmi", "ari", "purity", "map")


@dataclass(frozen=True, kw_only=True)
class VitOptions:
    """Options of `nearfar images vit`."""

    root: str
    """folder of images; subfolders are classes, for the scores"""
    run: str = ""
    """folder of a run whose encoder is a vision transformer"""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """instead of a run"""
    image_size: int = 224
    """with an encoder: pixels it sees"""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """with an encoder: of the normalisation that it was trained with"""
    other: str = ""
    """folder of another run, whose blocks are compared with"""
    tokens: Literal["all", "cls", "spatial"] = "all"
    """tokens whose features are compared"""
    images: int = 500
    """how many are looked at, drawn at random; 0: all"""
    batch: int = 32
    seed: int = 0
    """of the draw and of the clusterings"""
    trust_code: bool = False
    """allow a run whose recipe is code of your own to import it"""
    json: bool = False
    """print JSON and nothing else"""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = ""
    """folder of report.json, plot.svg and arrays.npz"""


VIT = """How a vision transformer attends, what its blocks represent, and what they are good for, block by block.

Examples:
  nearfar images vit --run RUN --root IMAGES --out vit
  nearfar images vit --run RUN --other OTHER --root IMAGES --tokens spatial
  nearfar images vit --encoder.name timm/vit_base_patch16_224 --encoder.weights FILE.safetensors --root IMAGES
"""


def vit(argv: list[str]) -> int:
    """`nearfar images vit --run RUN --root FOLDER`."""
    options = parse(VitOptions, argv, "nearfar images vit", VIT)
    named = options.encoder != EncoderConfig()
    expect(bool(options.run) != named, "vit", "either --run RUN or --encoder.name NAME", "both" if named else "none")
    import numpy as np

    from nearfar.analysis._files import write
    from nearfar.data import ImageFiles, open_folder
    from nearfar.data.open import shorter_side
    from nearfar_images.vit_report import analyse

    method, config = _method(options)
    opened = open_folder(options.root, channels=config.channels, shorter=shorter_side(config))
    source = opened if isinstance(opened, ImageFiles) else opened.train
    expect(options.images >= 0, "images", "0 or more", options.images)
    order = np.random.default_rng(options.seed).permutation(len(source))[: options.images or None]
    other = _run(options.other, options.trust_code)[0] if options.other else None
    report, arrays = analyse(
        method, source, np.sort(order).tolist(), other=other, mode=options.tokens, batch_size=options.batch,
        seed=options.seed,
    )  # fmt: skip
    report = {"model": options.run or options.encoder.name, "root": options.root, **report}
    if options.out:
        write(options.out, report, _plot(report["blocks"]))
        np.savez(Path(options.out) / "arrays.npz", **arrays)  # type: ignore[arg-type]
    if options.json:
        print_json(report | {name: arrays[name].tolist() for name in ("cka", "cka_other") if name in arrays})
    else:
        _show(report, arrays)
    return 0


def _method(options: VitOptions) -> tuple[Method, DataConfig]:
    from nearfar_images import pipeline

    if options.run:
        return _run(options.run, options.trust_code)
    config = DataConfig(image_size=options.image_size, channels=3)
    return pipeline.load_encoder(options.encoder, config, mean=options.mean, std=options.std), config


def _run(run: str, trust: bool) -> tuple[Method, DataConfig]:
    from nearfar_images.commands import _load

    loaded = _load(run, "", trust)
    return loaded.method.cpu(), loaded.recipe.data


def _show(report: dict[str, Any], arrays: dict[str, Any]) -> None:
    names = [name for name in SCORES if name in report["blocks"][0]]
    other = ("like the other",) if "cka_other" in arrays else ()
    rows = table("block", "distance", "nearest head", "offset heads", "like the last", *other, *names)
    for k, row in enumerate(report["blocks"]):
        like = [f"{arrays['cka'][k, -1]:.3f}", *(f"{arrays['cka_other'][k].max():.3f}" for _ in other)]
        rows.add_row(
            str(k + 1), f"{row['distance']:.3f}", f"{row['nearest_head']:.3f}", str(row["offset_heads"]), *like,
            *(f"{row[name]:.3f}" for name in names),
        )  # fmt: skip
    out = console()
    out.print(rows)
    out.print(
        f"[dim]{report['num_images']} images, {report['grid'][0]} x {report['grid'][1]} patches; distance in sides of "
        "the image; like: CKA, of the other's the block most alike[/]",
        soft_wrap=True,
    )


def _plot(blocks: list[dict[str, Any]]) -> str:
    from nearfar.analysis._plots import chart
    from nearfar.report.svg import Series

    at = list(range(1, len(blocks) + 1))
    names = [name for name in ("distance", "knn", "nmi", "map") if name in blocks[0]]
    series = [Series(name, at, [row[name] for row in blocks]) for name in names]
    return chart(series, title="block by block", x_label="block")
