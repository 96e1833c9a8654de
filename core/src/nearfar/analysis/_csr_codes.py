"""Sparse codes on disk and in search, and how well they stand for the embeddings they were made from.

Legend: N rows, D embedding, H latents.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F

from nearfar.analysis._csr_sparse import FIRED, SparseCoder
from nearfar.checks import expect
from nearfar.evaluate import neighbours

ROWS = 4096
"""rows that are coded at a time"""
ENTRIES = 1 << 24
"""similarities that stand in memory at a time"""
NEIGHBOURS = 10


@torch.no_grad()
def encode(coder: SparseCoder, x: Float[Tensor, "N D"], k: int) -> sparse.csr_array:
    """Codes [N, H] of at most k entries a row, as float32 in compressed sparse rows.

    Raises:
        ValueError: k outside 1 to H, or rows of another width.
    """
    expect(1 <= k <= coder.hidden, "k", f"a number from 1 to {coder.hidden}, the latents there are", k)
    parts = []
    for rows in x.to(coder.weight.device, coder.weight.dtype).split(ROWS):
        value, index = coder.activation(rows).topk(k, dim=1)
        kept = value > 0
        start = np.concatenate([[0], kept.sum(1).cumsum(0).cpu().numpy()])
        value, index = value[kept].float().cpu().numpy(), index[kept].cpu().numpy()
        parts.append(sparse.csr_array((value, index, start), shape=(len(rows), coder.hidden)))
    expect(bool(parts), "x", "one row or more", "none")
    codes = sparse.csr_array(sparse.vstack(parts, format="csr"))
    codes.sort_indices()
    return codes


def search(
    bank: sparse.csr_array, query: sparse.csr_array, k: int = 10, *, cosine: bool = True
) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
    """Similarities and rows of the k codes of a bank nearest to each query, by sparse products.

    Args:
        bank, query: codes of one width.
        k: neighbours, at most the rows of the bank; among equal similarities the earlier row.
        cosine: of the codes; False: their inner product. An empty code is similar to nothing.

    Raises:
        ValueError: unequal widths, or k outside 1 to the rows there are.

    Notes:
        A query of k entries meets only the rows that share a latent with it.
    """
    (num, width), (num_queries, given) = _shape(bank), _shape(query)
    expect(width == given, "query: width", str(width), given)
    expect(1 <= k <= num, "k", f"a number from 1 to {num}, the rows of the bank", k)
    expect(num_queries >= 1, "query", "one row or more", "none")
    if cosine:
        bank, query = _unit(bank), _unit(query)
    turned = sparse.csc_array(bank.T)
    tile = max(1, ENTRIES // num)
    values, rows = [], []
    for start in range(0, num_queries, tile):
        found = (query[start : start + tile] @ turned).toarray()
        index = np.argsort(-found, axis=1, kind="stable")[:, :k]
        rows.append(index)
        values.append(np.take_along_axis(found, index, 1))
    return np.concatenate(values), np.concatenate(rows)


def _shape(codes: sparse.csr_array) -> tuple[int, int]:
    """Rows and latents; scipy leaves the type open for arrays of one dimension."""
    rows, width = codes.shape  # type: ignore[misc]
    return rows, width


def _unit(codes: sparse.csr_array) -> sparse.csr_array:
    norm = np.sqrt(codes.multiply(codes).sum(1))
    return sparse.csr_array(sparse.diags_array(1 / np.maximum(norm, 1e-12)) @ codes)


def scores(
    coder: SparseCoder,
    bank: Float[Tensor, "N D"],
    query: Float[Tensor, "Q D"],
    k: int,
    labels: tuple[Int[Tensor, " N"], Int[Tensor, " Q"]] | None = None,
) -> dict[str, float]:
    """What codes of k entries keep of queries that the coder has not seen, searched for in a bank.

    Args:
        coder: trained.
        bank, query: embeddings.
        k: entries of a code.
        labels: class ids of bank and queries.

    Returns:
        explained: 1 - mean (x - x')^2 / mean (x - mean of the bank)^2;
        recall: share of the 10 nearest rows by the cosine of embeddings that are among the 10 nearest by codes;
        entries: mean number in a code; empty: share of queries whose code has none; and with labels nearest: share of
        queries whose nearest code is of their class.
    """
    codes, queries = encode(coder, bank, k), encode(coder, query, k)
    with torch.no_grad():
        out = torch.cat([coder(rows, k) for rows in query.split(ROWS)])
    num = min(NEIGHBOURS, len(bank))
    _, found = search(codes, queries, num)
    entries = np.diff(queries.indptr)
    kept = {
        "explained": 1 - float(F.mse_loss(out, query)) / float((query - bank.mean(0)).square().mean()),
        "recall": recall(neighbours(bank, query, k=num)[1].numpy(), found),
        "entries": float(entries.mean()),
        "empty": float((entries == 0).mean()),
    }
    return kept if labels is None else kept | {"nearest": nearest(found, labels)}


def dense_scores(
    shown: tuple[Float[Tensor, "N P"], Float[Tensor, "Q P"]],
    full: tuple[Float[Tensor, "N D"], Float[Tensor, "Q D"]],
    labels: tuple[Int[Tensor, " N"], Int[Tensor, " Q"]] | None = None,
) -> dict[str, float]:
    """Recall and nearest, as `scores` has them, of embeddings by a dense map of them (bank, queries)."""
    num = min(NEIGHBOURS, len(full[0]))
    found = neighbours(*shown, k=num)[1].numpy()
    kept = {"recall": recall(neighbours(*full, k=num)[1].numpy(), found)}
    return kept if labels is None else kept | {"nearest": nearest(found, labels)}


def recall(truth: Int[np.ndarray, "Q k"], found: Int[np.ndarray, "Q k"]) -> float:
    """Mean share of the true rows that were found."""
    return float(np.mean((truth[:, :, None] == found[:, None]).any(2)))


def nearest(found: Int[np.ndarray, "Q k"], labels: tuple[Tensor, Tensor]) -> float:
    """Share of queries whose first neighbour is of their class."""
    own, other = (part.cpu().numpy() for part in labels)
    return float(np.mean(own[found[:, 0]] == other))


def principal(bank: Float[Tensor, "N D"], k: int) -> tuple[Tensor, Tensor]:
    """Mean [D] and the k directions of largest variance [k, D] of rows."""
    mean = bank.mean(0)
    _, vectors = torch.linalg.eigh(((bank - mean).T @ (bank - mean)).double())
    return mean, vectors.flip(1).T[:k].to(bank.dtype)


def unused(codes: sparse.csr_array) -> int:
    """Latents that no row uses."""
    used = np.unique(codes.indices[codes.data > FIRED])
    return _shape(codes)[1] - len(used)


def save(coder: SparseCoder, path: str | Path, k: int) -> None:
    """Writes a coder as safetensors; its shape and the k it was trained with stand in the metadata."""
    about: dict[str, Any] = {"dim": coder.dim, "hidden": coder.hidden, "layer_norm": coder.layer_norm, "k": k}
    state = {name: value.contiguous() for name, value in coder.state_dict().items()}
    save_file(state, path, metadata={"coder": json.dumps(about)})


def load(path: str | Path) -> tuple[SparseCoder, int]:
    """A coder that `save` wrote, and the k it was trained with.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is none.
    """
    expect(Path(path).is_file(), "coder", "a coder.safetensors", str(path), FileNotFoundError)
    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get("coder")
    except SafetensorError as error:
        raise ValueError(f"coder {path}: expected a safetensors file, received {error}") from error
    expect(bool(about), f"coder {path}", "a file that this analysis wrote", "other weights")
    told = json.loads(about or "")
    coder = SparseCoder(told["dim"], told["hidden"], layer_norm=told["layer_norm"])
    state = load_file(path)
    coder.to(state["weight"].dtype).load_state_dict(state)
    return coder, told["k"]
