"""A toy run that lasts long enough to be killed in the middle of: shared by the tests that do so."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

from tests.conftest import write_config
from tests.worlds import FILLER, SUBJECTS


def bigger_collection(folder: Path, passages: int = 1000) -> None:
    """The toy collection's words in more passages: work that lasts long enough to be killed in the middle of."""
    draw = random.Random(1)
    subjects = list(SUBJECTS)
    (folder / "qrels").mkdir(parents=True)
    with (folder / "corpus.jsonl").open("w") as stream:
        for number in range(passages):
            words = draw.choices(SUBJECTS[subjects[number % 12]], k=4) + draw.choices(FILLER, k=draw.randrange(4, 24))
            stream.write(json.dumps({"_id": f"d{number}", "text": f"{' '.join(words)} {number}"}) + "\n")
    with (folder / "queries.jsonl").open("w") as stream:
        for number in range(60):
            text = f"{' '.join(draw.sample(SUBJECTS[subjects[number % 12]], 2))} {number}"
            stream.write(json.dumps({"_id": f"q{number}", "text": text}) + "\n")
    for split, rows in (("train", range(24)), ("dev", range(24, 36)), ("test", range(36, 60))):
        lines = [f"q{n}\td{n % 12}\t1" for n in rows]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")


def long_config(home: Path, toy: Path, toy_config: dict[str, Any], **data: Any) -> str:
    """A config file below `home` over a bigger collection: a slow random reranker, small shards, a checkpoint each step."""
    bigger_collection(home / "data", **data)
    values = copy.deepcopy(toy_config)
    values["data"] = {"path": str(home / "data")}
    values["teacher"]["model"] = str(toy / "reranker")
    values["preflight"] = "off"  # a random reranker: slow enough to be killed, and worth nothing
    values["queries"] = {"count": 600, "sentences": 1}
    values["candidates"] = {"sources": ["student"], "depth": 10}
    train = {"learning_rate": 1.0e-3, "train_batch_size": 8, "max_steps": 25, "dropout": 0.1}
    values["curriculum"] = [{"lists": {"graded": 4, "hard": 0, "rest": 4}, "train": train}]
    values["evaluation"] = {"samples": 100, "dev_passages": 30, "dev_queries": 5, "depth": 10}
    values["resources"] = {"ray": "off", "train_workers": 0, "rows_per_shard": 10, "save_seconds": 0}
    return write_config(home / "toy.yaml", values)
