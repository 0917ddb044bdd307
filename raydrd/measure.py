"""Two small uses of what a run leaves: measuring any model on any collection, and searching."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from raydrd.config import Resources
from raydrd.errors import InputError
from raydrd.spine.storage import Folder


def evaluate_model(model: str, data: str, split: str, *, store: str | None, ray: str) -> dict[str, Any]:
    """Metrics of a bi-encoder with exact search, each with a bootstrap interval.

    Raises:
        InputError: the model or the collection is wrong.
    """
    from raydrd.data.guess import guess
    from raydrd.data.spec import Data
    from raydrd.flow.lab import located_data
    from raydrd.flow.retrieve import vectors
    from raydrd.models.layout import read_layout
    from raydrd.session import DEFAULT_STORE
    from raydrd.setting import Evaluation
    from raydrd.spine.cluster import Cluster
    from raydrd.spine.precision import resolve
    from raydrd.spine.store import Store
    from raydrd.stages.adopt import Student, adopt, located
    from raydrd.stages.evaluate import evaluate
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
        encoder = keep.run(adopt, "model", source=source, layout=read_layout(source.where), layers=None)
        precision = resolve("auto", gpu=cluster.has_gpu)
        passages = vectors(keep, encoder, collection, "corpus", precision, "model")
        queries = vectors(keep, encoder, collection, "queries/test", precision, "model")
        run = keep.run(search, "search", queries=queries, passages=passages, k=settings.depth)
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


def _other_splits(data: Any, split: str) -> dict[str, Any]:
    """The same judgements cannot be two splits at once: whichever had this name gives it up."""
    return {name: None for name in ("train_split", "dev_split") if getattr(data, name) == split}


def search_run(run: str, query: str, *, k: int) -> list[dict[str, Any]]:
    """The k best passages of a run's index for a query.

    Raises:
        InputError: no such run, or an empty query.
    """
    folder = Folder.of(run)
    if not (folder / "index").exists("meta.json"):
        raise InputError(f"{run}: no index here; write the folder of a finished run, for example runs/quickstart")
    if not query.strip() or k < 1:
        raise InputError("search: write a query of at least one word, and -k of 1 or more")
    import torch
    from transformers import AutoTokenizer

    from raydrd.models.batching import SpecialTokens
    from raydrd.models.encoders import load_tower
    from raydrd.models.layout import read_layout
    from raydrd.stages.indexfile import ids_at, opened

    meta = (folder / "index").read_json("meta.json")
    stamp = f"{meta['model']} {meta['data']} {meta['factory']}"  # the folder is written again by every run of its name
    path = (folder / "model").local_folder(stamp)
    layout = read_layout(path)
    tokenizer = AutoTokenizer.from_pretrained(path / layout.query_folder, local_files_only=True, trust_remote_code=False)
    special = SpecialTokens.of(tokenizer)
    text = query.lower() if layout.lowercase else query
    ids = np.array(tokenizer(layout.query_prompt + text, add_special_tokens=False)["input_ids"], dtype=np.int32)
    inputs = special.model_inputs([special.single(ids, layout.query_max_len)])
    with torch.inference_mode():
        vector = load_tower(path, layout, "query")(inputs["input_ids"], inputs["attention_mask"]).numpy()
    index = opened((folder / "index").local("index.faiss", stamp))
    scores, rows = index.search(vector, k)
    keep = rows[0] >= 0
    found = rows[0][keep]
    doc_ids = ids_at(folder / "index", found)
    texts = _texts(meta, found)
    return [
        {"rank": n, "score": float(s), "doc_id": doc_id, "text": texts.get(int(r))}
        for n, (r, s, doc_id) in enumerate(zip(found, scores[0][keep], doc_ids, strict=True), 1)
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
