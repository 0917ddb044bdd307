"""FAISS indexes as files: made from a factory string, filled piece by piece, read without being loaded.

FAISS writes an index that is whole in memory. The two largest kinds end with their vectors, so here the head comes from
FAISS and the rest is streamed; the file is to the byte what FAISS writes. Tests compare both.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raydrd.errors import InputError, StageError
from raydrd.spine.storage import Folder

# How an index is filled: Flat is vectors as they are; lists are inverted files, whose shards FAISS' ids keep apart;
# codes are appended to one another in memory; whole is what FAISS cannot merge (HNSW and other graphs, refined indexes).
Kind = Literal["flat", "lists", "codes", "whole"]

# How the numbers of a vector are kept, and the factory string of the index that keeps them so. `Signs` is ours.
NumberType = Literal["float32", "int8", "binary"]
FACTORIES: dict[NumberType, str] = {"float32": "Flat", "int8": "SQ8", "binary": "Signs"}

_EMPTY_LISTS = 32  # bytes at the end of an inverted file without vectors: `ilar`, lists, bytes a code, `sprs`, 0


def made(factory: str, width: int) -> Any:
    """An empty index by inner product; one whose lists are looked into where it has lists.

    Raises:
        InputError: FAISS does not know the string, or it does not go with this width.
    """
    import faiss

    if factory == FACTORIES["binary"]:
        return signs(width)
    try:
        index = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise InputError(
            f"index: FAISS cannot make {factory!r} for width {width}: {reason(error)}; write Flat, HNSW32, or IVF256,PQ48 "
            f"with a number after PQ that divides {width}"
        ) from error
    if isinstance(index, faiss.IndexIDMap | faiss.IndexIDMap2):
        raise InputError(f"index: {factory!r} maps ids, which are passage rows here; leave out IDMap")
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None:  # FAISS' own default looks into one list only
        lists.nprobe = max(1, lists.nlist // 32)
    return index


def signs(width: int) -> Any:
    """An empty index of one bit a dimension, above 0 or not: inner products of float queries with -1 and 1, over sqrt(width).

    Those are sentence-transformers' binary vectors, with the query left as it is: comparing bits with bits (FAISS' LSH)
    finds much less. FAISS has no such index, but a product quantizer of 8 dimensions a byte whose 256 codes are the
    corners of a cube is one, and is searched by a table lookup for 8 dimensions.

    Raises:
        InputError: the width is not a multiple of 8.
    """
    import faiss

    if width % 8:
        raise InputError(f"vectors: binary keeps 8 dimensions in a byte, and {width} is not a multiple of 8; write another dim")
    index = faiss.IndexPQ(width, width // 8, 8, faiss.METRIC_INNER_PRODUCT)
    bits = np.arange(256)[:, None] >> np.arange(8) & 1
    corners = ((2 * bits - 1) / np.sqrt(width)).astype(np.float32)
    faiss.copy_array_to_vector(np.tile(corners, (width // 8, 1, 1)).ravel(), index.pq.centroids)
    index.is_trained = True  # there is nothing to learn
    return index


def bytes_each(index: Any) -> float | None:
    """Bytes that a vector takes in an index, with its number in an inverted file or its links in a graph; None: not known."""
    import faiss

    inner: Any = bare(index)
    if isinstance(inner, faiss.IndexIVF):
        return float(inner.code_size) + 8
    graph: Any = getattr(inner, "hnsw", None)
    storage: Any = faiss.downcast_index(inner.storage) if graph is not None else None
    if isinstance(storage, faiss.IndexFlatCodes):
        # Links of the lowest level, the share of nodes on higher ones, where they begin, and a node's level.
        links = int(graph.nb_neighbors(1))
        return float(storage.code_size) + 4 * (2 * links + links / (links - 1)) + 8 + 4
    return float(inner.code_size) if isinstance(inner, faiss.IndexFlatCodes) else None


def reason(error: RuntimeError) -> str:
    """What FAISS says of an error, without the place in its program."""
    line = str(error).strip().rsplit("\n", 1)[-1]
    found = re.search(r"Error: '(.*)' failed(?:: (.+))?$", line)
    return (found[2] or found[1]) if found else line.rpartition("failed: ")[2]


def check_index(factory: str, *, width: int, passages: int) -> None:
    """Refuse what could not be built at the end of a run.

    Raises:
        InputError: FAISS does not know the string, it does not go with this width, or there are fewer passages than it
            learns lists or codes from.
    """
    needed, what = fewest(made(factory, width))
    if passages < needed:
        raise InputError(
            f"index: {factory!r} learns {what} from at least {needed:,} vectors, the collection has {passages:,} passages; "
            "write Flat, or fewer"
        )


def fewest(index: Any) -> tuple[int, str]:
    """Vectors that an index cannot be trained with less than, and what it learns from them."""
    import faiss

    lists, inner = faiss.try_extract_index_ivf(index), bare(index)
    needed = [(0, "nothing")]
    if index.is_trained:
        return needed[0]
    if lists is not None:
        needed.append((int(lists.nlist), f"{lists.nlist:,} lists"))
        inner = faiss.downcast_index(lists)
    quantizer = getattr(inner, "pq", None)
    if quantizer is not None:
        needed.append((int(quantizer.ksub), f"{quantizer.ksub:,} codes"))
    return max(needed)


def bare(index: Any) -> Any:
    """An index without the transform (OPQ, PCA) before it."""
    import faiss

    index = faiss.downcast_index(index)
    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def kind_of(index: Any) -> Kind:
    """How an index can be filled."""
    import faiss

    inner = bare(index)
    if isinstance(index, faiss.IndexFlat):
        return "flat"
    if isinstance(inner, faiss.IndexIVF):
        lists: Any = inner.invlists
        plain = type(faiss.downcast_InvertedLists(lists)) is faiss.ArrayInvertedLists
        return "lists" if plain else "whole"
    return "codes" if isinstance(inner, faiss.IndexFlatCodes) else "whole"


def opened(path: Path, *, rows: int | None = None) -> Any:
    """An index read from a local file, memory-mapped: a query touches what it reads.

    Raises:
        StageError: it does not hold `rows` vectors.
    """
    import faiss

    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    if rows is not None and index.ntotal != rows:
        raise StageError(f"{path.name}: FAISS reads {index.ntotal:,} vectors of the {rows:,} that were written")
    return index


def settings_of(index: Any) -> dict[str, int]:
    """How hard an index looks: `nprobe` of its lists, `efSearch` of its graph."""
    import faiss

    lists, inner = faiss.try_extract_index_ivf(index), bare(index)
    found = {"nprobe": int(lists.nprobe), "nlist": int(lists.nlist)} if lists is not None else {}
    graph = getattr(inner, "hnsw", None)
    return found | ({"efSearch": int(graph.efSearch)} if graph is not None else {})


# -- written piece by piece -----------------------------------------------------------------------


def write_flat(out: Folder, name: str, width: int, rows: int, blocks: Iterable[NDArray[np.float32]]) -> None:
    """A Flat index (inner product) of `rows` vectors, [any, width] at a time."""
    import faiss

    empty = faiss.IndexFlatIP(width)
    empty.ntotal = rows
    with out.writing(name) as stream:
        stream.write(faiss.serialize_index(empty).tobytes()[:-8] + struct.pack("<Q", rows * width))
        for block in blocks:
            stream.write(np.ascontiguousarray(block, dtype="<f4").data)


def write_lists(out: Folder, name: str, empty: Any, shards: list[Any]) -> None:
    """An inverted file whose lists are those of the shards, one after the other.

    Args:
        empty: the trained index without vectors; its count is set.
        shards: copies of it, filled; may be memory-mapped.
    """
    import faiss

    lists: list[Any] = [faiss.extract_index_ivf(shard).invlists for shard in shards]
    ivf = faiss.extract_index_ivf(empty)
    count, size = int(ivf.nlist), int(ivf.code_size)
    lengths = np.array([[one.list_size(n) for n in range(count)] for one in lists], dtype="<u8")
    for index in (empty, ivf):
        index.ntotal = int(lengths.sum())
    head = faiss.serialize_index(empty).tobytes()
    if head[-_EMPTY_LISTS:] != struct.pack("<4sQQ4sQ", b"ilar", count, size, b"sprs", 0):
        raise StageError("this FAISS writes inverted files in another way than the versions this was made for")
    with out.writing(name) as stream:
        stream.write(head[:-12] + struct.pack("<4sQ", b"full", count) + lengths.sum(0).tobytes())
        for n in range(count):
            for take, bytes_each in (("get_codes", size), ("get_ids", 1)):
                for one, length in zip(lists, lengths[:, n].tolist(), strict=True):
                    if length:
                        stream.write(faiss.rev_swig_ptr(getattr(one, take)(n), length * bytes_each).data)


# -- ids ------------------------------------------------------------------------------------------


def write_ids(out: Folder, name: str, tables: Iterable[pa.Table]) -> None:
    """Passage ids in the order of their rows, a row group for each table given."""
    with out.writing(name) as stream, pq.ParquetWriter(stream, pa.schema([("doc_id", pa.string())]), compression="zstd") as to:
        for one in tables:
            to.write_table(pa.table([one["doc_id"].cast(pa.string())], names=["doc_id"]))


def ids_at(folder: Folder, rows: NDArray[np.int64]) -> list[str]:
    """Ids of these rows, in their order; reads only the row groups that hold them."""
    found: dict[int, str] = {}
    with folder.reading("ids.parquet") as stream:
        file = pq.ParquetFile(stream)
        edges = np.cumsum([0, *(file.metadata.row_group(n).num_rows for n in range(file.num_row_groups))])
        numbers = np.searchsorted(edges, rows, side="right") - 1
        for number in np.unique(numbers):
            here = rows[numbers == number]
            ids = file.read_row_group(int(number), ["doc_id"])["doc_id"].take(pa.array(here - edges[number]))
            found.update(zip(here.tolist(), ids.to_pylist(), strict=True))
    return [found[row] for row in rows.tolist()]
