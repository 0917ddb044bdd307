"""A program of its own: pairs and duels scored by both engines on a Ray with one pretended GPU; prints JSON.

python -m tests.vllm_run DATA MODEL STORE, with the stand-in for vLLM on PYTHONPATH.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raydrd.config import Resources
from raydrd.models.prompts import Prompt
from raydrd.spine.cluster import Cluster
from raydrd.spine.quiet import quiet_ray
from raydrd.spine.scorebook import Book
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Located, Store
from raydrd.spine.tables import PAIRS
from raydrd.stages.adopt import model_folder
from raydrd.stages.duel import score_duels
from raydrd.stages.score import import_teacher, score_pairs
from raydrd.stages.tokenize import tokenize
from tests.stage_inputs import candidate_lists, open_data, put, whole

POINT = Prompt(template="{query}\n{passage}\n?", positive="Yes", negative="No")
PAIR = Prompt(template="{query}\n{a}\n{b}\n?", positive="A", negative="B")


def main(data_folder: str, model: str, root: str) -> dict[str, Any]:
    quiet_ray()
    import ray

    ray.init(
        address="local", num_cpus=4, num_gpus=1, include_dashboard=False, object_store_memory=128 << 20, log_to_driver=False
    )
    fails = Path(os.environ["STANDIN_FAILS"])
    store = Store(Folder.of(root), Cluster(Resources(ray="local", num_workers=1, pairs_per_shard=40)))
    data = open_data(store, Path(data_folder))
    made = store.run(import_teacher, source=Located("toy", Path(model)))
    known = Located(made.metrics["tokenizer"], (model_folder(made), ""))
    texts = {
        name: store.run(tokenize, data=data, name=table, tokenizer=known, prompt="", lowercase=False)
        for name, table in (("query_tokens", "queries/train"), ("passage_tokens", "corpus"))
    }
    about = {**texts, "kind": "prompted", "teacher": Located("toy", model_folder(made)), "max_length": 96, "precision": "fp32"}
    lists = [[(7 * n + 11 * k) % 60 for k in range(5)] for n in range(24)]
    candidates = put(store, "c", candidate_lists(lists), 7)
    pairs = put(store, "p", pa.table([list(range(24)), [[1, 2]] * 24, [[4, 5]] * 24, [[]] * 24], schema=PAIRS), pairs=48)

    def scores(pool: Artifact, **more: Any) -> tuple[list[float], dict[str, Any]]:
        found = store.run(score_pairs, candidates=pool, prompt=POINT, **about, **more)
        return np.concatenate(whole(found)["teacher_scores"].to_pylist()).tolist(), found.metrics

    def duels(**more: Any) -> tuple[list[float], dict[str, Any]]:
        found = store.run(score_duels, pairs=pairs, prompt=PAIR, symmetrize=True, **about, **more)
        return np.concatenate(whole(found)["probabilities"].to_pylist()).tolist(), found.metrics

    report: dict[str, Any] = {"plain": scores(candidates), "plain_duels": duels()}
    fails.write_text("3")  # three prompts fail at first
    report["vllm"] = scores(candidates, engine="vllm")
    report["duels"] = duels(engine="vllm")
    books = [Book(store.root / "scores" / name) for name in (store.root / "scores").folders()]
    report["books"] = sorted((book.about().get("engine", ""), book.rows()) for book in books)
    return report


if __name__ == "__main__":
    print("REPORT " + json.dumps(main(*sys.argv[1:])))
