"""What is measured, at which sizes, beside which library, and the bars. Loads neither torch nor a peer."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType

OURS = "nearfar"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another library: the module to import and the distribution that pip installs."""

    module: str
    distribution: str

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install {self.distribution}"

    def installed(self) -> bool:
        """Whether it can be imported here; nothing is imported to find out."""
        return importlib.util.find_spec(self.module) is not None

    def version(self) -> str:
        try:
            return version(self.distribution)
        except PackageNotFoundError:
            return "unknown"


PEERS = {
    peer.module: peer
    for peer in (
        Peer(module="lightly", distribution="lightly"),
        Peer(module="open_clip", distribution="open_clip_torch"),
        Peer(module="pytorch_metric_learning", distribution="pytorch-metric-learning"),
    )
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the table.

    Attributes:
        name: how --cases calls it.
        subject: what runs, a key of `subjects.SUBJECTS`.
        peer: the module of the other library; "" where nothing else can run it.
        against: what of the other library runs.
        sizes: arguments of the subject.
        quick: those that differ with --quick.
        bars: figure -> bound; `speedup` is a least, everything else a most.
        rounds: rounds that are counted.
        procedure: "beside" times and weighs both libraries, "once" is one step of ours alone, "refused" also shows that
            the peer does not fit.
        slow: left out by --quick unless it is named.
    """

    name: str
    subject: str
    peer: str = ""
    against: str = ""
    sizes: Mapping[str, int]
    quick: Mapping[str, int]
    bars: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    rounds: int = 9
    procedure: str = "beside"
    slow: bool = False


CASES = {
    case.name: case
    for case in (
        Case(
            name="nt_xent", subject="nt_xent", peer="lightly", against="NTXentLoss",
            sizes={"batch": 4096, "dim": 128}, quick={"batch": 512},
            bars={"of_products": 0.8, "speedup": 6.0, "extra_mb": 32.0},
        ),
        Case(
            name="clip", subject="clip", peer="open_clip", against="ClipLoss",
            sizes={"batch": 8192, "dim": 128}, quick={"batch": 1024},
            bars={"of_products": 2.0, "speedup": 2.0, "extra_mb": 32.0},
        ),
        Case(
            name="clip_512", subject="clip", peer="open_clip", against="ClipLoss",
            sizes={"batch": 8192, "dim": 512}, quick={"batch": 1024},
            bars={"of_products": 2.0, "speedup": 2.0, "extra_mb": 32.0},
        ),
        Case(
            name="siglip", subject="siglip", peer="open_clip", against="SigLipLoss",
            sizes={"batch": 8192, "dim": 128}, quick={"batch": 1024},
            # Stored logits would grow by 240 MB from a quarter of the batch to the whole.
            bars={"speedup": 2.0, "extra_growth_mb": 16.0},
        ),
        Case(
            name="supcon", subject="supcon", peer="pytorch_metric_learning", against="SupConLoss",
            sizes={"batch": 4096, "dim": 128, "classes": 100}, quick={"batch": 512},
            bars={"speedup": 4.0},
        ),
        Case(
            name="cubic", subject="nt_xent_pml", peer="pytorch_metric_learning", against="NTXentLoss",
            sizes={"batch": 1024, "dim": 128, "small": 128, "limit_mb": 4096},
            quick={"batch": 512, "small": 64, "limit_mb": 512},
            bars={"extra_mb": 32.0}, procedure="refused",
        ),
        Case(
            name="knn", subject="knn", peer="lightly", against="knn_predict",
            sizes={"bank": 20_000, "queries": 256, "dim": 128, "classes": 1000, "k": 200},
            quick={"bank": 2000, "queries": 64, "classes": 100, "k": 50},
            bars={"speedup": 3.0}, rounds=15,
        ),
        Case(
            name="queue", subject="queue", peer="lightly", against="MemoryBankModule",
            sizes={"size": 65_536, "batch": 256, "dim": 128}, quick={"size": 8192},
            # The bank takes 32 MB; a step that copied it would need as much.
            bars={"extra_mb": 1.0}, rounds=20,
        ),
        Case(
            name="large", subject="info_nce",
            sizes={"batch": 65_536, "dim": 256}, quick={"batch": 4096},
            bars={"extra_mb": 256.0}, procedure="once", slow=True,
        ),
    )
}  # fmt: skip
