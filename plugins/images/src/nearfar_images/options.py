"""The options of the plugin's commands and what heads their --help. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from nearfar.config import DataConfig, EncoderConfig, EvaluateConfig


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of `nearfar images evaluate`."""

    run: str = ""
    """folder of a run; or leave it out and name an encoder"""
    checkpoint: str = ""
    """best, last or a step; empty: the best, or the last where no score has chosen one"""
    output_name: str = "default"
    """which of the method's outputs, e.g. embedding"""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    mean: tuple[float, ...] = ()
    """with an encoder: per channel, subtracted from pixels in [0, 1]"""
    std: tuple[float, ...] = ()
    """with an encoder: per channel, divides"""
    data: DataConfig = field(default_factory=DataConfig)
    evaluate: EvaluateConfig = field(default_factory=lambda: EvaluateConfig(clusterings=3))
    references: bool = False
    """add rows for random weights and for the pixels themselves"""
    robustness: bool = False
    """also score corrupted test pictures: eight corruptions in three degrees each"""
    fine_tune: int = 0
    """epochs of training the whole encoder further with labels, then its accuracy; of a run only"""
    transfer: tuple[str, ...] = ()
    """folders of other labelled images: the same scores on each, in a table of its own"""
    json: bool = False
    """print JSON and nothing else"""
    trust_code: bool = False
    """allow a run whose recipe is code of your own to import it"""


EVALUATE = """Scores of frozen features, with intervals: kNN, probes, retrieval, clustering, geometry.

Examples:
  nearfar images evaluate --run runs/images-simclr-20260101-120000
  nearfar images evaluate --run RUN --checkpoint last --references
  nearfar images evaluate --run RUN --data.source folder --data.root OTHER_IMAGES
  nearfar images evaluate --run RUN --transfer FLOWERS BIRDS --robustness --fine-tune 10
  nearfar images evaluate --encoder.name timm/resnet50 --encoder.weights FILE.safetensors --data.root IMAGES
"""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of every command that uses a trained run."""

    run: str
    """folder of a run"""
    checkpoint: str = ""
    """best, last or a step; empty: the best, or the last where no score has chosen one"""
    trust_code: bool = False
    """allow a run whose recipe is code of your own to import it"""


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(RunOptions):
    """Options of `nearfar images embed`."""

    root: str
    """folder of images"""
    out: str = "features.npz"
    """file to write: .npz, .safetensors or .npy"""
    output_name: str = "default"
    """which of the method's outputs, e.g. embedding"""
    workers: int = 0
    """loader processes"""


EMBED = """Writes the features of every image below a folder.

Examples:
  nearfar images embed --run RUN --root IMAGES --out features.npz
  python -c "import numpy; f = numpy.load('features.npz'); print(f['features'].shape, f['path'][0])"
"""


@dataclass(frozen=True, kw_only=True)
class NeighboursOptions(RunOptions):
    """Options of `nearfar images neighbours`."""

    query: str
    """image to look for"""
    root: str
    """folder of images to look in"""
    k: int = 5
    """how many"""
    html: str = ""
    """write a contact sheet to this file"""
    output_name: str = "default"
    """which of the method's outputs, e.g. embedding"""
    json: bool = False
    """print JSON and nothing else"""


NEIGHBOURS = """The images of a folder most similar to a query image, by the cosine of their features.

Examples:
  nearfar images neighbours --run RUN --query cat.jpg --root IMAGES --k 10
  nearfar images neighbours --run RUN --query cat.jpg --root IMAGES --html sheet.html
"""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(RunOptions):
    """Options of `nearfar images export`."""

    out: str
    """folder to write to"""
    formats: tuple[str, ...] = ("safetensors",)
    """safetensors, onnx"""


EXPORT = """Writes the trained encoder without its head, and a card that says how to use it.

Examples:
  nearfar images export --run RUN --out encoder
  nearfar images export --run RUN --out encoder --formats safetensors onnx
"""
