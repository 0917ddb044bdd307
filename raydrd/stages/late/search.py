"""search_tokens: exact MaxSim of token vectors, block by block.

What a query gets does not depend on how passages lie in parts, queries in shards or both in ranges: passages are compared
in tiles and queries in blocks that begin at multiples of their sizes, and ties go to the earlier row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydrd.spine.parts import Part, Parts, ranges
from raydrd.spine.ragged import RaggedReader
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.stages.late.pack import codec_of, open_passages
from raydrd.stages.search import Best, search_ranges, write_candidates
from raydrd.stages.shards import parts_of, pending
from raydrd.stages.spread import Spread, plan_spread, write_partial

TILE = 256  # passages compared at a time ..
GROUP = 32  # .. so many of similar length in a rectangle: 2 % of it is padding
BLOCK = 32  # queries: 32 x 20 token vectors against a group's 32 x 150 are 12 MB of products
RANGE = 64 * TILE  # passages of a range, or a multiple: 16,384
FEW_PRODUCTS = 2 * 10**9  # products of two numbers done in this process rather than by an actor


class Tile:
    """Passages first, first + 1, ...: rectangles of texts of similar length, on the device."""

    def __init__(self, first: int, texts: list[NDArray[np.floating]], width: int, device: Any) -> None:
        import torch

        self.first, self.count = first, len(texts)
        order = np.argsort([-len(one) for one in texts], kind="stable")
        self.groups: list[tuple[Any, Any]] = []
        for lo, hi in ranges(len(texts), GROUP):
            places = order[lo:hi]
            # A short text is filled up with its own first vector, which changes no maximum; one without tokens scores 0.
            longest = max(1, len(texts[places[0]]))
            rows = [filled(texts[place], longest, width) for place in places]
            vectors_GSD = torch.from_numpy(np.stack(rows)).to(device).to(torch.float32)
            self.groups.append((torch.from_numpy(places).to(device), vectors_GSD))

    def scores(self, tokens_TD: Any, lengths_Q: Any) -> Any:
        """MaxSim [Q, count] of queries whose token vectors follow one another."""
        import torch

        result = torch.empty(len(lengths_Q), self.count, device=tokens_TD.device)
        for places, vectors_GSD in self.groups:
            products = (tokens_TD @ vectors_GSD.flatten(0, 1).T).unflatten(1, vectors_GSD.shape[:2])
            result[:, places] = torch.segment_reduce(products.amax(2), "sum", lengths=lengths_Q, axis=0)
        return result


def filled(text_TD: NDArray[np.floating], tokens: int, width: int) -> NDArray[np.floating]:
    """[tokens, width]: a text's vectors, then its first one again; zeros where it has none."""
    if not len(text_TD):
        return np.zeros((tokens, width), dtype=text_TD.dtype)
    return np.concatenate([text_TD, np.repeat(text_TD[:1], tokens - len(text_TD), axis=0)])


class TokenSearcher:
    """Queries against passages, tile by tile; memory holds one tile and what is best so far."""

    def __init__(self, *, queries: Parts, passages: Parts, codec: Folder | None, out: Folder, k: int) -> None:
        from raydrd.models.devices import this_device

        self.device = this_device()
        self.queries, self.passages, self.out, self.k = RaggedReader(queries), open_passages(passages, codec), out, k

    def found(self, lo: int, hi: int, first: int, last: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Rows and scores of queries lo..hi-1, block by block, among passages first..last-1."""
        import torch

        asked = []
        for a in range(lo // BLOCK * BLOCK, hi, BLOCK):
            texts = self.queries.take(np.arange(max(a, lo), min(a + BLOCK, hi)))
            vectors = torch.from_numpy(np.concatenate(texts).astype(np.float32)).to(self.device)
            lengths = torch.tensor([len(one) for one in texts], device=self.device)
            asked.append((vectors, lengths, Best(torch.empty(len(texts), 0, device=self.device), min(self.k, last - first))))
        for a in range(first, last, TILE):
            tile = Tile(a, self.passages.take(np.arange(a, min(a + TILE, last))), self.passages.width, self.device)
            for vectors, lengths, best in asked:
                best.add(tile.scores(vectors, lengths), a)
        for _, _, best in asked:
            values, rows = best.settle()
            yield rows.cpu().numpy(), values.cpu().numpy()

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        lo, hi = shard["lo"], shard["hi"]
        if "first" in shard:
            write_partial(self.out, shard["name"], self.found(lo, hi, shard["first"], shard["last"]))
        else:
            rows, scores = (np.concatenate(one) for one in zip(*self.found(lo, hi, 0, self.passages.parts.rows), strict=True))
            write_candidates(self.out, shard["name"], np.arange(lo, hi), rows, scores)
        return {}


@stage(version=1)
def search_tokens(work: Work, *, queries: Artifact, passages: Artifact, k: int) -> dict[str, Any]:
    """The k passages of highest MaxSim for every query, exactly; in float32, of vectors as they were stored or compressed.

    A large corpus is searched range by range and the ranges are merged; the result is the same.
    """
    q, p = parts_of(queries), parts_of(passages)
    each = products_each(queries, passages)
    missing = pending(work, q.rows, SHARD, "parquet")
    spread = _spread(passages, q.rows, p.rows, each, k, gpu=work.cluster.has_gpu)
    arguments: dict[str, Any] = {"queries": q, "passages": p, "codec": codec_of(passages), "k": k}
    inline = q.rows * p.rows * each <= FEW_PRODUCTS
    search_ranges(work, TokenSearcher, arguments, missing, spread=spread, inline=inline)
    return {"rows": q.rows, "unit": "queries", "k": min(k, p.rows)}


SHARD = 16 * BLOCK  # queries of a shard: a corpus is read once for so many


def products_each(queries: Artifact, passages: Artifact) -> int:
    """Products of two numbers that the MaxSim of a query and a passage takes, on average."""
    tokens = [int(one.metrics["tokens"]) / max(1, int(one.metrics["rows"])) for one in (queries, passages)]
    return max(1, round(tokens[0] * tokens[1] * int(passages.metrics["width"])))


def _spread(passages: Artifact, queries: int, rows: int, each: int, k: int, *, gpu: bool) -> Spread:
    """Ranges of whole tiles, as `plan_spread` wants them: it counts products, so the width is a pair's products."""
    tiled = tuple(Part("", lo, hi) for lo, hi in ranges(rows, RANGE))
    stored = sum(passages.manifest["files"].values())
    return plan_spread(tiled, stored=stored, queries=queries, width=each, k=k, block=BLOCK, gpu=gpu)
