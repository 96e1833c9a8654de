"""Memory, traffic and time of a CLIP loss on many GPUs, from formulas: nothing here is measured.

    python benchmarks/scaling.py

prints the two tables of docs/scaling.md, which explains the formulas and names the sources of the constants.

Letters: G rows of the global batch, W GPUs, b = G / W rows a GPU, D width. Everything is float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

BATCHES = (2**15, 2**18, 2**20)
WIDTHS = (512, 1024)
WORLDS = (8, 64, 512, 4096)

NODE = 8  # GPUs that share NVLink
NVLINK = 350e9  # bytes/s of an all-gather, as reported for H100
NETWORK = 50e9  # bytes/s of one GPU's adapter, 400 Gb/s
TF32, FP32 = 495e12, 67e12  # peak FLOP/s of an H100 SXM
FLOAT = 4  # bytes
STRIP, EDGE = 2**22, 4096  # entries of a strip of logits and side of a tile, as in nearfar._tiles


@dataclass(frozen=True)
class Case:
    batch: int
    width: int
    world: int

    @property
    def rows(self) -> int:
        return self.batch // self.world

    @property
    def block(self) -> int:
        """Bytes of one GPU's embeddings of one side."""
        return self.rows * self.width * FLOAT

    # -- bytes that the loss holds on a GPU at its peak

    @property
    def stored(self) -> int:
        """Gathered rows and logits of two directions, and the gradients of both."""
        return 4 * self.batch * (self.rows + self.width) * FLOAT

    @property
    def gathered(self) -> int:
        strip = min(self.rows, max(32, min(EDGE, STRIP // self.batch))) * self.batch * FLOAT
        return 8 * self.world * self.block + strip

    @property
    def ring(self) -> int:
        return 10 * self.block + self.tiles

    @property
    def levels(self) -> int:
        return (6 + 4 * NODE) * self.block + self.tiles

    @property
    def tiles(self) -> int:
        return 2 * min(self.rows, EDGE) ** 2 * FLOAT

    # -- bytes that a GPU receives in a step

    @property
    def gather_bytes(self) -> int:
        """Two sides, forward and backward."""
        return 4 * (self.world - 1) * self.block

    @property
    def ring_bytes(self) -> int:
        """One side forward; the same backward, and its gradient, which goes one step further to come home."""
        return (3 * self.world - 2) * self.block

    # -- seconds on the wire, without latency

    @property
    def gather_time(self) -> float:
        return self.gather_bytes / NVLINK

    @property
    def ring_time(self) -> float:
        return self.ring_bytes / (NVLINK if self.world <= NODE else NETWORK)

    @property
    def levels_time(self) -> float:
        """A ring of nodes, every GPU over its own adapter, beside an all-gather in the node."""
        between = (3 * (self.world // NODE) - 2 if self.world > NODE else 0) * self.block / NETWORK
        return max(between, self.ring_bytes / NVLINK)

    # -- FLOP of the matrix products on a GPU

    @property
    def gather_flop(self) -> int:
        return 12 * self.rows * self.batch * self.width

    @property
    def ring_flop(self) -> int:
        return 8 * self.rows * self.batch * self.width


def cases() -> Iterator[Case]:
    for width in WIDTHS:
        for batch in BATCHES:
            for world in WORLDS:
                yield Case(batch, width, world)


def name(number: int) -> str:
    return f"{number // 2**20}M" if number >= 2**20 else f"{number // 2**10}k"


def figure(value: float) -> str:
    """Three digits, without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.01 else "< 0.01"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, tuple("--:" for _ in head), *rows))


def memory() -> str:
    head = ("D", "batch", "GPUs", "rows a GPU", "stored logits GB", "gather GB", "ring GB", "two-level GB",
            "gather moves GB", "ring moves GB")  # fmt: skip
    rows = [
        (str(c.width), name(c.batch), str(c.world), f"{c.rows:,}",
         *(figure(x / 1e9) for x in (c.stored, c.gathered, c.ring, c.levels, c.gather_bytes, c.ring_bytes)))
        for c in cases()
    ]  # fmt: skip
    return table(head, rows)


def time() -> str:
    head = ("D", "batch", "GPUs", "gather wire ms", "ring wire ms", "two-level wire ms",
            "gather TF32 ms", "ring TF32 ms", "gather fp32 ms", "ring fp32 ms")  # fmt: skip
    rows = [
        (str(c.width), name(c.batch), str(c.world),
         *(figure(1e3 * x) for x in (c.gather_time, c.ring_time, c.levels_time, c.gather_flop / TF32,
                                     c.ring_flop / TF32, c.gather_flop / FP32, c.ring_flop / FP32)))
        for c in cases()
    ]  # fmt: skip
    return table(head, rows)


if __name__ == "__main__":
    print(memory(), time(), sep="\n\n")
