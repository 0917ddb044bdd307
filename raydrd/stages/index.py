"""index: a FAISS index over stored vectors, trained once, filled by many workers, and the passage ids of its rows."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydrd.errors import InputError
from raydrd.spine.parts import Parts, matrix
from raydrd.spine.progress import say
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.stages.indexfile import FACTORIES, kind_of, made, opened, reason, write_flat, write_ids, write_lists
from raydrd.stages.load import table
from raydrd.stages.shards import parts_of, tokens_of
from raydrd.stages.spread import cut

TRAINING_VECTORS = 200_000  # most vectors an IVF or PQ index is trained on: some 100 for each of 2,000 lists ..
TRAINING_EACH = 40  # .. and so many a list where there are more lists: below 39 FAISS warns
FEW_ROWS = 100_000  # that one process puts into an index that has little or nothing to learn
FILL_ROWS = 250_000  # vectors a worker adds to its copy: 390 MB of 384 dimensions, where they are kept as they are


def blocks(vectors: Parts, lo: int, hi: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(first row, vectors) of rows lo..hi-1, part by part, each let go before the next."""
    for part in vectors.parts:
        if part.lo < hi and part.hi > lo:
            found = matrix(vectors.read(part))[max(0, lo - part.lo) : hi - part.lo]
            yield max(lo, part.lo), np.array(found, dtype=np.float32)  # a copy, also of float32: torch wants to write


def sample(vectors: Parts, most: int) -> NDArray[np.float32]:
    """At most so many vectors, drawn without looking at them, in the order of their rows."""
    if vectors.rows <= most:
        return np.concatenate([block for _, block in blocks(vectors, 0, vectors.rows)])
    # NumPy shuffles numbers of all rows only where it draws more than a twentieth of them: never much more than the sample.
    rows = np.sort(np.random.default_rng(0).choice(vectors.rows, most, replace=False, shuffle=False))
    found = []
    for lo, block in blocks(vectors, 0, vectors.rows):
        inside = slice(*np.searchsorted(rows, [lo, lo + len(block)]))
        found.append(block[rows[inside] - lo])
    return np.concatenate(found)


class Gpu:
    """The GPU of this process, if there is one that this FAISS can use: centroids are compared there, vectors stay here."""

    def __init__(self) -> None:
        import faiss

        self.resources = (
            faiss.StandardGpuResources() if hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() else None
        )

    def copy(self, index: Any) -> Any:
        """The index on the GPU, or itself where there is none."""
        import faiss

        return index if self.resources is None else faiss.index_cpu_to_gpu(self.resources, 0, index)


def train(index: Any, vectors: Parts, gpu: Gpu) -> None:
    """Learn what the index must learn before vectors are added."""
    import faiss

    if index.is_trained:
        return
    lists: Any = faiss.try_extract_index_ivf(index)
    held = None
    if lists is not None and gpu.resources is not None:
        held = gpu.copy(faiss.IndexFlatIP(lists.d))  # k-means compares with centroids there
        lists.clustering_index = held
    try:
        index.train(sample(vectors, max(TRAINING_VECTORS, TRAINING_EACH * lists.nlist if lists is not None else 0)))
    except RuntimeError as error:
        raise InputError(f"index: FAISS cannot train it on {vectors.rows:,} vectors: {reason(error)}; write Flat") from error
    if held is not None:
        lists.clustering_index = None


def fill(index: Any, vectors: Parts, lo: int, hi: int, gpu: Gpu) -> None:
    """Add rows lo..hi-1; an inverted file gets them under their row numbers."""
    import faiss

    lists: Any = faiss.try_extract_index_ivf(index)
    if kind_of(index) != "lists":
        for _, block in blocks(vectors, lo, hi):
            index.add(block)
        return
    coarse = faiss.downcast_index(lists.quantizer)
    if gpu.resources is None or not isinstance(coarse, faiss.IndexFlat):
        for row, block in blocks(vectors, lo, hi):
            index.add_with_ids(block, np.arange(row, row + len(block)))
        return
    add_assigned(index, vectors, lo, hi, gpu.copy(coarse))


def add_assigned(index: Any, vectors: Parts, lo: int, hi: int, coarse: Any) -> None:
    """As `fill` into an inverted file, with lists chosen by another copy of its centroids."""
    import faiss

    lists: Any = faiss.downcast_index(faiss.extract_index_ivf(index))
    before: Any = index.chain if isinstance(index, faiss.IndexPreTransform) else None
    chain = [faiss.downcast_VectorTransform(before.at(n)) for n in range(before.size())] if before is not None else []
    for row, block in blocks(vectors, lo, hi):
        for step in chain:
            block = step.apply(block)
        ids = np.arange(row, row + len(block))
        _, chosen = coarse.search(block, 1)
        chosen = np.ascontiguousarray(chosen.ravel(), dtype=np.int64)
        lists.add_core(len(block), faiss.swig_ptr(block), faiss.swig_ptr(ids), faiss.swig_ptr(chosen))
    index.ntotal = lists.ntotal


class Trainer:
    """The empty index, trained; a file that its copies are read from."""

    def __init__(self, *, vectors: Parts, factory: str, width: int, out: Folder) -> None:
        self.vectors, self.factory, self.width, self.out = vectors, factory, width, out

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        import faiss

        index = made(self.factory, self.width)
        train(index, self.vectors, Gpu())
        content = faiss.serialize_index(index).tobytes()
        name = f"trained-{hashlib.sha256(content).hexdigest()[:12]}.faiss"
        self.out.write_bytes(name, content)
        return {}


class Filler:
    """A copy of the trained index with the vectors of a range of rows."""

    def __init__(self, *, vectors: Parts, trained: str, out: Folder) -> None:
        self.vectors, self.trained, self.out, self.gpu = vectors, trained, out, Gpu()

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        import faiss

        index = faiss.deserialize_index(np.frombuffer(self.out.read_bytes(self.trained), dtype=np.uint8))
        fill(index, self.vectors, shard["lo"], shard["hi"], self.gpu)
        store_index(index, self.out, shard["name"])
        return {}


class Finisher:
    """The index as one file, from the vectors themselves or from the filled copies, and the ids of its rows."""

    def __init__(
        self,
        *,
        vectors: Parts,
        corpus: Parts,
        factory: str,
        width: int,
        trained: str,
        fills: list[str],
        scratch: Folder,
        out: Folder,
    ) -> None:
        self.vectors, self.corpus, self.factory, self.width = vectors, corpus, factory, width
        self.trained, self.fills, self.scratch, self.out = trained, fills, scratch, out

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        import faiss

        rows, name = self.vectors.rows, "index.faiss"
        kind = kind_of(made(self.factory, self.width))
        if kind == "flat":
            write_flat(self.out, name, self.width, rows, (block for _, block in blocks(self.vectors, 0, rows)))
        elif self.fills:
            empty = faiss.deserialize_index(np.frombuffer(self.scratch.read_bytes(self.trained), dtype=np.uint8))
            filled = [self.scratch.local(one) for one in self.fills]
            if kind == "lists":
                write_lists(self.out, name, empty, [opened(path) for path in filled])
            else:
                for path in filled:  # not memory-mapped: merging empties the other, and that aborts in what is mapped
                    empty.merge_from(faiss.read_index(str(path)), 0)
                store_index(empty, self.out, name)
        else:
            gpu = Gpu()
            index = made(self.factory, self.width)
            train(index, self.vectors, gpu)
            fill(index, self.vectors, 0, rows, gpu)
            store_index(index, self.out, name)
        if self.out.is_local:  # elsewhere it would be fetched back for this
            opened(self.out.local(name), rows=rows)
        write_ids(self.out, "ids.parquet", (part for _, part in self.corpus.each(["doc_id"])))
        return {"bytes": self.out.files()[name]}


def store_index(index: Any, out: Folder, name: str) -> None:
    """An index that is whole in memory, as a file."""
    import faiss

    with tempfile.TemporaryDirectory() as scratch:
        faiss.write_index(index, str(Path(scratch) / name))
        out.upload(Path(scratch))


@stage(version=1)
def build_index(work: Work, *, vectors: Artifact, data: Artifact, factory: str) -> dict[str, Any]:
    """`index.faiss` over stored vectors (inner product) and `ids.parquet` with the passage ids in its order; over token
    vectors, whose rows are tokens.

    Trained on a sample by one worker; filled by all, each with a range of rows, where FAISS can merge that. What was
    trained and filled before a kill is kept.
    """
    p: Any = tokens_of(vectors) if "tokens" in vectors.metrics else parts_of(vectors)
    width = int(vectors.metrics["width"])
    kind = kind_of(made(factory, width))
    scratch, marks = work.shards / "scratch", work.shards / "attempts"
    trained, fills = "", list[str]()
    if kind in ("lists", "codes") and p.rows > FILL_ROWS:
        trained, fills = _filled(work, p, factory, width, scratch, marks)
    elif kind == "whole" and p.rows > FILL_ROWS:
        say(f"{work.label}: FAISS cannot merge parts of {factory}, so one worker holds all of it while it is filled")
    arguments = {"vectors": p, "corpus": table(data, "corpus"), "factory": factory, "width": width}
    results = work.cluster.map(
        Finisher,
        {**arguments, "trained": trained, "fills": fills, "scratch": scratch, "out": work.folder / "index"},
        [{"name": "index", "rows": p.rows}],
        label=work.label,
        unit="passages",
        marks=marks,
        inline=p.rows <= FEW_ROWS and factory in FACTORIES.values(),
        models=kind == "lists" and not fills,
    )
    unit = "tokens" if "tokens" in vectors.metrics else "passages"
    return {"rows": p.rows, "unit": unit, "size_mb": results[0]["bytes"] / 1e6, "factory": factory}


def _filled(work: Work, p: Parts, factory: str, width: int, scratch: Folder, marks: Folder) -> tuple[str, list[str]]:
    """Names of the trained index and of its filled copies in the order of their rows, made where they are missing."""
    gpu = kind_of(made(factory, width)) == "lists"  # comparing with centroids is what a GPU helps with

    def known() -> list[str]:
        return [name for name in scratch.files() if name.startswith("trained-")]

    if not known():
        arguments = {"vectors": p, "factory": factory, "width": width, "out": scratch}
        shards = [{"name": "trained", "rows": min(p.rows, TRAINING_VECTORS)}]
        work.cluster.map(Trainer, arguments, shards, label=f"{work.label}, training", unit="passages", marks=marks, models=gpu)
    trained = known()[0]
    there = scratch.files()
    fills = [
        # Codes are of one training: copies of another one must not be taken for these.
        {"name": f"filled-{trained[8:20]}-{lo:012d}-{hi:012d}.faiss", "lo": lo, "hi": hi, "rows": hi - lo}
        for lo, hi in cut(p.parts, -(-p.rows // FILL_ROWS))
    ]
    missing = [shard for shard in fills if shard["name"] not in there]
    arguments = {"vectors": p, "trained": trained, "out": scratch}
    work.cluster.map(Filler, arguments, missing, label=f"{work.label}, filling", unit="passages", marks=marks, models=gpu)
    return trained, [str(shard["name"]) for shard in fills]
