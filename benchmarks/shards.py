"""Samples a second from tar shards beside the webdataset library, from a folder of the same files, and from an index.

    python benchmarks/shards.py [--samples 4000] [--shards 8] [--side 160] [--rounds 3]

One process reads and decodes JPEG pictures to uint8, all in the page cache: no disk or network is measured. nearfar
reads by place in the order of two samplers; webdataset reads shards in order with a buffer of 1,000. Reading the
headers, once, is measured apart, beside Python's tarfile. Results go to results/shards.json.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
from PIL import Image

from nearfar.data import ImageFolder, Loader, Source, TarShards
from nearfar.data.tars import read_index
from nearfar.samplers import Sampler, Shards, Shuffle

BATCH = 64


def write(root: Path, samples: int, shards: int, side: int) -> list[Path]:
    """Shards and a folder of the same pictures."""
    random = np.random.default_rng(0)
    (root / "folder").mkdir()
    paths = [root / f"s-{number:04}.tar" for number in range(shards)]
    for number, path in enumerate(paths):
        with tarfile.open(path, "w") as archive:
            for i in range(number, samples, shards):
                coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
                file = io.BytesIO()
                coarse.resize((side, side), Image.Resampling.BICUBIC).save(file, "jpeg", quality=90)
                (root / "folder" / f"{i:06}.jpg").write_bytes(file.getvalue())
                for name, content in ((f"{i:06}.jpg", file.getvalue()), (f"{i:06}.cls", b"%d" % (i % 10))):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return paths


def reader(source: Source, sampler: Sampler) -> Callable[[], int]:
    loader = Loader(source, sampler)
    return lambda: sum(len(batch["index"]) for batch in loader.epoch(0))


def peer(paths: list[Path]) -> Callable[[], int]:
    import webdataset

    def run() -> int:
        pipeline = webdataset.WebDataset([str(path) for path in paths], shardshuffle=len(paths), seed=0)
        decoded = pipeline.shuffle(1000).decode("rgb8").to_tuple("jpg", "cls").batched(BATCH)
        return sum(len(labels) for _, labels in decoded)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("samples", 4000), ("shards", 8), ("side", 160), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paths = write(root, args.samples, args.shards, args.side)
        began = time.perf_counter()
        num_members = sum(len(read_index(path).offset) for path in paths)
        index = time.perf_counter() - began
        began = time.perf_counter()
        for path in paths:
            with tarfile.open(path, "r:") as archive:
                archive.getmembers()
        listing = time.perf_counter() - began
        source = TarShards(paths, cache=str(root / "cache"))
        shuffle, files = Shuffle(args.samples, BATCH, drop_last=False), ImageFolder(root / "folder")
        walk = Shards(source.column("shard"), BATCH, window=1000, drop_last=False)
        runs = {
            "nearfar shuffle": reader(source, shuffle),
            "nearfar shards": reader(source, walk),
            "nearfar folder": reader(files, shuffle),
            "webdataset": peer(paths),
        }
        for name, run in runs.items():
            received = run()
            if received != args.samples:
                raise RuntimeError(f"{name}: expected {args.samples} samples, received {received}")
        times = common.interleaved(runs, args.rounds)
        result = {
            "settings": vars(args) | {"batch": BATCH},
            "times": times,
            "samples_per_s": {name: round(1e3 * args.samples / row["median_ms"]) for name, row in times.items()},
            "members_per_s": {"nearfar": round(num_members / index), "tarfile": round(num_members / listing)},
            "metadata": common.metadata(("webdataset",)),
        }
    common.write("shards", result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
