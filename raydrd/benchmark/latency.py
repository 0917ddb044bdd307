"""How long a query takes: python jobs/latency.py RUN [RUN ...] [--queries N] [-k K] [--rounds N] [--out FILE.json]

Each run's model and index are opened once, as `raydrd search` opens them; then test queries are asked one by one on one thread,
the runs in turn, round by round. Encoding (text to vectors) and finding (vectors to the k best passages) are timed apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raydrd.asking import Retriever, open_run
from raydrd.errors import InputError
from raydrd.rounds import alternate
from raydrd.spine.storage import Folder
from raydrd.stages.recall import one_thread


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a Markdown table; 2 when a run is none."""
    parser = argparse.ArgumentParser(
        prog="jobs/latency.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a finished run")
    parser.add_argument("--queries", type=int, default=50, help="test queries that are asked (default: %(default)s)")
    parser.add_argument("-k", type=int, default=100, help="passages asked for (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="times that each run is asked all of them (default: %(default)s)")
    parser.add_argument("--out", metavar="FILE", help="where the numbers are written as JSON, too")
    options = parser.parse_args(argv)
    try:
        found = measured(options.runs, queries=options.queries, k=options.k, rounds=options.rounds)
    except InputError as error:
        print(f"latency: {error}", file=sys.stderr)
        return 2
    if options.out:
        Path(options.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(markdown(found))
    return 0


def measured(runs: Sequence[str], *, queries: int, k: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each run: its form, bytes a passage, and milliseconds a query of encoding and of finding, medians over rounds.

    Raises:
        InputError: a folder that holds no finished run, one named twice, or counts below 1.
    """
    if min(queries, k, rounds) < 1:
        raise InputError("--queries, -k and --rounds: write 1 or more")
    if len(set(runs)) < len(runs):
        raise InputError("a run is named twice; write each folder once")
    opened = {run: open_run(run) for run in runs}
    texts = {run: asked(Folder.of(run), queries) for run in runs}
    with one_thread():
        vectors = {run: [one.encode(text) for text in texts[run]] for run, one in opened.items()}
        encoding = alternate({run: _encoding(one, texts[run]) for run, one in opened.items()}, rounds)
        finding = alternate({run: _finding(one, vectors[run], k) for run, one in opened.items()}, rounds)
    return [
        {
            "run": run, "kind": one.meta["kind"], "passages": one.meta["passages"], "queries": len(texts[run]), "k": k,
            "bytes_a_passage": round(1e6 * float(one.meta["size_mb"]) / max(1, int(one.meta["passages"])), 1),
            "encoding_ms": 1e3 * statistics.median(encoding.seconds[run]) / len(texts[run]),
            "finding_ms": 1e3 * statistics.median(finding.seconds[run]) / len(texts[run]),
        }
        for run, one in opened.items()
    ]  # fmt: skip


def asked(run: Folder, count: int) -> list[str]:
    """Texts of so many test queries of a run, evenly spread.

    Raises:
        InputError: the run tells no queries.
    """
    if not run.exists("per_query.parquet"):
        raise InputError(f"{run}: no per_query.parquet here; write the folder of a finished run, for example runs/quickstart")
    texts: list[str] = list(dict.fromkeys(run.read_table("per_query.parquet")["query"].to_pylist()))
    step = max(1, len(texts) // count)
    return texts[::step][:count]


def _encoding(one: Retriever, texts: list[str]) -> Any:
    return lambda: [one.encode(text) for text in texts]


def _finding(one: Retriever, vectors: list[Any], k: int) -> Any:
    return lambda: [one.find(vector, k) for vector in vectors]


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    lines = ["| run | bytes a passage | encoding, ms a query | finding | together |", "|---|---|---|---|---|"]
    for row in rows:
        times = (row["encoding_ms"], row["finding_ms"], row["encoding_ms"] + row["finding_ms"])
        lines.append(f"| {row['run']} | {row['bytes_a_passage']:,.0f} | {' | '.join(f'{ms:.1f}' for ms in times)} |")
    return "\n".join([*lines, "", f"{rows[0]['queries']} queries one by one on one thread, {rows[0]['k']} passages asked for"])
