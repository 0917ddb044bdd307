"""Two small uses of what a run leaves: measuring any model on any collection, and searching."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from raydrd.asking import By, open_run
from raydrd.config import Resources
from raydrd.errors import InputError
from raydrd.spine.storage import Folder


def evaluate_model(model: str, data: str, split: str, *, store: str | None, ray: str) -> dict[str, Any]:
    """Metrics of a bi-encoder with exact search, each with a bootstrap interval; its vectors cut as its own settings say. Of a
    late-interaction model's folder (PyLate's, ColBERT's, a hybrid's) those of exact MaxSim.

    Raises:
        InputError: the model or the collection is wrong.
    """
    from raydrd.data.guess import guess
    from raydrd.data.spec import Data
    from raydrd.flow.lab import adopted, located_data
    from raydrd.flow.retrieve import token_vectors, vectors
    from raydrd.models.layout import read_layout, truncation
    from raydrd.session import DEFAULT_STORE
    from raydrd.setting import Evaluation
    from raydrd.spine.cluster import Cluster
    from raydrd.spine.precision import resolve
    from raydrd.spine.store import Store
    from raydrd.stages.adopt import Student, located
    from raydrd.stages.cutting import cut_vectors
    from raydrd.stages.evaluate import evaluate
    from raydrd.stages.late.search import search_tokens
    from raydrd.stages.load import load, report_load, table
    from raydrd.stages.search import search
    from raydrd.stages.shards import parts_of
    from raydrd.statistics import bootstrap_interval

    found = Data(source="pydocs") if data == "pydocs" else guess(data)
    found = found.model_copy(update={"test_split": split, **_other_splits(found, split)})
    source = located(Student(model=model))
    cluster = Cluster(Resources(ray=ray))
    settings = Evaluation()
    try:
        keep = Store(Folder.of(store or DEFAULT_STORE), cluster)
        collection = keep.run(load, data=located_data(found))
        report_load(collection)
        if not table(collection, "queries/test").rows:
            raise InputError(f"{data}: split {split!r} has no judged queries")
        student = Student(model=model, kind=_kind(source.where))
        encoder = adopted(keep, student, source, "model", layers=None)
        precision = resolve("auto", gpu=cluster.has_gpu)
        own, stage = (token_vectors, search_tokens) if student.tokens else (vectors, search)
        passages = own(keep, encoder, collection, "corpus", precision, "model")
        queries = own(keep, encoder, collection, "queries/test", precision, "model")
        dim = None if student.tokens else truncation(source.where)
        if dim is not None and dim < int(encoder.metrics["width"]):
            unit = read_layout(source.where).normalize
            passages, queries = (
                keep.run(cut_vectors, f"cut {what}", vectors=one, dim=dim, normalize=unit)
                for what, one in (("passages", passages), ("queries", queries))
            )
        run = keep.run(stage, "search", queries=queries, passages=passages, k=settings.depth)
        judged = keep.run(evaluate, run=run, data=collection, name="queries/test", metrics=list(settings.metrics))
    finally:
        cluster.stop()
    values = pa.concat_tables(part for _, part in parts_of(judged).each())
    metrics = [name for name in values.column_names if name != "query_row"]
    numbers = {name: values[name].to_numpy() for name in metrics}
    return {
        "model": model,
        "data": data,
        "split": split,
        "queries": values.num_rows,
        "passages": collection.metrics["passages"],
        "precision": precision,
        "metrics": {name: float(np.mean(v)) for name, v in numbers.items()},
        "intervals": {name: list(bootstrap_interval(v, seed=0)) for name, v in numbers.items()},
    }


def _kind(path: Path) -> Literal["single_vector", "late_interaction", "hybrid"]:
    """What kind of student a model's folder holds."""
    from raydrd.models.latelayout import family

    found = family(path)
    return "hybrid" if found == "hybrid" else "late_interaction" if found in ("pylate", "colbert") else "single_vector"


def _other_splits(data: Any, split: str) -> dict[str, Any]:
    """The same judgements cannot be two splits at once: whichever had this name gives it up."""
    return {name: None for name in ("train_split", "dev_split") if getattr(data, name) == split}


def search_run(run: str, query: str, *, k: int, by: By | None = None) -> list[dict[str, Any]]:
    """The k best passages of a run's index for a query.

    by: of a hybrid, tokens (as it was measured) or pooled.

    Raises:
        InputError: no such run, an empty query, or vectors that the student does not have.
    """
    if not query.strip() or k < 1:
        raise InputError("search: write a query of at least one word, and -k of 1 or more")
    opened = open_run(run, by=by)
    return _told(Folder.of(run), opened.meta, *opened.find(opened.encode(query), k))


def _told(folder: Folder, meta: dict[str, Any], rows: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
    from raydrd.stages.indexfile import ids_at

    doc_ids, texts = ids_at(folder / "index", rows), _texts(meta, rows)
    return [
        {"rank": n, "score": float(s), "doc_id": doc_id, "text": texts.get(int(r))}
        for n, (r, s, doc_id) in enumerate(zip(rows, scores, doc_ids, strict=True), 1)
    ]


def _texts(meta: dict[str, Any], rows: np.ndarray) -> dict[int, str]:
    """Texts of passages, as long as the store they came from is still there."""
    from raydrd.spine.cluster import Cluster
    from raydrd.spine.store import Store
    from raydrd.stages.load import table

    try:
        data = Store(Folder.of(meta["store"]), Cluster(Resources(ray="off"))).find("load", meta["data"])
    except (FileNotFoundError, OSError):
        return {}
    ordered = np.unique(rows)
    return dict(zip(ordered.tolist(), table(data, "corpus").take(ordered, ["text"])["text"].to_pylist(), strict=True))
