"""A student with token vectors in the form that ships: how it is searched, measured and laid out for people."""

from __future__ import annotations

import shutil
from typing import Any

from raydrd.errors import InputError
from raydrd.flow.lab import Lab
from raydrd.flow.retrieve import token_vectors, vectors
from raydrd.spine.progress import say
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact
from raydrd.stages.adopt import late_of
from raydrd.stages.index import build_index
from raydrd.stages.indexfile import fewest, made, write_ids
from raydrd.stages.late.index import default_factory, near_tokens, rescore_tokens
from raydrd.stages.late.pack import CODEC, learn_codec, pack_tokens
from raydrd.stages.late.recall import measure_late
from raydrd.stages.late.search import search_tokens
from raydrd.stages.load import table
from raydrd.stages.search import search
from raydrd.stages.shards import parts_of

TOKEN_INDEX, POOLED_INDEX = "tokens.faiss", "index.faiss"  # in an index folder, beside `tokens/`


def served_tokens(lab: Lab, student: Artifact, data: Artifact, label: str) -> Artifact:
    """Token vectors of a collection's passages, compressed where `late.type` says so."""
    whole = token_vectors(lab.store, student, data, "corpus", lab.precision, label)
    if lab.cfg.late.type == "float16":
        return whole
    codec = lab.store.run(learn_codec, f"codec ({label})", vectors=whole, centroids=centroids_of(lab, data, whole))
    return lab.store.run(pack_tokens, f"pack tokens ({label})", vectors=whole, codec=codec)


def finding_index(lab: Lab, student: Artifact, data: Artifact, label: str) -> Artifact | None:
    """The FAISS index that finds candidates: of token vectors or of pooled ones; None where all passages are scored."""
    late = lab.cfg.late
    if late.candidates == "all":
        return None
    if late.candidates == "pooled":
        return pooled_index(lab, student, data, label)
    whole = token_vectors(lab.store, student, data, "corpus", lab.precision, label)
    factory = factory_of(lab, data, whole)
    return lab.store.run(build_index, f"token index ({label})", vectors=whole, data=data, factory=factory)


def centroids_of(lab: Lab, data: Artifact, whole: Artifact) -> int | None:
    """`late.centroids`, and of a sample of the collection no more than a quarter of its token vectors.

    Raises:
        InputError: by the sample, they are more than a quarter of the collection's.
    """
    wanted, tokens = lab.cfg.late.centroids, int(whole.metrics["tokens"])
    if wanted is None or wanted <= tokens / 4 or not _is_sample(lab, data, tokens):
        return wanted
    if wanted > (there := tokens_expected(lab, whole)) / 4:
        raise InputError(
            f"late.centroids: {wanted:,}, and the collection has about {there:,} token vectors; write a quarter of that, or "
            "less"
        )
    _tell(lab, f"late.centroids: dev's sample has {tokens:,} token vectors, so it is looked at with {tokens // 4:,} centroids")
    return tokens // 4


def factory_of(lab: Lab, data: Artifact, whole: Artifact) -> str:
    """`late.index`, else the default by size; the default also for a sample of the collection that is too small for it.

    Raises:
        InputError: by the sample, the collection is too small for it as well.
    """
    wanted, tokens, width = lab.cfg.late.index, int(whole.metrics["tokens"]), int(whole.metrics["width"])
    own = default_factory(tokens, width)
    if wanted is None or not _is_sample(lab, data, tokens):
        return wanted or own
    needed, what = fewest(made(wanted, width))
    if tokens >= needed:
        return wanted
    if (there := tokens_expected(lab, whole)) < needed:
        raise InputError(
            f"late.index: {wanted!r} learns {what} from at least {needed:,} vectors, the collection has about {there:,} token "
            "vectors; write fewer, or leave it out"
        )
    _tell(lab, f"late.index: dev's sample has {tokens:,} token vectors, too few for {wanted}; it is looked at with {own}")
    return own


def tokens_expected(lab: Lab, sample: Artifact) -> int:
    """Token vectors of the collection, by those of a sample of its passages."""
    each = int(sample.metrics["tokens"]) / max(1, int(sample.metrics["rows"]))
    return round(each * int(lab.data.metrics["passages"]))


def _is_sample(lab: Lab, data: Artifact, tokens: int) -> bool:
    """Of another collection than the whole; false in a plan, which knows no tokens."""
    return data.id != lab.data.id and tokens > 0


def _tell(lab: Lab, line: str) -> None:
    if line not in lab.notes:
        lab.notes.append(line)
        say(line)


def pooled_index(lab: Lab, student: Artifact, data: Artifact, label: str) -> Artifact:
    """A Flat index of a hybrid's one vector a passage."""
    whole = vectors(lab.store, student, data, "corpus", lab.precision, label)
    return lab.store.run(build_index, f"index ({label})", vectors=whole, data=data, factory="Flat")


def pooled_run(lab: Lab, student: Artifact, data: Artifact, name: str, *, k: int, label: str) -> Artifact:
    """The k best passages a query by a hybrid's one vector a text."""
    pooled = [vectors(lab.store, student, data, one, lab.precision, label) for one in ("corpus", name)]
    what = f"search {name.removeprefix('queries/')} ({label}, pooled)"
    return lab.store.run(search, what, queries=pooled[1], passages=pooled[0], k=k)


def late_run(lab: Lab, student: Artifact, data: Artifact, name: str, *, k: int, label: str) -> Artifact:
    """The k best passages a query of table `name`, by the token vectors and the candidates that ship."""
    late, what = lab.cfg.late, name.removeprefix("queries/")
    passages = served_tokens(lab, student, data, label)
    queries = token_vectors(lab.store, student, data, name, lab.precision, label)
    if late.candidates == "all":
        return lab.store.run(search_tokens, f"search {what} ({label})", queries=queries, passages=passages, k=k)
    if late.candidates == "pooled":
        pooled = [vectors(lab.store, student, data, one, lab.precision, label) for one in ("corpus", name)]
        found = lab.store.run(search, f"find {what} ({label})", queries=pooled[1], passages=pooled[0], k=late.depth)
    else:
        whole = token_vectors(lab.store, student, data, "corpus", lab.precision, label)
        index = finding_index(lab, student, data, label)
        found = lab.store.run(
            near_tokens, f"find {what} ({label})", index=index, queries=queries, passages=whole,
            each=late.near, depth=late.depth, probes=late.probes,
        )  # fmt: skip
    return lab.store.run(rescore_tokens, f"search {what} ({label})", candidates=found, queries=queries, passages=passages, k=k)


def late_recall(lab: Lab, student: Artifact, run: Artifact, *, k: int) -> Artifact:
    """How near the search that ships comes to exact MaxSim on the test queries, and how fast it is."""
    data, name = lab.data, "queries/test"
    queries = token_vectors(lab.store, student, data, name, lab.precision, "after")
    whole = token_vectors(lab.store, student, data, "corpus", lab.precision, "after")
    exact = lab.store.run(search_tokens, "search test (after, exact)", queries=queries, passages=whole, k=k)
    late = lab.cfg.late
    shipped: dict[str, Any] = {"passages": served_tokens(lab, student, data, "after"), "candidates": late.candidates}
    if late.candidates != "all":
        shipped |= {"index": finding_index(lab, student, data, "after"), "depth": late.depth}
        shipped |= {"each": late.near, "probes": late.probes} if late.candidates == "tokens" else {}
    pooled = late.candidates == "pooled"
    more = {"pooled": vectors(lab.store, student, data, name, lab.precision, "after")} if pooled else {}
    return lab.store.run(
        measure_late, "recall of index", queries=queries, run=run, exact=exact, shipped=shipped,
        whole={"passages": whole, "candidates": "all"}, **more,
    )  # fmt: skip


def bytes_shipped(lab: Lab, student: Artifact) -> float:
    """Bytes a passage takes on average of all that ships, ids apart: its token vectors, an index of them that finds
    candidates, and a hybrid's one vector, which ships whatever finds them.
    """
    tokens, late = served_tokens(lab, student, lab.data, "after"), late_of(student)
    found = bytes_of(tokens)
    if late is not None and late.pooled:
        found += 4 * int(student.metrics["width"])  # a Flat index of float32
    if lab.cfg.late.candidates == "tokens" and (index := finding_index(lab, student, lab.data, "after")) is not None:
        found += 1e6 * float(index.metrics["size_mb"]) / max(1, int(tokens.metrics["rows"]))
    return found


def bytes_of(tokens: Artifact) -> float:
    """Bytes a passage takes on average by its token vectors, its length among them."""
    each = int(tokens.metrics.get("bytes_each", 2 * int(tokens.metrics["width"])))
    return each * int(tokens.metrics["tokens"]) / max(1, int(tokens.metrics["rows"])) + 4


def about_late(lab: Lab, student: Artifact, recall: Artifact) -> dict[str, Any]:
    """What is known of the index that ships, for people and for meta.json."""
    late, tokens = lab.cfg.late, served_tokens(lab, student, lab.data, "after")
    finding = finding_index(lab, student, lab.data, "after")
    rows, each = max(1, int(tokens.metrics["rows"])), bytes_shipped(lab, student)
    told = {name: value for name, value in recall.metrics.items() if name not in ("rows", "unit")}
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in told.items()}
    return {
        "factory": "MaxSim",
        "size_mb": round(each * rows / 1e6, 3),
        "type": late.type,
        "dim": int(tokens.metrics["width"]),
        "tokens_each": round(int(tokens.metrics["tokens"]) / rows, 1),
        "bytes": round(each, 1),
        "candidates": late.candidates,
        **({"finding": finding.metrics["factory"], "depth": late.depth} if finding is not None else {}),
        **({"each": late.near, "probes": late.probes} if late.candidates == "tokens" else {}),
        "exact": late.type == "float16" and late.candidates == "all",
        "queries": recall.metrics["rows"],
        **rounded,
    }


def about_model(student: Artifact) -> str:
    """`2 layers, 64 dimensions a token, MaxSim`."""
    late = late_of(student)
    assert late is not None
    pooled = f", and one of {student.metrics['width']} a text" if late.pooled else ""
    return f"{student.metrics['layers']} layers, a vector of {late.dim} dimensions a token{pooled}, MaxSim"


def lay_out_tokens(lab: Lab, student: Artifact, out: Folder) -> None:
    """The files of an index folder: token vectors in parts, what finds candidates, a hybrid's pooled vectors, passage ids."""
    tokens = served_tokens(lab, student, lab.data, "after")
    for part in parts_of(tokens).parts:
        copy_file(tokens.shards, part.name, out / "tokens", part.name)
    if "bytes_each" in tokens.metrics:
        copy_file(tokens.folder, CODEC, out, CODEC)
    late, finding = late_of(student), finding_index(lab, student, lab.data, "after")
    if lab.cfg.late.candidates == "tokens" and finding is not None:
        copy_file(finding.folder / "index", "index.faiss", out, TOKEN_INDEX)
    if late is not None and late.pooled:
        pooled = pooled_index(lab, student, lab.data, "after")
        copy_file(pooled.folder / "index", "index.faiss", out, POOLED_INDEX)
    write_ids(out, "ids.parquet", (part for _, part in table(lab.data, "corpus").each(["doc_id"])))


def copy_file(source: Folder, name: str, target: Folder, new: str) -> None:
    with source.reading(name) as data, target.writing(new) as stream:
        shutil.copyfileobj(data, stream, 1 << 22)
