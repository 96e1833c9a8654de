"""A folder of images as an index on disk: features once, then search by image and near-duplicates.

index = Index.build("pictures.index", load_run(RUN), "PICTURES")
index.search(feature, k=10);  index.duplicates(threshold=0.95)

Legend: N images, Q queries, D feature.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nearfar.checks import expect, expect_choice
from nearfar.data import ImageFiles, open_folder
from nearfar.data.open import shorter_side
from nearfar.evaluate import neighbours
from nearfar.train.checkpoint import file_hash
from nearfar.train.run import write_json
from nearfar_images.gallery import Neighbour, embed_files

if TYPE_CHECKING:
    from nearfar_images.pipeline import LoadedRun

SCHEMA = 1
BACKENDS = ("exact", "hnsw")
TILE = 1024
LINKS, EFFORT = 32, 128  # of the graph: edges a node, and nodes kept while it is built and searched


@dataclass(frozen=True)
class Indexed:
    """A file as it was when its features were made."""

    path: str
    size: int
    time: int


@dataclass(frozen=True)
class Made:
    """What a build did."""

    kept: int
    added: int
    removed: int
    skipped: tuple[str, ...]


class Index:
    """Features of a folder's images, searchable.

    Args:
        folder: where it lies.
        about: run, checkpoint, hash of the weights, output, root and backend.
        files: one an image.
        features: unit rows, float32 [N, D].
        graph: of faiss, with backend "hnsw".
    """

    def __init__(
        self, folder: Path, about: dict[str, Any], files: Sequence[Indexed], features: np.ndarray, graph: Any = None
    ) -> None:
        self.folder, self.about, self.files, self.features, self.graph = folder, about, tuple(files), features, graph
        self.paths = [str(Path(about["root"]) / file.path) for file in self.files]

    def __len__(self) -> int:
        return len(self.files)

    # -- making ------------------------------------------------------------------------------------------------------

    @classmethod
    def build(
        cls,
        folder: str | Path,
        loaded: LoadedRun,
        root: str | Path,
        *,
        run: str | Path,
        output: str = "default",
        backend: str = "exact",
        workers: int = 0,
        say: Callable[[Made], None] = lambda made: None,
    ) -> Index:
        """Makes the index, or brings one up to date: only new and changed files are embedded.

        Args:
            folder: where it goes; made when missing.
            loaded: the run's method.
            root: folder of images.
            run: the run's folder, which the index names.
            output: one of the method's outputs.
            backend: "exact" compares with every image; "hnsw" walks a graph (faiss), for a million images and more.
            workers: loader processes.
            say: hears what was kept, added and removed.

        Raises:
            ValueError, FileNotFoundError: no images, an unknown backend, or a folder that holds something else.
        """  # fmt: skip
        expect_choice("backend", backend, BACKENDS)
        place, root = Path(folder), Path(root).resolve()
        about = {
            "schema": SCHEMA, "run": str(Path(run).resolve()), "checkpoint": loaded.checkpoint.name,
            "weights": file_hash(loaded.checkpoint / "model.safetensors"), "output": output, "root": str(root),
        }  # fmt: skip
        config = loaded.recipe.data
        found = _files(root, config)
        old = cls.load(place) if (place / "index.json").exists() else None
        expect(
            old is not None or not place.exists() or not any(place.iterdir()), "index", "an index, or an empty folder",
            str(place),
        )  # fmt: skip
        same = old is not None and all(old.about.get(name) == about[name] for name in about)
        known = {file: row for row, file in enumerate(old.files)} if old is not None and same else {}
        new = [file for file in found if file not in known]
        rows, skipped = np.zeros((0, 0), dtype=np.float32), ()
        kept = [file for file in found if file in known]
        if new:
            made = embed_files(loaded.method, root, [file.path for file in new], config, output=output, workers=workers)
            skipped = made.skipped
            readable = {str(Path(path).relative_to(root)) for path in made.paths}
            new, rows = [file for file in new if file.path in readable], _unit(made.features)
        expect(len(kept) + len(new) > 0, "root", "images that can be read", str(root))
        parts = [old.features[[known[file] for file in kept]]] if old is not None and kept else []
        features = np.concatenate([*parts, *([rows] if new else [])])
        say(Made(len(kept), len(new), 0 if old is None else len(old) - len(kept), skipped))
        index = cls(place, about | {"backend": backend}, [*kept, *new], features)
        index._save()
        return index

    def _save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / ".features.partial.npy"
        np.save(partial, self.features, allow_pickle=False)
        graph = self.folder / "graph.faiss"
        graph.unlink(missing_ok=True)
        (self.folder / "index.json").unlink(missing_ok=True)  # a half-written index is none
        partial.replace(self.folder / "features.npy")
        if self.about["backend"] == "hnsw":
            faiss = _faiss()
            self.graph = faiss.IndexHNSWFlat(self.features.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
            self.graph.hnsw.efConstruction = EFFORT
            self.graph.add(np.ascontiguousarray(self.features))
            faiss.write_index(self.graph, str(graph))
        write_json(self.folder / "index.json", self.about | {"files": [asdict(file) for file in self.files]})

    @classmethod
    def load(cls, folder: str | Path) -> Index:
        """The index of a folder.

        Raises:
            FileNotFoundError: there is none.
            ValueError: its parts do not fit together.
        """
        place = Path(folder)
        expect((place / "index.json").is_file(), "index", "a folder that `nearfar images index` made", str(place),
               FileNotFoundError)  # fmt: skip
        about = json.loads((place / "index.json").read_text())
        expect(about.get("schema") == SCHEMA, f"index {place}: schema", str(SCHEMA), about.get("schema"))
        files = [Indexed(**file) for file in about.pop("files")]
        features = np.load(place / "features.npy", allow_pickle=False)
        whole = features.ndim == 2 and len(features) == len(files) and features.dtype == np.float32
        expect(
            whole, f"index {place}: features.npy", f"float32 [{len(files)}, D]", f"{features.dtype} {features.shape}"
        )
        graph = _faiss().read_index(str(place / "graph.faiss")) if about["backend"] == "hnsw" else None
        return cls(place, about, files, features, graph)

    # -- asking ------------------------------------------------------------------------------------------------------

    def search(self, features: np.ndarray, *, k: int = 10, leave_out: Sequence[str] = ()) -> list[list[Neighbour]]:
        """The k images most similar to each query by cosine, nearest first.

        Args:
            features: [Q, D] as the index's method gives them.
            k: how many.
            leave_out: paths that are no answer, such as the query's own.

        Raises:
            ValueError: another width, or more neighbours than images.
        """
        width = self.features.shape[1]
        expect(features.ndim == 2 and features.shape[1] == width, "features", f"shape [Q, {width}]", features.shape)
        hidden = {str(Path(path).resolve()) for path in leave_out}
        own = sum(path in hidden for path in self.paths)
        expect(1 <= k <= len(self) - own, "k", f"a number from 1 to {len(self) - own}, the images there are", k)
        if self.graph is not None:
            self.graph.hnsw.efSearch = max(EFFORT, 2 * (k + own))
            similarity, order = self.graph.search(_unit(features), k + own)
        else:
            value, index = neighbours(torch.from_numpy(self.features), torch.from_numpy(features), k=k + own)
            similarity, order = value.numpy(), index.numpy()
        answers = []
        for values, rows in zip(similarity.tolist(), order.tolist(), strict=True):
            pairs = [(self.paths[row], value) for row, value in zip(rows, values, strict=True) if row >= 0]
            answers.append([Neighbour(path, value) for path, value in pairs if path not in hidden][:k])
        return answers

    def duplicates(self, threshold: float = 0.95) -> list[list[str]]:
        """Groups of images linked by cosines of `threshold` or more, the largest group first.

        Notes:
            Compares all pairs, a tile at a time: N^2 D operations, memory O(tile + pairs found).
        """
        expect(-1 <= threshold <= 1, "threshold", "a cosine in [-1, 1]", threshold)
        parent = list(range(len(self)))

        def root(i: int) -> int:
            while parent[i] != i:
                parent[i] = parent[parent[i]]
                i = parent[i]
            return i

        rows = torch.from_numpy(self.features)
        for i in range(0, len(rows), TILE):
            for j in range(i, len(rows), TILE):
                close = rows[i : i + TILE] @ rows[j : j + TILE].T >= threshold
                close = close.triu(1) if i == j else close
                for a, b in close.nonzero().tolist():
                    parent[root(i + a)] = root(j + b)
        groups: dict[int, list[str]] = {}
        for k, path in enumerate(self.paths):
            groups.setdefault(root(k), []).append(path)
        return sorted((group for group in groups.values() if len(group) > 1), key=lambda group: (-len(group), group))


def _files(root: Path, config: Any) -> list[Indexed]:
    """Every image below a folder, as it is now."""
    opened = open_folder(root, channels=config.channels, shorter=shorter_side(config))
    parts = [opened] if isinstance(opened, ImageFiles) else [opened.train, opened.test]
    paths = [Path(part.path(i)) for part in parts for i in range(len(part))]
    return [
        Indexed(str(path.resolve().relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns) for path in paths
    ]


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError("backend 'hnsw': expected faiss installed (pip install faiss-cpu)") from error
    return faiss
